"""Octets that grow at the end, and numbers that do, in memory of C."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport abort, free, realloc
from libc.string cimport memmove, strlen


cdef extern from "<string.h>" nogil:
    void *memmem(const void *, size_t, const void *, size_t)


cdef struct Octets:
    char *data
    size_t length
    size_t room


cdef struct Numbers:
    uint64_t *at
    size_t count
    size_t room


cdef struct Seconds:
    double *at
    size_t count
    size_t room


cdef inline void *grown(void *data, size_t *room, size_t needed, size_t size) noexcept nogil:
    """The same memory with room for twice what is needed, counted in things of this size."""
    room[0] = 2 * needed + 32
    data = realloc(data, room[0] * size)
    if data == NULL:
        abort()
    return data


cdef inline void append(Octets *it, const char *data, size_t length) noexcept nogil:
    """`data` may lie in `it`, if all of it has room there already."""
    if it.length + length > it.room:
        it.data = <char *> grown(it.data, &it.room, it.length + length, 1)
    memmove(it.data + it.length, data, length)
    it.length += length


cdef inline void append_text(Octets *it, const char *text) noexcept nogil:
    append(it, text, strlen(text))


cdef inline void append_number(Octets *it, uint64_t number, int digits) noexcept nogil:
    """In decimal, with zeros in front up to so many digits."""
    cdef char[20] text
    cdef int at = 20
    while number or at > 20 - digits:
        at -= 1
        text[at] = <char> (c"0" + number % 10)
        number //= 10
    append(it, text + at, 20 - at)


cdef inline void drop(Octets *it, size_t count) noexcept nogil:
    """Forget the first ones."""
    it.length -= count
    memmove(it.data, it.data + count, it.length)


cdef inline void note(Numbers *it, uint64_t number) noexcept nogil:
    if it.count == it.room:
        it.at = <uint64_t *> grown(it.at, &it.room, it.count + 1, sizeof(uint64_t))
    it.at[it.count] = number
    it.count += 1


cdef inline void time(Seconds *it, double seconds) noexcept nogil:
    if it.count == it.room:
        it.at = <double *> grown(it.at, &it.room, it.count + 1, sizeof(double))
    it.at[it.count] = seconds
    it.count += 1


cdef inline const char *find(
    const char *data, size_t length, const char *what, size_t size
) noexcept nogil:
    """Where `what` begins; NULL where it is not."""
    return <const char *> memmem(data, length, what, size)
