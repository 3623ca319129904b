# cython: boundscheck=False, wraparound=False
"""A buffer of received octets that gives out lines and counted runs of octets."""

cimport cython
from libc.string cimport memchr


cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX


class LineTooLong(ValueError):
    """A line is longer than the limit; it is dropped up to its CRLF."""


class BareLineFeed(ValueError):
    """A line ended in LF without CR (RFC 5321 section 2.3.8 forbids it); it is dropped."""


@cython.final
@cython.no_gc
cdef class LineBuffer:
    """Octets in through `feed`; out through `next_line` and `take`, in order.

    `limit` is the longest line with its CRLF, in octets. What waits is at most what was fed and
    not yet taken: whoever feeds decides how much that may be.
    """

    def __init__(self, Py_ssize_t limit):
        self.data = b""
        self.at = 0
        self.limit = limit
        self.skipping = False

    def __len__(self):
        return len(self.data) - self.at

    cpdef feed(self, bytes data):
        """Add octets behind those that wait."""
        if self.at < len(self.data):
            data = self.data[self.at:] + data
        self.data = data
        self.at = 0

    cpdef bytes next_line(self):
        """The next line without its CRLF, or None while it is not whole."""
        if self.skipping and not self._skip():
            return None
        cdef const char* start = <const char*>self.data + self.at
        cdef Py_ssize_t held = len(self.data) - self.at
        # Not beyond the limit: what a line is must not depend on how much of it came at a time.
        cdef const char* feed = <const char*>memchr(start, c"\n", min(held, self.limit + 1))
        if feed == NULL:
            if held > self.limit:
                self._too_long()
            return None
        cdef Py_ssize_t length = feed - start
        if length == 0 or start[length - 1] != c"\r":
            self.at += length + 1
            raise BareLineFeed
        if length >= self.limit:
            self._too_long()
        self.at += length + 1
        return start[:length - 1]

    cpdef bytes take(self, Py_ssize_t count=PY_SSIZE_T_MAX):
        """Up to `count` octets, all that wait at most, without looking at them."""
        cdef Py_ssize_t held = len(self.data) - self.at
        cdef bytes taken = self.data
        if count < 0:
            count = 0
        if self.at or count < held:
            held = min(count, held)
            taken = taken[self.at:self.at + held]
        self.at += held
        if self.at == len(self.data):
            self.clear()
        return taken

    cpdef clear(self):
        """Forget what waits."""
        self.data = b""
        self.at = 0
        self.skipping = False

    cdef int _too_long(self) except -1:
        self.skipping = True
        self._skip()
        raise LineTooLong

    cdef bint _skip(self) except -1:
        """Drop up to the next CRLF; a LF alone does not end even a line that is dropped."""
        cdef Py_ssize_t end = self.data.find(b"\r\n", self.at)
        if end >= 0:
            self.at = end + 2
            self.skipping = False
            return True
        self.at = len(self.data)
        if self.at and self.data[self.at - 1] == c"\r":
            self.at -= 1
        return False
