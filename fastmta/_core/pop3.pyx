# cython: boundscheck=False, wraparound=False
"""Lines of POP3: commands and their arguments, scan listings, and what TOP shows (RFC 1939)."""

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memchr

from fastmta._core.output cimport cut_bytes, new_bytes, start_of


(
    UNKNOWN, MALFORMED, USER, PASS, APOP, AUTH, STAT, LIST, RETR, DELE, NOOP, RSET, TOP, UIDL,
    CAPA, STLS, UTF8, LANG, QUIT,
) = range(19)

cdef enum:
    C_UNKNOWN = 0
    C_MALFORMED = 1
    C_PASS = 3
    C_TOP = 12
    MOST_DIGITS = 18  # that 64 bits hold whatever they are; no message has such a number
    NUMBER_ROOM = 22  # octets: a number of 64 bits and CRLF

LARGEST = (1 << 63) - 1

# The four letters in lower case, as one number each, in the order of the codes from USER on.
cdef unsigned int[17] FOUR_LETTERS
for _i, _name in enumerate(
        b"user pass apop auth stat list retr dele noop rset top\0 uidl capa stls utf8 lang quit"
        .split(b" ")):
    FOUR_LETTERS[_i] = _name[0] << 24 | _name[1] << 16 | _name[2] << 8 | _name[3]


def parse_command(bytes line not None):
    """The keyword's code and its argument (RFC 1939 section 3, RFC 2449 section 3).

    Spaces around an argument go, but of PASS only the one before it: a password may have others
    (RFC 1939 section 7). A line with a control is MALFORMED.
    """
    cdef const unsigned char* at = line
    cdef const unsigned char* end = at + len(line)
    cdef const unsigned char* start = at
    if has_control(at, end):
        return C_MALFORMED, b""
    while at < end and at[0] != c" ":
        at += 1
    cdef int code = code_of(start, at - start)
    if code == C_PASS:
        at += at < end
        return code, at[:end - at]
    while at < end and at[0] == c" ":
        at += 1
    while end > at and (end - 1)[0] == c" ":
        end -= 1
    return code, at[:end - at]


cdef bint has_control(const unsigned char* at, const unsigned char* end) noexcept nogil:
    while at < end:
        if at[0] < 32 or at[0] == 127:
            return True
        at += 1
    return False


cdef int code_of(const unsigned char* word, Py_ssize_t length) noexcept nogil:
    cdef unsigned int letters
    cdef int i
    if length == 3:  # the only one that has no four letters
        letters = (word[0] | 32) << 16 | (word[1] | 32) << 8 | (word[2] | 32)
        return C_TOP if letters == FOUR_LETTERS[C_TOP - 2] >> 8 else C_UNKNOWN
    if length != 4:
        return C_UNKNOWN
    letters = (<unsigned int>(word[0] | 32) << 24 | (word[1] | 32) << 16 | (word[2] | 32) << 8
               | (word[3] | 32))
    for i in range(17):
        if FOUR_LETTERS[i] == letters:
            return i + 2
    return C_UNKNOWN


def parse_numbers(bytes argument not None):
    """The numbers of an argument: digits alone, with spaces between them (RFC 1939 section 5).

    ValueError for a sign or anything else. What has more than 18 digits is the largest number.
    """
    cdef const unsigned char* at = argument
    cdef const unsigned char* end = at + len(argument)
    cdef list numbers = []
    while at < end:
        if at[0] == c" ":
            at += 1
        else:
            numbers.append(number(&at, end))
    return numbers


cdef object number(const unsigned char** place, const unsigned char* end):
    """The digits up to a space; `place` is behind them then."""
    cdef const unsigned char* at = place[0]
    cdef uint64_t value = 0
    cdef int digits = 0
    while at < end and at[0] != c" ":
        if not c"0" <= at[0] <= c"9":
            raise ValueError("no number")
        digits += digits > 0 or at[0] != c"0"
        if digits <= MOST_DIGITS:
            value = value * 10 + (at[0] - c"0")
        elif digits > MOST_DIGITS + 1:
            digits = MOST_DIGITS + 1
        at += 1
    place[0] = at
    return value if digits <= MOST_DIGITS else LARGEST


def list_sizes(const uint64_t[::1] sizes, bytearray deleted not None,
               Py_ssize_t first, Py_ssize_t count):
    """Scan listings (RFC 1939 section 5, LIST) of up to `count` messages behind the `first`.

    `first` counts from 0; what is deleted is left out.
    """
    cdef Py_ssize_t last = min(first + count, sizes.shape[0], len(deleted))
    cdef unsigned char* gone = <unsigned char*><char*>deleted
    first = max(0, first)
    raw = new_bytes(max(0, last - first) * 2 * NUMBER_ROOM + 1)
    cdef unsigned char* start = start_of(raw)
    cdef unsigned char* out = start
    cdef Py_ssize_t i
    for i in range(first, last):
        if not gone[i]:
            out = put_number(out, i + 1)
            out[0] = c" "
            out = put_line_end(put_number(out + 1, sizes[i]))
    return cut_bytes(raw, out - start)


def list_ids(uint64_t validity, const unsigned int[::1] uids, bytearray deleted not None,
             Py_ssize_t first, Py_ssize_t count):
    """Unique-id listings (RFC 1939 section 7, UIDL), as `list_sizes` gives sizes.

    An id is the mailbox's validity and the message's number in it, in 16 hexadecimal digits at
    least.
    """
    cdef Py_ssize_t last = min(first + count, uids.shape[0], len(deleted))
    cdef unsigned char* gone = <unsigned char*><char*>deleted
    first = max(0, first)
    raw = new_bytes(max(0, last - first) * (NUMBER_ROOM + 33) + 1)
    cdef unsigned char* start = start_of(raw)
    cdef unsigned char* out = start
    cdef Py_ssize_t i
    for i in range(first, last):
        if not gone[i]:
            out = put_number(out, i + 1)
            out[0] = c" "
            out = put_line_end(put_hex(put_hex(out + 1, validity), uids[i]))
    return cut_bytes(raw, out - start)


cdef inline unsigned char* put_number(unsigned char* out, uint64_t value) noexcept nogil:
    cdef unsigned char[20] digits
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = c"0" + value % 10
        value //= 10
        if not value:
            break
    while i < 20:
        out[0] = digits[i]
        out += 1
        i += 1
    return out


cdef inline unsigned char* put_hex(unsigned char* out, uint64_t value) noexcept nogil:
    cdef int shift = 28 if value >> 32 == 0 else 60
    cdef int digit
    while shift >= 0:
        digit = value >> shift & 15
        out[0] = c"0" + digit if digit < 10 else c"a" + digit - 10
        out += 1
        shift -= 4
    return out


cdef inline unsigned char* put_line_end(unsigned char* out) noexcept nogil:
    out[0] = c"\r"
    out[1] = c"\n"
    return out + 2


@cython.final
@cython.no_gc
cdef class Top:
    """The header of a message, the empty line, and so many lines of the body (RFC 1939 section 7).

    Lines come in through `feed` as they go over the wire: CRLF ends each, dots are stuffed.
    """

    cdef Py_ssize_t left
    cdef bint in_header, empty
    cdef readonly bint is_full  # all that is wanted was there, and the last line is whole

    def __init__(self, Py_ssize_t lines):
        self.left = lines
        self.in_header = True
        self.empty = True
        self.is_full = False

    def feed(self, bytes data not None):
        """What of `data` is wanted."""
        cdef const char* start = data
        cdef const char* at = start
        cdef const char* end = start + len(data)
        cdef const char* feed
        while at < end and not self.is_full:
            feed = <const char*>memchr(at, c"\n", end - at)
            if feed == NULL:
                self.empty = self.empty and end - at == 1 and at[0] == c"\r"
                return data
            self.empty = self.empty and (feed == at or feed == at + 1 and at[0] == c"\r")
            self._line()
            at = feed + 1
        return data if at == end else start[:at - start]

    cdef void _line(self) noexcept:
        if not self.in_header:
            self.left -= 1
        elif self.empty:
            self.in_header = False
        self.is_full = not self.in_header and self.left <= 0
        self.empty = True
