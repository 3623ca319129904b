cdef class Pace:
    cdef public int delivered, deferred, failed, lately
    cdef public double delivered_rate, deferred_rate, usual
    cdef double _swept

    cpdef double now(self, double now) except -1
