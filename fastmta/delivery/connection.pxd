from fastmta.protocol.smtp_client cimport Client


cdef class Connection:
    cdef readonly Client client
    cdef readonly bint is_local
    cdef readonly str address, label, tls
    cdef readonly object host, opened, _resumed
    cdef public bint falls_back, kept
    cdef public double deadline
    cdef public int messages
    cdef bint _converts, _ended, _implicit
    cdef int _answers
    cdef object _context, _job, _loop, _owner, _policy, _sent, _task, _terms, _transport

    cpdef begin(self, job)
    cpdef _send(self, job)
    cpdef park(self, double seconds)
    cpdef allow(self, double seconds)
    cpdef _act(self, event)
    cpdef _done(self, list replies)
    cpdef _flush(self)
