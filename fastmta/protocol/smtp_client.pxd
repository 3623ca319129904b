from fastmta.protocol.smtp_reply cimport ReplyReader


cdef class Client:
    cdef readonly bint closed
    cdef readonly int answers
    cdef readonly object capabilities, reason
    cdef readonly list replies
    cdef bint _body_due, _implicit, _is_passed_on, _lmtp, _open
    cdef int _accepted, _next
    cdef list _body, _events, _output
    cdef object _expected, _stuffer, _tls, _unframed, _unsent
    cdef str _host, _hostname
    cdef ReplyReader _reader

    cpdef bytes take_output(self)
    cpdef list receive(self, bytes data)
    cpdef _on_reply(self, reply)
    cpdef _send(self, step, str command)
    cpdef _send_group(self, str mail, list recipients)
    cpdef _advance(self)
    cpdef _answer_rest(self, reply)
    cpdef _finish(self, bint reset)
