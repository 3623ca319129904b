"""What all processes of a relay counted together, since its start.

A counter that falls looks to Prometheus like a restart, and what is left of it like an increase.
So what a worker had counted stays when it ends, or does not answer for once, and of names that
lose their place among the busiest, too. Gauges are of those that live.
"""

import time
from collections.abc import Callable, Iterator
from operator import add, sub

from msgspec import structs

from fastmta.metrics import OTHER, Combine, Sample

NAMES = 200  # values of a first label that are kept, of a metric whose names nobody bounds
REMEMBERED = 600.0  # seconds that a name keeps its place without a change

_Numbers = tuple[float, ...]
_Rows = dict[tuple[str, ...], _Numbers]
_MERGE: dict[Combine, Callable[[float, float], float]] = {"sum": add, "max": max, "min": min}


class Totals:
    """Takes snapshots of processes, each under its number, and adds up what came between them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[int, dict[str, Sample]] = {}
        self._totals: dict[str, _Rows] = {}
        self._changed: dict[str, dict[str, float]] = {}  # metric -> name -> when, oldest first
        self._kinds: dict[str, Sample] = {}  # in the order in which they were first seen

    def take(self, process: int, samples: list[Sample]) -> None:
        """This is what a process has counted so far; [] where it does not say."""
        if not samples:
            return
        before = self._last.get(process, {})
        self._last[process] = {sample.name: sample for sample in samples}
        for sample in samples:
            self._kinds.setdefault(sample.name, sample)
            if sample.kind != "gauge":
                self._grow(sample, before.get(sample.name))

    def ended(self, process: int) -> None:
        """What it counts next begins at 0."""
        self._last.pop(process, None)

    def samples(self) -> Iterator[Sample]:
        """One for each name; others may be taken while somebody reads these."""
        for name, kind in list(self._kinds.items()):
            if kind.kind == "gauge":
                rows = self._living(name, _MERGE[kind.combine])
            else:
                rows = self._totals[name]
            yield structs.replace(kind, rows=list(rows.items()))

    def _grow(self, sample: Sample, before: Sample | None) -> None:
        totals = self._totals.setdefault(sample.name, {})
        known = dict(before.rows) if before else {}
        for values, numbers in sample.rows:
            grown = _grown(numbers, known.get(values))
            values = self._place(sample, values, any(grown)) if values else values
            total = totals.get(values)
            totals[values] = tuple(map(add, total, grown)) if total else grown

    def _place(self, sample: Sample, values: tuple[str, ...], changed: bool) -> tuple[str, ...]:
        """By which name this counts: its own, or `other` where there are too many."""
        name, now = values[0], self._clock()
        names = self._changed.setdefault(sample.name, {})
        if name == OTHER:
            return values
        if name not in names and len(names) >= NAMES:
            oldest, when = next(iter(names.items()))
            if now - when < REMEMBERED:
                return (OTHER, *values[1:])
            self._forget(sample.name, oldest)
        if changed or name not in names:
            names.pop(name, None)
            names[name] = now
        return values

    def _forget(self, metric: str, name: str) -> None:
        del self._changed[metric][name]
        totals = self._totals[metric]
        for values in [values for values in totals if values[0] == name]:
            del totals[values]

    def _living(self, name: str, merge: Callable[[float, float], float]) -> _Rows:
        rows: _Rows = {}
        for samples in self._last.values():
            sample = samples.get(name)
            for values, numbers in sample.rows if sample else ():
                seen = rows.get(values)
                rows[values] = tuple(map(merge, seen, numbers)) if seen else numbers
        return rows


def _grown(numbers: _Numbers, before: _Numbers | None) -> _Numbers:
    """All of it where it has begun anew."""
    if before is None or any(map(float.__lt__, map(float, numbers), map(float, before))):
        return numbers
    return tuple(map(sub, numbers, before))
