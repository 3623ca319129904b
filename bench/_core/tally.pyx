# cython: boundscheck=False, wraparound=False, cdivision=True
"""What `fastmta.sink.tally.Tally` counts, without the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, qsort, strtod
from libc.string cimport memcpy

from bench._core.octets cimport Octets, Seconds, find, time

from fastmta.sink.tally import NUMBER, SUM, TIME

cdef enum:
    DIGITS = 18  # of a number: more would not fit

cdef bytes _NUMBER = b"\r\n" + NUMBER + b": "
cdef bytes _SUM = b"\r\n" + SUM + b": "
cdef bytes _TIME = b"\r\n" + TIME + b": "


cdef struct Text:
    const char *data
    size_t length


cdef Text text_of(bytes name):
    cdef Text text
    text.data, text.length = name, len(name)
    return text

# The names live as long as the module.
cdef Text NUMBER_FIELD = text_of(_NUMBER)
cdef Text SUM_FIELD = text_of(_SUM)
cdef Text TIME_FIELD = text_of(_TIME)


# CRC-32 of ISO 3309, as zlib has it, eight octets at a time ("slicing by 8", Kounavis and Berry).

cdef uint32_t[8][256] TABLE


cdef void fill_table() noexcept nogil:
    cdef uint32_t remainder
    cdef int octet, i, _
    for octet in range(256):
        remainder = octet
        for _ in range(8):
            remainder = remainder >> 1 ^ (remainder & 1) * <uint32_t> 0xEDB88320
        TABLE[0][octet] = remainder
    for i in range(1, 8):
        for octet in range(256):
            remainder = TABLE[i - 1][octet]
            TABLE[i][octet] = remainder >> 8 ^ TABLE[0][remainder & 0xFF]

fill_table()


cdef uint32_t crc32(const char *data, size_t length) noexcept nogil:
    cdef const uint8_t *at = <const uint8_t *> data
    cdef const uint8_t *end = at + length
    cdef uint32_t crc = 0xFFFFFFFF, low, high
    while end - at >= 8:
        memcpy(&low, at, 4)
        memcpy(&high, at + 4, 4)
        low ^= crc  # the octets in the order of a little-endian machine
        crc = (TABLE[7][low & 0xFF] ^ TABLE[6][low >> 8 & 0xFF]
               ^ TABLE[5][low >> 16 & 0xFF] ^ TABLE[4][low >> 24]
               ^ TABLE[3][high & 0xFF] ^ TABLE[2][high >> 8 & 0xFF]
               ^ TABLE[1][high >> 16 & 0xFF] ^ TABLE[0][high >> 24])
        at += 8
    while at < end:
        crc = crc >> 8 ^ TABLE[0][(crc ^ at[0]) & 0xFF]
        at += 1
    return ~crc


# Which numbers came, for whom.

cdef uint64_t mixed(uint64_t value) noexcept nogil:
    """The finalizer of MurmurHash3: each bit changes half of the others."""
    value = (value ^ value >> 33) * <uint64_t> 0xFF51AFD7ED558CCD
    value = (value ^ value >> 33) * <uint64_t> 0xC4CEB9FE1A85EC53
    return value ^ value >> 33


cdef uint64_t hash_of(const char *data, size_t length) noexcept nogil:
    """Of a recipient; never 0. Two of one message have the same once in 2^64."""
    cdef uint64_t result = length, word
    while length >= 8:
        memcpy(&word, data, 8)
        result = mixed(result ^ word)
        data += 8
        length -= 8
    word = 0
    memcpy(&word, data, length)
    return mixed(result ^ word) or 1


cdef Delivery *place(const Tally *tally, uint64_t number, uint64_t recipient) noexcept nogil:
    """Where it stands, or would."""
    cdef size_t at = mixed(number ^ recipient) & (tally.room - 1)
    while tally.seen[at].recipient and not (
            tally.seen[at].number == number and tally.seen[at].recipient == recipient):
        at = (at + 1) & (tally.room - 1)
    return tally.seen + at


cdef void enlarge(Tally *tally) noexcept nogil:
    cdef Tally larger = tally[0]
    cdef size_t at
    larger.room = max(4 * tally.room, 1 << 12)
    larger.seen = <Delivery *> calloc(larger.room, sizeof(Delivery))
    if larger.seen == NULL:
        abort()
    for at in range(tally.room):
        if tally.seen[at].recipient:
            place(&larger, tally.seen[at].number, tally.seen[at].recipient)[0] = tally.seen[at]
    free(tally.seen)
    tally[0] = larger


cdef void count_delivery(Tally *tally, uint64_t number, uint64_t recipient) noexcept nogil:
    cdef Delivery *it
    if 2 * tally.count >= tally.room:
        enlarge(tally)
    it = place(tally, number, recipient)
    if it.recipient:
        tally.duplicates += 1
    else:
        it.number, it.recipient = number, recipient
        tally.count += 1


# The fields of a message.

cdef Text field(const Octets *framed, size_t border, Text name) noexcept nogil:
    """The value of a field that ends before `border`; of length 0 where there is none."""
    cdef Text value
    cdef const char *at = find(framed.data, border, name.data, name.length)
    value.data, value.length = NULL, 0
    if at != NULL:
        value.data = at + name.length
        value.length = find(value.data, framed.data + border - value.data, b"\r\n", 2) - value.data
    return value


cdef bint is_digits(Text text) noexcept nogil:
    cdef size_t i
    for i in range(text.length):
        if not c"0" <= text.data[i] <= c"9":
            return False
    return text.length > 0


cdef uint64_t decimal(Text digits) noexcept nogil:
    cdef uint64_t result = 0
    cdef size_t i
    for i in range(digits.length):
        result = 10 * result + (digits.data[i] - c"0")
    return result


cdef bint is_sum(Text text, uint32_t crc) noexcept nogil:
    """Whether it is this one, in hexadecimal."""
    cdef uint32_t found = 0
    cdef size_t i
    cdef char c
    if text.length != 8:
        return False
    for i in range(8):
        c = text.data[i]
        if c"0" <= c <= c"9":
            found = found << 4 | (c - c"0")
        elif c"a" <= c | 32 <= c"f":
            found = found << 4 | ((c | 32) - c"a" + 10)
        else:
            return False
    return found == crc


cdef void count_message(
    Tally *tally, const Octets *framed, const uint64_t *recipients, size_t count, double moment
) noexcept nogil:
    """Count one message, given with a CRLF in front; without a number it is passed over.

    `moment` is when it arrived, by the monotonic clock.
    """
    cdef const char *gap = find(framed.data, framed.length, b"\r\n\r\n", 4)
    cdef size_t border = gap - framed.data + 2 if gap != NULL else 0
    cdef size_t i
    cdef Text number = field(framed, border, NUMBER_FIELD)
    if not is_digits(number):
        return
    if number.length > DIGITS:
        tally.corrupt += 1
        return
    for i in range(count):
        count_delivery(tally, decimal(number), recipients[i])
    tally.corrupt += not is_whole(tally, framed, border, moment)


cdef bint is_whole(
    Tally *tally, const Octets *framed, size_t border, double moment
) noexcept nogil:
    """Whether the body has its checksum; the delay is taken down on the way."""
    cdef Text sent = field(framed, border, TIME_FIELD)
    cdef Text checksum = field(framed, border, SUM_FIELD)
    cdef char *end = NULL
    cdef double begun
    if sent.length:
        begun = strtod(sent.data, &end)
        if end != sent.data + sent.length:
            return False
        time(&tally.delays, moment - begun)
    border += 2
    return not checksum.length or is_sum(
        checksum, crc32(framed.data + border, framed.length - border)
    )


# What is told.

cdef int by_number(const void *one, const void *other) noexcept nogil:
    cdef uint64_t a = (<const uint64_t *> one)[0], b = (<const uint64_t *> other)[0]
    return (a > b) - (a < b)


cdef int by_time(const void *one, const void *other) noexcept nogil:
    cdef double a = (<const double *> one)[0], b = (<const double *> other)[0]
    return (a > b) - (a < b)


cdef list distinct(const Tally *tally):
    """The numbers, in order, each once."""
    cdef size_t at, found = 0
    cdef list result = []
    cdef uint64_t *sorted_numbers = <uint64_t *> calloc(tally.count + 1, sizeof(uint64_t))
    if sorted_numbers == NULL:
        raise MemoryError
    with nogil:
        for at in range(tally.room):
            if tally.seen[at].recipient:
                sorted_numbers[found] = tally.seen[at].number
                found += 1
        qsort(sorted_numbers, found, sizeof(uint64_t), &by_number)
    for at in range(found):
        if at == 0 or sorted_numbers[at] != sorted_numbers[at - 1]:
            result.append(sorted_numbers[at])
    free(sorted_numbers)
    return result


cdef list ordered(const Seconds *seconds):
    """All, the least first."""
    cdef size_t at
    if seconds.count:
        with nogil:
            qsort(seconds.at, seconds.count, sizeof(double), &by_time)
    return [seconds.at[at] for at in range(seconds.count)]


cdef void forget(Tally *tally) noexcept nogil:
    free(tally.seen)
    free(tally.delays.at)
