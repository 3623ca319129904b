# cython: boundscheck=False, wraparound=False
"""Runs of pipelined RETRs and DELEs (RFC 1939 section 5, RFC 2449 section 6.6), in one call.

A run ends before whatever is not plain: other commands, spaces that need not be there, numbers of
messages that are not there. Who reads line by line goes on from it, and finds what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from fastmta._core.data cimport Stuffer
from fastmta._core.lines cimport LineBuffer
from fastmta._core.output cimport cut_bytes, new_bytes, start_of

cdef enum:
    MOST_DIGITS = 9  # there are never as many messages
    HEAD_ROOM = 48  # octets: "+OK ", a number of 64 bits, " octets", and the end of the reply

ctypedef unsigned long long number_t


def retrieve_run(Py_ssize_t number, LineBuffer lines not None, dict at_hand not None,
                 const uint64_t[::1] sizes, bytearray deleted not None, Py_ssize_t room):
    """The reply to RETR of a message at hand, and to the RETRs that `lines` goes on with.

    Of these only up to the first whose message is not at hand, and while less than `room` octets
    are to be sent, dots not counted. `at_hand` has messages by their numbers.
    """
    cdef bytes message = at_hand[number]
    cdef list numbers = [], messages = []
    cdef Py_ssize_t octets = 0, end
    cdef object found
    while True:
        numbers.append(number)
        messages.append(message)
        octets += PyBytes_GET_SIZE(message) + HEAD_ROOM
        if octets >= room:
            break
        number = numbered(lines, b"retr", deleted, &end)
        found = at_hand.get(number) if number else None
        if found is None:
            break
        message = found
        lines.at = end
    return replies(numbers, messages, octets, sizes)


cdef bytes replies(list numbers, list messages, Py_ssize_t octets, const uint64_t[::1] sizes):
    """RFC 1939 section 3: each message with its dots doubled, and with what ends it.

    `octets` are those of the messages, and HEAD_ROOM for each.
    """
    cdef Stuffer stuffer = Stuffer()
    raw = new_bytes(2 * octets)  # stuffing makes two of one at the most
    cdef char* out = <char*>start_of(raw)
    cdef char* begin = out
    cdef Py_ssize_t i, number, count
    cdef bytes message, end
    for i in range(len(numbers)):
        number = numbers[i]
        message = messages[i]
        count = PyBytes_GET_SIZE(message)
        out += snprintf(out, HEAD_ROOM, b"+OK %llu octets\r\n", <number_t>sizes[number - 1])
        stuffer.line_start = True
        stuffer.cr = False
        out += count + stuffer._walk(PyBytes_AS_STRING(message), count, out)
        end = stuffer.finish()
        memcpy(out, PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end))
        out += PyBytes_GET_SIZE(end)
    return cut_bytes(raw, out - begin)


def delete_run(LineBuffer lines not None, const uint64_t[::1] sizes, bytearray deleted not None):
    """Mark what the DELEs say that `lines` goes on with; how many they are, and their octets."""
    cdef Py_ssize_t count = 0, number, end
    cdef uint64_t octets = 0
    while True:
        number = numbered(lines, b"dele", deleted, &end)
        if not number:
            return count, octets
        deleted[number - 1] = 1
        lines.at = end
        count += 1
        octets += sizes[number - 1]


cdef Py_ssize_t numbered(LineBuffer lines, const char* word, bytearray deleted, Py_ssize_t* end):
    """The number of a message that is there, of a whole line of `word` and it; 0 for all else.

    `end` is behind that line.
    """
    cdef Py_ssize_t left = PyBytes_GET_SIZE(lines.data) - lines.at, i, number = 0
    cdef const unsigned char* at = (
        <const unsigned char*>PyBytes_AS_STRING(lines.data) + lines.at)
    if left < 8 or lines.skipping or at[4] != c" ":
        return 0
    for i in range(4):
        if at[i] | 32 != <unsigned char>word[i]:
            return 0
    i = 5
    while i < left and i < 5 + MOST_DIGITS and c"0" <= at[i] <= c"9":
        number = number * 10 + (at[i] - c"0")
        i += 1
    if i + 2 > left or at[i] != c"\r" or at[i + 1] != c"\n":
        return 0
    end[0] = lines.at + i + 2
    return number if 1 <= number <= len(deleted) and not deleted[number - 1] else 0
