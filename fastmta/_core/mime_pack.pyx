# cython: boundscheck=False, wraparound=False
"""The tree of parts of a message as octets, kept beside a body so that nobody parses it twice.

The numbers are in the byte order of the machine, as all is in an LMDB file.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.type cimport PyType_IsSubtype
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmta._core.mime cimport IS_LEAF, IS_MESSAGE, Node, clear, make_tree, parse
from fastmta._core.mime cimport parser_t, part_t

# A packed tree: of each part its kind (and whether the tree is cut), its parent, and its offsets.
cdef enum:
    NUMBERS = 10
    OFFSETS = 8
    IS_CUT = 4
    NOWHERE = -2147483647


def pack(bytes data, Py_ssize_t before=0):
    """The tree of `structure` as octets; the first `before` octets of `data` may change later.

    They are whole header fields that say nothing of the content. Empty above 2 GiB.
    """
    cdef parser_t parser
    cdef bytes packed
    cdef int* at
    cdef int i
    if len(data) > 0x7FFFFFFF:
        return b""
    try:
        parse(&parser, data, 100, 10_000)
        packed = PyBytes_FromStringAndSize(NULL, parser.count * NUMBERS * sizeof(int))
        at = <int*>PyBytes_AS_STRING(packed)
        for i in range(parser.count):
            at[0] = parser.parts[i].kind | (IS_CUT if parser.cut else 0)
            at[1] = parser.parts[i].parent
            pack_offsets(&parser.parts[i], at + 2, before)
            at += NUMBERS
        return packed
    finally:
        clear(&parser)


cdef void pack_offsets(part_t* part, int* at, Py_ssize_t before) noexcept:
    cdef int i
    at[0], at[1], at[2], at[3] = part.start, part.header_end, part.body, part.end
    at[4], at[5] = part.type_start, part.type_end
    at[6], at[7] = part.encoding_start, part.encoding_end
    for i in range(OFFSETS):
        at[i] = at[i] - <int>before if at[i] >= 0 else NOWHERE


def unpack(bytes packed, bytes data, type cls=Node, Py_ssize_t before=0):
    """The tree that `pack` gave, of a message that has `before` octets in front of the rest.

    ValueError where it cannot be this message's.
    """
    cdef parser_t parser
    cdef int* at = <int*>PyBytes_AS_STRING(packed)
    cdef int i
    if not PyType_IsSubtype(cls, Node):
        raise TypeError("unpack() makes subclasses of Node")
    memset(&parser, 0, sizeof(parser))
    parser.count = len(packed) // (NUMBERS * sizeof(int))
    parser.parts = <part_t*>malloc((parser.count + 1) * sizeof(part_t))
    try:
        if parser.parts is NULL:
            raise MemoryError
        for i in range(parser.count):
            if not unpack_part(&parser.parts[i], at + i * NUMBERS, i, before, len(data)):
                parser.count = 0
                break
        if parser.count == 0:
            raise ValueError("this is not the structure of that message")
        parser.cut = at[0] & IS_CUT != 0
        return make_tree(cls, data, &parser)
    finally:
        free(parser.parts)


cdef bint unpack_part(
        part_t* part, int* at, int index, Py_ssize_t before, Py_ssize_t size) noexcept:
    """Whether it is a part of a message of that size."""
    cdef Py_ssize_t[OFFSETS] offsets
    cdef int i
    for i in range(OFFSETS):
        offsets[i] = at[2 + i] + before if at[2 + i] != NOWHERE else -1
        if offsets[i] > size:
            return False
    part.kind, part.parent = at[0] & ~IS_CUT, at[1]
    part.start = offsets[0] if index else 0  # the root begins with what is in front
    part.header_end, part.body, part.end = offsets[1], offsets[2], offsets[3]
    part.type_start, part.type_end = offsets[4], offsets[5]
    part.encoding_start, part.encoding_end = offsets[6], offsets[7]
    return (
        0 <= part.start <= part.header_end <= part.body <= part.end
        and IS_LEAF <= part.kind <= IS_MESSAGE
        and (0 <= part.parent < index or index == 0))
