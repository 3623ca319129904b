# cython: boundscheck=False, wraparound=False
"""What kind of address an addr-spec is: RFC 5321, RFC 5322 with or without its obsolete forms.

The classes grow from what any mail system takes to what none does; an address is of the highest
class that something in it asks for.
"""

from cpython.bytes cimport PyBytes_AS_STRING

from fastmta._core.scan cimport is_wsp, octets

VALID, RFC5321, CFWS, DEPRECATED, RFC5322, INVALID = range(6)

cdef enum:
    AS_RFC5321 = 1
    AS_CFWS = 2
    AS_DEPRECATED = 3
    AS_RFC5322 = 4
    AS_INVALID = 5

# RFC 5321 sections 4.5.3.1.1 to 4.5.3.1.3 (a path of 256 octets is an address of 254 in
# brackets), RFC 1035 section 2.3.4.
cdef enum:
    MOST_LOCAL = 64
    MOST_DOMAIN = 255
    MOST_ADDRESS = 254
    MOST_LABEL = 63


cdef struct reader_t:
    octets data
    Py_ssize_t at
    Py_ssize_t end
    int level
    bint utf8


cdef inline void raise_to(reader_t* reader, int level) noexcept nogil:
    if level > reader.level:
        reader.level = level


cdef inline int peek(reader_t* reader) noexcept nogil:
    return reader.data[reader.at] if reader.at < reader.end else -1


cdef inline bint is_atext(reader_t* reader, int c) noexcept nogil:
    """RFC 5322 section 3.2.3, RFC 6532 section 3.2."""
    if c < 33 or c == 127:
        return False
    if c > 127:
        return reader.utf8
    return not (
        c == c"(" or c == c")" or c == c"<" or c == c">" or c == c"[" or c == c"]" or c == c":"
        or c == c";" or c == c"@" or c == c"\\" or c == c"," or c == c"." or c == c'"'
    )


cdef inline bint is_obsolete_control(int c) noexcept nogil:
    """obs-NO-WS-CTL (RFC 5322 section 4.1)."""
    return 1 <= c <= 8 or c == 11 or c == 12 or 14 <= c <= 31 or c == 127


cdef bint read_fws(reader_t* reader) noexcept nogil:
    """FWS or obs-FWS (RFC 5322 sections 3.2.2 and 4.2): every CRLF is followed by WSP."""
    cdef int lines = 0, c = peek(reader)
    while c == c" " or c == c"\t" or c == c"\r":
        if c == c"\r":
            lines += 1
            if reader.at + 2 >= reader.end or reader.data[reader.at + 1] != c"\n":
                return False
            if not is_wsp(reader.data[reader.at + 2]):
                return False
            reader.at += 2
        reader.at += 1
        c = peek(reader)
    raise_to(reader, AS_DEPRECATED if lines > 1 else AS_CFWS)
    return True


cdef bint read_quoted_pair(reader_t* reader) noexcept nogil:
    """The octet behind a backslash (RFC 5322 section 3.2.1, and 4.1 for the obsolete ones)."""
    cdef int c
    reader.at += 1
    c = peek(reader)
    if c < 0 or c > 127 and not reader.utf8:
        return False
    if c < 32 and c != c"\t" or c == 127:
        raise_to(reader, AS_DEPRECATED)
    reader.at += 1
    return True


cdef bint read_text(reader_t* reader, int c) noexcept nogil:
    """One octet of ctext, qtext or dtext, the obsolete ones included."""
    if is_obsolete_control(c):
        raise_to(reader, AS_DEPRECATED)
    elif c < 33 or c > 126 and not reader.utf8:
        return False
    reader.at += 1
    return True


cdef bint read_comment(reader_t* reader) noexcept nogil:
    cdef Py_ssize_t depth = 0
    cdef int c
    while True:
        c = peek(reader)
        if c == c" " or c == c"\t" or c == c"\r":
            if not read_fws(reader):
                return False
        elif c == c"\\":
            if not read_quoted_pair(reader):
                return False
        elif not read_text(reader, c):
            return False
        elif c == c"(":
            depth += 1
        elif c == c")":
            depth -= 1
            if depth == 0:
                return True


cdef bint read_cfws(reader_t* reader, int level) noexcept nogil:
    """Comments and white space, if any; `level` is what they make of the address here."""
    cdef Py_ssize_t start = reader.at
    cdef int c = peek(reader)
    while c == c" " or c == c"\t" or c == c"\r" or c == c"(":
        if not (read_comment(reader) if c == c"(" else read_fws(reader)):
            return False
        c = peek(reader)
    if reader.at > start:
        raise_to(reader, level)
    return True


cdef bint read_quoted_string(reader_t* reader) noexcept nogil:
    cdef int c
    reader.at += 1
    while True:
        c = peek(reader)
        if c == c'"':
            reader.at += 1
            return True
        if c == c" ":
            # A plain space is qtextSMTP (RFC 5321 section 4.1.2).
            reader.at += 1
        elif c == c"\t" or c == c"\r":
            if not read_fws(reader):
                return False
        elif c == c"\\":
            if not read_quoted_pair(reader):
                return False
        elif not read_text(reader, c):
            return False


cdef Py_ssize_t read_atom(reader_t* reader) noexcept nogil:
    cdef Py_ssize_t start = reader.at
    while is_atext(reader, peek(reader)):
        reader.at += 1
    return reader.at - start


cdef Py_ssize_t read_local(reader_t* reader) noexcept nogil:
    """dot-atom, quoted-string or obs-local-part; its length without white space, -1 if broken."""
    cdef Py_ssize_t start, length = 0
    cdef int words = 0, quoted = 0
    if not read_cfws(reader, AS_CFWS):
        return -1
    while True:
        start = reader.at
        if peek(reader) == c'"':
            quoted += 1
            if not read_quoted_string(reader):
                return -1
        elif read_atom(reader) == 0:
            return -1
        length += reader.at - start
        words += 1
        # White space at the at-sign (section 3.4.1) or at a dot (section 4.4) is deprecated.
        if not read_cfws(reader, AS_DEPRECATED):
            return -1
        if peek(reader) != c".":
            break
        length += 1
        reader.at += 1
        if not read_cfws(reader, AS_DEPRECATED):
            return -1
    if length > MOST_LOCAL:
        raise_to(reader, AS_RFC5322)
    if quoted:
        raise_to(reader, AS_RFC5321 if words == 1 else AS_DEPRECATED)
    return length


cdef bint read_label(reader_t* reader) noexcept nogil:
    """One label: RFC 5321 section 4.1.2 takes letters, digits and inner hyphens alone."""
    cdef Py_ssize_t start = reader.at, i
    cdef unsigned char c
    if read_atom(reader) == 0:
        return False
    if reader.data[start] == c"-" or reader.data[reader.at - 1] == c"-":
        return False
    if reader.at - start > MOST_LABEL:
        raise_to(reader, AS_RFC5322)
    for i in range(start, reader.at):
        c = reader.data[i]
        if not (c"a" <= c | 32 <= c"z" or c"0" <= c <= c"9" or c == c"-" or c > 127):
            raise_to(reader, AS_RFC5322)
    return True


cdef Py_ssize_t read_domain(reader_t* reader) noexcept nogil:
    """A dot-separated domain; its length without white space, -1 for a broken one."""
    cdef Py_ssize_t start, length = 0
    cdef int labels = 0
    cdef bint at_end
    while True:
        start = reader.at
        if not read_label(reader):
            return -1
        length += reader.at - start
        labels += 1
        at_end = at_last_cfws(reader)
        if not read_cfws(reader, AS_CFWS if at_end else AS_DEPRECATED):
            return -1
        if peek(reader) != c".":
            break
        length += 1
        reader.at += 1
        if not read_cfws(reader, AS_DEPRECATED):
            return -1
    # RFC 5321 section 2.3.5 wants a fully-qualified name; a lone label is a top-level domain.
    if labels == 1 or c"0" <= reader.data[start] <= c"9":
        raise_to(reader, AS_RFC5321)
    return length


cdef bint at_last_cfws(reader_t* reader) noexcept nogil:
    """Whether white space and comments from here on reach to the end."""
    cdef reader_t ahead = reader[0]
    return read_cfws(&ahead, AS_CFWS) and ahead.at == ahead.end


cdef Py_ssize_t read_literal(reader_t* reader) noexcept nogil:
    """A domain-literal (RFC 5322 section 3.4.1) that is no address literal; its length."""
    cdef Py_ssize_t start = reader.at
    cdef int c
    reader.at += 1
    raise_to(reader, AS_RFC5322)
    while True:
        c = peek(reader)
        if c == c"]":
            reader.at += 1
            return reader.at - start
        if c == c" " or c == c"\t" or c == c"\r":
            if not read_fws(reader):
                return -1
        elif c == c"\\":
            if not read_quoted_pair(reader):
                return -1
        elif c == c"[" or not read_text(reader, c):
            return -1


cdef int hex_value(int c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    return (c | 32) - c"a" + 10 if c"a" <= c | 32 <= c"f" else -1


cdef bint is_ipv4(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Four numbers of up to three digits below 256 (RFC 5321 section 4.1.3)."""
    cdef int parts = 0, value, digits
    while True:
        value = digits = 0
        while at < end and c"0" <= data[at] <= c"9" and digits < 4:
            value = 10 * value + data[at] - c"0"
            digits += 1
            at += 1
        if digits < 1 or digits > 3 or value > 255:
            return False
        parts += 1
        if at == end:
            return parts == 4
        if data[at] != c"." or parts == 4:
            return False
        at += 1


cdef int ipv6_level(octets data, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """The class of an IPv6 address (RFC 5321 section 4.1.3, RFC 4291 section 2.2)."""
    cdef int groups = 0, digits
    cdef bint elided = False
    cdef Py_ssize_t start
    if at + 1 < end and data[at] == c":" and data[at + 1] == c":":
        elided = True
        at += 2
    while at < end:
        start, digits = at, 0
        while at < end and hex_value(data[at]) >= 0 and digits < 5:
            digits += 1
            at += 1
        if at < end and data[at] == c"." and is_ipv4(data, start, end):
            groups, at = groups + 2, end
            break
        if digits < 1 or digits > 4:
            return AS_RFC5322
        groups += 1
        if at == end:
            break
        if data[at] != c":" or at + 1 == end:
            return AS_RFC5322
        at += 1
        if data[at] == c":":
            if elided:
                return AS_RFC5322
            elided = True
            at += 1
    if not elided:
        return AS_RFC5321 if groups == 8 else AS_RFC5322
    # RFC 5321 lets "::" stand for two groups at least, RFC 4291 for one.
    return AS_RFC5321 if groups <= 6 else AS_DEPRECATED if groups == 7 else AS_RFC5322


cdef Py_ssize_t read_address_literal(reader_t* reader) noexcept nogil:
    """An IPv4 or IPv6 literal, or any other domain-literal; its length, -1 if broken."""
    cdef Py_ssize_t start = reader.at + 1, close = start
    cdef int level = AS_RFC5322
    while close < reader.end and reader.data[close] != c"]" and close - start < 64:
        close += 1
    if close < reader.end and reader.data[close] == c"]":
        if is_ipv4(reader.data, start, close):
            level = AS_RFC5321
        elif close - start > 5 and is_ipv6_tag(reader.data + start):
            level = ipv6_level(reader.data, start + 5, close)
    if level == AS_RFC5322:
        return read_literal(reader)
    raise_to(reader, level)
    reader.at = close + 1
    return close + 2 - start


cdef bint is_ipv6_tag(octets data) noexcept nogil:
    return (
        data[0] | 32 == c"i" and data[1] | 32 == c"p" and data[2] | 32 == c"v"
        and data[3] == c"6" and data[4] == c":"
    )


cdef bint read_addr_spec(reader_t* reader) noexcept nogil:
    cdef Py_ssize_t local, domain
    local = read_local(reader)
    if local < 0 or peek(reader) != c"@":
        return False
    reader.at += 1
    if not read_cfws(reader, AS_DEPRECATED):
        return False
    if peek(reader) == c"[":
        domain = read_address_literal(reader)
        if domain < 0 or not read_cfws(reader, AS_CFWS):
            return False
    else:
        domain = read_domain(reader)
    if domain < 0 or reader.at < reader.end:
        return False
    if domain > MOST_DOMAIN or local + 1 + domain > MOST_ADDRESS:
        raise_to(reader, AS_RFC5322)
    return True


def classify(bytes address, bint utf8=False):
    """VALID, RFC5321, CFWS, DEPRECATED, RFC5322 or INVALID; `utf8` allows what RFC 6531 does."""
    cdef reader_t reader
    reader.data, reader.at, reader.end = <octets>PyBytes_AS_STRING(address), 0, len(address)
    reader.level, reader.utf8 = 0, utf8
    return reader.level if read_addr_spec(&reader) else AS_INVALID
