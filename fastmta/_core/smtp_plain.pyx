# cython: boundscheck=False, wraparound=False
"""MAIL, RCPT and DATA (RFC 5321 section 4.1.1) in the forms that nearly all clients give them.

Each takes one line off the buffer, or leaves it there: what is not plain is for who reads line by
line, with other parameters, quirks or mistakes. So a plain line is one that he would take too.
"""

from cpython.unicode cimport PyUnicode_DecodeASCII

from fastmta._core.address cimport mailbox_end
from fastmta._core.lines cimport LineBuffer

cdef enum:
    MAX_PATH = 1024  # as in smtp.pyx
    MOST_DIGITS = 18  # of a size


cpdef tuple plain_mail(LineBuffer lines, Py_ssize_t max_size):
    """(reverse-path, declared size, whether BODY=8BITMIME is declared), or None.

    `max_size`: octets beyond which a declared size is not plain.
    """
    cdef const unsigned char* start = first(lines)
    cdef const unsigned char* end = start + held(lines)
    cdef const unsigned char* at = behind(start, end, b"mail from:<")
    cdef const unsigned char* path = at
    cdef const unsigned char* stop
    cdef Py_ssize_t size = -1
    cdef int body = 0
    if at == NULL:
        return None
    if at < end and at[0] != c">":
        at = address_end(at, end)
    if at == NULL or at == end:
        return None
    stop = at
    at += 1
    while at < end and at[0] == c" ":
        if size < 0 and (value := behind(at, end, b" size=")) != NULL:
            at = number_end(value, end, &size)
        elif not body and (value := behind(at, end, b" body=8bitmime")) != NULL:
            at = value
            body = 8
        elif not body and (value := behind(at, end, b" body=7bit")) != NULL:
            at = value
            body = 7
        else:
            return None
    if size > max_size or not take_line(lines, start, at, end):
        return None
    return text_of(path, stop), max(size, 0), body == 8


cpdef str plain_rcpt(LineBuffer lines):
    """A forward-path without parameters, or None."""
    cdef const unsigned char* start = first(lines)
    cdef const unsigned char* end = start + held(lines)
    cdef const unsigned char* path = behind(start, end, b"rcpt to:<")
    cdef const unsigned char* stop
    if path == NULL:
        return None
    stop = address_end(path, end)
    if stop == NULL or not take_line(lines, start, stop + 1, end):
        return None
    return text_of(path, stop)


cpdef bint plain_data(LineBuffer lines):
    """Whether DATA is all that waits: nothing may be sent behind it (RFC 2920 section 3.1)."""
    cdef const unsigned char* start = first(lines)
    cdef const unsigned char* end = start + held(lines)
    if end - start != 6 or behind(start, end, b"data\r\n") == NULL:
        return False
    return take_line(lines, start, start + 4, end)


cdef inline const unsigned char* first(LineBuffer lines) noexcept:
    return <const unsigned char*>lines.data + lines.at


cdef inline Py_ssize_t held(LineBuffer lines) noexcept:
    """How much waits; nothing while the rest of a line that is too long is dropped."""
    return 0 if lines.skipping else len(lines.data) - lines.at


cdef const unsigned char* behind(const unsigned char* at, const unsigned char* end,
                                 const char* word) noexcept nogil:
    """What follows this word, which is given in lower case and stands there in any; else NULL."""
    while word[0]:
        if at == end or not (at[0] == word[0] or c"a" <= word[0] <= c"z" and at[0] == word[0] - 32):
            return NULL
        at += 1
        word += 1
    return at


cdef const unsigned char* address_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """The ">" behind an address in ASCII, or NULL."""
    cdef const unsigned char* start = at
    cdef const unsigned char* stop = mailbox_end(at, end)
    if stop == NULL or stop == end or stop[0] != c">" or stop - start > MAX_PATH:
        return NULL
    while at < stop:
        if at[0] > 126:
            return NULL
        at += 1
    return stop


cdef const unsigned char* number_end(const unsigned char* at, const unsigned char* end,
                                     Py_ssize_t* number) noexcept nogil:
    """Behind the digits, as many as surely fit; without any it is not plain by what follows."""
    cdef const unsigned char* start = at
    cdef Py_ssize_t sum = 0
    while at < end and at - start < MOST_DIGITS and c"0" <= at[0] <= c"9":
        sum = sum * 10 + at[0] - 48
        at += 1
    if at > start:
        number[0] = sum
        return at
    return end


cdef bint take_line(LineBuffer lines, const unsigned char* start, const unsigned char* at,
                    const unsigned char* end) noexcept:
    """Take the line off that ends here, if one does and it is no longer than it may be."""
    if end - at < 2 or at[0] != c"\r" or at[1] != c"\n" or at + 2 - start > lines.limit:
        return False
    lines.at += at + 2 - start
    return True


cdef inline str text_of(const unsigned char* at, const unsigned char* stop):
    return PyUnicode_DecodeASCII(<const char*>at, stop - at, NULL)
