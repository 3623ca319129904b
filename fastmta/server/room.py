"""What the system leaves to this process: descriptors and address space (setrlimit(2))."""

import os
import resource
from math import inf
from pathlib import Path

# Descriptors that are not for sessions: connections out, look-ups and files need some too.
RESERVED, SHARE = 32, 8  # so many at the least, and one of so many
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def descriptors() -> float:
    """The number from which on a descriptor is not for a session; the kernel gives the lowest."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - max(RESERVED, limit // SHARE) if limit != resource.RLIM_INFINITY else inf


def memory() -> float:
    """Octets of address space that may still be had; proc(5)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return inf
    return max(0, limit - int(_STATM.read_text().split()[0]) * _PAGE)
