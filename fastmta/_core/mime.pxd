from fastmta._core.scan cimport octets

cdef enum:
    IS_LEAF = 0
    IS_MULTIPART = 1
    IS_MESSAGE = 2

cdef struct part_t:
    Py_ssize_t start         # of the header section
    Py_ssize_t header_end    # the empty line, or where the body begins without one
    Py_ssize_t body          # behind the empty line
    Py_ssize_t end           # of the body, before the CRLF that belongs to a delimiter
    Py_ssize_t type_start    # value of the last Content-Type field; -1 without one
    Py_ssize_t type_end
    Py_ssize_t encoding_start  # value of the last Content-Transfer-Encoding field
    Py_ssize_t encoding_end
    int parent
    int depth
    int kind
    bint digest              # its parts are messages unless they say otherwise

cdef struct boundary_t:
    octets text
    Py_ssize_t length
    unsigned char* owned     # where `text` had to be unquoted
    int part

cdef struct parser_t:
    octets data
    Py_ssize_t size
    part_t* parts
    int count
    int room
    int most_parts
    boundary_t* open         # the boundaries of the multiparts around, outermost first; or NULL
    int opened
    int most_depth
    bint cut                 # a bound was reached
    bint no_memory


cdef class Node:
    cdef readonly bytes data
    cdef readonly object parts
    cdef readonly Py_ssize_t start, header_end, body_start, end
    cdef readonly Py_ssize_t type_start, type_end, encoding_start, encoding_end
    cdef readonly int kind
    cdef readonly bint cut


cdef int parse(parser_t* parser, bytes data, int most_depth, int most_parts) except -1
cdef void clear(parser_t* parser) noexcept
cdef Node make_tree(type cls, bytes data, parser_t* parser)
