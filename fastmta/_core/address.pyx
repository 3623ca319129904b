# cython: boundscheck=False, wraparound=False
"""The envelope form of an address (RFC 5321 section 4.1.2, RFC 6531 section 3.3).

Each `*_end` function gives the place behind what it recognises, or NULL. Octets above 127 pass
for letters here; whether they are UTF-8, and allowed, is asked where they become text.
"""

from cpython.unicode cimport PyUnicode_FindChar
from libc.string cimport memchr, memcpy


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6

cdef enum:
    MAX_DOMAIN = 255  # RFC 5321 section 4.5.3.1.2
    MAX_LABEL = 63  # RFC 1035 section 2.3.4
    MAX_LITERAL = 64  # with its brackets
    ATEXT = 1  # RFC 5322 section 3.2.3
    LET_DIG = 2

cdef unsigned char[256] KIND

for _octet in range(256):
    if _octet > 127 or chr(_octet).isalnum():
        KIND[_octet] = ATEXT | LET_DIG
    elif chr(_octet) in "!#$%&'*+-/=?^_`{|}~":
        KIND[_octet] = ATEXT
    else:
        KIND[_octet] = 0


cdef const unsigned char* mailbox_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """Mailbox = Local-part "@" ( Domain / address-literal )."""
    at = quoted_end(at, end) if at < end and at[0] == c'"' else dot_string_end(at, end)
    if at == NULL or at >= end or at[0] != c"@":
        return NULL
    return domain_end(at + 1, end)


cdef const unsigned char* dot_string_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """Dot-string = Atom *("."  Atom)."""
    cdef const unsigned char* start
    while True:
        start = at
        while at < end and KIND[at[0]] & ATEXT:
            at += 1
        if at == start:
            return NULL
        if at >= end or at[0] != c".":
            return at
        at += 1


cdef const unsigned char* quoted_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """Quoted-string = DQUOTE *QcontentSMTP DQUOTE; nothing in it is a control.

    Behind a backslash stands ASCII alone, also by RFC 6531.
    """
    at += 1
    while at < end and at[0] != c'"':
        if at[0] == c"\\":
            at += 1
            if at < end and at[0] > 126:
                return NULL
        if at >= end or at[0] < 32 or at[0] == 127:
            return NULL
        at += 1
    return at + 1 if at < end else NULL


cdef const unsigned char* domain_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """Domain, or address-literal in brackets."""
    cdef const unsigned char* start = at
    if at < end and at[0] == c"[":
        return literal_end(at, end)
    while True:
        at = label_end(at, end)
        if at == NULL or at - start > MAX_DOMAIN:
            return NULL
        if at >= end or at[0] != c".":
            return at
        at += 1


cdef const unsigned char* label_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """sub-domain = Let-dig [Ldh-str]; an underscore passes, since such domains receive mail."""
    cdef const unsigned char* start = at
    while at < end and (KIND[at[0]] & LET_DIG or at[0] == c"-" or at[0] == c"_"):
        at += 1
    if at == start or start[0] == c"-" or (at - 1)[0] == c"-" or at - start > MAX_LABEL:
        return NULL
    return at


cdef const unsigned char* literal_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """address-literal (RFC 5321 section 4.1.3); IPv6 is the only tag that is registered."""
    cdef char[MAX_LITERAL] text
    cdef unsigned char[16] address
    cdef const unsigned char* close = <const unsigned char*>memchr(at, c"]", end - at)
    if close == NULL or close - at >= MAX_LITERAL:
        return NULL
    memcpy(text, at + 1, close - at - 1)
    text[close - at - 1] = 0
    if memchr(text, 0, close - at - 1) != NULL:
        return NULL
    if has_ipv6_tag(text):
        return close + 1 if inet_pton(AF_INET6, text + 5, address) == 1 else NULL
    return close + 1 if inet_pton(AF_INET, text, address) == 1 else NULL


cdef bint has_ipv6_tag(const char* text) noexcept nogil:
    """The tag in any case; `text` ends in NUL, which stops this in time."""
    cdef int i
    for i in range(3):
        if (text[i] | 32) != b"ipv"[i]:
            return False
    return text[3] == c"6" and text[4] == c":"


def is_mailbox(str text not None):
    """Whether `text` is a Mailbox in whole; non-ASCII counts as RFC 6531 allows it."""
    cdef bytes octets = text.encode("utf-8", "surrogatepass")
    cdef const unsigned char* at = octets
    return mailbox_end(at, at + len(octets)) == at + len(octets) and is_clean(text)


def is_domain(str text not None):
    """Whether `text` is a Domain or an address-literal in whole."""
    cdef bytes octets = text.encode("utf-8", "surrogatepass")
    cdef const unsigned char* at = octets
    return domain_end(at, at + len(octets)) == at + len(octets) and is_clean(text)


cdef bint is_clean(str text):
    """No C1 controls and no surrogates; the grammar keeps the other controls out."""
    cdef Py_UCS4 character
    if text.isascii():
        return True
    for character in text:
        if 0x7F <= character < 0xA0 or 0xD800 <= character < 0xE000:
            return False
    return True


def domain_part(str address not None):
    """What follows the last "@", in lower case; a quoted local part may hold others."""
    cdef Py_ssize_t at = PyUnicode_FindChar(address, c"@", 0, len(address), -1)
    return address[at + 1:].lower()
