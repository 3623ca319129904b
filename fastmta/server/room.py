"""What the system leaves to this process: descriptors and address space (setrlimit(2))."""

import resource
from math import inf

from fastmta import vitals

# Descriptors that are not for sessions: connections out, look-ups and files need some too.
RESERVED, SHARE = 32, 8  # so many at the least, and one of so many


def descriptors() -> float:
    """The number from which on a descriptor is not for a session; the kernel gives the lowest."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - max(RESERVED, limit // SHARE) if limit != resource.RLIM_INFINITY else inf


def memory() -> float:
    """Octets of address space that may still be had."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return inf
    return max(0, limit - vitals.address_space())
