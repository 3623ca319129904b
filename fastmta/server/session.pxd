cdef class Session:
    cdef public object sessions, transport
    cdef public int _hold
    cdef public str client
    cdef public double since
