# cython: boundscheck=False, wraparound=False
"""Lines of SMTP, without their CRLF: commands, paths, parameters, replies (RFC 5321 section 4)."""

from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8

from fastmta._core.address cimport domain_end, mailbox_end


class PathError(ValueError):
    """The reverse-path or forward-path is not one (RFC 5321 section 4.1.2)."""


class ParameterError(ValueError):
    """What follows the path is not a list of ESMTP parameters (RFC 5321 section 4.1.2)."""


(
    UNKNOWN, MALFORMED, EHLO, HELO, MAIL, RCPT, DATA, BDAT, RSET, NOOP, HELP, VRFY, EXPN, QUIT,
    AUTH, STARTTLS, XCLIENT,
) = range(17)

cdef enum:
    C_UNKNOWN = 0
    C_MALFORMED = 1
    C_STARTTLS = 15
    C_XCLIENT = 16
    MAX_PATH = 1024  # RFC 5321 section 4.5.3.1.3 asks for 256 at least

# The four letters in lower case, as one number each, in the order of the codes from EHLO on.
cdef unsigned int[13] FOUR_LETTERS
for _i, _name in enumerate(
        b"ehlo helo mail rcpt data bdat rset noop help vrfy expn quit auth".split()):
    FOUR_LETTERS[_i] = _name[0] << 24 | _name[1] << 16 | _name[2] << 8 | _name[3]


def parse_command(bytes line not None):
    """The verb's code and its argument, without white space around (RFC 5321 section 4.1.1).

    A line with a control or with an octet that no command can hold is MALFORMED.
    """
    cdef const unsigned char* at = line
    cdef const unsigned char* end = at + len(line)
    cdef const unsigned char* start = at
    if has_control(at, end):
        return C_MALFORMED, b""
    while at < end and at[0] != c" ":
        at += 1
    cdef int verb = verb_of(start, at - start)
    while at < end and at[0] == c" ":
        at += 1
    while end > at and (end - 1)[0] == c" ":
        end -= 1
    return verb, at[:end - at]


cdef bint has_control(const unsigned char* at, const unsigned char* end) noexcept nogil:
    while at < end:
        if at[0] < 32 or at[0] == 127:
            return True
        at += 1
    return False


cdef int verb_of(const unsigned char* word, Py_ssize_t length) noexcept nogil:
    cdef unsigned int letters
    cdef int i
    if length == 4:
        letters = (<unsigned int>(word[0] | 32) << 24 | (word[1] | 32) << 16 | (word[2] | 32) << 8
                   | (word[3] | 32))
        for i in range(13):
            if FOUR_LETTERS[i] == letters:
                return i + 2
    elif length == 8 and is_word(word, word + length, b"starttls", 8):
        return C_STARTTLS
    elif length == 7 and is_word(word, word + length, b"xclient", 7):
        return C_XCLIENT
    return C_UNKNOWN


cdef bint is_word(const unsigned char* at, const unsigned char* end,
                  const char* word, Py_ssize_t length) noexcept nogil:
    """Whether `word`, given in lower case, stands at `at`, in any case."""
    cdef Py_ssize_t i
    if end - at < length:
        return False
    for i in range(length):
        if at[i] != word[i] and not (c"a" <= word[i] <= c"z" and at[i] == word[i] - 32):
            return False
    return True


def parse_mail(bytes argument not None):
    """The argument of MAIL: (reverse-path, whether all is ASCII, parameters or None).

    The null reverse-path is "". Raises PathError or ParameterError.
    """
    cdef const unsigned char* at = argument
    cdef const unsigned char* end = at + len(argument)
    if not is_word(at, end, b"from:", 5):
        raise PathError("MAIL FROM:<address> is how it is written")
    at = skip_space(at + 5, end)
    if end - at >= 2 and at[0] == c"<" and at[1] == c">":
        return "", argument.isascii(), parameters(at + 2, end)
    address, given = path(at, end, False)
    return address, argument.isascii(), given


def parse_rcpt(bytes argument not None):
    """The argument of RCPT: (forward-path, whether all is ASCII, parameters or None).

    "postmaster", in any case, may stand without a domain (RFC 5321 section 4.1.1.3).
    """
    cdef const unsigned char* at = argument
    cdef const unsigned char* end = at + len(argument)
    if not is_word(at, end, b"to:", 3):
        raise PathError("RCPT TO:<address> is how it is written")
    address, given = path(skip_space(at + 3, end), end, True)
    return address, argument.isascii(), given


cdef const unsigned char* skip_space(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """White space before the path is wrong, but common and harmless (section 3.3)."""
    while at < end and at[0] == c" ":
        at += 1
    return at


cdef tuple path(const unsigned char* at, const unsigned char* end, bint forward):
    """Path = "<" [ A-d-l ":" ] Mailbox ">", then the parameters."""
    cdef const unsigned char* start
    if at >= end or at[0] != c"<":
        raise PathError("an address stands in angle brackets")
    start = after_source_route(at + 1, end)
    if start == NULL:
        raise PathError("no source route as RFC 5321 section 4.1.2 has it")
    text_of(at + 1, start - at - 1)  # ignored, but UTF-8 as all that is said
    at = mailbox_end(start, end)
    if at == NULL and forward and is_word(start, end, b"postmaster>", 11):
        at = start + 10
    if at == NULL or at >= end or at[0] != c">" or at - start > MAX_PATH:
        raise PathError("no address as RFC 5321 section 4.1.2 has it")
    return text_of(start, at - start), parameters(at + 1, end)


cdef const unsigned char* after_source_route(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """A-d-l = At-domain *( "," At-domain ), then ":"; accepted and ignored (appendix C)."""
    if at >= end or at[0] != c"@":
        return at
    while at != NULL and at < end and at[0] == c"@":
        at = domain_end(at + 1, end)
        if at != NULL and at < end and at[0] == c":":
            return at + 1
        if at == NULL or at >= end or at[0] != c",":
            return NULL
        at += 1
    return NULL


cdef str text_of(const unsigned char* at, Py_ssize_t length):
    """An address as text; PathError where it is not UTF-8 (RFC 6531 section 3.3) or has C1."""
    cdef str text
    cdef Py_UCS4 character
    try:
        text = PyUnicode_DecodeUTF8(<const char*>at, length, NULL)
    except UnicodeDecodeError:
        raise PathError("the address is not UTF-8") from None
    if not text.isascii():
        for character in text:
            if 0x7F <= character < 0xA0:
                raise PathError("a control in the address")
    return text


cdef dict parameters(const unsigned char* at, const unsigned char* end):
    """esmtp-keyword ["=" esmtp-value], each after white space; keywords in upper case.

    None where there are none; a keyword without a value has the value None.
    """
    cdef const unsigned char* start
    cdef dict found = {}
    if at < end and at[0] != c" ":
        raise ParameterError("white space stands between the path and its parameters")
    at = skip_space(at, end)
    if at == end:
        return None
    while at < end:
        start = at
        at = keyword_end(at, end)
        keyword = PyUnicode_DecodeASCII(<const char*>start, at - start, NULL).upper()
        value = None
        if at < end and at[0] == c"=":
            start = at + 1
            at = value_end(start, end)
            value = value_of(start, at - start)
        if not keyword or value == "" or keyword in found or (at < end and at[0] != c" "):
            raise ParameterError("no ESMTP parameters as RFC 5321 section 4.1.2 has them")
        found[keyword] = value
        at = skip_space(at, end)
    return found


cdef const unsigned char* keyword_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")."""
    cdef const unsigned char* start = at
    while at < end and (c"a" <= at[0] | 32 <= c"z" or c"0" <= at[0] <= c"9"
                        or at[0] == c"-" and at > start):
        at += 1
    return at


cdef const unsigned char* value_end(
        const unsigned char* at, const unsigned char* end) noexcept nogil:
    """esmtp-value = 1*(%d33-60 / %d62-126 / UTF8-non-ascii), RFC 6531 section 3.3."""
    while at < end and at[0] > 32 and at[0] != c"=" and at[0] != 127:
        at += 1
    return at


cdef str value_of(const unsigned char* at, Py_ssize_t length):
    try:
        return PyUnicode_DecodeUTF8(<const char*>at, length, NULL)
    except UnicodeDecodeError:
        raise ParameterError("a parameter is not UTF-8") from None


cpdef tuple parse_reply_line(bytes line):
    """One line of a reply: (code, whether it is the last, enhanced code or "", text).

    Reply-line = Reply-code [ ("-" / SP) [ textstring ] ] (RFC 5321 section 4.2); the enhanced
    code is as in RFC 2034 section 4. What is not UTF-8, and each control, becomes U+FFFD.
    Raises ValueError for anything else.
    """
    cdef const unsigned char* at = line
    cdef Py_ssize_t length = len(line)
    cdef Py_ssize_t text = min(4, length)
    cdef int code
    cdef Py_ssize_t after
    if (length < 3 or not (c"2" <= at[0] <= c"5" and c"0" <= at[1] <= c"9"
                           and c"0" <= at[2] <= c"9")
            or length > 3 and at[3] != c" " and at[3] != c"-"):
        raise ValueError("not a reply line")
    code = (at[0] - 48) * 100 + (at[1] - 48) * 10 + (at[2] - 48)
    after = enhanced_length(at + text, length - text, at[0])
    enhanced = PyUnicode_DecodeASCII(<const char*>at + text, after, NULL)
    text += after
    text += after > 0 and text < length
    return code, length == 3 or at[3] == c" ", enhanced, printable(at + text, length - text)


cdef Py_ssize_t enhanced_length(const unsigned char* at, Py_ssize_t length,
                                unsigned char kind) noexcept nogil:
    """The length of class "." subject "." detail (RFC 3463 section 2) of this class, or 0."""
    cdef Py_ssize_t i = 1
    cdef Py_ssize_t digits
    if length < 5 or at[0] != kind or kind == c"3":
        return 0
    for _ in range(2):
        if i >= length or at[i] != c".":
            return 0
        i += 1
        digits = 0
        while i < length and c"0" <= at[i] <= c"9":
            i += 1
            digits += 1
        if not 1 <= digits <= 3:
            return 0
    return i if i == length or at[i] == c" " else 0


cdef str printable(const unsigned char* at, Py_ssize_t length):
    cdef str text = PyUnicode_DecodeUTF8(<const char*>at, length, "replace")
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else "\ufffd" for c in text])
