from fastmta.protocol.smtp_machine cimport SmtpMachine


cdef class ContentReader(SmtpMachine):
    cpdef bytes _data(self, bytes argument)
    cpdef _start(self, bint stuffed)
    cpdef bint _content(self) except -1
    cpdef bint _chunk(self) except -1
    cpdef _end_of_chunk(self)
    cpdef _end_of_message(self)
