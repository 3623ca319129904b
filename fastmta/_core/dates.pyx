# cython: boundscheck=False, wraparound=False
"""The date-time of a header field (RFC 5322 section 3.3, with the obsolete forms of 4.3)."""

from cpython.bytes cimport PyBytes_AS_STRING

from fastmta._core.headers cimport skip_cfws
from fastmta._core.scan cimport lower, octets

cdef const char* MONTHS = b"janfebmaraprmayjunjulaugsepoctnovdec"
# RFC 5322 section 4.3; each name is followed by its offset in hours east, plus 50.
cdef const char* ZONES = b"est\x2dedt\x2ecst\x2ccdt\x2dmst\x2bmdt\x2cpst\x2apdt\x2b"


cdef struct date_t:
    int day
    int month
    int year
    int hour
    int minute
    int second
    int offset     # minutes east of UTC


cdef int read_number(octets data, Py_ssize_t* at, Py_ssize_t end, int* digits) noexcept nogil:
    """Up to nine digits at or behind white space and comments; their number is in `digits`."""
    cdef int value = 0
    digits[0] = 0
    at[0] = skip_cfws(data, at[0], end)
    while at[0] < end and c"0" <= data[at[0]] <= c"9" and digits[0] < 9:
        value = 10 * value + data[at[0]] - c"0"
        digits[0] += 1
        at[0] += 1
    return value


cdef Py_ssize_t read_word(octets data, Py_ssize_t* at, Py_ssize_t end) noexcept nogil:
    """Letters at or behind white space and comments; returns where they begin."""
    cdef Py_ssize_t start
    at[0] = start = skip_cfws(data, at[0], end)
    while at[0] < end and c"a" <= data[at[0]] | 32 <= c"z":
        at[0] += 1
    return start


cdef inline bint same_three(octets data, Py_ssize_t at, const char* name) noexcept nogil:
    return (
        lower(data[at]) == <unsigned char>name[0]
        and lower(data[at + 1]) == <unsigned char>name[1]
        and lower(data[at + 2]) == <unsigned char>name[2]
    )


cdef int month_number(octets data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """1 to 12 for a name of three letters or more, 0 for none."""
    cdef int month
    if end - start < 3:
        return 0
    for month in range(12):
        if same_three(data, start, MONTHS + 3 * month):
            return month + 1
    return 0


cdef int full_year(int year, int digits) noexcept nogil:
    """RFC 5322 section 4.3: two digits are 1950 to 2049, three count from 1900."""
    if digits == 2:
        return year + (2000 if year < 50 else 1900)
    return year + 1900 if digits == 3 else year


cdef int named_zone(octets data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    cdef int i
    if end - start == 3:
        for i in range(8):
            if same_three(data, start, ZONES + 4 * i):
                return (<int>ZONES[4 * i + 3] - 50) * 60
    # "UT", "GMT" and the military letters, which RFC 5322 section 4.3 says to take as -0000.
    return 0


cdef int read_zone(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Minutes east of UTC; an unknown zone is -0000 (RFC 5322 section 4.3)."""
    cdef int value, digits, sign = 1
    cdef Py_ssize_t start
    at = skip_cfws(data, at, end)
    if at < end and (data[at] == c"+" or data[at] == c"-"):
        sign = -1 if data[at] == c"-" else 1
        at += 1
        value = read_number(data, &at, end, &digits)
        if digits == 2:
            value *= 100
        if value % 100 > 59 or value > 9959 or digits < 2:
            return 0
        return sign * (value // 100 * 60 + value % 100)
    start = read_word(data, &at, end)
    return named_zone(data, start, at)


cdef bint read_date(octets data, Py_ssize_t* at, Py_ssize_t end, date_t* date) noexcept nogil:
    """Day, month and year, with or without the day of the week before them."""
    cdef int digits
    cdef Py_ssize_t start
    read_word(data, at, end)
    at[0] = skip_cfws(data, at[0], end)
    while at[0] < end and (data[at[0]] == c"," or data[at[0]] == c"."):
        at[0] += 1
    date.day = read_number(data, at, end, &digits)
    if digits < 1 or digits > 2:
        return False
    # "7-Oct-94" is not of RFC 822, but seen.
    while at[0] < end and data[at[0]] == c"-":
        at[0] += 1
    start = read_word(data, at, end)
    date.month = month_number(data, start, at[0])
    while at[0] < end and data[at[0]] == c"-":
        at[0] += 1
    date.year = read_number(data, at, end, &digits)
    date.year = full_year(date.year, digits)
    return date.month > 0 and 2 <= digits <= 4


cdef bint read_time(octets data, Py_ssize_t* at, Py_ssize_t end, date_t* date) noexcept nogil:
    """hour ":" minute [":" second]; what is not a second is passed over."""
    cdef int digits
    date.hour = read_number(data, at, end, &digits)
    at[0] = skip_cfws(data, at[0], end)
    if digits < 1 or at[0] >= end or data[at[0]] != c":":
        return False
    at[0] += 1
    date.minute = read_number(data, at, end, &digits)
    if digits < 1:
        return False
    date.second = 0
    at[0] = skip_cfws(data, at[0], end)
    if at[0] < end and data[at[0]] == c":":
        at[0] += 1
        date.second = read_number(data, at, end, &digits)
    return True


def date_time(bytes value):
    """(year, month, day, hour, minute, second, minutes east of UTC), or None if it is no date.

    The numbers are as written: whether the day exists is for the caller to see.
    """
    cdef octets data = <octets>PyBytes_AS_STRING(value)
    cdef Py_ssize_t at = 0, end = len(value)
    cdef date_t date
    if not read_date(data, &at, end, &date) or not read_time(data, &at, end, &date):
        return None
    date.offset = read_zone(data, at, end)
    return (
        date.year, date.month, date.day, date.hour, date.minute, date.second, date.offset
    )
