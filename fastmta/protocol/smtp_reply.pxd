cdef class ReplyReader:
    cdef readonly list lines
    cdef list _pending
    cdef bytes _tail
    cdef int _code
    cdef str _enhanced

    cpdef feed(self, bytes data)
    cpdef next(self)
    cpdef bint _read(self, bytes line) except -1
    cpdef _reply(self)
