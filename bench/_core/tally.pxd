from libc.stdint cimport uint32_t, uint64_t

from bench._core.octets cimport Octets, Seconds


cdef struct Delivery:
    uint64_t number
    uint64_t recipient  # its hash, never 0; 0: the place is free


cdef struct Tally:
    Delivery *seen  # open addressing; `room` is a power of two
    size_t count
    size_t room
    uint64_t duplicates
    uint64_t corrupt
    Seconds delays


cdef uint64_t hash_of(const char *data, size_t length) noexcept nogil
cdef uint32_t crc32(const char *data, size_t length) noexcept nogil
cdef void count_message(
    Tally *tally, const Octets *framed, const uint64_t *recipients, size_t count, double moment
) noexcept nogil
cdef list distinct(const Tally *tally)
cdef list ordered(const Seconds *seconds)
cdef void forget(Tally *tally) noexcept nogil
