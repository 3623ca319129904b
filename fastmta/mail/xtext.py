"""xtext: what may be in ENVID and ORCPT, with the rest as +HH (RFC 3461 section 4)."""

import re

MAX_ORCPT = 500  # octets, RFC 3461 section 4.2

_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_TO_ENCODE = re.compile(r"[^!-*,-<>-~]")


def encode(text: str) -> str:
    """ASCII as xtext."""
    if _TO_ENCODE.search(text) is None:  # nearly always
        return text
    return _TO_ENCODE.sub(lambda match: f"+{ord(match[0]):02X}", text)


def decode(xtext: str) -> str:
    return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), xtext)


def original_recipient(address: str) -> str:
    """ORCPT where the sender gave none: whoever reports from behind an alias can say whom we meant.

    RFC 3461 section 5.2.1 (d) allows it for the address as it came to us, which it is. Empty where
    it cannot be said: beyond ASCII the form depends on the host (RFC 6533 section 3).
    """
    orcpt = f"rfc822;{encode(address)}" if address.isascii() else ""
    return orcpt if len(orcpt) <= MAX_ORCPT else ""
