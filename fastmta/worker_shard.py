"""One spool of a worker with what empties it, and what is counted of all of them."""

import asyncio
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from fastmta import metrics
from fastmta.config import Config
from fastmta.delivery.site import Site
from fastmta.queue.clock import ClockWatch
from fastmta.queue.expiry import Expiry
from fastmta.queue.scheduler import Scheduler
from fastmta.queue.settlement import Settlement
from fastmta.store.env import MAP_SIZE
from fastmta.store.spool import Spool, Statistics

QUEUE = metrics.gauge("fastmta_queue_envelopes", "Envelopes in the queue")
HELD = metrics.gauge("fastmta_queue_held_envelopes", "Envelopes that an operator keeps back")
BLOCKED = metrics.gauge(
    "fastmta_queue_blocked_lanes", "Destinations whose mail waits because their path has no room"
)
OLDEST = metrics.gauge(
    "fastmta_queue_oldest_seconds", "Age of the oldest message in the queue", combine="max"
)
FILE = metrics.gauge("fastmta_spool_file_bytes", "Size of the spool's files in use")
FREE = metrics.gauge("fastmta_spool_free_bytes", "Space inside the spool's files for new rows")
MAP = metrics.gauge("fastmta_spool_map_bytes", "Size that the spool's files may grow to")
DISK = metrics.gauge(
    "fastmta_spool_disk_free_bytes", "What can be written on the spool's disk", combine="min"
)
FLOOR = metrics.gauge(
    "fastmta_spool_disk_floor_bytes", "Free space below which no mail is taken", combine="max"
)
FULL = metrics.gauge("fastmta_spool_full", "Spools that take no mail: their disk is at its floor")

LOOK_LIFE = 0.005  # seconds: for one scrape, the next sees what has changed


class Shard:
    """One spool with what empties it."""

    def __init__(
        self,
        spool: Spool,
        settlement: Settlement,
        expiry: Expiry,
        clock: ClockWatch,
        scheduler: Scheduler[Site],
    ) -> None:
        self.spool, self.settlement = spool, settlement
        self.expiry, self._clock, self.scheduler = expiry, clock, scheduler
        self._runners: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.spool.start(self.scheduler.admit)
        for run in (self.scheduler.run(), self.expiry.run(), self._clock.run()):
            self._runners.append(asyncio.ensure_future(run))

    def reload(self, config: Config) -> None:
        self.spool.keep_free(config.spool.min_free_space)
        self.spool.reconsider()
        self.settlement.configure(config.reports, config.hostname)

    async def stop_scheduling(self) -> None:
        for runner in self._runners:
            runner.cancel()
        await self.scheduler.stop()

    async def written(self) -> None:
        """Return when all that has ended by now is on the disk, what is reported too."""
        await self.settlement.begun()
        await self.spool.written()

    async def close(self) -> bool:
        """Whether all that has ended is on the disk."""
        is_reported = await self.settlement.finish()
        await self.spool.close()
        return is_reported and not self.spool.unsettled


def shards_of(folder: Path, index: int, workers: int) -> list[int]:
    """The worker's own shard, then those that are left from more workers and fall to it."""
    found = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    return [index, *sorted(n for n in found if n >= workers and n % workers == index)]


class _Look:
    """What the spools say, asked once for all gauges of a scrape."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards
        self._time = -inf
        self._found: list[Statistics] = []

    def all(self) -> list[Statistics]:
        now = time.monotonic()
        if now - self._time > LOOK_LIFE:
            self._time, self._found = now, [shard.spool.statistics() for shard in self._shards]
        return self._found

    def total(self, field: str) -> Callable[[], float]:
        return lambda: sum(getattr(each, field) for each in self.all())

    def age(self) -> float:
        oldest = min(filter(None, (each.oldest for each in self.all())), default=0.0)
        return max(0.0, time.time() - oldest) if oldest else 0.0

    def disk(self) -> float:
        return min(each.disk_octets for each in self.all())


def show(shards: list[Shard]) -> None:
    """Let the gauges read the spools when somebody asks."""
    look = _Look(shards)
    QUEUE.read, HELD.read = look.total("envelopes"), look.total("held")
    FILE.read, FREE.read = look.total("file_octets"), look.total("free_octets")
    BLOCKED.read, OLDEST.read, DISK.read = look.total("blocked"), look.age, look.disk
    MAP.read = lambda: float(MAP_SIZE * len(shards))
    FLOOR.read = lambda: max(shard.spool.floor for shard in shards)
    FULL.read = lambda: sum(shard.spool.is_full for shard in shards)
