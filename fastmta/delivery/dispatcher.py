"""Jobs to paths: what is ready to leave gets its source and the queue of its path."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from msgspec import Struct

from fastmta import metrics
from fastmta.delivery.connection import Connection, Read, Terms
from fastmta.delivery.hosts import PAUSED, Hosts
from fastmta.delivery.numbers import PathNumbers
from fastmta.delivery.opening import CUT_OFF
from fastmta.delivery.path import SOURCE_GONE, Path
from fastmta.delivery.site import Site
from fastmta.delivery.source import Pool, Source, Sources
from fastmta.delivery.tls import Tls
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, TlsDemand
from fastmta.queue.flow import Flow
from fastmta.queue.limits import Permits, Shape
from fastmta.queue.ready import Job, ReadyQueue

PATHS = metrics.gauge("fastmta_delivery_paths", "Paths with mail or connections")
ACTIVE = metrics.gauge(
    "fastmta_delivery_active", "Envelopes that wait for a connection, or are being sent"
)

SWEEP_SECONDS = 1.0
_SWEPT_AT_ONCE = 500  # paths; then the loop has its turn
_RESHAPED_AT_ONCE = 100

# What has no room where there are too many paths for one more, or no more mail is to go out.
ALL_PATHS = "*"

# `settle(job, site_name, source_name, dispositions)`: one for each recipient, in order.
Settle = Callable[[Job, str, str, list[Disposition]], None]
# `shape(source_name, site, domain, tls)`: asked for each job, so it answers from memory.
Shaping = Callable[[str, Site, str, TlsDemand], Shape]


class Bounds(Struct, frozen=True):
    """What holds for one worker, whatever the paths."""

    paths: int = 10_000
    plenty: int = 10_000  # jobs of all paths; with fewer, each may have as many as it is allowed
    all_connections: int = 2000
    attempts: int = 10  # addresses tried for one connection
    conversions: int = 2  # large messages held in seven bits, for hosts without 8BITMIME
    hold: float = 10.0  # seconds without new ones after a host refused one beside others


_BOUNDS = Bounds()


class Dispatcher:
    """Takes jobs for sites and settles each exactly once, on the loop, never within `submit`."""

    def __init__(
        self,
        settle: Settle,
        read: Read,
        *,
        sources: Sources,
        shape: Shaping,
        permits: Permits,
        room: Callable[[str], None],
        queue: Callable[[int], ReadyQueue] = ReadyQueue,
        hosts: Hosts | None = None,
        bounds: Bounds = _BOUNDS,
        tls: Tls | None = None,
        flow: Flow | None = None,
    ) -> None:
        """`room` is told which path has room again that `submit` named as full.

        `sources` and `shape` may be changed: what is submitted from then on goes by the new, and
        what waits on its path already after `reshape`.
        """
        self.sources, self.shape, self.permits = sources, shape, permits
        self.room, self.queue, self.bounds = room, queue, bounds
        self.hosts, self.flow = hosts or Hosts(time.monotonic), flow or Flow()
        PAUSED.read = lambda: len(self.hosts.paused())
        PATHS.read = lambda: len(self._paths)
        ACTIVE.read = self.active_jobs
        self.draining = False
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # the one that has waited longest first
        self.conversions = asyncio.Semaphore(bounds.conversions)
        self._read, self.tls = read, tls or Tls()
        self._settle = settle
        self._paths: dict[str, Path] = {}
        self._turned_away = False  # somebody waits until there may be one more path
        self._active = 0
        self._slots = bounds.all_connections
        self.starved: dict[Path, None] = {}  # want a connection, but others have them all
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    def submit(self, site: Site, job: Job) -> str:
        """Take a job, or say which path has no room for it now; "" is taken."""
        if self.draining:
            return ALL_PATHS
        pool = self.sources.pool_of(job.envelope)
        if pool is not None:
            return self._submit_to_pool(pool, site, job)
        path = self._path(self.sources.system, site, job.envelope)
        if path is None:
            return ALL_PATHS
        if not path.submit(job):
            return path.tell(path.room_for(job), job)
        self._active += 1
        return ""

    def _submit_to_pool(self, pool: Pool, site: Site, job: Job) -> str:
        sources = self.sources.order(pool, site)
        full: list[Path] = []
        for source in sources:
            path = self._path(source, site, job.envelope)
            if path is None:
                continue
            if path.submit(job):
                pool.took(site.name, source, sources)
                self._active += 1
                return ""
            full.append(path)
        if full:
            name = full[0].room_for(job)
            for path in full:
                path.tell(name, job)
            return name
        if sources:
            return ALL_PATHS
        reply = self.sources.objection(pool)
        end = Disposition.of_reply(reply, "", time.time())
        ends = [end] * len(job.envelope.recipients)
        self._active += 1
        asyncio.get_running_loop().call_soon(self.settle, job, site.name, "", ends)
        return ""

    def active_jobs(self) -> int:
        """Jobs that were submitted and are not settled yet."""
        return self._active

    def paths(self) -> list[PathNumbers]:
        return [path.numbers() for path in self._paths.values()]

    def shape_of(self, path: str) -> Shape | None:
        """What a path may do; None where it is gone."""
        found = self._paths.get(path)
        return found.shape if found is not None else None

    def jobs(self) -> Iterator[tuple[Job, Path, bool]]:
        """What was submitted and is not settled, with its path, and whether it has been begun."""
        for path in self._paths.values():
            for job in path.waiting():
                yield job, path, False
            for job in path.begun():
                yield job, path, True

    def withdraw(self, matches: Callable[[Job, str], bool]) -> list[Job]:
        """Give back, unsettled, what waits and matches: `matches(job, site_name)`.

        What has been begun stays.
        """
        jobs = [job for path in list(self._paths.values()) for job in path.withdraw(matches)]
        self._active -= len(jobs)
        return jobs

    def retry_now(self, site: str | None = None) -> None:
        """Forget the pauses of the hosts of a site, or of all."""
        self.hosts.forget(site)
        for path in list(self._paths.values()):
            if site is None or path.site.name == site:
                path.open_more()

    def reshape(self, again: Callable[[Job], None]) -> None:
        """What a path may do now holds for what waits there too, some paths at a time.

        `again` takes back, unsettled, each job that waits on a path that is not its own any more.
        """
        self._reshape_paths(iter(list(self._paths.values())), again)

    async def drain(self, seconds: float) -> None:
        """Finish the transactions under way within `seconds` and close all connections.

        A job that was not begun is let go without being settled: the spool still has it, as it
        was. What is not finished in time is cut off and settled as deferred.
        """
        self.draining = True
        for path in list(self._paths.values()):
            path.drain()
        try:
            async with asyncio.timeout(seconds):
                await self._until_empty()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort(CUT_OFF)
            await self._until_empty()

    # For its paths.

    def terms(self, path: Path) -> Terms:
        timeouts = path.shape.limits.timeouts
        return Terms(
            path.source.hostname,
            self._read,
            timeouts,
            timeouts.by_step(),
            self.conversions,
            self.tls,
            path.source.certificate,
        )

    def is_starved(self, path: Path) -> bool:
        return path in self.starved

    def take_slot(self, path: Path, *, first: bool) -> bool:
        """For one connection more, the `first` of its path or not; False: none is free."""
        if self._slots:
            self._slots -= 1
            return True
        if first and path not in self.starved:
            self.starved[path] = None  # it will be asked again
            self._end_an_idle_connection()
        return False

    def free_slot(self) -> None:
        self._slots += 1
        if self.starved:
            path = next(iter(self.starved))
            del self.starved[path]
            path.open_more()

    def settle(self, job: Job, site: str, source: str, dispositions: list[Disposition]) -> None:
        self._active -= 1
        self._settle(job, site, source, dispositions)

    def redirect(self, site: Site, jobs: Iterable[Job]) -> None:
        """The source of these jobs is gone: they leave from another, or wait if those are full."""
        for job in jobs:
            self._active -= 1
            if self.draining or not self.submit(site, job):
                continue  # not begun, the spool has it; or taken
            self._active += 1
            end = Disposition.of_reply(SOURCE_GONE, "", time.time())
            self.settle(job, site.name, "", [end] * len(job.envelope.recipients))

    def forget(self, path: Path) -> None:
        if self._paths.get(path.name) is not path:
            return
        del self._paths[path.name]
        self.starved.pop(path, None)
        self.permits.forget(path.shape, path)
        if self._turned_away:
            self._turned_away = False
            asyncio.get_running_loop().call_soon(self.room, ALL_PATHS)
        self._check_empty()

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        self._check_empty()

    def _path(self, source: Source, site: Site, envelope: Envelope) -> Path | None:
        """None: there are too many."""
        domain, tls = envelope.domain, envelope.tls
        shape = self.shape(source.name, site, domain, tls)
        path = self._paths.get(shape.path)
        if path is None:
            if len(self._paths) >= self.bounds.paths:
                self._turned_away = True
                return None
            path = self._paths[shape.path] = Path(self, shape, source, site)
            if self._timer is None:
                self._timer = path.loop.call_later(SWEEP_SECONDS, self._sweep)
        path.site = site  # its addresses may have changed, and so may the configuration
        path.shape, path.source, path.domain, path.demand = shape, source, domain, tls
        return path

    def _sweep(self) -> None:
        """Once a second: what has run out of time, and who can go on."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.expire()
        self._sweep_paths(iter(list(self._paths.values())))
        busy = self._paths or self.connections
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep) if busy else None

    def _sweep_paths(self, paths: Iterator[Path]) -> None:
        some = list(islice(paths, _SWEPT_AT_ONCE))
        for path in some:
            path.sweep()
        if len(some) == _SWEPT_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._sweep_paths, paths)

    def _reshape_paths(self, paths: Iterator[Path], again: Callable[[Job], None]) -> None:
        some = list(islice(paths, _RESHAPED_AT_ONCE))
        for path in some:
            shape = self.shape(path.source.name, path.site, path.domain, path.demand)
            if shape.path == path.name:
                path.shape = shape
                path.wake()  # so that it asks by the new one
                continue
            jobs = path.withdraw(lambda job, site: True)
            self._active -= len(jobs)
            for job in jobs:
                again(job)
        if len(some) == _RESHAPED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._reshape_paths, paths, again)

    def _end_an_idle_connection(self) -> None:
        while self.idle:
            connection = next(iter(self.idle))
            del self.idle[connection]
            if connection.client.is_ready:  # or it is on its way out already
                return connection.quit()
        return None

    def _check_empty(self) -> None:
        if self._emptied is not None and not (self._paths or self.connections):
            self._emptied.set_result(None)
            self._emptied = None

    async def _until_empty(self) -> None:
        if self._paths or self.connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied
