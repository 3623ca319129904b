# The smallest steps of reading a message, shared by the parsers beside this file.

from libc.string cimport memchr

ctypedef const unsigned char* octets


cdef inline bint is_wsp(unsigned char c) noexcept nogil:
    """WSP (RFC 5234 appendix B.1)."""
    return c == c" " or c == c"\t"


cdef inline bint is_space(unsigned char c) noexcept nogil:
    """What folding white space is made of, line ends included."""
    return c == c" " or c == c"\t" or c == c"\r" or c == c"\n"


cdef inline unsigned char lower(unsigned char c) noexcept nogil:
    return c + 32 if c"A" <= c <= c"Z" else c


cdef inline Py_ssize_t next_line(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Where the line after the one at `at` begins; `end` where there is none."""
    cdef const void* found = memchr(data + at, c"\n", end - at) if at < end else NULL
    return end if found is NULL else <octets>found - data + 1


cdef inline Py_ssize_t before_line_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """`end`, less the CRLF or LF that stands before it (but not below `at`)."""
    if end > at and data[end - 1] == c"\n":
        end -= 1
        if end > at and data[end - 1] == c"\r":
            end -= 1
    return end


cdef inline Py_ssize_t after_empty_line(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Where the line behind an empty line at `at` begins; -1 if that line is not empty."""
    if at < end and data[at] == c"\n":
        return at + 1
    if at + 1 < end and data[at] == c"\r" and data[at + 1] == c"\n":
        return at + 2
    return -1


cdef inline bint equal_fold(
    octets data, Py_ssize_t start, Py_ssize_t end, const char* name, Py_ssize_t length
) noexcept nogil:
    """Whether data[start:end] is `name`, which is lower case, in any case."""
    cdef Py_ssize_t i
    if end - start != length:
        return False
    for i in range(length):
        if lower(data[start + i]) != <unsigned char>name[i]:
            return False
    return True
