"""Hosts that do not answer, remembered for all paths: growing pauses, one probe at a time.

What is always true of a host in the table:

- It is tried by nobody before its pause is over, and then by one at a time, its probe.
- Only a probe that fails makes its pause longer; any success removes it.

No I/O, and the clock is given.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from fastmta import metrics
from fastmta.mail.reply import Reply

log = logging.getLogger(__name__)

PAUSED = metrics.gauge(
    "fastmta_delivery_hosts_paused", "Hosts that nobody connects to for now, as they refused"
)

FIRST_PAUSE = 30.0  # seconds; each failed probe doubles it
LONGEST_PAUSE = 1800.0
MAX_HOSTS = 10_000
_MAX_SITES = 16  # of one host, by whose name its pause can be forgotten


class Spot(NamedTuple):
    """Where a connection leads to, and from: "" is the system's choice of a source."""

    address: str
    port: int
    source: str


class Trouble(Struct):
    """Why a host is not connected to."""

    host: str  # "mx1.example.test [192.0.2.1]"
    reply: Reply  # the last
    failures: int = 0  # in a row
    until: float = 0.0  # by the clock
    is_probed: bool = False
    sites: set[str] = set()


# A host that refuses connections does so to all sources; what it says in its greeting, as
# "your address is on a list", it says to one.
_Key = tuple[str, int] | Spot


class Hosts:
    def __init__(
        self, clock: Callable[[], float], first: float = FIRST_PAUSE, size: int = MAX_HOSTS
    ) -> None:
        """`first` is the shortest pause; mail that is tried again sooner would only meet it."""
        self._clock, self._first, self._size = clock, min(first, FIRST_PAUSE), size
        self._troubles: dict[_Key, Trouble] = {}  # the one that failed longest ago first
        self._open: dict[_Key, int] = {}  # connections past the greeting

    # What a path asks before it connects.

    def trouble(self, spot: Spot) -> Trouble | None:
        """What forbids a connection now: a pause, or the probe of somebody else."""
        if not self._troubles:
            return None
        now = self._clock()
        found = [one for one in self._of(spot) if one.is_probed or one.until > now]
        return max(found, key=lambda one: one.until) if found else None

    def begin(self, spot: Spot) -> bool:
        """A connection is tried; True: it is the probe, and must come to an end."""
        found = list(self._of(spot))
        for one in found:
            one.is_probed = True
        return bool(found)

    # How that ended.

    def answered(self, spot: Spot) -> None:
        """The host takes mail."""
        for key in _keys(spot):
            self._open[key] = self._open.get(key, 0) + 1
            self._clear(key)

    def closed(self, spot: Spot) -> None:
        """A connection that was answered is gone."""
        for key in _keys(spot):
            left = self._open.get(key, 0) - 1
            if left > 0:
                self._open[key] = left
            else:
                self._open.pop(key, None)

    def let_go(self, spot: Spot) -> None:
        """The attempt was given up before it showed anything."""
        for one in self._of(spot):
            one.is_probed = False

    def failed(
        self, spot: Spot, host: str, reply: Reply, site: str, *, greeted: bool, probe: bool
    ) -> None:
        """No connection, or where it `greeted`, none that mail can be sent over.

        Beside open connections that only says that the host wants no more of them.
        """
        self.let_go(spot)
        refusing, unfriendly = _keys(spot)
        key = unfriendly if greeted else refusing
        if greeted:
            self._troubles.pop(refusing, None)
        if self._open.get(key):
            return
        now = self._clock()
        one = self._troubles.pop(key, None)
        if one is None:
            one = Trouble(host, reply, sites=set())
            self._make_room()
            log.info("%s is paused: %s", host, reply)
        elif now - one.until > 2 * LONGEST_PAUSE:
            one.failures = 0  # too long ago to go on from
        self._troubles[key] = one
        one.reply = reply
        self.concerns(one, site)
        if probe or not one.failures:  # others may have been under way when the pause began
            one.failures += 1
            one.until = now + self._pause(one.failures)

    def concerns(self, trouble: Trouble, site: str) -> None:
        """A site's mail has met this."""
        if len(trouble.sites) < _MAX_SITES:
            trouble.sites.add(site)

    # What operators ask.

    def forget(self, site: str | None = None) -> None:
        """No pause any more, of the hosts that a site has met or of all."""
        for one in self._troubles.values():
            if site is None or site in one.sites:
                one.until = 0.0

    def paused(self) -> list[Trouble]:
        now = self._clock()
        return [one for one in self._troubles.values() if one.until > now]

    def _pause(self, failures: int) -> float:
        """Seconds until the next probe, after so many failures in a row."""
        return min(self._first * (1 << min(failures - 1, 16)), LONGEST_PAUSE)

    def _of(self, spot: Spot) -> Iterator[Trouble]:
        for key in _keys(spot):
            if one := self._troubles.get(key):
                yield one

    def _clear(self, key: _Key) -> None:
        if one := self._troubles.pop(key, None):
            log.info("%s is back", one.host)

    def _make_room(self) -> None:
        while len(self._troubles) >= self._size:
            del self._troubles[next(iter(self._troubles))]


def _keys(spot: Spot) -> tuple[_Key, _Key]:
    """For what concerns all sources, and for what concerns this one."""
    return (spot.address, spot.port), spot
