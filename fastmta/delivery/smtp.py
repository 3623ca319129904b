"""Jobs to connections: what is ready to leave goes to hosts over SMTP."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct, structs

from fastmta import metrics
from fastmta.delivery.connection import Connection, Read, Terms
from fastmta.delivery.site import Host, Site
from fastmta.mail.disposition import Disposition
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import Timeouts
from fastmta.queue.ready import Job, ReadyQueue

OPEN = metrics.gauge("fastmta_delivery_connections", "SMTP connections out that are open")
OPENED = metrics.counter("fastmta_delivery_connections_total", "SMTP connections out, opened")
FAILED = metrics.counter(
    "fastmta_delivery_connections_failed_total",
    "Attempts at an SMTP connection out that no mail could be sent over",
)
MESSAGES = metrics.counter(
    "fastmta_delivery_transactions_total", "Mail transactions begun on SMTP connections out"
)

SWEEP_SECONDS = 1.0

# `settle(job, site_name, dispositions)`: one for each recipient, in order.
Settle = Callable[[Job, str, list[Disposition]], None]


class Limits(Struct, frozen=True):
    ready: int = 1000  # jobs of one path that wait
    paths: int = 10_000
    connections: int = 32  # of one path
    all_connections: int = 2000
    messages: int = 1000  # over one connection
    idle: float = 5.0  # seconds that a connection is kept without a job
    attempts: int = 10  # addresses tried for one connection
    conversions: int = 2  # large messages held in seven bits, for hosts without 8BITMIME
    hold: float = 10.0  # seconds without new ones after a host refused one beside others


_TIMEOUTS = Timeouts()
_LIMITS = Limits()
_CUT_OFF = Reply(451, "4.3.2", "cut off by our shutdown")


class SiteNumbers(Struct, frozen=True):
    """How one site stands now."""

    name: str
    waiting: int  # jobs
    busy: int  # connections
    idle: int
    opening: int


class Dispatcher:
    """Takes jobs for sites and settles each exactly once, on the loop, never within `submit`."""

    def __init__(
        self,
        hostname: str,
        settle: Settle,
        read: Read,
        *,
        timeouts: Timeouts = _TIMEOUTS,
        limits: Limits = _LIMITS,
        room: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`room` hears of each path that `submit` named, once it has room again or is gone."""
        conversions = asyncio.Semaphore(limits.conversions)
        self.terms = Terms(hostname, read, timeouts, timeouts.by_step(), conversions)
        self.limits = limits
        self.draining = False
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # the one that has waited longest first
        self._settle = settle
        self.room = room
        self._turned_away: dict[str, None] = {}  # sites for which there was no path
        self._paths: dict[str, Path] = {}
        self._active = 0
        self._slots = limits.all_connections
        self._starved: dict[Path, None] = {}  # want a connection, and there is no slot
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    def submit(self, site: Site, job: Job) -> str:
        """An empty string where it is taken, else the name of the path that has no room now."""
        if self.draining:
            return site.name
        path = self._paths.get(site.name) or self._new_path(site)
        if path is None:
            self._turned_away[site.name] = None
            return site.name
        path.site = site  # its addresses may have changed
        if not path.submit(job):
            return site.name
        self._active += 1
        return ""

    def configure(self, hostname: str) -> None:
        """What counts for connections that are opened from now on."""
        self.terms = structs.replace(self.terms, hostname=hostname)

    def active_jobs(self) -> int:
        """Jobs that were submitted and are not settled yet."""
        return self._active

    def sites(self) -> list[SiteNumbers]:
        return [path.numbers() for path in self._paths.values()]

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
                connection.abort(_CUT_OFF)
            await self._until_empty()

    # For its paths.

    @property
    def is_crowded(self) -> bool:
        """There are sites that have no connection, because others have them all."""
        return bool(self._starved)

    def take_slot(self, path: "Path", *, first: bool) -> bool:
        """For one connection more, the `first` of its site or not; False: none is free."""
        if self._slots:
            self._slots -= 1
            return True
        if first and path not in self._starved:
            self._starved[path] = None  # it will be asked again
            self._end_an_idle_connection()
        return False

    def free_slot(self) -> None:
        self._slots += 1
        if self._starved:
            path = next(iter(self._starved))
            del self._starved[path]
            path.open_more()

    def settle(self, job: Job, site: str, dispositions: list[Disposition]) -> None:
        self._active -= 1
        self._settle(job, site, dispositions)

    def forget(self, path: "Path") -> None:
        if self._paths.get(path.site.name) is path:
            del self._paths[path.site.name]
        self._starved.pop(path, None)
        self.room(path.site.name)
        if self._turned_away:
            self.room(self._turned_away.popitem()[0])
        self._check_empty()

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        self._check_empty()

    def _new_path(self, site: Site) -> "Path | None":
        if len(self._paths) >= self.limits.paths:
            return None
        path = self._paths[site.name] = Path(self, site)
        if self._timer is None:
            self._timer = path.loop.call_later(SWEEP_SECONDS, self._sweep)
        return path

    def _sweep(self) -> None:
        """Once a second: what has run out of time, and who can go on."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.expire()
        for path in list(self._paths.values()):
            path.open_more()
        busy = self._paths or self.connections
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep) if busy else None

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


class Path:
    """One site: the jobs that wait for it and the connections that take them."""

    def __init__(self, dispatcher: Dispatcher, site: Site) -> None:
        self.site = site
        self.loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        self._limits = dispatcher.limits
        self._ready = ReadyQueue(self._limits.ready)
        self._again: deque[Job] = deque()  # met a dead connection: for fresh ones alone
        self._open: set[Connection] = set()  # past EHLO
        self._idle: list[Connection] = []  # of those; the last was used last
        self._openers: set[asyncio.Task[bool]] = set()
        self._hold_until = 0.0

    def submit(self, job: Job) -> bool:
        while self._idle:
            connection = self._idle.pop()
            self._dispatcher.idle.pop(connection, None)
            if connection.client.is_ready:  # or it is about to end
                if not self._start(connection, job):
                    self._park(connection)
                return True
        if not self._ready.put(job):
            return False
        self.open_more()
        return True

    def numbers(self) -> SiteNumbers:
        waiting = len(self._ready) + len(self._again)
        idle = len(self._idle)
        busy = len(self._open) - idle
        return SiteNumbers(self.site.name, waiting, busy, idle, len(self._openers))

    def drain(self) -> None:
        self._ready.take_all()
        self._again.clear()
        for opener in self._openers:
            opener.cancel()
        for connection in self._idle:
            if connection.client.is_ready:
                connection.quit()
        self._forget_if_unused()

    def open_more(self) -> None:
        """As many connections as jobs wait; just one until the site is known to answer."""
        opening, opened = len(self._openers), len(self._open)
        wanted = len(self._ready) + len(self._again) - opening
        if wanted <= 0 or self._dispatcher.draining:
            return
        room = self._limits.connections - opened - opening
        if not opened:
            room = min(room, 1 - opening)
        elif room <= 0 or self.loop.time() < self._hold_until:
            return
        for _ in range(min(wanted, room)):
            if not self._dispatcher.take_slot(self, first=not (opened or self._openers)):
                break
            opener = self.loop.create_task(self._opener())
            self._openers.add(opener)
            opener.add_done_callback(self._opener_ended)

    # What connections say (connection.Owner).

    def made(self, connection: Connection) -> None:
        self._dispatcher.connections.add(connection)
        OPENED.value += 1
        OPEN.value += 1

    def free(self, connection: Connection) -> None:
        self._open.add(connection)
        crowded = self._dispatcher.is_crowded
        if not (self._is_worn(connection) or (crowded and len(self._open) > 1)):
            while job := self._next(connection):
                if self._start(connection, job):
                    return None
            if not crowded:
                return self._park(connection)
        return connection.quit()

    def done(self, connection: Connection, job: Job, replies: list[Reply]) -> None:
        now = time.time()
        host = connection.label
        dispositions = [Disposition.of_reply(reply, host, now) for reply in replies]
        self._dispatcher.settle(job, self.site.name, dispositions)

    def untouched(self, connection: Connection, job: Job) -> None:
        if self._dispatcher.draining:
            reason = connection.client.reason
            assert reason is not None
            return self.done(connection, job, [reason] * len(job.envelope.recipients))
        return self._again.append(job)

    def ended(self, connection: Connection) -> None:
        if connection not in self._dispatcher.connections:
            return
        OPEN.value -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._dispatcher.gone(connection)
        if connection in self._open:
            self._open.remove(connection)
            self._dispatcher.free_slot()
        self.open_more()
        self._forget_if_unused()

    # Giving out jobs.

    def _is_worn(self, connection: Connection) -> bool:
        return self._dispatcher.draining or connection.messages >= self._limits.messages

    def _next(self, connection: Connection) -> Job | None:
        if self._again and not connection.kept:
            return self._again.popleft()
        job = self._ready.take()
        self._tell_of_room()
        return job

    def _tell_of_room(self) -> None:
        if self._ready.has_refused and self._ready.has_regained():
            self._dispatcher.room(self.site.name)

    def _park(self, connection: Connection) -> None:
        connection.park(self._limits.idle)
        self._idle.append(connection)
        self._dispatcher.idle[connection] = None

    def _start(self, connection: Connection, job: Job) -> bool:
        """False: the job is not for this host, and settled soon; the connection is still free."""
        objection = connection.client.objection(job.envelope)
        if objection is not None:
            # Not at once: this may be within `submit`.
            replies = [objection] * len(job.envelope.recipients)
            self.loop.call_soon(self.done, connection, job, replies)
            return False
        MESSAGES.value += 1
        connection.begin(job)
        return True

    # Opening connections.

    async def _opener(self) -> bool:
        """One connection, to the first host that wants mail; False: none does."""
        failure: tuple[Reply, str] | None = None
        for host, address in draw(self.site, self._limits.attempts):
            reply, label = await self._attempt(host, address)
            if reply is None:
                return True
            FAILED.value += 1
            if reply.is_permanent:
                # We are the host. RFC 5321 section 5.1: hosts of our own preference or a later
                # one are not for us to try; where an earlier one failed, it may come back.
                failure = failure or (reply, label)
                break
            failure = reply, label
        reply, label = failure or (Reply(451, "4.4.4", "no address to send to"), "")
        self._unreachable(reply, label)
        return False

    async def _attempt(self, host: Host, address: str) -> tuple[Reply | None, str]:
        """Why no mail can be sent there, None where it can; and the host, if there was one."""
        terms = self._dispatcher.terms
        connection = Connection(self, terms, host, address)
        try:
            await self._connect(connection, address, host.port)
        except (OSError, ValueError) as error:
            why = "timed out" if isinstance(error, TimeoutError) else str(error)
            text = f"cannot connect to {connection.label} port {host.port}: {why}"
            return Reply(451, "4.4.1", text), ""
        try:
            return await connection.opened, connection.label
        except asyncio.CancelledError:
            if connection not in self._open:
                connection.abort(_CUT_OFF)
            raise

    async def _connect(self, connection: Connection, address: str, port: int) -> None:
        try:
            async with asyncio.timeout(self._dispatcher.terms.timeouts.connect):
                await self.loop.create_connection(lambda: connection, address, port)
        except BaseException:
            # Where that comes in the moment in which it was made, the loop closes the transport
            # and tells nobody.
            self.ended(connection)
            raise

    def _unreachable(self, reply: Reply, host: str) -> None:
        """No connection could be opened: what waits for nothing else ends with this reply."""
        jobs = list(self._again)
        self._again.clear()
        if self._open or len(self._openers) > 1:
            # The site limits how many it takes; those that are open go on.
            self._hold_until = self.loop.time() + self._limits.hold
        else:
            jobs += self._ready.take_all()
            self._tell_of_room()
        disposition = Disposition.of_reply(reply, host, time.time())
        for job in jobs:
            dispositions = [disposition] * len(job.envelope.recipients)
            self._dispatcher.settle(job, self.site.name, dispositions)

    def _opener_ended(self, opener: asyncio.Task[bool]) -> None:
        self._openers.discard(opener)
        mistake = None if opener.cancelled() else opener.exception()
        if opener.cancelled() or mistake or not opener.result():
            self._dispatcher.free_slot()  # otherwise the connection has it now
        self.open_more()
        self._forget_if_unused()
        if mistake:
            raise mistake  # for the loop's exception handler

    def _forget_if_unused(self) -> None:
        if not (self._ready or self._again or self._open or self._openers):
            self._dispatcher.forget(self)


def draw(site: Site, attempts: int) -> list[tuple[Host, str]]:
    """The addresses to try, in order (RFC 5321 section 5.1).

    Hosts of one preference come in random order, so that mail spreads over them.
    """
    hosts = [host for tier in site.tiers for host in random.sample(tier, len(tier))]
    return [(host, address) for host in hosts for address in host.addresses][:attempts]
