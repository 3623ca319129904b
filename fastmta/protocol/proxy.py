"""The header in which a proxy says for whom it speaks: the PROXY protocol, versions 1 and 2.

https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, whose sections are cited. Without
I/O: `ProxyHeader.feed` says how much of what can be seen belongs to the header.
"""

import re
from ipaddress import IPv4Address, IPv6Address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # section 2.2
LONGEST_V1 = 107  # octets, with CRLF (section 2.1)
LONGEST_V2 = 4096  # with the TLVs behind the addresses; a limit of ours, as nginx has it

_PORT = rb"(0|[1-9][0-9]{0,4})"
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?"
    rb"|(TCP4|TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}) " + _PORT + b" " + _PORT + rb")\r\n"
)
_FIXED = 16  # octets of version 2 before the addresses
_LOCAL, _PROXY = 0x20, 0x21  # version and command
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_SIZES = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}  # octets of both addresses


class BadHeader(Exception):
    """What came is no PROXY header, or one that is too long."""


class ProxyHeader:
    """Once `is_complete`, `client` is the address of who connected to the proxy.

    It is "" where the proxy speaks for itself (LOCAL, a health check) or does not tell (UNKNOWN,
    AF_UNSPEC, AF_UNIX): then the connection's own address counts (sections 2.1 and 2.2).
    """

    __slots__ = ("_seen", "client", "is_complete")

    def __init__(self) -> None:
        self._seen = b""
        self.client = ""
        self.is_complete = False

    def feed(self, data: bytes) -> int:
        """How many of these octets, which follow the last ones, are the header's; BadHeader."""
        before, seen = len(self._seen), self._seen + data
        length = _length_v2(seen) if seen[:1] == b"\r" else _length_v1(seen)
        self._seen = seen[:length] if length else seen
        if length and len(seen) >= length:
            self.client = _read_v2(self._seen) if seen[:1] == b"\r" else _read_v1(self._seen)
            self.is_complete = True
        return len(self._seen) - before


def _length_v1(seen: bytes) -> int:
    """Octets of the header, 0 as long as that is not known."""
    if not b"PROXY ".startswith(seen[:6]):
        raise BadHeader("there is no PROXY header")
    end = seen.find(b"\r\n", 0, LONGEST_V1)
    if end < 0 and len(seen) >= LONGEST_V1:
        raise BadHeader("the PROXY header is too long")
    return end + 2 if end >= 0 else 0


def _length_v2(seen: bytes) -> int:
    if not SIGNATURE.startswith(seen[: len(SIGNATURE)]):
        raise BadHeader("there is no PROXY header")
    if len(seen) < _FIXED:
        return 0
    length = _FIXED + int.from_bytes(seen[14:16], "big")
    if length > LONGEST_V2:
        raise BadHeader("the PROXY header is too long")
    return length


def _read_v1(header: bytes) -> str:
    found = _V1.fullmatch(header)
    if found is None:
        raise BadHeader("the PROXY header cannot be read")
    family, *addresses, from_port, to_port = found.groups()
    if family is None:
        return ""
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        source, _ = (kind(address.decode()) for address in addresses)
    except ValueError:
        raise BadHeader("the PROXY header has no addresses of its family") from None
    if max(int(from_port), int(to_port)) > 0xFFFF:
        raise BadHeader("the PROXY header has no ports")
    return plain(source)


def _read_v2(header: bytes) -> str:
    command, family = header[12], header[13]
    if command == _LOCAL:  # whatever stands behind
        return ""
    if command != _PROXY or family not in _SIZES:
        raise BadHeader("the PROXY header has a version, command or family that is not known")
    if len(header) - _FIXED < _SIZES[family]:
        raise BadHeader("the PROXY header is too short for its addresses")
    if family == _TCP4:
        return plain(IPv4Address(header[16:20]))
    return plain(IPv6Address(header[16:32])) if family == _TCP6 else ""


def plain(address: IPv4Address | IPv6Address) -> str:
    """::ffff:192.0.2.1 is 192.0.2.1."""
    return str(getattr(address, "ipv4_mapped", None) or address)
