from fastmta.protocol.smtp_server cimport SmtpServer
from fastmta.server.session cimport Session


cdef class SmtpSession(Session):
    cdef readonly SmtpServer _machine
    cdef readonly Py_ssize_t _octets
    cdef readonly bint _half_closed
    cdef readonly double _delayed_until
    cdef public str tls
    cdef Py_ssize_t _content_octets, _octets_seen, _size
    cdef double _arrived, _content_since
    cdef bint _gone, _settling
    cdef str _id, _peer
    cdef object _asking, _login, _offer, _service

    cpdef _flush(self)
    cpdef _receive(self, arrival)
    cpdef _accept(self, arrival)
    cpdef _complete(self, arrival)
    cpdef bytes _trace(self, arrival)
    cpdef _settled(self, refusal)
    cpdef _go_on(self)
