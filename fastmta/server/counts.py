"""How often strangers did something lately: counts that several processes hold; no I/O.

Each worker counts what its own clients do, and once a second tells the supervisor, which tells
the others. All keep the same sums, so a worker asks nobody, and a limit is overrun by no more
than what comes to the other workers in those one or two seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import ceil

from msgspec import Struct

from fastmta.config_reader import Rate

PARTS = 20  # of a window, in which it is counted
MOST = 100_000  # subjects that are known, of all limits together
PAGE = 2000  # rows of one message to another process


class Row(Struct, frozen=True, array_like=True):
    """So many events of a subject in one part of a window."""

    limit: str  # "client.messages"
    subject: str  # an address, a network or an account
    part: int
    count: int


class Window:
    """Events of many subjects within a rate's time.

    What happened counts from then on until that time after the end of its part. So no time of
    that length has more events than the rate allows, and what was used comes back a twentieth
    of it late at the most. Parts are numbered by the monotonic clock, which is the same in all
    processes of a machine.

    At most `most` subjects are known, those with the newest events: when the young are half as
    many, the old are forgotten, and so they are when all they did has lost its effect.
    """

    __slots__ = ("_last", "_length", "_old", "_turned", "_young", "most", "rate")

    def __init__(self, rate: Rate, most: int, now: float) -> None:
        self.rate = rate  # another one has the same time
        self.most = most
        self._length = rate.seconds / PARTS
        # Of each subject: the sum of its counts, then part and count by turns, oldest first.
        self._young: dict[str, list[int]] = {}
        self._old: dict[str, list[int]] = {}
        self._turned = now
        self._last = 0  # part; one number for all who did something in it

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def used(self, subject: str, now: float) -> int:
        entry = self._young.get(subject) or self._old.get(subject)
        if entry is None:
            return 0
        self._forget(entry, now)
        return entry[0]

    def near(self, share: float, now: float) -> list[str]:
        """The subjects that have used so much of what is allowed."""
        least = self.rate.events * share
        maybe = [
            subject
            for known in (self._young, self._old)
            for subject, entry in known.items()
            if entry[0] >= least
        ]
        return [subject for subject in maybe if self.used(subject, now) >= least]

    def wait(self, subject: str, now: float) -> float:
        """Seconds until one more event is allowed, if nothing else happens; 0: now."""
        over = self.used(subject, now) - self.rate.events + 1
        if over <= 0:
            return 0.0
        entry = self._young.get(subject) or self._old[subject]
        for part, count in zip(entry[1::2], entry[2::2], strict=True):
            over -= count
            if over <= 0:
                return float((part + 1 + PARTS) * self._length - now)
        return 0.0

    def part(self, now: float) -> int:
        return int(now / self._length)

    def add(self, subject: str, part: int, count: int, now: float) -> None:
        """Events of that part, which may lie back."""
        entry = self._young.get(subject)
        if entry is None:
            entry = self._take_up(subject, now)
        self._forget(entry, now)
        i = len(entry) - 2
        while i > 0 and entry[i] > part:
            i -= 2
        if i > 0 and entry[i] == part:
            entry[i + 1] += count
        elif part >= self.part(now) - PARTS:
            self._last = part = self._last if part == self._last else part
            entry[i + 2 : i + 2] = (part, count)
        else:
            return
        entry[0] += count

    def clear(self, subject: str) -> None:
        self._young.pop(subject, None)
        self._old.pop(subject, None)

    def turn(self, now: float) -> None:
        """Call it now and then: subjects of long ago are forgotten."""
        if now - self._turned > self.rate.seconds + self._length:
            self._turn(now)

    def parts(self, subject: str, now: float) -> Iterator[tuple[int, int]]:
        """Parts with their counts, as far as they still have an effect."""
        self.used(subject, now)
        entry = self._young.get(subject) or self._old.get(subject) or [0]
        return zip(entry[1::2], entry[2::2], strict=True)

    def _take_up(self, subject: str, now: float) -> list[int]:
        entry = self._old.pop(subject, None) or [0]
        if len(self._young) * 2 >= self.most:
            self._turn(now)
        self._young[subject] = entry
        return entry

    def _turn(self, now: float) -> None:
        self._old, self._young = self._young, {}
        self._turned = now

    def _forget(self, entry: list[int], now: float) -> None:
        oldest = self.part(now) - PARTS
        while len(entry) > 1 and entry[1] < oldest:
            entry[0] -= entry[2]
            del entry[1:3]


class Over(Struct, frozen=True):
    """Who may not go on now."""

    limit: str  # "client.messages"
    subject: str
    used: int
    rate: str  # "1000/h"
    wait: float  # seconds until one more is allowed


class Counts:
    """A window for each limit that is set, by its name."""

    def __init__(self, rates: Mapping[str, Rate], clock: Callable[[], float]) -> None:
        self.clock = clock
        self._windows: dict[str, Window] = {}
        self.configure(rates)

    def configure(self, rates: Mapping[str, Rate]) -> None:
        """Go on with these limits; where the time is the same, what was counted stays."""
        before, now = self._windows, self.clock()
        most = MOST // max(1, len(rates))
        self._windows = {name: Window(rate, most, now) for name, rate in rates.items()}
        for name, rate in rates.items():
            window = before.get(name)
            if window is not None and window.rate.seconds == rate.seconds:
                window.rate, window.most = rate, most
                self._windows[name] = window

    def __getitem__(self, limit: str) -> Window:
        return self._windows[limit]

    def __contains__(self, limit: str) -> bool:
        return limit in self._windows

    def __len__(self) -> int:
        """Subjects that are known."""
        return sum(map(len, self._windows.values()))

    def add(self, rows: list[Row]) -> None:
        now = self.clock()
        for row in rows:
            window = self._windows.get(row.limit)
            if window is not None:
                window.add(row.subject, row.part, row.count, now)

    def clear(self, subjects: set[str]) -> None:
        for window in self._windows.values():
            for subject in subjects:
                window.clear(subject)

    def turn(self) -> None:
        """Call it now and then."""
        now = self.clock()
        for window in self._windows.values():
            window.turn(now)

    def pages(self) -> Iterator[list[Row]]:
        """For a process that knows nothing yet: those who have used half of what they may."""
        rows = islice(self._rows(), MOST)
        while page := list(islice(rows, PAGE)):
            yield page

    def _rows(self) -> Iterator[Row]:
        now = self.clock()
        for name, window in self._windows.items():
            for subject in window.near(0.5, now):
                for part, count in window.parts(subject, now):
                    yield Row(name, subject, part, count)

    def over(self) -> Iterator[Over]:
        """All who are at a limit."""
        now = self.clock()
        for name, window in self._windows.items():
            for subject in window.near(1, now):
                used, wait = window.used(subject, now), window.wait(subject, now)
                yield Over(name, subject, used, str(window.rate), ceil(wait))
