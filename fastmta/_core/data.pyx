# cython: boundscheck=False, wraparound=False
"""The content of a message on the wire: where it ends, and its dots.

RFC 5321 section 4.5.2: content ends at CRLF "." CRLF and nowhere else, and a line that begins
with a dot carries one more. Whatever about a message costs a look at each octet is found out in
the same pass.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.string cimport memchr, memcpy


cdef extern from "Python.h":
    PyObject* new_bytes "PyBytes_FromStringAndSize"(char*, Py_ssize_t) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject**, Py_ssize_t) except -1
    char* octets_of "PyBytes_AS_STRING"(PyObject*)


cdef enum Place:
    LINE_START  # behind CRLF, or nothing read yet
    TEXT  # inside a line, or behind a LF that stood alone
    CR  # behind a CR
    DOT  # behind a dot that began a line; it is no part of the content
    DOT_CR  # behind that dot and a CR, which is held back
    END  # behind CRLF "." CRLF


NO_FAULT, BARE_NEWLINE, HEADER_TOO_BIG, TOO_BIG, NO_ROOM = range(5)  # the gravest first

cdef enum:
    C_BARE_NEWLINE = 1
    C_HEADER_TOO_BIG = 2
    C_TOO_BIG = 3
    C_NO_ROOM = 4
    SMALL = 8192  # a shorter piece is joined with its neighbours
    JOINED = 32768

cdef const char* RECEIVED = b"received:"
cdef enum:
    RECEIVED_LENGTH = 9


cdef bint has_eight_bit(const char* octets, Py_ssize_t count) noexcept nogil:
    cdef char seen = 0
    cdef Py_ssize_t i
    for i in range(count):
        seen |= octets[i]
    return seen & 0x80 != 0


@cython.final
cdef class DataScanner:
    """Content in through `feed`, in whatever pieces; out through `take`, dots unstuffed.

    Counts as it goes: `size` (octets of content), `held` (those that are in memory), `received`
    (Received fields, RFC 5321 section 6.3), `eight_bit` (an octet above 127 was seen). From the
    first `fault` on the content is read to its end but no longer kept.

    `body`, where one is given, is fed the same content as it comes: see _core.dkim.
    """

    cdef readonly Py_ssize_t size, held
    cdef readonly int fault, received
    cdef readonly bint eight_bit
    cdef Py_ssize_t max_size, max_header
    cdef bint normalise, stuffed
    cdef list parts
    cdef bytearray joined
    cdef readonly object body
    # The header block: what the line so far looks like.
    cdef bint in_header, is_field
    cdef Py_ssize_t header_size, line_length
    cdef int matched
    # The octets being read: begin <= kept <= at <= end; what is before `kept` is in `copy`.
    cdef Place place
    cdef const char* begin
    cdef const char* kept
    cdef const char* at
    cdef const char* end
    cdef PyObject* copy
    cdef Py_ssize_t copied

    def __init__(self, Py_ssize_t max_size, Py_ssize_t max_header, bint normalise=False):
        self.max_size = max_size
        self.max_header = max_header
        self.normalise = normalise
        self.joined = bytearray()
        self.start(True)

    def start(self, bint stuffed, body=None):
        """Begin a message: from DATA, with dots `stuffed`; from BDAT without (RFC 3030)."""
        self.body = body
        self.size = self.received = 0
        self.eight_bit = False
        self.stuffed = stuffed
        self.place = LINE_START
        self.in_header = True
        self.header_size = 0
        self._new_line()
        self._forget()
        self.fault = 0

    def feed(self, bytes data not None):
        """Read on; the index in `data` behind the end of data, or -1 where that is not there."""
        self.begin = self.kept = self.at = PyBytes_AS_STRING(data)
        self.end = self.begin + len(data)
        self.copied = 0
        while self.at < self.end and self.place != END:
            self._step()
        if self.place == END:
            self._keep(self._piece(data))
            return self.at - self.begin
        if self.place == DOT_CR:
            self.end = self.kept
        self._keep(self._piece(data))
        return -1

    def finish(self):
        """The message ends here by count and not by a dot (BDAT LAST, RFC 3030 section 2)."""
        if self.place == CR and not self.normalise:
            self.drop(C_BARE_NEWLINE)
        elif self.place == CR:
            self._keep(b"\n")
        self.place = END

    def take(self):
        """The content in order, in pieces; the scanner lets go of it."""
        cdef list parts = self.parts
        if self.joined:
            parts.append(bytes(self.joined))
        self._forget()
        return parts

    cpdef drop(self, int fault):
        """Keep nothing of this message from now on.

        Of its own faults the gravest stays, so that the answer is the same however it came.
        """
        if self.fault == 0 or fault < self.fault != C_NO_ROOM:
            self.fault = fault
        self._forget()

    cdef int _forget(self) except -1:
        self.parts = []
        self.held = 0
        if self.joined:
            self.joined = bytearray()

    cdef int _step(self) except -1:
        if self.place == TEXT:
            return self._text()
        if self.place == LINE_START:
            return self._dot() if self.stuffed and self.at[0] == c"." else self._text()
        if self.place == CR:
            return self._line_feed() if self.at[0] == c"\n" else self._bare(self.at, c"\n")
        if self.place == DOT:
            return self._after_dot()
        return self._after_dot_cr()

    cdef int _text(self) except -1:
        """The rest of a line with its CRLF, or up to a CR or LF that stands alone."""
        cdef const char* start = self.at
        cdef const char* feed = <const char*>memchr(start, c"\n", self.end - start)
        cdef const char* stop = feed if feed != NULL else self.end
        cdef const char* cr = <const char*>memchr(start, c"\r", stop - start)
        if self.in_header:
            self._header_text(start, (cr if cr != NULL else stop) - start)
        if cr == NULL:
            self.at = stop
            self.place = TEXT
            return self._bare(feed, c"\r") if feed != NULL else 0
        self.at = cr + 1
        self.place = CR
        return self._line_feed() if self.at == feed else 0

    cdef int _line_feed(self) except -1:
        """The LF of a CRLF."""
        self.at += 1
        self.place = LINE_START
        return self._header_line() if self.in_header else 0

    cdef int _dot(self) except -1:
        """A dot that begins a line: the end, or one that the client put there."""
        if self.end - self.at >= 3 and self.at[1] == c"\r" and self.at[2] == c"\n":
            self.end = self.at
            self.at += 3
            self.place = END
            return 0
        self._copy_to(self.at)
        self.at += 1
        self.kept = self.at
        self.place = DOT
        return 0

    cdef int _after_dot(self) except -1:
        if self.at[0] == c"\r":
            self.at += 1
            self.place = DOT_CR
        else:
            self.place = TEXT
        return 0

    cdef int _after_dot_cr(self) except -1:
        if self.at[0] == c"\n":
            self.at += 1
            self.end = self.kept
            self.place = END
            return 0
        if self.at == self.begin and self.normalise:
            self._put(c"\r")  # it came with the octets before these
        return self._bare(self.at, c"\n")

    cdef int _bare(self, const char* where, char missing) except -1:
        """A CR or LF stands alone: refuse the message, or put in what is missing.

        The line that begins here is not one that can end the data: place is TEXT.
        """
        if not self.normalise:
            self.drop(C_BARE_NEWLINE)
        else:
            self._copy_to(where)
            self._put(missing)
        if missing == c"\r":
            self.at = where + 1
        self.place = TEXT
        return self._header_line() if self.in_header else 0

    cdef int _copy_to(self, const char* stop) except -1:
        """From here on the content differs from what came: begin a copy, or go on with it."""
        if not self.fault:
            self._room()
            memcpy(octets_of(self.copy) + self.copied, self.kept, stop - self.kept)
            self.copied += stop - self.kept
        self.kept = stop
        return 0

    cdef int _put(self, char octet) except -1:
        if not self.fault:
            self._room()
            octets_of(self.copy)[self.copied] = octet
            self.copied += 1
        return 0

    cdef int _room(self) except -1:
        """Unstuffing makes shorter; normalising makes two octets of one, and of a held CR."""
        if self.copy == NULL:
            self.copy = new_bytes(NULL, (self.end - self.begin) * (1 + self.normalise) + 2)
        return 0

    cdef bytes _piece(self, bytes data):
        """What of `data` is content; `data` itself where it is all of it."""
        cdef bytes piece
        if self.copy == NULL:
            if self.kept == self.begin and self.end == self.begin + len(data):
                return data
            return self.kept[:self.end - self.kept]
        self._copy_to(self.end)
        resize_bytes(&self.copy, self.copied)
        piece = <bytes>self.copy
        Py_DECREF(piece)
        self.copy = NULL
        return piece

    cdef int _keep(self, bytes piece) except -1:
        cdef Py_ssize_t count = len(piece)
        self.size += count
        if self.size > self.max_size:
            self.drop(C_TOO_BIG)
        if self.fault or not count:
            return 0
        self.held += count
        if self.body is not None:
            self.body.feed(piece)
        if not self.eight_bit:
            self.eight_bit = has_eight_bit(piece, count)
        if not self.joined and (count >= SMALL or not self.parts):
            self.parts.append(piece)
            return 0
        self.joined += piece
        if len(self.joined) >= JOINED:
            self.parts.append(bytes(self.joined))
            self.joined = bytearray()
        return 0

    cdef int _header_text(self, const char* text, Py_ssize_t count) except -1:
        cdef Py_ssize_t i = 0
        cdef char octet
        self.header_size += count
        if self.header_size > self.max_header:
            self.in_header = False
            self.drop(C_HEADER_TOO_BIG)
        if self.line_length == 0 and count and text[0] in (c" ", c"\t"):
            self.is_field = True  # continues the field above (RFC 5322 section 2.2.3)
        if not self.is_field:
            self.is_field = memchr(text, c":", count) != NULL
        while i < count and 0 <= self.matched < RECEIVED_LENGTH:
            # The case of letters does not count; the last octet is a colon, and no control is one.
            octet = text[i] | 32 if self.matched < RECEIVED_LENGTH - 1 else text[i]
            self.matched = self.matched + 1 if octet == RECEIVED[self.matched] else -1
            i += 1
        self.line_length += count
        return 0

    cdef int _header_line(self) except -1:
        """A line of the header block ends; an empty one, or one that is no field, ends both."""
        self.header_size += 2
        self.in_header = self.line_length > 0 and self.is_field
        self.received += self.matched == RECEIVED_LENGTH
        self._new_line()
        return 0

    cdef void _new_line(self) noexcept:
        self.line_length = 0
        self.is_field = False
        self.matched = 0


@cython.final
cdef class Stuffer:
    """Content in; what goes over the wire behind DATA out (RFC 5321 section 4.5.2).

    Whatever comes in, no CR or LF alone goes out, and CRLF "." CRLF only from `finish`.
    """

    def __init__(self):
        self.line_start = True
        self.cr = False

    def feed(self, bytes data not None):
        """The next octets for the wire; `data` itself where nothing has to change."""
        cdef bint line_start = self.line_start, cr = self.cr
        cdef Py_ssize_t extra = self._walk(data, len(data), NULL)
        cdef bytes stuffed
        if not extra:
            return data
        stuffed = PyBytes_FromStringAndSize(NULL, len(data) + extra)
        self.line_start = line_start
        self.cr = cr
        self._walk(data, len(data), PyBytes_AS_STRING(stuffed))
        return stuffed

    cpdef bytes finish(self):
        """What ends the data, with a CRLF before it where the content ended without."""
        if self.cr:
            return b"\n.\r\n"
        return b".\r\n" if self.line_start else b"\r\n.\r\n"

    cdef Py_ssize_t _walk(self, const char* at, Py_ssize_t count, char* out) noexcept:
        """How many octets have to be put in; they and `at` are written to `out` unless NULL."""
        cdef const char* end = at + count
        cdef const char* kept = at  # from here on all goes out as it came
        cdef Py_ssize_t extra = 0
        while at < end:
            if self.cr:
                self.cr = False
                self.line_start = True
                if at[0] != c"\n":
                    extra += 1
                    out = put(put_all(out, kept, at - kept), c"\n")
                    kept = at
                else:
                    at += 1
                continue
            if self.line_start and at[0] == c".":
                extra += 1
                out = put(put_all(out, kept, at - kept), c".")
                kept = at
            stop = text_end(at, end)
            self.line_start = self.line_start and stop == at
            at = stop
            if at == end:
                break
            if at[0] == c"\n":
                extra += 1
                out = put(put_all(out, kept, at - kept), c"\r")
                kept = at
                self.line_start = True
                at += 1
            elif at + 1 < end and at[1] == c"\n":
                self.line_start = True
                at += 2
            else:
                self.cr = True
                at += 1
        put_all(out, kept, end - kept)
        return extra


cdef inline const char* text_end(const char* at, const char* end) noexcept nogil:
    """The first CR or LF, or `end`."""
    cdef const char* feed = <const char*>memchr(at, c"\n", end - at)
    cdef const char* stop = feed if feed != NULL else end
    cdef const char* cr = <const char*>memchr(at, c"\r", stop - at)
    return cr if cr != NULL else stop


cdef inline char* put(char* out, char octet) noexcept nogil:
    if out == NULL:
        return NULL
    out[0] = octet
    return out + 1


cdef inline char* put_all(char* out, const char* octets, Py_ssize_t count) noexcept nogil:
    if out == NULL:
        return NULL
    memcpy(out, octets, count)
    return out + count
