"""Into mailboxes: what is for the local domains goes from the queue to the accounts' INBOX.

The same shape as the Dispatcher has for hosts. A post carries a receipt into the transaction that
stores it, so that what is delivered again after a crash is not stored again; the receipt goes once
the spool has written down how the envelope ended.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from struct import Struct as Layout

import lmdb
from msgspec import Struct

from fastmta import metrics
from fastmta.delivery.dispatcher import ALL_PATHS, SWEEP_SECONDS, Settle
from fastmta.delivery.numbers import PathNumbers
from fastmta.delivery.pace import SWEEPS
from fastmta.delivery.site import LOCAL, Site
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue.ready import Job, Line, ReadyQueue
from fastmta.store.accounts import Account
from fastmta.store.directory import DISABLED, FULL, TOO_BIG, UNKNOWN, Directory
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Outcome, Post, Stored
from fastmta.store.records import Unreadable

log = logging.getLogger(__name__)

DELIVERIES = metrics.counters(
    "fastmta_mailbox_deliveries_total",
    "Attempts to put a message into a mailbox, by their end",
    "end",
    ("stored", "full", "too_big", "unknown", "failed"),
)
WAITING = metrics.gauge("fastmta_mailbox_deliveries_waiting", "Messages on their way to mailboxes")

STORED = Reply(250, "2.1.5", "Delivered to the mailbox")
NOT_STORED = Reply(451, "4.3.0", "The mailbox cannot be written now")
NOT_READ = Reply(451, "4.3.0", "The message cannot be read now")
NOT_FOUND = Reply(451, "4.3.0", "Accounts cannot be looked up now")

_ENDS = {
    STORED: "stored",
    FULL: "full",
    TOO_BIG: "too_big",
    UNKNOWN: "unknown",
    DISABLED: "unknown",
}
_RECEIPT = Layout(">BQH")  # shard, message, index of the envelope

# `read(message, first)`: chunks from number `first` on; [] at the end.
Read = Callable[[int, int], Awaitable[list[bytes]]]


class Bounds(Struct, frozen=True):
    """What one worker has at a time."""

    ready: int = 1000  # jobs that wait, of one priority
    begun: int = 512  # and that are being stored
    octets: int = 32 << 20  # of these; a longer message goes by itself


_BOUNDS = Bounds()


def receipt_of(envelope: Envelope) -> bytes:
    """The name of a delivery; the last octet of a message's id is its shard."""
    return _RECEIPT.pack(envelope.message & 0xFF, envelope.message, envelope.index)


def envelope_of(receipt: bytes) -> Envelope:
    """What a receipt names, no more."""
    _, message, index = _RECEIPT.unpack(receipt)
    return Envelope(message, index, "", "", [], 0.0, 0)


class LocalDelivery:
    """Takes jobs for LOCAL and settles each exactly once, on the loop, never within `submit`."""

    name = LOCAL.name
    site = LOCAL

    def __init__(
        self,
        mailboxes: Mailboxes,
        directory: Directory,
        settle: Settle,
        read: Read,
        written: Callable[[], Awaitable[None]],
        *,
        room: Callable[[str], None],
        queue: Callable[[int], ReadyQueue] = ReadyQueue,
        bounds: Bounds = _BOUNDS,
    ) -> None:
        """`directory` and `room` may be changed. `written` returns when all that was settled
        before is on the disk; `room` is told who has room again that `submit` named.
        """
        self.directory, self.room, self.bounds = directory, room, bounds
        self._mailboxes, self._settle, self._read, self._written = mailboxes, settle, read, written
        self._loop = asyncio.get_running_loop()
        self._ready = queue(bounds.ready)
        self._told: set[Line] = set()  # who waits for room
        self._begun: dict[int, Job] = {}  # by identity
        self._octets = 0  # of these
        self._tasks: set[asyncio.Task[None]] = set()  # that read messages
        self._receipts: list[bytes] = []  # of what was settled since the last sweep
        self._forgetting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self._delivered = self._deferred = 0  # envelopes since the last sweep
        self._delivered_rate = self._deferred_rate = 0.0
        self._last: Reply | None = None
        self._last_time = 0.0
        self.draining = self._is_over = False
        WAITING.read = lambda: self.active_jobs()

    # What the dispatcher has too.

    def submit(self, site: Site, job: Job) -> str:
        """Take a job for LOCAL, or say for whose room it has to wait; "" is taken."""
        if self.draining:
            return ALL_PATHS
        if not self._ready.put(job):
            line = self._ready.line_of(job)
            self._told.add(line)
            return _room_name(line)
        self._begin_more()
        return ""

    def active_jobs(self) -> int:
        """Jobs that were submitted and are not settled yet."""
        return len(self._ready) + len(self._begun)

    def jobs(self) -> Iterator[tuple[Job, "LocalDelivery", bool]]:
        """See Dispatcher.jobs."""
        for job in self._ready.jobs():
            yield job, self, False
        for job in self._begun.values():
            yield job, self, True

    def withdraw(self, matches: Callable[[Job, str], bool]) -> list[Job]:
        """Give back, unsettled, what waits and matches: `matches(job, site_name)`."""
        jobs = self._ready.take_matching(lambda job: matches(job, LOCAL.name))
        self._tell_room()
        return jobs

    def paths(self) -> list[PathNumbers]:
        numbers = PathNumbers(
            name=self.name,
            site=LOCAL.name,
            source="",
            waiting=self.active_jobs(),
            busy=0,
            idle=0,
            opening=0,
            capacity=self._ready.limit,
            delivered=self._delivered_rate,
            deferred=self._deferred_rate,
            last=self._last,
            last_time=self._last_time,
            waits_for="ready",
            until=0.0,
        )
        return [numbers] if numbers.waiting or self._timer is not None else []

    async def drain(self, seconds: float) -> None:
        """Finish what has been begun within `seconds`.

        The rest is let go of without being settled: the spool has it, and what of it is stored
        after all has its receipt.
        """
        self.draining = True
        self._ready.take_all()
        if self._begun:
            self._ended = self._loop.create_future()
            await asyncio.wait([self._ended], timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._is_over = True  # the spools close now: an end that comes later would not be written

    async def finish(self, *, settled: bool) -> None:
        """After the drain and the end of the spools; nothing is settled from now on.

        `settled`: these have written all, so that no receipt is needed any more.
        """
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._forgetting is not None:
            self._forgetting.cancel()
            await asyncio.gather(self._forgetting, return_exceptions=True)
        if settled:
            self._forget(self._receipts)

    def forget_later(self, receipts: Iterable[bytes]) -> None:
        """Of envelopes that the spool has no more, or will have no more once all is written."""
        self._receipts += receipts
        self._watch()

    # One job after the other.

    def _begin_more(self) -> None:
        bounds, ready = self.bounds, self._ready
        while len(self._begun) < bounds.begun and self._octets < bounds.octets:
            job = ready.take()
            if job is None:
                break
            self._begun[id(job)] = job
            self._octets += job.envelope.size
            self._tell_room(job)
            self._begin(job)
        self._watch()

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _begin(self, job: Job) -> None:
        if job.parts is not None:
            try:
                self._deliver(job, job.parts)
            except Exception:
                log.exception("%s cannot be delivered", job.envelope.id)
                self._loop.call_soon(self._end_all, job, NOT_STORED)  # this may be in `submit`
            return
        task = self._loop.create_task(self._read_and_deliver(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_and_deliver(self, job: Job) -> None:
        try:
            self._deliver(job, await self._whole(job.envelope))
        except Exception:
            log.exception("%s cannot be read, or delivered", job.envelope.id)
            self._end_all(job, NOT_READ)

    async def _whole(self, envelope: Envelope) -> list[bytes]:
        parts: list[bytes] = []
        left = envelope.size
        while left > 0 and (some := await self._read(envelope.message, len(parts))):
            parts += some
            left -= sum(map(len, some))
        if left:
            raise ValueError("the spooled message is not as long as its envelope says")
        return parts

    def _deliver(self, job: Job, parts: list[bytes]) -> None:
        delivery = Delivery(job.envelope, self.directory)
        if not delivery.drops:  # not at once: this may be in `submit`
            self._loop.call_soon(self._end, job, delivery.replies, delivery.is_known)
            return

        def done(found: list[Outcome] | Exception) -> None:
            if isinstance(found, Exception) and not isinstance(found, lmdb.Error):
                log.error("%s cannot be stored: %s", job.envelope.id, found)
            # Not to be forgotten where this failed: an earlier process may have stored it.
            is_known = delivery.is_known and not isinstance(found, Exception)
            self._end(job, delivery.ends(found), is_known)

        envelope, to = job.envelope, delivery.drops
        post = Post(receipt_of(envelope), parts, envelope.size, envelope.received, to)
        self._mailboxes.deliver(post, done)

    def _end_all(self, job: Job, reply: Reply) -> None:
        self._end(job, [reply] * len(job.envelope.recipients), is_known=False)

    def _end(self, job: Job, replies: Iterable[Reply | None], is_known: bool) -> None:
        """`is_known`: what is stored of it is among the replies, and its receipt may go."""
        if self._is_over:
            return  # the next process delivers it, and finds its receipt
        del self._begun[id(job)]
        self._octets -= job.envelope.size
        if is_known:
            self._receipts.append(receipt_of(job.envelope))
        now = time.time()
        ends = [_disposition(reply or NOT_STORED, now) for reply in replies]
        self._note(ends)
        self._settle(job, LOCAL.name, "", ends)
        if self.draining:
            if self._ended is not None and not (self._begun or self._ended.done()):
                self._ended.set_result(None)
        else:
            self._begin_more()

    def _note(self, ends: list[Disposition]) -> None:
        for end in ends:
            DELIVERIES.count(_ENDS.get(end.reply, "failed"))
        telling = next((end for end in ends if not end.reply.is_positive), ends[0])
        self._last, self._last_time = telling.reply, telling.time
        if any(end.reply.is_positive for end in ends):
            self._delivered += 1
        else:
            self._deferred += 1

    # Room.

    def _tell_room(self, job: Job | None = None) -> None:
        """After this job has left, or whatever has changed."""
        if self._told:
            for line in self._ready.regained(job):
                self._told.discard(line)
                self._loop.call_soon(self.room, _room_name(line))

    # Once a second.

    def _sweep(self) -> None:
        self._delivered_rate += (self._delivered - self._delivered_rate) / SWEEPS
        self._deferred_rate += (self._deferred - self._deferred_rate) / SWEEPS
        is_quiet = not (self._delivered or self._deferred or self._receipts or self._begun)
        self._delivered = self._deferred = 0
        if self._receipts and self._forgetting is None:
            receipts, self._receipts = self._receipts, []
            self._forgetting = self._loop.create_task(self._forget_written(receipts))
        if is_quiet and self._delivered_rate < 0.01:
            self._timer, self._delivered_rate, self._deferred_rate = None, 0.0, 0.0
            return
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def _forget_written(self, receipts: list[bytes]) -> None:
        """Not before the spool has it: or a crash between would deliver it twice."""
        try:
            await self._written()
            self._forget(receipts)
            receipts = []
        finally:
            self._receipts += receipts
            self._forgetting = None

    def _forget(self, receipts: list[bytes]) -> None:
        for receipt in receipts:
            self._mailboxes.forget(receipt)


class Delivery:
    """Who gets one envelope's message, and how that ends for each of its recipients.

    An account that several addresses of the envelope belong to gets it once.
    """

    __slots__ = ("_places", "drops", "replies")

    def __init__(self, envelope: Envelope, directory: Directory) -> None:
        self.drops: list[Drop] = []
        self.replies: list[Reply | None] = []  # None: it depends on the drop
        self._places: list[int] = []  # of the drop of each recipient
        known: dict[str, int] = {}
        for recipient in envelope.recipients:
            found = _resolve(directory, recipient.address, envelope)
            if isinstance(found, Reply):
                self.replies.append(found)
                self._places.append(-1)
                continue
            if found.name not in known:
                known[found.name] = len(self.drops)
                front = front_of(envelope.sender, recipient.address)
                self.drops.append(Drop(found.name, front=front))
            self.replies.append(None)
            self._places.append(known[found.name])

    @property
    def is_known(self) -> bool:
        """Whether all could be looked up: who could not may have it from an earlier process."""
        return NOT_FOUND not in self.replies

    def ends(self, found: list[Outcome] | Exception) -> list[Reply | None]:
        """The reply for each recipient, by what became of the drops."""
        if isinstance(found, Exception):
            return [reply or NOT_STORED for reply in self.replies]
        return [
            reply or _reply_to(found[place])
            for reply, place in zip(self.replies, self._places, strict=True)
        ]


def front_of(sender: str, address: str) -> bytes:
    """What the final delivery puts in front (RFC 5321 section 4.4), and to whom it was made."""
    return f"Return-Path: <{sender}>\r\nDelivered-To: {address}\r\n".encode()


def _resolve(directory: Directory, address: str, envelope: Envelope) -> Account | Reply:
    try:
        return directory.resolve(address, envelope.size)
    except (lmdb.Error, Unreadable) as error:
        log.error("cannot look up %s: %s", address, error)
        return NOT_FOUND


def _reply_to(found: Outcome) -> Reply:
    return STORED if isinstance(found, Stored) else FULL


def _disposition(reply: Reply, now: float) -> Disposition:
    return Disposition.of_reply(reply, "", now, Action.DELIVERED if reply is STORED else None)


def _room_name(line: Line) -> str:
    return f"{LOCAL.name} {line[1]}" if line[1] else LOCAL.name
