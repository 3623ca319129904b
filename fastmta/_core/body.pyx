# cython: boundscheck=False, wraparound=False
"""What is asked of a body as a whole: a copy, its lines, what stands in the way of sending."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.string cimport memcpy

from fastmta._core.scan cimport before_line_end, next_line, octets

# Above this many octets the work lets other threads run.
cdef Py_ssize_t RELEASE = 1 << 14


def slice_of(bytes data, Py_ssize_t start, Py_ssize_t end):
    """data[start:end]; a long one is copied while other threads run."""
    start = max(0, min(start, len(data)))
    end = max(start, min(end, len(data)))
    if end - start < RELEASE:
        return data[start:end]
    cdef bytes result = PyBytes_FromStringAndSize(NULL, end - start)
    cdef octets source = <octets>PyBytes_AS_STRING(data)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(result)
    with nogil:
        memcpy(out, source + start, end - start)
    return result


def count_lines(bytes data, Py_ssize_t start, Py_ssize_t end):
    """How many lines data[start:end] has, a last one without its line end included."""
    cdef octets source = <octets>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at = max(0, start), stop = min(end, len(data)), count = 0
    with nogil:
        while at < stop:
            at = next_line(source, at, stop)
            count += 1
    return count


def octet_counts(bytes data, Py_ssize_t start=0, Py_ssize_t end=PY_SSIZE_T_MAX):
    """Of data[start:end]: octets above 127, NULs with CRs and LFs that stand alone, longest line.

    These are what keeps a body from being sent as it is (RFC 2045 section 2.7, RFC 6152).
    """
    cdef octets source = <octets>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at = max(0, start), high = 0, broken = 0, longest = 0, line, i
    cdef unsigned char c
    end = min(end, len(data))
    with nogil:
        while at < end:
            line = next_line(source, at, end)
            for i in range(at, line):
                c = source[i]
                high += c >> 7
                broken += c == 0
                broken += c == c"\r" and not (i + 1 < end and source[i + 1] == c"\n")
                broken += c == c"\n" and not (i > at and source[i - 1] == c"\r")
            longest = max(longest, before_line_end(source, at, line) - at)
            at = line
    return high, broken, longest
