from fastmta.protocol.smtp_auth cimport Authenticator


cdef class SmtpServer(Authenticator):
    cdef object _refusal
    cdef public object asks, vet, vet_sender
    cdef public bint trusts_xclient

    cpdef receive(self, bytes data)
    cpdef settle(self, refusal, str id)
    cpdef _run(self)
    cpdef bint _ready(self) except -1
    cpdef bint _transaction(self) except -1
    cpdef bint _command(self) except -1
    cpdef bytes _begin(self, arrival)
    cpdef bytes _open(self, arrival)
    cpdef bytes _consider(self, recipient)
    cpdef bytes _add(self, arrival, recipient)
