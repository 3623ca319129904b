cdef class LineBuffer:
    cdef bytes data
    cdef Py_ssize_t at, limit
    cdef bint skipping

    cdef int _too_long(self) except -1
    cdef bint _skip(self) except -1
