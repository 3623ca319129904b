"""Encoded words: text beyond US-ASCII in header fields (RFC 2047, RFC 2231 5 for languages)."""

import re
from typing import TypeVar

from fastmta._core import base64, quopri
from fastmta.mail import charset

# RFC 2047 2: charset, an RFC 2231 language that is of no use here, encoding and text. Blanks in
# the text are forbidden, and met.
_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([BbQq])\?([^?]*)\?=")

Piece = TypeVar("Piece", str, bytes)

_PREFIX = "=?utf-8?"
# RFC 2047 2: an encoded word has at most 75 characters.
_ROOM = 75 - len(_PREFIX) - len("q?") - len("?=")

# RFC 2047 5 (3): what stands for itself wherever the word stands, also in a phrase.
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_FORMS = ["_" if o == 0x20 else chr(o) if o in _PLAIN else f"={o:02X}" for o in range(256)]


def decode(text: str) -> str:
    """`text` with its encoded words decoded; anything else in it stays as it is."""
    decoded: list[str] = []
    name, octets = "", list[bytes]()  # of the words that are under way
    end = 0
    for word in _WORD.finditer(text):
        between = text[end : word.start()]
        # White space between encoded words is not part of the text (RFC 2047 6.2). Words of one
        # charset are joined before they are decoded: senders cut characters in two.
        apart = bool(between) and not between.isspace()
        if octets and (apart or word[1].lower() != name):
            decoded.append(charset.decode(b"".join(octets), name))
            octets.clear()
        if apart or not end:
            decoded.append(between)
        name, end = word[1].lower(), word.end()
        octets.append(_octets(word[2], word[3]))
    return "".join([*decoded, charset.decode(b"".join(octets), name), text[end:]])


def _octets(encoding: str, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    if encoding in "Bb":
        return base64.decode(raw)
    # RFC 2047 4.2; a blank at the end would fall to the rule for lines of a body.
    return quopri.decode(raw.replace(b"_", b"=20").replace(b" ", b"=20"))


def encode(text: str) -> str:
    """`text` as encoded words of UTF-8, one space apart, in the encoding that makes it shorter."""
    characters = [character.encode("utf-8", "replace") for character in text]
    quoted = ["".join([_FORMS[octet] for octet in octets]) for octets in characters]
    octets = sum(map(len, characters))
    if sum(map(len, quoted)) <= base64.encoded_size(octets):
        return " ".join(f"{_PREFIX}q?{''.join(word)}?=" for word in _groups(quoted, _ROOM))
    groups = _groups(characters, _ROOM // 4 * 3)
    return " ".join(f"{_PREFIX}b?{base64.encode(b''.join(word)).decode()}?=" for word in groups)


def _groups(pieces: list[Piece], room: int) -> list[list[Piece]]:
    """The pieces in groups of at most `room`: no character is cut in two (RFC 2047 5)."""
    groups: list[list[Piece]] = []
    left = 0
    for piece in pieces:
        if len(piece) > left:
            groups.append([])
            left = room
        groups[-1].append(piece)
        left -= len(piece)
    return groups
