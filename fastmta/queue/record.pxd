cdef class Record:
    cdef object _journal

    cpdef delivered(self, envelope, list ends, str site, str source, dict dsns)
