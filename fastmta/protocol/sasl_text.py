"""Names and passwords as they are compared: SASLprep (RFC 4013), which PLAIN and SCRAM ask for."""

import stringprep
import unicodedata

from fastmta.mail.address import normal_domain

MAX_NAME = 320  # octets of UTF-8: a local part, "@" and a domain (RFC 5321 section 4.5.3.1)
MAX_PASSWORD = 1024  # octets of UTF-8

# RFC 4013 section 2.3. Code points that Unicode 3.2 did not have pass: emoji are in passwords.
_PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def prepare_name(octets: bytes) -> str:
    """A login name in the form of an account's name: lower case, its domain in A-labels.

    ValueError where it is no text or holds controls; "" stays so. A name that is no address
    passes: there is no such account, and that is said in the way that a wrong password is.
    """
    # Twice: a small letter may have one code point with its accent where the large one has two.
    text = saslprep(saslprep(_decode(octets, MAX_NAME)).lower())
    if not text.isprintable():  # also what changes the order of letters since Unicode 6.3
        raise ValueError("holds code points that cannot be shown")
    local, at, domain = text.rpartition("@")
    if not at:  # it has no domain, or will have the default one
        return text
    try:
        return f"{local}{at}{normal_domain(domain)}"
    except ValueError:
        return text


def prepare_password(octets: bytes) -> str:
    """A password as it is hashed; ValueError where it is no text or holds controls."""
    return saslprep(_decode(octets, MAX_PASSWORD))


def _decode(octets: bytes, limit: int) -> str:
    if len(octets) > limit:
        raise ValueError("is too long")
    return octets.decode()  # UnicodeDecodeError is a ValueError


def saslprep(text: str) -> str:
    """RFC 4013, without the ban of unassigned code points; ValueError for what is prohibited."""
    if text.isascii() and text.isprintable():  # mostly, and then nothing of it has to change
        return text
    text = _mapped(text)
    if any(test(char) for char in text for test in _PROHIBITED):
        raise ValueError("holds controls or other code points that are prohibited")
    if any(map(stringprep.in_table_d1, text)):
        _check_direction(text)
    return text


def _mapped(text: str) -> str:
    """RFC 4013 sections 2.1 and 2.2."""
    kept = (char for char in text if not stringprep.in_table_b1(char))
    spaced = (" " if stringprep.in_table_c12(char) else char for char in kept)
    return unicodedata.normalize("NFKC", "".join(spaced))


def _check_direction(text: str) -> None:
    """RFC 3454 section 6, of a text with characters that are written from right to left."""
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    if not ends or any(map(stringprep.in_table_d2, text)):
        raise ValueError("mixes directions of writing")
