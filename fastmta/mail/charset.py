"""Text of a named charset, read with Python's codecs; whatever the octets and the name are."""

import codecs
from functools import lru_cache

# The longest name that IANA's registry of character sets holds has 45 characters.
_LONGEST_NAME = 45

# Names that mail uses and Python does not know.
_ALIASES = {
    "ansi_x3.110-1983": "cp1252",
    "cp-850": "cp850",
    "iso-8859-6-e": "iso-8859-6",
    "iso-8859-6-i": "iso-8859-6",
    "iso-8859-8-e": "iso-8859-8",
    "iso-8859-8-i": "iso-8859-8",
    "iso-10646-ucs-2": "utf-16",
    "mac": "mac-roman",
    "unicode": "utf-16",
    "utf-8mb4": "utf-8",
    "utf8mb4": "utf-8",
    "windows-31j": "cp932",
    "windows-874": "cp874",
    "windows-949": "cp949",
}

# What senders mean by a charset, by Python's names: all that the named one has, and more. Who
# says US-ASCII and sends other octets says nothing; refused are codecs that mail has no use for
# and that are slow or give warnings on hostile text.
_MEANT = {
    "ascii": "",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "shift_jis": "cp932",
    "tis-620": "cp874",
    "idna": "",
    "punycode": "",
    "raw-unicode-escape": "",
    "undefined": "",
    "unicode-escape": "",
}


def decode(data: bytes | bytearray | memoryview, charset: str) -> str:
    """`data` as text of `charset`, with U+FFFD for what does not belong to it.

    Where `charset` is unknown or does not tell: UTF-8 if it is that, else Windows-1252.
    """
    codec = _codec(charset[: _LONGEST_NAME + 1])
    if not codec:
        return _guess(data)
    try:
        return str(data, codec) if codec == "cp1252" else str(data, codec, "replace")
    except (UnicodeError, LookupError):
        return str(data, "latin-1")


def _guess(data: bytes | bytearray | memoryview) -> str:
    for codec in ("utf-8", "cp1252"):
        try:
            return str(data, codec)
        except UnicodeDecodeError:
            pass
    # Windows-1252 leaves five octets undefined, ISO-8859-1 none.
    return str(data, "latin-1")


@lru_cache(maxsize=256)
def _codec(charset: str) -> str:
    """The codec for a charset's name; "" for one that is unknown or does not tell."""
    name = charset.strip(" \t\"'").lower()
    if len(name) > _LONGEST_NAME or not name.isascii():
        return ""
    for candidate in (name, name.removeprefix("x-")):
        try:
            found = codecs.lookup(_ALIASES.get(candidate, candidate)).name
            "".encode(found)  # raises where the codec is not one of text
        except (LookupError, ValueError):
            continue
        return _MEANT.get(found, found)
    return ""
