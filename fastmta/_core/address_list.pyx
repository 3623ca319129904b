# cython: boundscheck=False, wraparound=False
"""Address lists as they stand in header fields (RFC 5322 section 3.4, with the obsolete forms).

The reader takes what RFC 5322, RFC 6532 and section 4.4 allow and makes the best of the rest:
it always goes forward, keeps no stack (comments are counted), and never refuses.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.unicode cimport PyUnicode_DecodeLatin1, PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastmta._core.headers cimport comment_close, quoted_end
from fastmta._core.scan cimport is_space, octets

# Above this many octets the scan of one address lets other threads run.
cdef Py_ssize_t RELEASE = 1 << 14
# So many addresses are made before other threads get a chance.
cdef int BATCH = 2048

# Stands in a word where white space stood: a space in a phrase, nothing in an obsolete
# local-part ("a . b"). Line ends never get into a word, so it cannot be mistaken.
cdef unsigned char GAP = c"\n"


cdef struct text_t:
    unsigned char* octets
    Py_ssize_t length


cdef struct element_t:
    text_t name      # phrase so far
    text_t word      # what may become the local-part, or else more of the phrase
    text_t domain
    text_t comment   # content of the last comment
    bint in_angle
    bint had_angle
    bint at_sign     # the word is a local-part
    bint gap         # white space or a comment stands before the next word
    bint done        # the domain is complete
    unsigned char stop  # what ended it: comma, semicolon, colon, or 0 for the end


cdef inline void put(text_t* text, unsigned char c) noexcept nogil:
    text.octets[text.length] = c
    text.length += 1


cdef inline void append(text_t* text, octets data, Py_ssize_t length) noexcept nogil:
    memcpy(text.octets + text.length, data, length)
    text.length += length


cdef void append_quoted(text_t* text, octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """The content of a quoted-string or comment, without backslashes and line ends."""
    while at < end:
        if data[at] == c"\\" and at + 1 < end:
            at += 1
        if data[at] != c"\r" and data[at] != c"\n":
            put(text, data[at])
        at += 1


cdef void word_to_name(element_t* element) noexcept nogil:
    """The word was no local-part: it belongs to the phrase."""
    cdef Py_ssize_t i
    if element.word.length and element.name.length:
        put(&element.name, c" ")
    for i in range(element.word.length):
        put(&element.name, c" " if element.word.octets[i] == GAP else element.word.octets[i])
    element.word.length = 0


cdef void drop_gaps(text_t* text) noexcept nogil:
    cdef Py_ssize_t i, length = 0
    for i in range(text.length):
        if text.octets[i] != GAP:
            text.octets[length] = text.octets[i]
            length += 1
    text.length = length


cdef text_t* target(element_t* element, bint dot) noexcept nogil:
    """Where the next word goes; `dot`: it begins with one, and so continues the one before."""
    cdef text_t* text = &element.domain if element.at_sign else &element.word
    cdef bint gap = element.gap
    element.gap = False
    if element.done:
        if element.name.length:
            put(&element.name, c" ")
        return &element.name
    if not gap or text.length == 0:
        return text
    if dot or text.octets[text.length - 1] == c".":
        if not element.at_sign:
            put(text, GAP)
        return text
    if element.at_sign:
        element.done = True
        element.gap = True
        return target(element, dot)
    word_to_name(element)
    return text


cdef Py_ssize_t encoded_word_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Behind the encoded word at `at`, or `at`: senders put commas and quotes into them."""
    cdef Py_ssize_t i = at + 2
    cdef int marks = 0
    if at + 2 > end or data[at] != c"=" or data[at + 1] != c"?":
        return at
    while i < end and data[i] > 32:
        if data[i] == c"?":
            marks += 1
            if marks == 3:
                return i + 2 if i + 1 < end and data[i + 1] == c"=" else at
        i += 1
    return at


cdef inline bint ends_atom(unsigned char c) noexcept nogil:
    return (
        c <= 32 and is_space(c) or c == c"<" or c == c">" or c == c"@" or c == c"," or c == c";"
        or c == c":" or c == c'"' or c == c"("
    )


cdef Py_ssize_t read_atom(
    element_t* element, octets data, Py_ssize_t at, Py_ssize_t end
) noexcept nogil:
    cdef Py_ssize_t start = at
    at = encoded_word_end(data, at, end)
    while at < end and not ends_atom(data[at]):
        at += 1
    # A special that cannot stand here is taken as text, so that the reader goes forward.
    at = max(at, start + 1)
    append(target(element, data[start] == c"."), data + start, at - start)
    return at


cdef Py_ssize_t read_literal(
    element_t* element, octets data, Py_ssize_t at, Py_ssize_t end
) noexcept nogil:
    """A domain-literal (RFC 5322 section 3.4.1) without the white space inside."""
    while at < end:
        if not is_space(data[at]):
            put(&element.domain, data[at])
        at += 1
        if data[at - 1] == c"]":
            break
    return at


cdef Py_ssize_t read_comment(
    element_t* element, octets data, Py_ssize_t at, Py_ssize_t end
) noexcept nogil:
    cdef Py_ssize_t close = comment_close(data, at, end)
    element.comment.length = 0
    append_quoted(&element.comment, data, at + 1, close)
    element.gap = True
    return min(close + 1, end)


cdef void open_angle(element_t* element) noexcept nogil:
    if element.at_sign and not element.in_angle:
        # `a@b <a@b>`: what stands before was meant as the display-name.
        put(&element.word, c"@")
        append(&element.word, element.domain.octets, element.domain.length)
    word_to_name(element)
    element.domain.length = 0
    element.in_angle = element.had_angle = True
    element.at_sign = element.done = element.gap = False


cdef void close_angle(element_t* element) noexcept nogil:
    element.in_angle = False
    element.done = element.had_angle
    element.gap = True


cdef void see_at_sign(element_t* element) noexcept nogil:
    """Of several the last one counts, but those of a route (`<@a,@b:c@d>`) not at all."""
    if element.at_sign and element.word.length:
        put(&element.word, c"@")
        append(&element.word, element.domain.octets, element.domain.length)
    element.domain.length = 0
    element.at_sign = True
    element.done = element.gap = False
    drop_gaps(&element.word)


cdef bint in_route(element_t* element) noexcept nogil:
    return element.in_angle and element.at_sign and element.word.length == 0


cdef bint ends_here(element_t* element, unsigned char c, bint in_group) noexcept nogil:
    """Whether a comma, semicolon or colon ends the element."""
    if c == c",":
        return not in_route(element)
    if c == c":":
        return not (in_group or element.in_angle or element.at_sign)
    return True


cdef void see_separator(element_t* element) noexcept nogil:
    """A comma or colon of a route (RFC 5322 section 4.4), or one that means nothing."""
    if in_route(element):
        element.domain.length = 0
        element.at_sign = False
    element.gap = True


cdef Py_ssize_t read_element(
    element_t* element, octets data, Py_ssize_t at, Py_ssize_t end, bint in_group
) noexcept nogil:
    """Read up to and with the next separator; what was read is in `element`."""
    cdef unsigned char c
    cdef Py_ssize_t close
    element.name.length = element.word.length = 0
    element.domain.length = element.comment.length = 0
    element.in_angle = element.had_angle = element.at_sign = False
    element.gap = element.done = False
    element.stop = 0
    while at < end:
        c = data[at]
        if is_space(c):
            element.gap = True
            at += 1
        elif c == c"," or c == c";" or c == c":":
            at += 1
            if ends_here(element, c, in_group):
                element.stop = c
                break
            see_separator(element)
        elif c == c'"':
            close = quoted_end(data, at + 1, end)
            append_quoted(target(element, False), data, at + 1, close)
            at = min(close + 1, end)
        elif c == c"(":
            at = read_comment(element, data, at, end)
        elif c == c"<":
            open_angle(element)
            at += 1
        elif c == c">":
            close_angle(element)
            at += 1
        elif c == c"@" and (not element.done or element.had_angle == element.in_angle):
            see_at_sign(element)
            at += 1
        elif c == c"[" and element.at_sign and element.domain.length == 0:
            at = read_literal(element, data, at, end)
        else:
            at = read_atom(element, data, at, end)
    if not element.at_sign and not element.had_angle:
        word_to_name(element)
    drop_gaps(&element.word)
    return at


cdef str as_text(text_t* text):
    """UTF-8 (RFC 6532), or else ISO 8859-1, which knows every octet."""
    try:
        return PyUnicode_DecodeUTF8(<char*>text.octets, text.length, NULL)
    except UnicodeDecodeError:
        return PyUnicode_DecodeLatin1(<char*>text.octets, text.length, NULL)


cdef bint is_empty(element_t* element) noexcept:
    return not (
        element.name.length or element.word.length or element.domain.length
        or element.comment.length or element.had_angle
    )


cdef inline text_t* display_name(element_t* element) noexcept:
    """RFC 8621 section 4.1.2.3: without a display-name, the comment is used."""
    return &element.name if element.name.length else &element.comment


cdef list read_list(octets data, Py_ssize_t end, Py_ssize_t most, element_t* element):
    cdef list result = [], members = None
    cdef Py_ssize_t at = 0, count = 0
    while at < end and count < most:
        if end - at < RELEASE:
            at = read_element(element, data, at, end, members is not None)
        else:
            with nogil:
                at = read_element(element, data, at, end, members is not None)
        if element.stop == c":":
            members = []
            result.append((as_text(display_name(element)), members))
            count += 1
            continue
        if not is_empty(element):
            (result if members is None else members).append((
                as_text(display_name(element)), as_text(&element.word), as_text(&element.domain)
            ))
            count += 1
        if element.stop == c";":
            members = None
        if count % BATCH == BATCH - 1:
            with nogil:
                pass
    return result


def address_list(bytes value, Py_ssize_t most=10_000):
    """The first `most` addresses of a field value.

    Each is (display name, local part, domain), or for a group (display name, list of such).
    Local parts are without their quotes; what is missing is empty. Encoded words are left.
    """
    cdef octets data = <octets>PyBytes_AS_STRING(value)
    cdef Py_ssize_t length = len(value)
    cdef element_t element
    # Each holds any octet once at the most; a name may have a space before each of them too.
    cdef Py_ssize_t room = length + 2
    cdef unsigned char* scratch = <unsigned char*>malloc(5 * room)
    if scratch is NULL:
        raise MemoryError
    element.word.octets = scratch
    element.domain.octets = scratch + room
    element.comment.octets = scratch + 2 * room
    element.name.octets = scratch + 3 * room
    try:
        return read_list(data, length, most, &element)
    finally:
        free(scratch)
