"""Who fails to log in too often waits: longer with each failure, and not for ever.

Pure but for the clock it is given. A table has a bound; who was heard of longest ago gives way.
"""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

from msgspec import Struct

MAX_KEYS = 20_000
FORGET_AFTER = 3600.0  # seconds without a failure
FIRST_PAUSE = 4.0  # seconds; each further failure doubles it


class _Record(Struct):
    failures: int = 0
    pending: int = 0  # attempts that nobody knows the end of
    until: float = 0.0  # refused before that
    last: float = 0.0  # failure


class Throttle:
    """One kind of key: client networks, or accounts."""

    def __init__(self, free: int, longest: float, clock: Callable[[], float]) -> None:
        """`free` failures are without consequence; then pauses grow up to `longest` seconds."""
        self._free, self._longest, self._clock = free, longest, clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def admit(self, key: str) -> bool:
        """Whether an attempt may be made now; if so, `settle` has to follow.

        Attempts under way count as failures: who sends a hundred at a time has no more of them.
        """
        now = self._clock()
        record = self._records.get(key)
        if record and not record.pending and now - record.last >= FORGET_AFTER:
            record = None
        if record is None:
            record = self._new(key)
        self._records.move_to_end(key)
        if now < record.until:
            return False
        if record.pending and record.failures + record.pending >= self._free:
            return False
        record.pending += 1
        return True

    def settle(self, key: str, *, failed: bool) -> float:
        """An admitted attempt is over; gives the seconds of the pause that it brought, if any."""
        record = self._records.get(key)
        if record is not None:
            record.pending = max(0, record.pending - 1)
            if not (failed or record.pending or record.failures):
                del self._records[key]
        if not failed:
            return 0.0
        record = record or self._new(key)
        record.failures += 1
        record.last = self._clock()
        over = record.failures - self._free
        if over < 0:
            return 0.0
        pause = min(FIRST_PAUSE * 2.0 ** min(over, 32), self._longest)
        record.until = record.last + pause
        return pause

    def _new(self, key: str) -> _Record:
        if len(self._records) >= MAX_KEYS:
            self._records.popitem(last=False)
        self._records[key] = record = _Record()
        return record


def network_of(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 host can choose from."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:  # a unix socket, or what a test calls itself
        return client
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)
