cdef class LineBuffer:
    cdef bytes data
    cdef Py_ssize_t at, limit
    cdef bint skipping

    cpdef feed(self, bytes data)
    cpdef bytes next_line(self)
    cpdef bytes take(self, Py_ssize_t count=*)
    cpdef clear(self)
    cdef int _too_long(self) except -1
    cdef bint _skip(self) except -1
