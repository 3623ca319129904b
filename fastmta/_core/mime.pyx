# cython: boundscheck=False, wraparound=False
"""The tree of parts of a message as offsets, found in one pass (RFC 2045, RFC 2046).

One loop and an explicit stack: depth and number of parts are bounded, nothing recurses, and
nothing is refused. What a broken message means is decided once, here; the comments say how.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.type cimport PyType_IsSubtype
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memset

from fastmta._core.scan cimport after_empty_line, before_line_end, equal_fold, is_wsp, next_line
from fastmta._core.scan cimport octets
from fastmta._core.headers cimport Section, field_t, parameter_t, read_field, read_parameter
from fastmta._core.headers cimport skip_cfws

cdef extern from *:
    """
    #define new_of(cls, args) ((PyTypeObject *)(cls))->tp_new((PyTypeObject *)(cls), args, NULL)
    """
    object new_of(type cls, tuple args)

LEAF, MULTIPART, MESSAGE = range(3)

# Above this many octets the pass lets other threads run.
cdef Py_ssize_t RELEASE = 1 << 14

cdef int add_part(parser_t* parser, Py_ssize_t start, int parent) noexcept nogil:
    cdef part_t* part
    cdef void* grown
    if parser.count == parser.room:
        grown = realloc(parser.parts, 2 * parser.room * sizeof(part_t))
        if grown is NULL:
            parser.no_memory = True
            return -1
        parser.parts = <part_t*>grown
        parser.room *= 2
    part = &parser.parts[parser.count]
    memset(part, 0, sizeof(part_t))
    part.start = part.header_end = part.body = start
    part.end = part.type_start = part.encoding_start = -1
    part.parent = parent
    part.depth = parser.parts[parent].depth + 1 if parent >= 0 else 0
    parser.count += 1
    return parser.count - 1


cdef bint unquote_boundary(boundary_t* boundary) noexcept nogil:
    """Take the backslashes out into memory of its own; False where there is none left."""
    cdef Py_ssize_t i = 0, length = 0
    boundary.owned = <unsigned char*>malloc(boundary.length + 1)
    if boundary.owned is NULL:
        return False
    while i < boundary.length:
        if boundary.text[i] == c"\\" and i + 1 < boundary.length:
            i += 1
        boundary.owned[length] = boundary.text[i]
        length += 1
        i += 1
    boundary.text, boundary.length = boundary.owned, length
    return True


cdef bint read_boundary(
    octets data, Py_ssize_t at, Py_ssize_t end, boundary_t* boundary
) noexcept nogil:
    """The boundary parameter of a Content-Type value; False if it has none that could delimit."""
    cdef parameter_t found
    cdef Py_ssize_t i
    boundary.owned = NULL
    while at < end and data[at] != c";" and not is_wsp(data[at]) and data[at] != c"\n":
        at += 1
    while read_parameter(data, at, end, &found):
        at = found.next
        if not equal_fold(data, found.name_start, found.name_end, b"boundary", 8):
            continue
        boundary.text, boundary.length = data + found.value_start, 0
        for i in range(found.value_end - found.value_start):
            # A boundary that is folded cannot stand in one line, so it delimits nothing.
            if boundary.text[i] == c"\r" or boundary.text[i] == c"\n":
                return False
            # RFC 2046 section 5.1.1: a boundary does not end in white space.
            if not is_wsp(boundary.text[i]):
                boundary.length = i + 1
        for i in range(boundary.length if found.quoted else 0):
            if boundary.text[i] == c"\\":
                return unquote_boundary(boundary)
        return boundary.length > 0
    return False


cdef bint has_type(octets data, part_t* part, const char* name, Py_ssize_t length) noexcept nogil:
    """Whether the media type begins with `name`, which is lower case."""
    cdef Py_ssize_t at = skip_cfws(data, part.type_start, part.type_end)
    return part.type_end - at >= length and equal_fold(data, at, at + length, name, length)


cdef int kind_of(parser_t* parser, part_t* part) noexcept nogil:
    cdef octets data = parser.data
    part.digest = False
    if part.type_start < 0:
        # RFC 2046 section 5.1.5: the default type in a digest is message/rfc822.
        return IS_MESSAGE if part.parent >= 0 and parser.parts[part.parent].digest else IS_LEAF
    if has_type(data, part, b"multipart/", 10):
        part.digest = has_type(data, part, b"multipart/digest", 16)
        return IS_MULTIPART
    if has_type(data, part, b"message/rfc822", 14) or has_type(data, part, b"message/global", 14):
        # message/global-headers and -delivery-status (RFC 6533) hold no message.
        return IS_LEAF if has_type(data, part, b"message/global-", 15) else IS_MESSAGE
    return IS_LEAF


cdef bint is_identity(octets data, part_t* part) noexcept nogil:
    """Whether the body stands as it is: only then can parts be found inside it."""
    cdef Py_ssize_t at, end
    if part.encoding_start < 0:
        return True
    at = skip_cfws(data, part.encoding_start, part.encoding_end)
    end = at
    while end < part.encoding_end and data[end] > 32 and data[end] != c"(" and data[end] != c";":
        end += 1
    if equal_fold(data, at, end, b"base64", 6):
        return False
    return not equal_fold(data, at, end, b"quoted-printable", 16)


cdef int match(parser_t* parser, Py_ssize_t at, boundary_t* own) noexcept nogil:
    """Which open boundary the line at `at` begins with: its level, `opened` for `own`, or -1.

    RFC 2046 section 5.1.1: it is sufficient that the boundary appear in its entirety at the
    start of the line. Section 5.1.2: outer boundaries are recognized at any level of nesting.
    The longest one counts where one begins with another, the innermost where they are equal.
    """
    cdef Py_ssize_t left = parser.size - at - 2, longest = 0
    cdef octets text = parser.data + at + 2
    cdef boundary_t* boundary
    cdef int level, found = -1
    if own is not NULL and own.length <= left and memcmp(own.text, text, own.length) == 0:
        found, longest = parser.opened, own.length
    for level in range(parser.opened - 1, -1, -1):
        boundary = &parser.open[level]
        if longest < boundary.length <= left and memcmp(boundary.text, text, boundary.length) == 0:
            found, longest = level, boundary.length
    return found


cdef inline bint is_candidate(parser_t* parser, Py_ssize_t at) noexcept nogil:
    return at + 2 < parser.size and parser.data[at] == c"-" and parser.data[at + 1] == c"-"


cdef void note_field(octets data, part_t* part, field_t* field) noexcept nogil:
    """Remember the two fields that decide about the body.

    Of several the last counts, as it does in RFC 8621 section 4.1.2 and RFC 6376 section 5.4.2.
    """
    cdef octets name = data + field.name_start
    if field.name_end - field.name_start < 12 or (name[0] | 32) != c"c":
        return
    if equal_fold(data, field.name_start, field.name_end, b"content-type", 12):
        part.type_start, part.type_end = field.value_start, field.value_end
    elif equal_fold(data, field.name_start, field.name_end, b"content-transfer-encoding", 25):
        part.encoding_start, part.encoding_end = field.value_start, field.value_end


cdef struct header_t:
    boundary_t own     # the boundary that the last Content-Type gives; length 0: none
    Py_ssize_t known   # the Content-Type that `own` was read from
    Py_ssize_t end     # the line that ended the section


cdef void learn_boundary(parser_t* parser, part_t* part, header_t* header) noexcept nogil:
    if part.type_start == header.known:
        return
    free(header.own.owned)
    header.own.owned = NULL
    header.own.length = 0
    header.known = part.type_start
    if kind_of(parser, part) != IS_MULTIPART or part.depth >= parser.most_depth:
        return
    if not read_boundary(parser.data, part.type_start, part.type_end, &header.own):
        header.own.length = 0


cdef int read_header(parser_t* parser, int index, header_t* header) noexcept nogil:
    """Read the header section of a part; the level of a delimiter that ended it, or -1.

    RFC 2046 section 5.1.1: a body part may be header fields and nothing else, so a delimiter
    ends them too; so does the part's own delimiter, whose empty line was forgotten.
    """
    cdef part_t* part = &parser.parts[index]
    cdef Py_ssize_t at = part.start
    cdef field_t field
    cdef bint any_field = False
    cdef int level = -1
    header.own.owned = NULL
    header.own.length = 0
    header.known = -1
    while True:
        if is_candidate(parser, at):
            learn_boundary(parser, part, header)
            level = match(parser, at, &header.own if header.own.length else NULL)
            if level >= 0:
                break
        if not read_field(parser.data, at, parser.size, &field):
            break
        if field.name_end > field.name_start:
            any_field = True
            note_field(parser.data, part, &field)
        at = field.next
    learn_boundary(parser, part, header)
    part.header_end = part.body = header.end = at
    if level < 0 and at < parser.size:
        part.body = after_empty_line(parser.data, at, parser.size)
    elif not any_field:
        # Neither a field nor an empty line: there is no header section, it is all body.
        part.header_end = part.body = part.start
    return -1 if level == parser.opened else level


cdef void close_down_to(parser_t* parser, int index, int ancestor, Py_ssize_t end) noexcept nogil:
    """End every part from `index` up to, and without, `ancestor` (-1: the root too)."""
    cdef part_t* part
    while index != ancestor:
        part = &parser.parts[index]
        if part.end < 0:
            part.end = max(end, part.body)
        index = part.parent


cdef void drop_boundaries(parser_t* parser, int level) noexcept nogil:
    while parser.opened > level:
        parser.opened -= 1
        free(parser.open[parser.opened].owned)


cdef Py_ssize_t find_delimiter(parser_t* parser, Py_ssize_t at, int* level) noexcept nogil:
    """The next line that is a delimiter of an open multipart, or the end of the message."""
    while at < parser.size and parser.opened:
        if is_candidate(parser, at):
            level[0] = match(parser, at, NULL)
            if level[0] >= 0:
                return at
        at = next_line(parser.data, at, parser.size)
    return parser.size


cdef int at_delimiter(parser_t* parser, int index, Py_ssize_t at, int level) noexcept nogil:
    """Act on the delimiter line at `at`: the part that the next line belongs to."""
    cdef boundary_t* boundary = &parser.open[level]
    cdef Py_ssize_t behind = at + 2 + boundary.length
    cdef Py_ssize_t line = next_line(parser.data, at, parser.size)
    cdef int multipart = boundary.part
    # RFC 2046 section 5.1.1: the line end before a delimiter belongs to the delimiter.
    close_down_to(
        parser, index, multipart,
        before_line_end(parser.data, parser.parts[index].body, at),
    )
    # Two more hyphens close the multipart; what follows is its epilogue.
    if behind + 2 <= parser.size and memcmp(parser.data + behind, b"--", 2) == 0:
        drop_boundaries(parser, level)
        return multipart
    drop_boundaries(parser, level + 1)
    # A delimiter with nothing at all behind it begins no part.
    if line >= parser.size:
        return multipart
    if parser.count >= parser.most_parts:
        parser.cut = True
        drop_boundaries(parser, 0)
        return multipart
    parser.parts[multipart].kind = IS_MULTIPART
    return add_part(parser, line, multipart)


cdef int enter(parser_t* parser, int index, header_t* header) noexcept nogil:
    """Decide what a part is by its header; the part to go on with, a new one or itself.

    A multipart is one once its first delimiter shows (RFC 2046 section 5.1.1: one or more).
    """
    cdef part_t* part = &parser.parts[index]
    cdef int kind = kind_of(parser, part)
    if part.depth >= parser.most_depth:
        parser.cut = parser.cut or kind != IS_LEAF
        return index
    if kind == IS_MULTIPART and header.own.length > 0:
        if parser.open is NULL:
            parser.open = <boundary_t*>malloc((parser.most_depth + 1) * sizeof(boundary_t))
        if parser.open is NULL:
            parser.no_memory = True
            return -1
        parser.open[parser.opened] = header.own
        parser.open[parser.opened].part = index
        parser.opened += 1
        header.own.owned = NULL
    elif kind == IS_MESSAGE and is_identity(parser.data, part):
        if parser.count >= parser.most_parts:
            parser.cut = True
            return index
        part.kind = IS_MESSAGE
        return add_part(parser, part.body, index)
    return index


cdef void run(parser_t* parser) noexcept nogil:
    cdef header_t header
    cdef int index = add_part(parser, 0, -1), known = 0, level
    cdef Py_ssize_t at = 0
    while index >= 0:
        level = -1
        if parser.count > known:
            known = parser.count
            level = read_header(parser, index, &header)
            if level < 0:
                at = parser.parts[index].body
                index = enter(parser, index, &header)
            else:
                at = header.end
            free(header.own.owned)
            if parser.count > known:
                continue
        if level < 0:
            at = find_delimiter(parser, at, &level)
            if level < 0:
                break
        index = at_delimiter(parser, index, at, level)
        at = next_line(parser.data, at, parser.size)
    if index >= 0:
        close_down_to(parser, index, -1, parser.size)


cdef class Node:
    """One part: offsets into `data`, and the parts inside.

    `type_start` to `encoding_end` are the values of the last Content-Type and
    Content-Transfer-Encoding fields, -1 where there is none. On the root, `cut` says that the
    message has more parts, or deeper ones, than are told.
    """

    def section(self, type cls=Section):
        """The header section; `cls` is a subclass of Section."""
        if not PyType_IsSubtype(cls, Section):
            raise TypeError("section() makes subclasses of Section")
        cdef Section section = <Section>new_of(cls, ())
        section.data, section.start, section.end = self.data, self.start, self.header_end
        return section

    def walk(self):
        """This part and all inside, in the order of the message."""
        cdef list result = [], waiting = [self]
        cdef Node node
        while waiting:
            node = <Node>waiting.pop()
            result.append(node)
            if node.parts:
                waiting += reversed(node.parts)
        return result


cdef Node make_node(type cls, bytes data, part_t* part):
    cdef Node node = <Node>new_of(cls, ())
    node.data, node.parts, node.kind = data, (), part.kind
    node.start, node.header_end, node.body_start = part.start, part.header_end, part.body
    node.end = part.end
    node.type_start, node.type_end = part.type_start, part.type_end
    node.encoding_start, node.encoding_end = part.encoding_start, part.encoding_end
    return node


cdef Node make_tree(type cls, bytes data, parser_t* parser):
    """Children come behind their parents, so one pass links them all."""
    cdef list nodes = []
    cdef Node node, parent
    cdef int i
    for i in range(parser.count):
        node = make_node(cls, data, &parser.parts[i])
        nodes.append(node)
        if i == 0:
            continue
        parent = <Node>nodes[parser.parts[i].parent]
        if parent.parts == ():
            parent.parts = []
        (<list>parent.parts).append(node)
    node = <Node>nodes[0]
    node.cut = parser.cut
    return node


cdef int parse(parser_t* parser, bytes data, int most_depth, int most_parts) except -1:
    memset(parser, 0, sizeof(parser_t))
    parser.data, parser.size = <octets>PyBytes_AS_STRING(data), len(data)
    parser.most_depth, parser.most_parts, parser.room = most_depth, most_parts, 8
    parser.parts = <part_t*>malloc(parser.room * sizeof(part_t))
    if parser.parts is not NULL:
        if parser.size < RELEASE:
            run(parser)
        else:
            with nogil:
                run(parser)
    if parser.parts is NULL or parser.no_memory:
        raise MemoryError
    return 0


cdef void clear(parser_t* parser) noexcept:
    drop_boundaries(parser, 0)
    free(parser.open)
    free(parser.parts)


def structure(bytes data, type cls=Node, int most_depth=100, int most_parts=10_000):
    """The root of the tree of parts of any octets at all; `cls` is a subclass of Node."""
    cdef parser_t parser
    if not PyType_IsSubtype(cls, Node):
        raise TypeError("structure() makes subclasses of Node")
    try:
        parse(&parser, data, most_depth, most_parts)
        return make_tree(cls, data, &parser)
    finally:
        clear(&parser)
