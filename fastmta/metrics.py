"""Counters as plain integers, declared where they happen and read only when somebody asks.

A module declares its metrics at import and adds to `value`; nothing else is done per message.
`snapshot` gives what one process counted; `web.metrics` sums the workers and writes the
Prometheus text.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Counter:
    """A number that only grows."""

    __slots__ = ("help", "name", "value")

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help, self.value = name, help, 0


class Counters:
    """Numbers that only grow, one for each value that a label can have."""

    __slots__ = ("counts", "help", "label", "name")

    def __init__(self, name: str, help: str, label: str, values: tuple[str, ...]) -> None:
        self.name, self.help, self.label = name, help, label
        self.counts = dict.fromkeys(values, 0)

    def count(self, value: str) -> None:
        self.counts[value] += 1


Combine = Literal["sum", "max"]


class Gauge:
    """A number that goes up and down, or is read through `read` when somebody asks.

    `combine` says what several workers make together: sizes add up, of ages the oldest counts.
    """

    __slots__ = ("combine", "help", "name", "read", "value")

    def __init__(self, name: str, help: str, combine: Combine) -> None:
        self.name, self.help, self.combine, self.value = name, help, combine, 0.0
        self.read: Callable[[], float] | None = None


Rows = list[tuple[tuple[str, ...], float]]  # values of the labels, and the number


class Gauges:
    """Numbers of things that come and go; `read` gives a bounded number of them when asked.

    One process alone of all sets `read`.
    """

    __slots__ = ("help", "labels", "name", "read")

    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name, self.help, self.labels = name, help, labels
        self.read: Callable[[], Rows] | None = None


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


class Sample(Struct, array_like=True):
    """One metric of one process, as it goes from a worker to whoever sums them."""

    kind: str  # "counter", "gauge", "histogram"
    name: str
    help: str
    value: float  # the sum of observations for a histogram
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()  # of each bucket by itself, not cumulated; or of each value
    combine: Combine = "sum"  # of a gauge
    label: str = ""  # of counters, with its values
    values: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # of gauges, with their rows
    rows: Rows = []


_counters: list[Counter] = []
_labelled: list[Counters] = []
_gauges: list[Gauge] = []
_families: list[Gauges] = []
_histograms: list[Histogram] = []


def counter(name: str, help: str) -> Counter:
    _counters.append(metric := Counter(name, help))
    return metric


def counters(name: str, help: str, label: str, values: tuple[str, ...]) -> Counters:
    """A counter for each of the `values`, which are few and known from the start."""
    _labelled.append(metric := Counters(name, help, label, values))
    return metric


def gauge(name: str, help: str, combine: Combine = "sum") -> Gauge:
    _gauges.append(metric := Gauge(name, help, combine))
    return metric


def gauges(name: str, help: str, labels: tuple[str, ...]) -> Gauges:
    _families.append(metric := Gauges(name, help, labels))
    return metric


def histogram(name: str, help: str, bounds: tuple[float, ...] = SECONDS) -> Histogram:
    _histograms.append(metric := Histogram(name, help, bounds))
    return metric


def snapshot() -> list[Sample]:
    """Everything that this process has declared, as it stands now."""
    samples = [Sample("counter", c.name, c.help, c.value) for c in _counters]
    samples += [
        Sample(
            "counter",
            each.name,
            each.help,
            sum(each.counts.values()),
            counts=tuple(each.counts.values()),
            label=each.label,
            values=tuple(each.counts),
        )
        for each in _labelled
    ]
    samples += [
        Sample("gauge", g.name, g.help, g.read() if g.read else g.value, combine=g.combine)
        for g in _gauges
    ]
    samples += [
        Sample("gauge", f.name, f.help, 0.0, labels=f.labels, rows=f.read() if f.read else [])
        for f in _families
    ]
    samples += [
        Sample("histogram", h.name, h.help, h.total, h.bounds, tuple(h.counts)) for h in _histograms
    ]
    return samples
