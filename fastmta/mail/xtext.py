"""xtext: what may be in ENVID and ORCPT, with the rest as +HH (RFC 3461 section 4)."""

import re

_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_TO_ENCODE = re.compile(r"[^!-*,-<>-~]")


def encode(text: str) -> str:
    """ASCII as xtext."""
    return _TO_ENCODE.sub(lambda match: f"+{ord(match[0]):02X}", text)


def decode(xtext: str) -> str:
    return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), xtext)
