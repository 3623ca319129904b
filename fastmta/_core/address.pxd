cdef const unsigned char* mailbox_end(
    const unsigned char* at, const unsigned char* end) noexcept nogil
cdef const unsigned char* domain_end(
    const unsigned char* at, const unsigned char* end) noexcept nogil
