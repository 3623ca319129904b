cdef class Stuffer:
    cdef bint line_start, cr

    cpdef bytes finish(self)
    cdef Py_ssize_t _walk(self, const char* at, Py_ssize_t count, char* out) noexcept
