"""Which addresses mail may be sent to: public ones, and never this machine's own.

Whoever owns a domain writes its MX and address records, and so could make the relay talk to
hosts that only the relay can reach. Addresses that a [[route]] names are not asked about here.
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

OWN = "this machine's own"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's special-purpose registries (RFC 6890), first match wins. Python's `is_private` and its
# like changed between releases, so the blocks are written out. The blocks for documentation
# (RFC 5737, RFC 3849) are left out: they hide no host, and laboratories use them as public ones.
_REFUSED: list[tuple[Network, str]] = [
    (ip_network(block), reason)
    for reason, blocks in (
        ("unspecified", ("0.0.0.0/8", "::/128")),
        ("loopback", ("127.0.0.0/8", "::1/128")),
        ("link-local", ("169.254.0.0/16", "fe80::/10")),
        ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")),
        ("shared address space", ("100.64.0.0/10",)),
        ("multicast", ("224.0.0.0/4", "ff00::/8")),
        ("reserved", ("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")),
        ("reserved", ("::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "5f00::/16")),
    )
    for block in blocks
]
_NAT64 = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 section 6.1


def refusal(text: str) -> str:
    """Why no mail goes to an address, as in "loopback"; empty where it may be tried."""
    address = ip_address(text)
    if reason := _block(address):
        return reason
    inner = list(_embedded(address))
    for each in inner:
        if reason := _block(each):
            return f"{reason}, as {each}"
    return OWN if any(is_own(str(each)) for each in (address, *inner)) else ""


def _block(address: Address) -> str:
    return next((reason for block, reason in _REFUSED if address in block), "")


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses inside an IPv6 address, each of which a packet to it may end up at."""
    if not isinstance(address, IPv6Address):
        return
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:  # RFC 4291 section 2.5.5.2
        yield address.ipv4_mapped
    if address.sixtofour is not None:  # RFC 3056
        yield address.sixtofour
    if address.teredo is not None:  # RFC 4380: server and client
        yield from address.teredo
    is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    if address in _NAT64 or address in _COMPATIBLE or is_isatap:  # RFC 6052, RFC 4291
        yield low


def is_own(text: str) -> bool:
    """Whether packets to an address stay on this machine.

    The kernel is asked, so that addresses which come and go are seen: it answers with the
    address itself as the source, or one of loopback. Connecting a datagram socket sends nothing.
    """
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((text, 9))
            source: str = probe.getsockname()[0]
    except OSError:  # no route to it, or the family is not there at all
        return False
    return ip_address(source) == ip_address(text) or ip_address(source).is_loopback


def parse_literal(domain: str) -> str | None:
    """The address in "[192.0.2.1]" or "[IPv6:2001:db8::1]" (RFC 5321 section 4.1.3).

    None for a domain that is no address literal; ValueError for brackets around anything else.
    """
    if not domain.startswith("["):
        return None
    text = domain[1:-1]
    if not domain.endswith("]") or "%" in text:  # a zone index names an interface of ours
        raise ValueError(f"{domain!r} is no address literal")
    if text[:5].lower() == "ipv6:":
        return str(IPv6Address(text[5:]))
    return str(IPv4Address(text))
