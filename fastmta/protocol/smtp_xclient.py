"""XCLIENT: a host in front of us says for whom it speaks (Postfix's XCLIENT_README)."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from fastmta.protocol.proxy import plain
from fastmta.protocol.sasl_text import prepare_name

NAMES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")

_ATTRIBUTE = re.compile(r"([A-Za-z]+)=((?:[!-*,-<>-~\[\]]|\+[0-9A-Fa-f]{2}){1,500})")
_OCTET = re.compile(r"\+([0-9A-Fa-f]{2})|.")
_UNKNOWN = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
_LONGEST = 255


class Claims(Struct, frozen=True):
    """What counts of it; the rest is checked and let go: EHLO follows, and says who it is."""

    address: str | None = None  # of the client, "" if not even the host knows; None: as before
    login: str = ""  # whom it has let in


def read_claims(argument: bytes) -> Claims:
    """ValueError for what is not as it should be."""
    found: dict[str, str] = {}
    for word in argument.decode("ascii").split():
        match = _ATTRIBUTE.fullmatch(word)
        name = match[1].upper() if match else ""
        if match is None or name not in NAMES or name in found:
            raise ValueError(word)
        found[name] = _value(match[2])
    if not found:
        raise ValueError("no attribute")
    login = found.get("LOGIN", "")
    address = _address(found["ADDR"]) if "ADDR" in found else None
    return Claims(address, prepare_name(login.encode()) if login else "")


def _value(text: str) -> str:
    """Decoded; "" for what the host does not know."""
    if text.upper() in _UNKNOWN:
        return ""
    value = bytes(_octets(text)).decode()
    if not value.isprintable() or len(value) > _LONGEST:
        raise ValueError(text)
    return value


def _octets(text: str) -> Iterator[int]:
    """xtext (RFC 1891 section 5); its octets are UTF-8 here."""
    for match in _OCTET.finditer(text):
        yield int(match[1], 16) if match[1] else ord(match[0])


def _address(text: str) -> str:
    """IPv4, or IPv6 behind "IPV6:" without a zone; in the form in which they are compared."""
    if not text:
        return ""
    if "%" in text:
        raise ValueError(text)
    if text[:5].upper() == "IPV6:":
        return plain(IPv6Address(text[5:]))
    return str(IPv4Address(text))
