# cython: boundscheck=False, wraparound=False
"""Header fields found in place (RFC 5322 section 2.2), and what structured ones are made of.

Nothing here copies or refuses: a field is four offsets, and a line that is no field is reported
with an empty name, so that every octet of a header section belongs to some field.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DATA, PyUnicode_DecodeLatin1, PyUnicode_GET_LENGTH
from libc.string cimport memcmp, memcpy

from fastmta._core.scan cimport after_empty_line, before_line_end, equal_fold, is_space, is_wsp
from fastmta._core.scan cimport next_line, octets

# Below this many octets a scan is over before another thread could use the interpreter.
cdef Py_ssize_t RELEASE = 1 << 16


cdef bint read_field(octets data, Py_ssize_t at, Py_ssize_t end, field_t* field) noexcept nogil:
    """Read the field at `at` with its folded lines; False at the end or at an empty line."""
    if at >= end or after_empty_line(data, at, end) >= 0:
        return False
    cdef Py_ssize_t line = next_line(data, at, end)
    cdef Py_ssize_t colon = at
    # RFC 5322 section 2.2: a name is printable US-ASCII without the colon.
    while colon < line and 33 <= data[colon] <= 126 and data[colon] != c":":
        colon += 1
    field.name_start = field.name_end = field.value_start = at
    if colon > at:
        field.name_end = colon
        # RFC 5322 section 4.5: white space before the colon is obsolete, but a field.
        while colon < line and is_wsp(data[colon]):
            colon += 1
        if colon < line and data[colon] == c":":
            field.value_start = colon + 1
        else:
            field.name_end = at
    # A line that begins with white space continues the one before (RFC 5322 section 2.2.3).
    while line < end and is_wsp(data[line]):
        line = next_line(data, line, end)
    field.value_end = before_line_end(data, field.value_start, line)
    field.next = line
    return True


cdef Py_ssize_t comment_close(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Where the comment that opens at `at` is closed, however deep it nests (RFC 5322 section
    3.2.2); `end` where it is not."""
    cdef Py_ssize_t depth = 0
    while at < end:
        if data[at] == c"\\":
            at += 1
        elif data[at] == c"(":
            depth += 1
        elif data[at] == c")":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return end


cdef inline Py_ssize_t comment_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    return min(comment_close(data, at, end) + 1, end)


cdef Py_ssize_t skip_cfws(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    while at < end:
        if is_space(data[at]):
            at += 1
        elif data[at] == c"(":
            at = comment_end(data, at, end)
        else:
            break
    return at


cdef Py_ssize_t quoted_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """The closing quote of the quoted-string whose content begins at `at`, or `end`."""
    while at < end and data[at] != c'"':
        at += 2 if data[at] == c"\\" and at + 1 < end else 1
    return at


cdef inline bint ends_name(unsigned char c) noexcept nogil:
    return is_space(c) or c == c";" or c == c"=" or c == c'"' or c == c"("


cdef Py_ssize_t bare_value_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """The end of a value without quotes.

    RFC 2045 section 5.1 allows no space in it, but file names with spaces are sent so; it goes
    on to the semicolon, unless the next word is a parameter whose semicolon was forgotten.
    """
    cdef Py_ssize_t word, last = at
    while at < end and data[at] != c";":
        if not is_space(data[at]):
            at += 1
            last = at
            continue
        while at < end and is_space(data[at]):
            at += 1
        word = at
        while word < end and not ends_name(data[word]):
            word += 1
        if at < end and (data[at] == c"(" or (word < end and data[word] == c"=")):
            break
        if word > at:
            at = last = word
    return last


cdef bint read_parameter(
    octets data, Py_ssize_t at, Py_ssize_t end, parameter_t* parameter
) noexcept nogil:
    """Read the next `; name=value` at or behind `at` (RFC 2045 section 5.1)."""
    while True:
        at = skip_cfws(data, at, end)
        if at >= end:
            return False
        parameter.name_start = at
        while at < end and not ends_name(data[at]):
            at += 1
        parameter.name_end = at
        at = skip_cfws(data, at, end)
        if at < end and data[at] == c"=" and parameter.name_end > parameter.name_start:
            break
        if at < end and at == parameter.name_start:
            at += 1
    at = skip_cfws(data, at + 1, end)
    parameter.quoted = at < end and data[at] == c'"'
    if parameter.quoted:
        parameter.value_start = at + 1
        parameter.value_end = quoted_end(data, at + 1, end)
        parameter.next = min(parameter.value_end + 1, end)
    else:
        parameter.value_start = at
        parameter.value_end = parameter.next = bare_value_end(data, at, end)
    return True


cdef bytes shortened(bytes fresh, Py_ssize_t length):
    """An object that nobody else has seen, cut to its first octets in place."""
    return fresh if length == len(fresh) else fresh[:length]


cdef bytes unquoted(octets data, Py_ssize_t start, Py_ssize_t end):
    """The content of a quoted-string: without backslashes and line ends (section 3.2.4)."""
    cdef bytes result = PyBytes_FromStringAndSize(NULL, end - start)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(result)
    cdef Py_ssize_t length = 0, at = start
    while at < end:
        if data[at] == c"\\" and at + 1 < end:
            at += 1
        if data[at] != c"\r" and data[at] != c"\n":
            out[length] = data[at]
            length += 1
        at += 1
    return shortened(result, length)


def parameters(bytes value, Py_ssize_t most=1000):
    """The value before the first semicolon, and the first (name, value) pairs behind it."""
    cdef octets data = <octets>PyBytes_AS_STRING(value)
    cdef Py_ssize_t end = len(value), at = skip_cfws(data, 0, end)
    cdef Py_ssize_t start = at, stop
    cdef parameter_t found
    cdef list result = []
    while at < end and data[at] != c";" and not is_space(data[at]) and data[at] != c"(":
        at += 1
    stop = at
    while len(result) < most and read_parameter(data, at, end, &found):
        at = found.next
        result.append((
            value[found.name_start:found.name_end].lower(),
            unquoted(data, found.value_start, found.value_end) if found.quoted
            else value[found.value_start:found.value_end],
        ))
    return value[start:stop], result


cdef Py_ssize_t header_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    while at < end and after_empty_line(data, at, end) < 0:
        at = next_line(data, at, end)
    return at


def end_of_header(bytes data, Py_ssize_t start=0):
    """Where the empty line behind the header section begins; the length where there is none."""
    cdef octets octet = <octets>PyBytes_AS_STRING(data)
    cdef Py_ssize_t end = len(data), result
    start = max(start, 0)
    if end - start < RELEASE:
        return header_end(octet, start, end)
    with nogil:
        result = header_end(octet, start, end)
    return result


cdef class Ranges:
    """Iterates over (name start, name end, value start, value end) of data[start:end]."""

    cdef bytes data
    cdef Py_ssize_t at, end

    def __init__(self, bytes data, Py_ssize_t start, Py_ssize_t end):
        self.data = data
        self.at, self.end = max(start, 0), min(end, len(data))

    def __iter__(self):
        return self

    def __next__(self):
        cdef field_t field
        if not next_field(<octets>PyBytes_AS_STRING(self.data), &self.at, self.end, &field):
            raise StopIteration
        return field.name_start, field.name_end, field.value_start, field.value_end


@cython.final
cdef class Fields(Ranges):
    """Iterates over (name, value) of data[start:end]; both as they stand."""

    def __next__(self):
        cdef field_t field
        if not next_field(<octets>PyBytes_AS_STRING(self.data), &self.at, self.end, &field):
            raise StopIteration
        return name_and_value(PyBytes_AS_STRING(self.data), &field)


cdef inline tuple name_and_value(const char* data, field_t* field):
    return (
        field_name(data + field.name_start, field.name_end - field.name_start),
        copied(data + field.value_start, field.value_end - field.value_start),
    )


# Messages have the same few names over and over: the last of each slot is kept.
cdef list NAMES = [""] * 256


cdef inline str field_name(const char* name, Py_ssize_t length):
    cdef str kept
    cdef int slot
    if not 0 < length <= 64:
        return PyUnicode_DecodeLatin1(name, length, NULL)
    slot = (<unsigned char>name[length - 1] + 8 * <unsigned char>name[0] + 31 * length) & 255
    kept = NAMES[slot]
    if PyUnicode_GET_LENGTH(kept) == length and not memcmp(PyUnicode_DATA(kept), name, length):
        return kept
    kept = PyUnicode_DecodeLatin1(name, length, NULL)
    NAMES[slot] = kept
    return kept


cdef inline bytes copied(const char* source, Py_ssize_t length):
    """An object of its own; a long one is copied while other threads run."""
    if length < RELEASE:
        return PyBytes_FromStringAndSize(source, length)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, length)
    cdef char* out = PyBytes_AS_STRING(result)
    with nogil:
        memcpy(out, source, length)
    return result


cdef inline bint next_field(
    octets data, Py_ssize_t* at, Py_ssize_t end, field_t* field
) noexcept:
    """Read the field at `at`, and go to the next."""
    cdef bint found
    if end - at[0] < RELEASE:
        found = read_field(data, at[0], end, field)
    else:
        with nogil:
            found = read_field(data, at[0], end, field)
    if found:
        at[0] = field.next
    return found


cdef class Section:
    """The fields of data[start:end], which iterating yields as (name, value), as they stand."""

    def __init__(self, bytes data, Py_ssize_t start, Py_ssize_t end):
        self.data, self.start, self.end = data, start, end

    def __iter__(self):
        cdef Fields fields = Fields.__new__(Fields)
        fields.data, fields.at = self.data, max(self.start, 0)
        fields.end = min(self.end, len(self.data))
        return fields

    def items(self, Py_ssize_t most=10_000):
        """The first fields as a list of (name, value)."""
        cdef list result = []
        cdef const char* data = PyBytes_AS_STRING(self.data)
        cdef Py_ssize_t at = max(self.start, 0), end = min(self.end, len(self.data))
        cdef field_t field
        while len(result) < most and next_field(<octets>data, &at, end, &field):
            result.append(name_and_value(data, &field))
        return result


cdef bint search(
    octets data, Py_ssize_t at, Py_ssize_t end, const char* name, Py_ssize_t length, field_t* found
) noexcept nogil:
    """Read on to the next field of that name."""
    while read_field(data, at, end, found):
        if equal_fold(data, found.name_start, found.name_end, name, length):
            return True
        at = found.next
    return False


def find(bytes data, Py_ssize_t start, Py_ssize_t end, bytes name):
    """The (value start, value end) of every field with that name, which is in lower case."""
    cdef octets octet = <octets>PyBytes_AS_STRING(data)
    cdef const char* wanted = PyBytes_AS_STRING(name)
    cdef Py_ssize_t length = len(name)
    cdef field_t field
    cdef list result = []
    cdef bint found
    start, end = max(start, 0), min(end, len(data))
    while True:
        if end - start < RELEASE:
            found = search(octet, start, end, wanted, length, &field)
        else:
            with nogil:
                found = search(octet, start, end, wanted, length, &field)
        if not found:
            return result
        start = field.next
        result.append((field.value_start, field.value_end))


cdef Py_ssize_t count_line_ends(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t count = 0
    while at < end:
        count += data[at] == c"\r" or data[at] == c"\n"
        at += 1
    return count


cdef void copy_unfolded(
    octets data, Py_ssize_t at, Py_ssize_t end, unsigned char* out
) noexcept nogil:
    while at < end:
        if data[at] != c"\r" and data[at] != c"\n":
            out[0] = data[at]
            out += 1
        at += 1


def unfold(bytes data, Py_ssize_t start, Py_ssize_t end):
    """data[start:end] without its line ends (RFC 5322 section 2.2.3), trimmed of white space."""
    cdef octets octet = <octets>PyBytes_AS_STRING(data)
    cdef Py_ssize_t line_ends
    start, end = max(start, 0), min(end, len(data))
    end = max(start, end)
    while start < end and is_space(octet[start]):
        start += 1
    while end > start and is_space(octet[end - 1]):
        end -= 1
    if end - start < RELEASE:
        line_ends = count_line_ends(octet, start, end)
    else:
        with nogil:
            line_ends = count_line_ends(octet, start, end)
    if line_ends == 0:
        return copied(<char*>octet + start, end - start)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, end - start - line_ends)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(result)
    if end - start < RELEASE:
        copy_unfolded(octet, start, end, out)
    else:
        with nogil:
            copy_unfolded(octet, start, end, out)
    return result


cdef Py_ssize_t word_end(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """The end of the word, quoted-string, comment or angle-bracketed text at `at`."""
    if data[at] == c"(":
        return comment_end(data, at, end)
    while at < end and not is_space(data[at]) and data[at] != c"(":
        if data[at] == c'"':
            at = min(quoted_end(data, at + 1, end), end - 1)
        at += 1
    return at


def words(bytes value):
    """The words and comments of a value, as they stand."""
    cdef octets data = <octets>PyBytes_AS_STRING(value)
    cdef Py_ssize_t at = 0, start, end = len(value)
    cdef list result = []
    while at < end:
        if is_space(data[at]):
            at += 1
            continue
        start = at
        at = word_end(data, at, end)
        result.append(value[start:at])
    return result


def bracketed(bytes value):
    """What stands between angle brackets, without white space (RFC 5322 section 3.6.4).

    A value without brackets is one whole, as broken senders write their ids.
    """
    cdef octets data = <octets>PyBytes_AS_STRING(value)
    cdef Py_ssize_t at = 0, start, end = len(value)
    cdef list result = []
    while at < end:
        at = skip_cfws(data, at, end)
        if at >= end or data[at] != c"<":
            at += 1
            continue
        start = at = at + 1
        while at < end and data[at] != c">":
            at = quoted_end(data, at + 1, end) + 1 if data[at] == c'"' else at + 1
        at = min(at, end)
        result.append(b"".join(value[start:at].split()))
    if not result and value.strip():
        result.append(value.strip())
    return result
