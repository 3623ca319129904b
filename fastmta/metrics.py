"""Counters as plain integers, declared where they happen and read only when somebody asks.

A module declares its metrics at import and adds to `value`; nothing else is done per message.
`snapshot` gives what one process counted; `web.totals` sums the workers and `web.metrics` writes
the Prometheus text. docs/metrics.md tells of each what it means.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import nlargest
from typing import Literal, Protocol

from msgspec import Struct

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
OTHER = "other"  # the name of all that are not told of by name
TOP = 100  # names that one process tells of
CANDIDATES = 10_000  # names that are compared with these
PERIOD = 60.0  # seconds between two comparisons
LONGEST = 128  # characters of a name

Kind = Literal["counter", "gauge", "histogram"]
# What several workers make together: sizes add up, of ages the oldest counts.
Combine = Literal["sum", "max", "min"]
# Values of the labels, and the number; of a histogram the sum of what was observed, then how
# often up to each bound (not cumulated) and above the last.
Row = tuple[tuple[str, ...], tuple[float, ...]]
Rows = list[tuple[tuple[str, ...], float]]


class Sample(Struct, array_like=True):
    """One metric of one process, as it goes from a worker to whoever sums them."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...]
    rows: list[Row]
    combine: Combine = "sum"
    bounds: tuple[float, ...] = ()  # of a histogram


class Metric(Protocol):
    def sample(self) -> Sample: ...


class Counter:
    """A number that only grows, or is read through `read` when somebody asks."""

    __slots__ = ("help", "name", "read", "value")

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help, self.value = name, help, 0
        self.read: Callable[[], float] | None = None

    def sample(self) -> Sample:
        value = self.read() if self.read else self.value
        return Sample("counter", self.name, self.help, (), [((), (value,))])


class Counters:
    """Numbers that only grow, one for each value that a label can have."""

    __slots__ = ("counts", "help", "label", "name")

    def __init__(self, name: str, help: str, label: str, values: tuple[str, ...]) -> None:
        self.name, self.help, self.label = name, help, label
        self.counts = dict.fromkeys(values, 0)

    def count(self, value: str) -> None:
        self.counts[value] += 1

    def sample(self) -> Sample:
        rows: list[Row] = [((value,), (count,)) for value, count in self.counts.items()]
        return Sample("counter", self.name, self.help, (self.label,), rows)


class Ranked:
    """Numbers that only grow, of names that nobody bounds, each with how something ended.

    TOP names are told of, first come, first served; all others together are `other`. Once a
    minute, if somebody asks, a name that has become twice as busy takes the place of one of them.
    """

    __slots__ = ("_busy", "_ranked", "_rows", "ends", "help", "label", "name")

    def __init__(self, name: str, help: str, label: str, ends: tuple[str, ...]) -> None:
        self.name, self.help, self.label, self.ends = name, help, label, ends
        self._rows = {OTHER: [0] * len(ends)}
        self._busy: dict[str, int] = {}  # how much was counted since the last comparison
        self._ranked = time.monotonic()

    def add(self, name: str, counts: Sequence[int]) -> None:
        """So many of each end."""
        name = name[:LONGEST]
        busy = self._busy
        if name in busy or len(busy) < CANDIDATES:
            busy[name] = busy.get(name, 0) + sum(counts)
        row = self._rows.get(name)
        if row is None:
            known = len(self._rows) <= TOP and name
            row = self._rows.setdefault(name if known else OTHER, [0] * len(self.ends))
        for end, count in enumerate(counts):
            row[end] += count

    def sample(self) -> Sample:
        if time.monotonic() - self._ranked >= PERIOD:
            self.rank()
        rows: list[Row] = [
            ((name, end), (count,))
            for name, counts in self._rows.items()
            for end, count in zip(self.ends, counts, strict=True)
        ]
        return Sample("counter", self.name, self.help, (self.label, "end"), rows)

    def rank(self) -> None:
        """Give places to those that were busier by far than who has them."""
        busy, self._busy = self._busy, {}
        self._ranked = time.monotonic()
        named = sorted(self._rows.keys() - {OTHER}, key=lambda name: busy.get(name, 0))
        busiest = nlargest(TOP, busy, key=busy.__getitem__)
        coming = (name for name in busiest if name and name not in self._rows)
        for new, old in zip(coming, named, strict=False):
            if busy[new] <= 2 * busy.get(old, 0):
                break
            del self._rows[old]
            self._rows[new] = [0] * len(self.ends)


class Gauge:
    """A number that goes up and down, or is read through `read` when somebody asks."""

    __slots__ = ("combine", "help", "name", "read", "value")

    def __init__(self, name: str, help: str, combine: Combine) -> None:
        self.name, self.help, self.combine, self.value = name, help, combine, 0.0
        self.read: Callable[[], float] | None = None

    def sample(self) -> Sample:
        # Who has none of it (the supervisor of a spool) must not be the least.
        is_here = self.read is not None or self.combine != "min"
        value = self.read() if self.read else self.value
        rows: list[Row] = [((), (value,))] if is_here else []
        return Sample("gauge", self.name, self.help, (), rows, self.combine)


class Gauges:
    """Numbers of things that come and go; `read` gives a bounded number of them when asked."""

    __slots__ = ("combine", "help", "labels", "name", "read")

    def __init__(self, name: str, help: str, labels: tuple[str, ...], combine: Combine) -> None:
        self.name, self.help, self.labels, self.combine = name, help, labels, combine
        self.read: Callable[[], Rows] | None = None

    def sample(self) -> Sample:
        read = self.read() if self.read else []
        rows: list[Row] = [(values, (number,)) for values, number in read]
        return Sample("gauge", self.name, self.help, self.labels, rows, self.combine)


class Histogram:
    """Observations counted by upper bound; the last count is for all above the last bound."""

    __slots__ = ("bounds", "counts", "help", "name", "total")

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def sample(self) -> Sample:
        rows: list[Row] = [((), (self.total, *self.counts))]
        return Sample("histogram", self.name, self.help, (), rows, bounds=self.bounds)


_declared: list[Metric] = []


def counter(name: str, help: str) -> Counter:
    _declared.append(metric := Counter(name, help))
    return metric


def counters(name: str, help: str, label: str, values: tuple[str, ...]) -> Counters:
    """A counter for each of the `values`, which are few and known from the start."""
    _declared.append(metric := Counters(name, help, label, values))
    return metric


def ranked(name: str, help: str, label: str, ends: tuple[str, ...]) -> Ranked:
    """Counters for each name and each end, of the busiest names alone."""
    _declared.append(metric := Ranked(name, help, label, ends))
    return metric


def gauge(name: str, help: str, combine: Combine = "sum") -> Gauge:
    _declared.append(metric := Gauge(name, help, combine))
    return metric


def gauges(name: str, help: str, labels: tuple[str, ...], combine: Combine = "sum") -> Gauges:
    _declared.append(metric := Gauges(name, help, labels, combine))
    return metric


def histogram(name: str, help: str, bounds: tuple[float, ...] = SECONDS) -> Histogram:
    _declared.append(metric := Histogram(name, help, bounds))
    return metric


def snapshot() -> list[Sample]:
    """Everything that this process has declared, as it stands now."""
    return [metric.sample() for metric in _declared]
