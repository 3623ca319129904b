"""Content-Transfer-Encoding (RFC 2045 section 6): undone for readers, chosen for writers."""

from enum import StrEnum

from fastmta._core import base64, quopri
from fastmta._core.body import octet_counts, slice_of

MAX_LINE = 998  # octets without CRLF (RFC 5322 section 2.1.1)


class Encoding(StrEnum):
    SEVEN_BIT = "7bit"
    EIGHT_BIT = "8bit"
    BINARY = "binary"
    QUOTED_PRINTABLE = "quoted-printable"
    BASE64 = "base64"


def parse_encoding(value: bytes) -> str:
    """The mechanism that a field value names, in lower case, without comments."""
    words = value.replace(b";", b" ").replace(b"(", b" (").split(None, 1)
    return words[0].decode("ascii", "replace").lower() if words else Encoding.SEVEN_BIT


def decode(data: bytes, start: int, end: int, encoding: str) -> bytes:
    """The octets that data[start:end] stands for; unknown encodings are taken as identity."""
    if encoding == Encoding.BASE64:
        return base64.decode(memoryview(data)[start:end])
    if encoding == Encoding.QUOTED_PRINTABLE:
        return quopri.decode(memoryview(data)[start:end])
    return slice_of(data, start, end)


def choose(content: bytes, eight_bit: bool) -> Encoding:
    """What a body needs to arrive as it is, in the most readable form that does it."""
    high, controls, longest = octet_counts(content)
    if not controls and longest <= MAX_LINE and (eight_bit or not high):
        return Encoding.EIGHT_BIT if high else Encoding.SEVEN_BIT
    # Quoted-printable needs three octets for each that it quotes, base64 four for three.
    if 6 * (high + controls) <= len(content):
        return Encoding.QUOTED_PRINTABLE
    return Encoding.BASE64


def encode(content: bytes, encoding: Encoding) -> bytes:
    if encoding is Encoding.BASE64:
        return base64.encode(content, lines=True)
    if encoding is Encoding.QUOTED_PRINTABLE:
        return quopri.encode(content)
    return content
