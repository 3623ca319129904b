"""One path: the jobs that wait for a site, from one source, and the connections that take them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING

from fastmta import metrics
from fastmta.delivery.connection import Connection
from fastmta.delivery.hosts import Spot, Trouble
from fastmta.delivery.numbers import PathNumbers, Wait, count
from fastmta.delivery.opening import CUT_OFF, open_connection
from fastmta.delivery.pace import Pace
from fastmta.delivery.portion import Portion, left_over, most_telling, places_of, split
from fastmta.delivery.site import Site
from fastmta.delivery.source import Source
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import TlsDemand
from fastmta.mail.reply import Reply
from fastmta.queue.limits import Shape
from fastmta.queue.ready import Job, Line

if TYPE_CHECKING:
    from fastmta.delivery.dispatcher import Dispatcher

OPEN = metrics.gauge("fastmta_delivery_connections_open", "SMTP connections out that are open")
OPENED = metrics.counter("fastmta_delivery_connections_total", "SMTP connections out, opened")
MESSAGES = metrics.counter(
    "fastmta_delivery_transactions_total", "Mail transactions begun on SMTP connections out"
)

SOURCE_GONE = Reply(451, "4.3.5", "the source address is not on this machine any more")

UNPROVEN = 32  # jobs that wait for a path that has not delivered lately
PROVEN = 64  # and for one that has, more than twice what it delivers in a second
CROWD_STEP = 64  # jobs; each time that so many more wait, a path asks itself


class Path:
    def __init__(self, dispatcher: "Dispatcher", shape: Shape, source: Source, site: Site) -> None:
        self.name = shape.path
        self.shape, self.source, self.site = shape, source, site
        self.domain = ""  # of the job that was submitted last
        self.demand = TlsDemand.NONE  # of all of them, or it makes no difference
        self.loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        self._permits = dispatcher.permits
        self._ready = dispatcher.queue(shape.limits.ready)
        self._told: dict[Line, dict[str, None]] = {}  # the names by which others wait for room
        self._again: deque[Job] = deque()  # met a dead connection: for fresh ones alone
        self._portions: deque[Portion] = deque()  # of envelopes that have been begun
        self._open: dict[Connection, Spot] = {}  # past EHLO
        self._idle: list[Connection] = []  # of those; the last was used last
        self._openers: set[asyncio.Task[bool]] = set()
        self._probing = 0  # openers whose host may well be dead
        self._hold_until = 0.0
        self._recalls = 0  # connections that others wait for
        self._no_connection = False  # the permits said so: until `wake`
        self._no_message = False
        self._pace = Pace(self.loop.time())
        self._last: Reply | None = None
        self._last_time = 0.0
        self._enough = 0  # jobs that wait when a crowd is over; 0: there is none
        self._ready.limit = self._capacity()

    def submit(self, job: Job) -> bool:
        """False: no room."""
        while self._idle and not self._no_message:
            connection = self._idle.pop()
            self._dispatcher.idle.pop(connection, None)
            if not connection.client.is_ready:
                continue  # it is about to end
            if not self._permits.send(self.shape, self):
                self._no_message = True
                self._park(connection)
                break
            if not self._start(connection, job):
                self._park(connection)
            return True
        if not (self._ready.put(job) or (self._grow() and self._ready.put(job))):
            return False
        if not len(self._ready) % CROWD_STEP:
            self._note_crowd()
        self.open_more()
        return True

    def room_for(self, job: Job) -> str:
        """The name of what this job waits for, where it was refused."""
        _, whose = self._ready.line_of(job)
        return f"{self.name} {whose}" if whose else self.name

    def tell(self, name: str, job: Job) -> str:
        """Somebody waits for room here, and calls that by this name."""
        self._disperse()  # or clients would pause until all of that has left too
        self._told.setdefault(self._ready.line_of(job), {})[name] = None
        return name

    def waiting(self) -> list[Job]:
        """Jobs that have not been begun."""
        return [*self._ready.jobs(), *(one for one in self._again if not isinstance(one, Portion))]

    def begun(self) -> list[Job]:
        """Jobs of which something has been sent, or may have been."""
        sent = [connection.job for connection in self._open]
        left = [*self._portions, *(one for one in self._again if isinstance(one, Portion))]
        return [job for job in sent if job is not None] + left

    def withdraw(self, matches: Callable[[Job, str], bool]) -> list[Job]:
        def chosen(job: Job) -> bool:
            return matches(job, self.site.name)

        jobs = self._ready.take_matching(chosen)
        again = [job for job in self._again if not isinstance(job, Portion) and chosen(job)]
        self._again = deque(job for job in self._again if job not in again)
        self._tell_room()
        self._forget_if_unused()
        return jobs + again

    def drain(self) -> None:
        self._disperse()
        self._ready.take_all()
        for job in (*self._portions, *self._again):
            if isinstance(job, Portion):  # others of its envelope were delivered
                self._end(job, CUT_OFF, "")
        self._portions.clear()
        self._again.clear()
        for opener in self._openers:
            opener.cancel()
        for connection in self._idle:
            if connection.client.is_ready:
                connection.quit()
        self._forget_if_unused()

    def sweep(self) -> None:
        """Once a second."""
        now = self.loop.time()
        self._pace.sweep(now)
        self._count()
        if not self._pace.crowd(now):
            self._disperse()
        self._ready.limit = self._capacity()
        self._tell_room()
        self.open_more()

    # How many may wait: few where mail does not move, so that dead sites do not fill the window.

    def _capacity(self) -> int:
        if self._dispatcher.active_jobs() < self._dispatcher.bounds.plenty:
            return self.shape.limits.ready
        pace = max(self._pace.usual, self._pace.now(self.loop.time()))
        room = PROVEN + 2 * int(pace) if pace >= 1 else UNPROVEN
        return min(self.shape.limits.ready, room)

    def _note_crowd(self) -> None:
        """Many wait here and leave fast: who brings more is to pause."""
        crowd = self._pace.crowd(self.loop.time())
        if crowd and len(self._ready) > crowd and not self._told:
            self._enough = crowd // 2
            self._dispatcher.flow.crowd(self)

    def _disperse(self) -> None:
        if self._enough:
            self._enough = 0
            self._dispatcher.flow.ease(self)

    def _grow(self) -> bool:
        before, self._ready.limit = self._ready.limit, self._capacity()
        return self._ready.limit > before

    def _count(self) -> None:
        """Tell the metrics once a second, not for each message."""
        ends = self._pace.take()
        if any(ends):
            count(self.site.name, self.shape.provider, self.source.name, ends)

    def _tell_room(self, job: Job | None = None) -> None:
        """After this job has left, or whatever has changed."""
        if len(self._ready) <= self._enough:
            self._disperse()
        if self._told:
            for line in self._ready.regained(job):
                self._tell(self._told.pop(line, {}))

    def _tell(self, names: Iterable[str]) -> None:
        for name in names:
            self.loop.call_soon(self._dispatcher.room, name)

    # What permits say (limits.Holder).

    def wake(self) -> None:
        self._no_connection = self._no_message = False
        for connection in list(self._idle):
            if self._no_message or not self._has_job(connection):
                break
            self._unpark(connection)
            if connection.client.is_ready:  # or it is about to end
                self.free(connection)
        self.open_more()

    def recall(self) -> None:
        while self._idle:
            connection = self._idle[-1]
            self._unpark(connection)
            if connection.client.is_ready:
                return connection.quit()
        self._recalls = min(self._recalls + 1, len(self._open) + len(self._openers))
        return None

    # What connections say (connection.Owner).

    def made(self, connection: Connection) -> None:
        self._dispatcher.connections.add(connection)
        OPENED.value += 1
        OPEN.value += 1

    def free(self, connection: Connection) -> None:
        if connection not in self._open:
            self._open[connection] = spot = self.spot(connection.address, connection.host.port)
            self._dispatcher.hosts.answered(spot)
        if self._recalls and connection.messages:
            self._recalls -= 1
            return connection.quit()
        dispatcher = self._dispatcher
        is_worn = connection.messages >= self.shape.limits.messages_per_connection
        crowded = bool(dispatcher.starved)
        if not (is_worn or dispatcher.draining or (crowded and len(self._open) > 1)):
            if self._give_job(connection):
                return None
            if not crowded:
                return self._park(connection)
        return connection.quit()

    def done(self, connection: Connection, job: Job, replies: list[Reply]) -> None:
        now = time.time()
        host, success, tls = connection.label, connection.client.success, connection.tls
        telling = replies[0] if len(replies) == 1 else most_telling(replies)
        ends = [Disposition.of_reply(reply, host, now, success, tls) for reply in replies]
        self._permits.heard(self.shape, telling)
        self._last, self._last_time = telling, now
        if Kind.DELIVERED in [end.kind for end in ends]:
            self._pace.delivered += 1
        elif telling.code >= 500:
            self._pace.failed += 1
        else:
            self._pace.deferred += 1
        if len(replies) > 1 and not self._dispatcher.draining:
            left = left_over(replies)
            if left:
                return self._go_on(job, ends, left)
        return self._finish(job, ends)

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
        if spot := self._open.pop(connection, None):
            self._dispatcher.hosts.closed(spot)
            self._recalls = min(self._recalls, len(self._open) + len(self._openers))
            self._give_back()
        self.open_more()
        self._forget_if_unused()

    # Giving out jobs.

    def _has_job(self, connection: Connection) -> bool:
        return bool(self._ready or self._portions or (self._again and not connection.kept))

    def _give_job(self, connection: Connection) -> bool:
        """False: there is none, or none may be sent now."""
        permitted = False
        while not self._no_message and self._has_job(connection):
            if not (permitted or self._permits.send(self.shape, self)):
                self._no_message = True
                break
            permitted = True
            if self._start(connection, self._next(connection)):
                return True
        return False

    def _next(self, connection: Connection) -> Job:
        if self._portions:
            return self._portions.popleft()
        if self._again and not connection.kept:
            return self._again.popleft()
        job = self._ready.take()
        assert job is not None
        if self._told or self._enough:
            self._tell_room(job)
        return job

    def _park(self, connection: Connection) -> None:
        connection.park(self.shape.limits.idle_timeout)
        self._idle.append(connection)
        self._dispatcher.idle[connection] = None

    def _unpark(self, connection: Connection) -> None:
        self._idle.remove(connection)
        self._dispatcher.idle.pop(connection, None)

    def _start(self, connection: Connection, job: Job) -> bool:
        """False: the job is not for this host, and settled soon; the connection is still free."""
        objection = connection.client.objection(job.envelope)
        if objection is not None:
            # Not at once: this may be within `submit`.
            self.loop.call_soon(self._end, job, objection, connection.label)
            return False
        limit = self.shape.limits.recipients
        if len(job.envelope.recipients) > limit and not isinstance(job, Portion):
            job, *others = split(job, limit)
            self._portions.extend(others)
        MESSAGES.value += 1
        connection.begin(job)
        return True

    # Settling.

    def _go_on(self, job: Job, ends: list[Disposition], left: list[int]) -> None:
        """Send what is left of the recipients in the next transaction, in this attempt."""
        whole, places = places_of(job)
        self._portions.appendleft(Portion(whole, [places[i] for i in left]))
        told = [i for i in range(len(ends)) if i not in set(left)]
        whole.record([places[i] for i in told], [ends[i] for i in told])

    def _finish(self, job: Job, ends: list[Disposition]) -> None:
        if isinstance(job, Portion):
            whole = job.whole
            whole.record(job.indexes, ends)
            if whole.ends is None:
                return
            job, ends = whole.job, whole.ends
        self._dispatcher.settle(job, self.site.name, self.source.name, ends)

    def _end(self, job: Job, reply: Reply, host: str) -> None:
        """The same for all recipients, without a transaction."""
        end = Disposition.of_reply(reply, host, time.time())
        self._finish(job, [end] * len(job.envelope.recipients))

    # Opening connections.

    def spot(self, address: str, port: int) -> Spot:
        return Spot(address, port, self.source.name)

    def open_more(self) -> None:
        """As many connections as jobs wait; just one until the site is known to answer."""
        opened, under_way = len(self._open), len(self._openers)
        # An opener that probes a paused host holds nobody up.
        opening = under_way - self._probing
        room = self.shape.limits.connections - opened - under_way
        if opened and room <= 0:  # mostly, where there is much to do
            return
        wanted = len(self._ready) + len(self._again) + len(self._portions) - opening
        if wanted <= 0 or self._dispatcher.draining:
            return
        if not opened:
            room = min(room, 1 - opening)
        elif self.loop.time() < self._hold_until:
            return
        for _ in range(min(wanted, room)):
            if not self._may_open(first=not (opened or self._openers)):
                break
            opener = self.loop.create_task(open_connection(self, self._dispatcher))
            self._openers.add(opener)
            opener.add_done_callback(self._opener_ended)

    def _may_open(self, *, first: bool) -> bool:
        """True takes a slot and a permit, for `_give_back`."""
        if self._no_connection or self._no_message or self._is_paused():
            return False
        if not self._dispatcher.take_slot(self, first=first):
            return False
        if not self._permits.connect(self.shape, self):
            self._no_connection = True
            self._dispatcher.free_slot()
            return False
        return True

    def _give_back(self) -> None:
        self._permits.disconnect(self.shape, self)
        self._dispatcher.free_slot()

    def _is_paused(self) -> bool:
        """No host may be tried; where nothing is under way, what waits ends with their reply."""
        trouble = self._trouble()
        if trouble is None:
            return False
        self._dispatcher.hosts.concerns(trouble, self.site.name)
        if not (self._open or self._openers or trouble.is_probed):
            # Not at once: this may be within `submit`.
            self.loop.call_soon(self.unreachable, trouble.reply, trouble.host)
        return True

    def _trouble(self) -> Trouble | None:
        """Why no host may be tried now; None: one may, or there is none."""
        hosts, sources = self._dispatcher.hosts, self._dispatcher.sources
        last: Trouble | None = None
        for tier in self.site.tiers:
            for host in tier:
                for address in host.addresses:
                    if sources.local_address(self.source, address) is None:
                        continue
                    trouble = hosts.trouble(self.spot(address, host.port))
                    if trouble is None:
                        return None
                    if last is None or not last.is_probed:
                        last = trouble
        return last

    # What an opener says.

    def is_open(self, connection: Connection) -> bool:
        return connection in self._open

    def probe(self, change: int) -> None:
        """A probe begins (1) or ends (-1): others are not to wait for it."""
        self._probing += change
        if change > 0:
            self.open_more()

    def unreachable(self, reply: Reply, host: str) -> None:
        """No connection could be opened: what waits for nothing else ends with this reply."""
        self._last, self._last_time = reply, time.time()
        jobs: list[Job] = list(self._again)
        self._again.clear()
        if self._open or len(self._openers) > 1:
            # The site limits how many it takes; those that are open go on.
            self._hold_until = self.loop.time() + self._dispatcher.bounds.hold
        else:
            jobs += [*self._portions, *self._ready.take_all()]
            self._portions.clear()
        self._pace.deferred += len(jobs)
        for job in jobs:
            self._end(job, reply, host)
        self._tell_room()
        self._forget_if_unused()

    def sourceless(self) -> None:
        """No address of the source can be bound any more: others of its pool take over."""
        if self._open:
            self._hold_until = self.loop.time() + self._dispatcher.bounds.hold
            return
        jobs = [*self._portions, *self._again, *self._ready.take_all()]
        self._portions.clear()
        self._again.clear()
        begun = [job for job in jobs if isinstance(job, Portion)]
        for job in begun:
            self._end(job, SOURCE_GONE, "")
        self._dispatcher.redirect(self.site, [job for job in jobs if job not in begun])
        self._tell_room()

    def _opener_ended(self, opener: asyncio.Task[bool]) -> None:
        self._openers.discard(opener)
        mistake = None if opener.cancelled() else opener.exception()
        if opener.cancelled() or mistake or not opener.result():
            self._give_back()  # otherwise the connection has it now
        self.open_more()
        self._forget_if_unused()
        if mistake:
            raise mistake  # for the loop's exception handler

    def _forget_if_unused(self) -> None:
        if not (self._ready or self._again or self._portions or self._open or self._openers):
            self._tell(chain.from_iterable(self._told.values()))
            self._told.clear()
            self._disperse()
            self._count()
            self._dispatcher.forget(self)

    # What operators see.

    def numbers(self) -> PathNumbers:
        waiting = len(self._ready) + len(self._again) + len(self._portions)
        idle = len(self._idle)
        waits_for, until = self._waits_for() if waiting else ("ready", 0.0)
        return PathNumbers(
            name=self.name,
            site=self.site.name,
            source=self.source.name,
            waiting=waiting,
            busy=len(self._open) - idle,
            idle=idle,
            opening=len(self._openers),
            capacity=self._ready.limit,
            delivered=self._pace.delivered_rate,
            deferred=self._pace.deferred_rate,
            last=self._last,
            last_time=self._last_time,
            waits_for=waits_for,
            until=until,
        )

    def _waits_for(self) -> tuple[Wait, float]:
        """And until when, in seconds since the epoch; 0 where that is not known."""
        limits, now = self.shape.limits, self.loop.time()
        if self._no_message:
            return "message rate", 0.0
        if not self._open and (trouble := self._trouble()):
            return "host paused", time.time() + max(0.0, trouble.until - now)
        connections = len(self._open) + len(self._openers)
        if self._no_connection and connections < limits.connections and limits.connection_rate:
            return "connection rate", 0.0
        if self._no_connection or connections >= limits.connections:
            return "connection limit", 0.0
        if now < self._hold_until:  # the host's own limit
            return "connection limit", time.time() + self._hold_until - now
        return ("no slots" if self._dispatcher.is_starved(self) else "ready"), 0.0
