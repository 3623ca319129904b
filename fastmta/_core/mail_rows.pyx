# cython: boundscheck=False, wraparound=False
"""Many rows of the mailboxes in one call; `store/mail_records.py` says what stands in them.

Nothing here raises for what is damaged: who finds a message missing asks for it alone, and hears
what is wrong with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "<endian.h>" nogil:
    uint32_t be32toh(uint32_t)
    uint64_t be64toh(uint64_t)
    uint32_t htobe32(uint32_t)

ctypedef const unsigned char* octets

cdef enum:
    VERSION = 1
    UID = 4  # in a key of `entries`, behind the mailbox
    ENTRY_KEY = 8
    SIZE = 1  # in a row of `entries`
    BODY = 9
    FRONT_LENGTH = 45
    FRONT = 47
    BODY_KEY = 8
    BODY_SIZE = 1  # in a row of `bodies`
    STRUCTURE_LENGTH = 9
    STRUCTURE = 13
    SEALED = 2  # version of a row of `bodies` with a checksum behind it
    SEAL = 4


cdef inline octets start_of(bytes row) noexcept:
    return <octets>PyBytes_AS_STRING(row)


cdef inline uint32_t number32(octets at) noexcept nogil:
    cdef uint32_t raw
    memcpy(&raw, at, 4)
    return be32toh(raw)


cdef inline uint64_t number64(octets at) noexcept nogil:
    cdef uint64_t raw
    memcpy(&raw, at, 8)
    return be64toh(raw)


cdef inline bint is_entry(bytes row) noexcept:
    return len(row) >= FRONT and start_of(row)[0] == VERSION


cdef inline Py_ssize_t front_of(bytes row) noexcept:
    """Octets that an entry has in front, of those that its row has."""
    cdef octets at = start_of(row) + FRONT_LENGTH
    return min(<Py_ssize_t>(at[0] << 8 | at[1]), len(row) - FRONT)


cdef inline bytes body_key(bytes row):
    return PyBytes_FromStringAndSize(<const char*>start_of(row) + BODY, BODY_KEY)


def entry_keys(uint32_t mailbox, uids not None):
    """The key of each uid's entry."""
    cdef uint32_t[2] key
    cdef uint32_t uid
    cdef list keys = []
    key[0] = htobe32(mailbox)
    for uid in uids:
        key[1] = htobe32(uid)
        keys.append(PyBytes_FromStringAndSize(<const char*>key, ENTRY_KEY))
    return keys


def body_keys(list entries not None):
    """Of keys and rows of entries, the keys of their bodies; without those of damaged rows."""
    cdef bytes row
    cdef list keys = []
    for _, row in entries:
        if is_entry(row):
            keys.append(body_key(row))
    return keys


def place_of(bytes row not None):
    """The key of an entry's body, its octets, and how many of them stand in front; or None."""
    if not is_entry(row):
        return None
    return body_key(row), number64(start_of(row) + SIZE), front_of(row)


def join_messages(keys not None, list entries not None, list bodies not None,
                  uint64_t most_inline):
    """For each key its message whole, or None where it is gone, damaged, or in chunks.

    `entries` are the keys and rows that are there, `bodies` those that are there of `body_keys`,
    both in the order in which they were asked for. A row of `bodies` has up to `most_inline`
    octets of structure and message.
    """
    cdef Py_ssize_t i = 0, j = 0
    cdef bytes key, name, row, body
    cdef list found = []
    for key in keys:
        found.append(None)
        if i == len(entries):
            continue
        name, row = entries[i]
        if name != key:
            continue
        i += 1
        if j == len(bodies) or not is_entry(row):
            continue
        name, body = bodies[j]
        if len(name) == BODY_KEY and not memcmp(start_of(name), start_of(row) + BODY, BODY_KEY):
            j += 1
            found[len(found) - 1] = message_of(row, body, most_inline)
    return found


cdef bytes message_of(bytes row, bytes body, uint64_t most_inline):
    """What stands in front, and what the body has behind its structure."""
    cdef octets at = start_of(body)
    cdef Py_ssize_t end = len(body) - SEAL if at[0] == SEALED else len(body)
    if end < STRUCTURE or at[0] not in (VERSION, SEALED):
        return None
    cdef uint64_t size = number64(at + BODY_SIZE)
    cdef uint64_t length = number32(at + STRUCTURE_LENGTH)
    if size > most_inline or size + length > most_inline or end != STRUCTURE + length + size:
        return None
    cdef Py_ssize_t front = front_of(row)
    cdef bytes message = PyBytes_FromStringAndSize(NULL, front + <Py_ssize_t>size)
    cdef char* out = PyBytes_AS_STRING(message)
    memcpy(out, start_of(row) + FRONT, front)
    memcpy(out + front, at + STRUCTURE + length, size)
    return message


def list_entries(rows, bytes mailbox not None, Py_ssize_t most, uids not None, sizes not None,
                 list unreadable not None):
    """Take keys and rows of one mailbox from `rows`, at most so many; 0, or where there are more.

    Uids and sizes are put behind those that are there; uids of damaged rows into `unreadable`.
    The result is the last uid that was taken.
    """
    cdef bytes key, row
    cdef uint32_t uid = 0
    cdef Py_ssize_t count = 0, length = len(mailbox)
    cdef list numbers = [], octets_of = []
    cdef bint more = False
    for key, row in rows:
        if len(key) != ENTRY_KEY or memcmp(start_of(key), start_of(mailbox), length):
            break
        if count == most:
            more = True
            break
        count += 1
        uid = number32(start_of(key) + UID)
        if is_entry(row):
            numbers.append(uid)
            octets_of.append(number64(start_of(row) + SIZE))
        else:
            unreadable.append(uid)
    uids.fromlist(numbers)
    sizes.fromlist(octets_of)
    return uid if more else 0
