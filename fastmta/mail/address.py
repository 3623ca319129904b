"""The envelope form of an address: "local@domain", checked once at the edge."""

from functools import lru_cache
from ipaddress import ip_address

import idna

from fastmta._core.address import domain_part, is_domain, is_mailbox

__all__ = ["domain_of", "is_domain", "is_mailbox", "normal_domain"]


def domain_of(address: str) -> str:
    """The destination of a mailbox in normal form; ValueError where its domain cannot have one.

    Lower case, A-labels (RFC 5890), or an address literal: "[192.0.2.1]", "[IPv6:2001:db8::1]".
    """
    domain = domain_part(address)
    if domain.isascii() and not domain.startswith("["):
        return domain
    return normal_domain(domain)


@lru_cache(maxsize=4096)
def normal_domain(domain: str) -> str:
    """A domain or address literal in normal form; ValueError where it has none."""
    domain = domain.lower()
    if domain.startswith("[ipv6:"):
        return f"[IPv6:{ip_address(domain[6:-1])}]"
    if domain.isascii():
        return domain
    return idna.encode(domain, uts46=True, std3_rules=True).decode("ascii")
