"""The supervisor's part in limits for clients: it passes on what workers count, and knows the sums.

A worker that is started again gets them from here; operators ask here, and lift limits.
"""

import time
from itertools import islice

from msgspec import Struct

from fastmta import control
from fastmta.config import Config
from fastmta.server.counts import Counts, Over, Row
from fastmta.server.limits import subjects_of
from fastmta.worker_process import WorkerProcess

MOST_SHOWN = 10_000


class WhoIsOver(Struct, frozen=True, tag="who-is-over"):
    """A request: who is at a limit now."""


class Overs(Struct, frozen=True):
    """Its answer; `is_all` is False where there are more."""

    over: list[Over]
    is_all: bool


class Lift(Struct, frozen=True, tag="lift"):
    """A request: forget what counts against an address and its network, a network or an account."""

    subject: str


class Freed(Struct, frozen=True):
    """Its answer: the limits that they were at."""

    over: list[Over]


class LimitsDesk:
    """On the supervisor's loop."""

    def __init__(self, config: Config, workers: list[WorkerProcess]) -> None:
        self._settings = config.limits
        self._counts = Counts(config.limits.rates, time.monotonic)
        self._workers = workers

    def configure(self, config: Config) -> None:
        self._settings = config.limits
        self._counts.configure(config.limits.rates)

    def counted(self, worker: WorkerProcess, rows: list[Row]) -> None:
        """Add what it counted, and let the others do so."""
        self._counts.add(rows)
        self._counts.turn()
        for other in self._workers:
            if other is not worker and other.is_ready:
                other.tell(control.Counted(rows))

    def welcome(self, worker: WorkerProcess) -> None:
        """Tell a worker that has begun all that is known."""
        for rows in self._counts.pages():
            worker.tell(control.Counted(rows))

    def answer(self, asked: WhoIsOver | Lift) -> Overs | Freed:
        return self._lift(asked.subject) if isinstance(asked, Lift) else self._who_is_over()

    def _who_is_over(self) -> Overs:
        over = list(islice(self._counts.over(), MOST_SHOWN + 1))
        return Overs(over[:MOST_SHOWN], len(over) <= MOST_SHOWN)

    def _lift(self, subject: str) -> Freed:
        subjects = subjects_of(self._settings, subject)
        freed = [one for one in self._counts.over() if one.subject in subjects]
        self._counts.clear(subjects)
        for worker in self._workers:
            worker.tell(control.Lifted(sorted(subjects)))
        return Freed(freed)
