"""A rate that many processes share, exactly and smoothly; no I/O, the time is given."""

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import NamedTuple

from fastmta.config_reader import Rate

LIFE = 1.0  # seconds in which a grant must be used
CHUNK = 0.1  # seconds' worth of events in one grant, at least one event
GRAINS = 1000  # what was used is remembered in this many parts of a window
_NEARLY = 1 - 1e-6  # of a chunk: what the rounding of times may cost it


class _Batch(NamedTuple):
    events: int
    until: float


class _Grain:
    """Events from `first` to `last`, taken as if all were at `last`."""

    __slots__ = ("count", "first", "last")

    def __init__(self, time: float, count: int) -> None:
        self.first = self.last = time
        self.count = count


class Meter:
    """Grants events in batches, one batch open for each worker (or for each of its paths).

    What holds, for a rate of N in U seconds, whatever the workers do and whenever they die: of
    all events, ordered by time, the one N places after another comes at least U seconds after
    it, so that no window of U seconds (its end counted, its begin not) has more than N. It holds
    because a batch counts, from its grant on, as if its events came at the last moment at which
    they may, until its worker says when the last of them really came.

    Beside that, grants follow `pace`, in events a second, which may be lower than the rate: at
    any time at most two chunks come at once. A rate of None sets no window: the pace alone
    counts. What came before this object was made, or under a shorter window, is not known to it.
    """

    def __init__(self, rate: Rate | None, pace: float, now: float) -> None:
        self._closed: deque[_Grain] = deque()
        self._closed_count = 0
        self._open: dict[Hashable, _Batch] = {}
        self._stamp = now
        self.level = inf
        self.set(rate, pace, now)

    def set(self, rate: Rate | None, pace: float, now: float) -> None:
        """A new rate or pace; what was used stays used."""
        if self.level != inf:
            self._fill(now)
        self._most = rate.events if rate else inf
        self._window = rate.seconds if rate else 0.0
        self._pace = pace
        self.chunk = max(1, int(min(pace * CHUNK, self._most)))
        self.level = min(self.level, self.chunk)

    def take(self, worker: Hashable, now: float) -> int:
        """Events granted to a worker that has no batch open, until now + LIFE; 0: not now."""
        self._fill(now)
        count = int(min(self.chunk, self._room(now)))
        if count < 1 or self.level < self.chunk * _NEARLY:
            return 0
        self.level -= count
        self._open[worker] = _Batch(count, now + LIFE)
        return count

    def keep(self, worker: Hashable, count: int) -> None:
        """Of its batch, the worker was given no more than this."""
        batch = self._open[worker]
        self.level += batch.events - count
        self._open[worker] = batch._replace(events=count)

    def close(self, worker: Hashable, used: int, last: float) -> None:
        """Of its batch, a worker used so many, the last at that time; the others come back."""
        batch = self._open.pop(worker, None)
        if batch is not None:
            self.level += batch.events - used
            self._remember(last, used)

    def void(self, worker: Hashable) -> None:
        """The worker is dead: it may have used all, up to the last moment."""
        batch = self._open.pop(worker, None)
        if batch is not None:
            self._remember(batch.until, batch.events)

    def next_time(self, now: float) -> float:
        """When `take` may grant something, if nothing else happens."""
        self._fill(now)
        time = now + max(0.0, self.chunk - self.level) / self._pace
        return time if self._room(now) >= 1 else max(time, self._next_room(now))

    def is_clear(self, now: float) -> bool:
        """Whether nothing is remembered that could still count."""
        return self._room(now) == self._most

    def _fill(self, now: float) -> None:
        grown = self.level + max(0.0, now - self._stamp) * self._pace
        # Room for two, so that a timer that comes late costs nothing.
        self.level = min(grown, 2.0 * self.chunk)
        self._stamp = now

    def _room(self, now: float) -> float:
        while self._closed and self._closed[0].last + self._window <= now:
            self._closed_count -= self._closed.popleft().count
        opened = sum(each.events for each in self._counting(now))
        return self._most - self._closed_count - opened

    def _counting(self, now: float) -> list[_Batch]:
        return [each for each in self._open.values() if each.until + self._window > now]

    def _next_room(self, now: float) -> float:
        times = [each.until for each in self._counting(now)]
        times += [self._closed[0].last] if self._closed else []
        return min(times, default=now) + self._window

    def _remember(self, time: float, count: int) -> None:
        if not count or self._most == inf:
            return
        self._closed_count += count
        newest = self._closed[-1] if self._closed else None
        if newest is not None and time - newest.first < self._window / GRAINS:
            newest.last = max(newest.last, time)
            newest.count += count
        else:
            self._closed.append(_Grain(time, count))
