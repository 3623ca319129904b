from fastmta.protocol.smtp_content cimport ContentReader


cdef class Authenticator(ContentReader):
    pass
