# cython: boundscheck=False, wraparound=False
"""The canonical forms of DKIM (RFC 6376 section 3.4): bodies by the piece, fields in place.

Only CRLF ends a line; a CR or LF that stands alone is an octet like any other.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy

from fastmta._core.headers cimport field_t, read_field
from fastmta._core.scan cimport after_empty_line, equal_fold, is_wsp, lower, octets

from hashlib import sha256


cdef enum:
    ROOM = 32768  # octets of canonical form that are hashed at a time
    MOST_FIELDS = 1000  # of a header section that is signed


@cython.final
cdef class BodyHash:
    """The SHA-256 of a body in canonical form (sections 3.4.3 and 3.4.4), fed in any pieces.

    Line ends are held back until something follows them: those at the end of a body do not count.
    """

    cdef readonly bint relaxed
    cdef object hash, update
    cdef Py_ssize_t line_ends  # held back
    cdef bint cr  # behind them came a CR, which may be half of the next
    cdef bint space  # white space in the line, which counts if more of it follows
    cdef bint in_line  # the line has octets already
    cdef bint is_empty  # nothing was hashed yet
    cdef char* out
    cdef Py_ssize_t used, room
    cdef bytes digested

    def __init__(self, bint relaxed):
        self.relaxed = relaxed
        self.hash = sha256()
        self.update = self.hash.update
        self.is_empty = True

    def feed(self, bytes piece not None, Py_ssize_t start=0):
        """The next octets of the body: those of `piece` from `start` on."""
        cdef const char* at = PyBytes_AS_STRING(piece) + start
        cdef const char* end = PyBytes_AS_STRING(piece) + len(piece)
        if at >= end:
            return
        if self.relaxed:
            self.room = min(end - at + 8, ROOM)
            self.out = <char*>malloc(self.room)
            if self.out == NULL:
                raise MemoryError
            try:
                self._relax(at, end)
                self._flush()
            finally:
                free(self.out)
        else:
            self._keep(at, end)

    def digest(self):
        """The hash, when all of the body has come."""
        if self.digested is None:
            self._finish()
            self.digested = self.hash.digest()
        return self.digested

    cdef int _finish(self) except -1:
        if self.cr:  # a last octet like any other
            self._release()
            if self.space:
                self.update(b" ")
            self.update(b"\r")
        # Section 3.4.3: a body without octets is one CRLF; section 3.4.4: it is nothing.
        if not (self.relaxed and self.is_empty):
            self.update(b"\r\n")
        return 0

    cdef int _release(self) except -1:
        """Something follows the line ends that were held back: they count."""
        cdef Py_ssize_t count
        while self.line_ends:
            count = min(self.line_ends, 1024)
            self.update(b"\r\n" * count)
            self.line_ends -= count
        self.is_empty = False
        return 0

    # Simple: the octets as they are, hashed where they lie.

    cdef int _keep(self, const char* at, const char* end) except -1:
        at = self._lead(at, end)
        if at == end:
            return 0
        self._release()
        if self.cr:
            self.update(b"\r")
            self.cr = False
        cdef const char* stop = end
        if (stop - 1)[0] == c"\r":
            self.cr = True
            stop -= 1
        while stop - at >= 2 and (stop - 1)[0] == c"\n" and (stop - 2)[0] == c"\r":
            self.line_ends += 1
            stop -= 2
        return self._hash(at, stop - at)

    cdef const char* _lead(self, const char* at, const char* end) noexcept:
        """Pass over the line ends that `at` begins with."""
        while at < end:
            if self.cr and at[0] == c"\n":
                self.cr = False
                self.line_ends += 1
            elif not self.cr and at[0] == c"\r":
                self.cr = True
            else:
                break
            at += 1
        return at

    cdef int _hash(self, const char* at, Py_ssize_t count) except -1:
        if count:
            self.update(PyMemoryView_FromMemory(<char*>at, count, PyBUF_READ))
        return 0

    # Relaxed: through a buffer, whole lines at a time where nothing in them changes.

    cdef int _relax(self, const char* at, const char* end) except -1:
        cdef const char* feed
        while at < end:
            if not (self.in_line or self.space or self.cr):
                feed = <const char*>memchr(at, c"\n", end - at)
                if feed != NULL and is_plain(at, feed):
                    self._put(at, feed - 1 - at)
                    self.line_ends = 1
                    at = feed + 1
                    continue
            at = self._rest_of_line(at, end)
        return 0

    cdef const char* _rest_of_line(self, const char* at, const char* end) except NULL:
        """Octet by octet, up to and with the next CRLF."""
        cdef char octet
        while at < end:
            octet = at[0]
            at += 1
            if self.cr:
                self.cr = False
                if octet == c"\n":
                    self.line_ends += 1
                    self.space = self.in_line = False
                    return at
                self._text(c"\r")
            if octet == c"\r":
                self.cr = True
            elif is_wsp(octet):
                self.space = True
            else:
                self._text(octet)
        return at

    cdef int _text(self, char octet) except -1:
        """An octet that is no white space, with what was held back before it."""
        cdef char[2] both
        both[0] = c" "
        both[1] = octet
        if self.space:
            self._put(both, 2)
        else:
            self._put(both + 1, 1)
        self.space = False
        self.in_line = True
        return 0

    cdef int _put(self, const char* text, Py_ssize_t count) except -1:
        """Into the buffer, or past it where it is too small; the line ends before that first."""
        if self.line_ends == 1 and self.used + 2 <= self.room:
            memcpy(self.out + self.used, b"\r\n", 2)
            self.used += 2
            self.line_ends = 0
        elif self.line_ends:
            self._flush()
            self._release()
        self.is_empty = False
        if self.used + count > self.room:
            self._flush()
        if count > self.room:
            return self._hash(text, count)
        memcpy(self.out + self.used, text, count)
        self.used += count
        return 0

    cdef int _flush(self) except -1:
        self._hash(self.out, self.used)
        self.used = 0
        return 0


cdef bint is_plain(const char* line, const char* feed) noexcept nogil:
    """Whether the line that this LF ends has octets, a CRLF and no white space that changes."""
    cdef Py_ssize_t i, count = feed - 1 - line
    cdef char changes = 0
    if count <= 0 or (feed - 1)[0] != c"\r" or is_wsp(line[count - 1]):
        return False
    for i in range(count - 1):
        changes |= line[i] == c"\t"
        changes |= (line[i] == c" ") & ((line[i + 1] == c" ") | (line[i + 1] == c"\t"))
    return not changes


@cython.final
cdef class IncomingBody:
    """Hashes the body of a message as it comes in.

    `choose` is given the header section when that is whole, and says which forms of the body are
    wanted: True for relaxed, False for simple. Where none is, the rest costs nothing.
    """

    cdef object choose
    cdef bytearray head
    cdef int matched  # octets of CRLF CRLF; behind 4 the body begins
    cdef tuple hashes

    def __init__(self, choose):
        self.choose = choose
        self.head = bytearray()
        self.matched = 2  # a message may begin with the empty line
        self.hashes = ()

    cpdef feed(self, bytes piece):
        """The next octets of the message."""
        cdef Py_ssize_t start = 0
        cdef BodyHash each
        if self.matched < 4:
            start = self._body_start(PyBytes_AS_STRING(piece), len(piece))
            self.head += piece if start == len(piece) else piece[:start]
            if self.matched == 4:
                self._begin()
        for each in self.hashes:
            each.feed(piece, start)

    def digest(self, bint relaxed):
        """The hash of the body, when all of it has come; None where `choose` did not want it."""
        cdef BodyHash each
        if self.matched < 4:  # a header section and nothing behind it
            self._begin()
        for each in self.hashes:
            if each.relaxed == relaxed:
                return each.digest()
        return None

    cdef Py_ssize_t _body_start(self, const char* data, Py_ssize_t count) noexcept:
        cdef Py_ssize_t at = 0
        cdef const char* found
        while at < count and self.matched < 4:
            if self.matched == 0:
                found = <const char*>memchr(data + at, c"\r", count - at)
                if found == NULL:
                    return count
                at = found - data
            if data[at] == c"\r":
                self.matched = 3 if self.matched == 2 else 1
            elif data[at] == c"\n" and self.matched & 1:
                self.matched += 1
            else:
                self.matched = 0
            at += 1
        return at

    cdef int _begin(self) except -1:
        self.matched = 4
        self.hashes = tuple([BodyHash(relaxed) for relaxed in self.choose(bytes(self.head))])
        self.head = None


def canonical_field(bytes data not None, Py_ssize_t start, Py_ssize_t end, bint relaxed):
    """data[start:end], one header field, in canonical form with CRLF (3.4.1 and 3.4.2)."""
    cdef field_t field
    cdef octets source = <octets>PyBytes_AS_STRING(data)
    start, end = max(start, 0), min(end, len(data))
    if not read_field(source, start, end, &field):
        return b""
    return field_form(source, &field, start, relaxed)


cdef bytes field_form(octets data, field_t* field, Py_ssize_t start, bint relaxed):
    cdef Py_ssize_t length = field.next - start
    # The colon is there already; a CRLF may have to be put behind the last field of all.
    cdef bytes result = PyBytes_FromStringAndSize(NULL, length + 3)
    cdef char* out = PyBytes_AS_STRING(result)
    if relaxed:
        length = relaxed_form(data, field, <unsigned char*>out)
    else:
        length = field.value_end - start
        memcpy(out, data + start, length)
    out[length] = c"\r"
    out[length + 1] = c"\n"
    return result[:length + 2]


cdef Py_ssize_t relaxed_form(octets data, field_t* field, unsigned char* out) noexcept nogil:
    """Name in lower case, colon, value unfolded with single spaces; gives its length."""
    cdef Py_ssize_t at, length = 0, value
    cdef bint space = False
    for at in range(field.name_start, field.name_end):
        out[length] = lower(data[at])
        length += 1
    out[length] = c":"
    length += 1
    value = length
    at = field.value_start
    while at < field.value_end:
        if is_wsp(data[at]):
            space = True
        elif data[at] == c"\r" and at + 1 < field.value_end and data[at + 1] == c"\n":
            at += 1  # a fold; white space follows
        else:
            if space and length > value:
                out[length] = c" "
                length += 1
            space = False
            out[length] = data[at]
            length += 1
        at += 1
    return length


@cython.final
cdef class SignedFields:
    """Which header fields a signature covers (RFC 6376 section 5.4): names in lower case."""

    cdef list names

    def __init__(self, names):
        self.names = list(names)

    def select(self, bytes head not None, Py_ssize_t end, bint relaxed):
        """How many fields there are of each name, and their canonical form as h= has them.

        Of several with one name the last comes first (section 5.4.2). None for a header section
        that is none: with a line that is no field (section 3.8), or with too many fields.
        """
        cdef octets data = <octets>PyBytes_AS_STRING(head)
        cdef Py_ssize_t at = 0, stop = min(end, len(head)), i, fields = 0
        cdef field_t field
        cdef list found = [None] * len(self.names), forms = []
        while at < stop and after_empty_line(data, at, stop) < 0:
            fields += 1
            read_field(data, at, stop, &field)
            if field.name_end == field.name_start or fields > MOST_FIELDS:
                return None
            i = self._index(data, &field)
            if i >= 0:
                if found[i] is None:
                    found[i] = []
                (<list>found[i]).append(field_form(data, &field, at, relaxed))
            at = field.next
        for each in found:
            if each is not None:
                forms += reversed(<list>each)
        return tuple([0 if each is None else len(<list>each) for each in found]), b"".join(forms)

    cdef Py_ssize_t _index(self, octets data, field_t* field) noexcept:
        cdef Py_ssize_t i
        cdef bytes name
        for i in range(len(self.names)):
            name = <bytes>self.names[i]
            if equal_fold(
                data, field.name_start, field.name_end, PyBytes_AS_STRING(name), len(name)
            ):
                return i
        return -1
