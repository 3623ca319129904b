"""The persistent queue of one shard.

What is always true:
- `accept` calls back only after the commit that holds the message and all its envelopes;
- an envelope leaves only in the transaction that also records why (`settle`);
- an envelope is stored in one place: `fresh` while its `due` is 0, else `envelopes`;
- one of `envelopes` has its row in a lane of `waiting`, unless it is held;
- an envelope is out (handed over, in memory) or waits or is held, and is handed over once only.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from fastmta import metrics
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Envelope, Priority
from fastmta.mail.reply import Reply
from fastmta.store import records, rows, segment
from fastmta.store.bodies import Bodies
from fastmta.store.env import Databases, Environment, Operation, Transaction
from fastmta.store.lanes import Lanes
from fastmta.store.operations import (
    Accept,
    AcceptAll,
    Barrier,
    Delivered,
    Done,
    Settle,
    apply,
    envelopes_of,
    number_of,
)
from fastmta.store.segment import Segment
from fastmta.store.upgrade import upgrade

log = logging.getLogger(__name__)

ASIDE = metrics.counter("fastmta_spool_unreadable_total", "Rows that were moved aside")

LAG = metrics.histogram(
    "fastmta_scheduler_lag_seconds",
    "How late those were that were due first, for each look into the queue for what is due",
)

WINDOW = 20_000  # envelopes that are out at the same time; a twentieth of it for urgent ones alone
LEASE = 1_000  # envelopes that one look into `waiting` hands over at the most
LEASE_INTERVAL = 0.005  # seconds from one such look to the next
RESIDENT_OCTETS = 64 << 20  # octets of messages kept in memory for envelopes that are out
SETTLE_DELAY = 0.02  # seconds that a settlement waits for an accept to share its flush with
RETRY_DELAY = 1.0  # seconds until a settlement that could not be written is tried again
CLOSE_SECONDS = 5.0  # for settlements that cannot be written when the spool is to be closed
SPACE_INTERVAL = 1.0  # seconds between looks at the free space
PAGES_INTERVAL = 10.0  # seconds after which the pages that were read are given back

STORAGE_FULL = Reply(452, "4.3.1", "Insufficient system storage, try again later")
STORAGE_FAILED = Reply(451, "4.3.0", "The queue could not be written, try again later")

Deliver = Callable[[Envelope, list[bytes] | None], None]


class Statistics(NamedTuple):
    envelopes: int
    held: int  # of them, what an operator keeps back
    oldest: float  # when the oldest came, seconds since the epoch; 0 when there is none
    file_octets: int  # pages of the file that were ever used
    free_octets: int  # of them, what is free for new rows
    disk_octets: int  # that can be written on the disk
    blocked: int  # lanes whose path has no room


class Spool:
    """One shard: what is accepted, what is out, and what waits for its time or for room."""

    def __init__(self, folder: Path, shard: int, min_free: int) -> None:
        """Open the shard in `folder`, for the running loop; Locked if another process has it.

        `shard` is 0 to 255 and part of each id; `min_free` is in octets.
        """
        self._env = Environment(folder, records.DATABASES, apply, records.RETIRED)
        self._bodies = Bodies(self._env)
        self._loop = asyncio.get_running_loop()
        self._shard, self._min_free = shard, min_free
        self._tick = self._env.read_now(rows.last_id) >> 8  # see also `start`
        self.fresh: dict[int, Segment] = {}  # message -> its segment, until it needs it no more
        self._partial: list[Segment] = []  # of which something delivered is not written down
        self._out: dict[int, int] = {}  # number of an envelope -> octets that it keeps in memory
        self._octets = 0
        self.unsettled = 0  # settlements that are not safe yet
        self._failed: set[Operation] = set()  # of these, what the disk refused once or more
        self._taken_back: set[int] | None = None  # while a look into `waiting` is under way
        self._lanes = Lanes()
        self.latest_due = 0.0  # of all that has begun to wait since somebody last set this
        self._sleeps_until = 0.0  # when the next lane is due, as far as `wait_due` knows
        self._next_lease = 0.0  # not before, so that a transaction reads more than a few
        self._awaited = -1  # so few have to be out for `wait_due` to go on
        self._changed = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._is_full = False
        self._keeper: asyncio.Task[None] | None = None
        self._statistics = Statistics(0, 0, 0.0, 0, 0, 0, 0)
        self._disk = 0  # octets, as they were a second ago
        self._watch_space()

    # In

    def new_id(self) -> int:
        """An id that no message of any shard has: milliseconds, a counter, the shard."""
        self._tick = max(self._tick + 1, int(time.time() * 1000) << 12)
        return self._tick << 8 | self._shard

    def refusal(self) -> Reply | None:
        """Why no message can be taken now, or None."""
        return STORAGE_FULL if self._is_full else None

    @property
    def is_full(self) -> bool:
        """Whether it takes no mail, as the disk is at its floor."""
        return self._is_full

    @property
    def floor(self) -> int:
        """Octets of free space under which no mail is taken."""
        return self._min_free

    def failure(self) -> Reply:
        """Why a message could not be written: what is free in the file may be too scattered."""
        return STORAGE_FULL if self._free_on_disk() < self._min_free else STORAGE_FAILED

    def keep_free(self, octets: int) -> None:
        """From now on, this is the floor of free space under which no mail is taken."""
        self._min_free = octets

    def accept(self, arrival: Arrival, done: Done) -> list[Envelope]:
        """Store a message; `done(None)` after the synced commit, `done(reply)` where it failed.

        Returns the envelopes that it is stored as.
        """
        operation = self._acceptance(arrival, done)
        self._env.submit(operation)
        return operation.envelopes

    def accept_all(self, arrivals: Sequence[Arrival], done: Done) -> None:
        """Store several messages in one transaction; `done` as for `accept`, once."""
        *others, last = arrivals
        accepts = [self._acceptance(arrival, lambda _: None) for arrival in others]
        self._env.submit(AcceptAll([*accepts, self._acceptance(last, done)]))

    def _acceptance(self, arrival: Arrival, done: Done) -> Accept:
        envelopes = envelopes_of(arrival)
        has_room = self._has_room(envelopes)
        if len(envelopes) > 1 or not has_room:
            for envelope in envelopes:
                envelope.due = arrival.received
        # Also without room: a lease may see it before its commit is heard of, and even where the
        # commit is said to have failed.
        for envelope in envelopes:
            self._out[number_of(envelope)] = 0
        return Accept(self, envelopes, arrival.parts, has_room, done)

    def _has_room(self, envelopes: list[Envelope]) -> bool:
        """Whether they can go out at once, past nothing that should leave before them."""
        if self._room(envelopes[0].priority) <= 0:
            return False
        if not self._lanes:
            return True
        now = time.time()
        return not any(
            self._lanes.has_backlog(records.lane_of(each), records.mark_of(each), now)
            for each in envelopes
        )

    def _room(self, priority: int) -> int:
        """How many envelopes of this priority may go out."""
        reserve = 0 if priority == Priority.URGENT else WINDOW // 20
        return WINDOW - reserve - len(self._out)

    # Out

    def hand_over(self, envelope: Envelope, body: list[bytes]) -> None:
        """A stored envelope for which room was kept goes to the scheduler."""
        number = number_of(envelope)
        keep = self._octets + envelope.size <= RESIDENT_OCTETS
        if keep:
            self._out[number] = envelope.size
            self._octets += envelope.size
        self._deliver(envelope, body if keep else None)

    def take_back(self, envelope: Envelope) -> None:
        """The envelope is not out any more."""
        number = number_of(envelope)
        self._octets -= self._out.pop(number, 0)
        if self._taken_back is not None:
            self._taken_back.add(number)
        if len(self._out) <= self._awaited:
            self._changed.set()

    def put_back(self, envelope: Envelope, path: str) -> None:
        """This path has no room for it: it waits until there is some, and is read again.

        Nothing is written for what waited before.
        """
        self._lanes.block(records.lane_of(envelope), records.mark_of(envelope), path)
        if envelope.due:
            self.take_back(envelope)
            self.note_waiting(envelope)
        else:
            due = min(envelope.received, time.time())  # the clock may have been set back
            self.settle(envelope, msgspec.structs.replace(envelope, due=due))

    def room(self, path: str) -> None:
        """A path for which something was put back has room again, or is gone."""
        if self._lanes.room(path):
            self._changed.set()

    def reconsider(self) -> None:
        """Mail may take other paths from now on than those it waits for."""
        self._lanes.reconsider()
        self._changed.set()

    def settle(
        self,
        envelope: Envelope,
        remaining: Envelope | None,
        *reports: Arrival,
        done: Done | None = None,
    ) -> None:
        """Record the end of an attempt, in one transaction.

        `remaining` is the envelope as it waits from now on (its `due` set), None when nothing of
        it remains; `reports` are the DSNs that this made. `done(None)` says that these are safe.
        """
        is_gone = remaining is None and not reports
        if is_gone and envelope.due == 0 and envelope.size <= records.CHUNK:
            return self._delivered(envelope)
        hear = done or (lambda _: None)  # a report has no client that waits for an answer
        acceptances = [self._acceptance(report, hear) for report in reports]
        return self._settle(Settle(self, envelope, remaining, acceptances))

    async def written(self) -> None:
        """Return when all that was settled by now is on the disk, however often it was tried."""
        self._write_partial(all=True)
        self._env.submit(barrier := Barrier(self._loop.create_future()))
        await barrier.passed
        failed = set(self._failed)
        while failed & self._failed:  # noqa: ASYNC110
            await asyncio.sleep(RETRY_DELAY)

    def settle_later(self, operation: Operation, error: Exception) -> None:
        """Try once more what could not be written."""
        if isinstance(error, lmdb.Error):  # else it may never be: nobody is to wait for that
            self._failed.add(operation)
        self._loop.call_later(RETRY_DELAY, self._settle, operation)

    def settled(self, operation: Operation) -> None:
        """It is written."""
        self.unsettled -= 1
        self._failed.discard(operation)

    def leave(self, left: Segment) -> None:
        """A segment has one message less."""
        left.left -= 1
        if left.left == 0 and left.delivered:
            self._settle(Delivered(self, left))

    def _delivered(self, envelope: Envelope) -> None:
        """The common case: nothing is written for it if the rest of its segment follows soon."""
        leaving = self.fresh.pop(envelope.message)
        self.take_back(envelope)
        if not leaving.delivered:
            leaving.has_waited = False
            self._partial.append(leaving)
            self._flush_soon()
        leaving.delivered.append(envelope.message)
        self.leave(leaving)

    def _settle(self, operation: Operation) -> None:
        self._env.submit_lazily(operation)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(SETTLE_DELAY, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        self._write_partial()
        self._env.flush()

    def _write_partial(self, *, all: bool = False) -> None:
        """Write down what was delivered of segments that have waited once already, or of all."""
        waiting, self._partial = self._partial, []
        for one in waiting:
            if one.delivered and (one.has_waited or all):
                self._env.submit_lazily(Delivered(self, one))
            elif one.delivered:
                one.has_waited = True
                self._partial.append(one)
        if self._partial:
            self._flush_soon()

    async def read(self, message: int, first: int) -> list[bytes]:
        """Chunks of a message from number `first` on, about 1 MiB of them; [] at the end."""
        return await self._bodies.read(message, first, None if first else self.fresh.get(message))

    # Waiting

    def note_waiting(self, envelope: Envelope) -> None:
        """It is in `waiting`, its commit is done, and it is not out."""
        if envelope.held:
            return
        lane, mark = records.lane_of(envelope), records.mark_of(envelope)
        position = records.position_of(envelope)
        due = records.position_time(position)
        self.latest_due = max(self.latest_due, due)
        if self._lanes.note(lane, mark, position, due) and due < self._sleeps_until:
            self._changed.set()

    async def wait_due(self) -> None:
        """Return when a lane may be due and there is room for it."""
        while True:
            self._changed.clear()
            now, room = time.time(), self._room(Priority.BULK)
            self._sleeps_until = self._lanes.next_time(now, urgent=room <= 0)
            if self._sleeps_until <= now and self._room(Priority.URGENT) > 0:
                self._awaited = -1
                if (early := self._next_lease - self._loop.time()) <= 0:
                    return
                await asyncio.sleep(early)
                continue
            self._awaited = max(0, len(self._out) + room - LEASE) if room <= 0 else -1
            if self._sleeps_until <= now:  # for an urgent one
                self._awaited = WINDOW - 1
            # A look once a minute at the least: the clock may be set forward.
            wait = self._sleeps_until - now
            try:
                async with asyncio.timeout(min(wait, 60.0) if wait > 0 else 60.0):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def lease(self) -> None:
        """Hand over what is due in lanes that take turns, as much as there is room for.

        lmdb.Error: nothing was read.
        """
        now, room = time.time(), self._room(Priority.BULK)
        self._next_lease = self._loop.time() + LEASE_INTERVAL
        is_urgent = room <= 0
        room = min(self._room(Priority.URGENT) if is_urgent else room, LEASE)
        looks = self._lanes.take(now, urgent=is_urgent) if room > 0 else []
        if not looks:
            return
        if turns := [look.lane.due for look in looks if look.is_turn]:
            LAG.observe(max(0.0, now - min(turns)))
        self._taken_back = set()
        try:
            read = partial(rows.read_lanes, looks, room, now, self._out.__contains__)
            found = await self._env.read(read)
        except BaseException:
            self._taken_back = None
            self._lanes.give_back(looks)
            raise
        for look, one in zip(looks, found, strict=False):
            self._lanes.read(look, one.position, one.soonest, one.mark, now)
        self._lanes.give_back(looks[len(found) :])
        self._lanes.has_read(len(looks), len(found))
        self._hand_over([envelope for one in found for envelope in one.envelopes])
        self._move_aside([each for one in found for each in one.unreadable])

    def _hand_over(self, found: list[Envelope]) -> None:
        taken_back, self._taken_back = self._taken_back or set(), None
        # What was taken back meanwhile was read as it was before that.
        found = [e for e in found if (n := number_of(e)) not in self._out and n not in taken_back]
        handed = 0
        try:
            for envelope in found:
                handed += 1
                self._out[number_of(envelope)] = 0
                self._deliver(envelope, None)
        finally:
            for envelope in found[handed:]:
                self.note_waiting(envelope)

    # Orders and expiry: what lies there, whoever's turn it is

    async def scan(self, after: bytes, count: int) -> tuple[list[Envelope], bytes | None]:
        """Envelopes that wait, are held or are out, by their ids, and the key to go on after.

        Begin with b""; the key is None at the end. What has never waited is not among them.
        """
        return await self._env.read(partial(rows.scan_envelopes, after, count))

    async def scan_ahead(
        self, start: bytes, after: float, count: int
    ) -> tuple[list[Envelope], bytes | None]:
        """Envelopes that wait for a time after this one, and the key to go on from; as `scan`."""
        return await self._env.read(partial(rows.scan_ahead, start, after, count))

    async def holds(self, wanted: Sequence[Envelope]) -> list[bool]:
        """Whether each is still stored, out or not; only message and index are looked at."""
        # Before the look: a settlement that is on its way moves it from one place to another.
        here = [each.message in self.fresh or self.is_out(each) for each in wanted]
        stored = await self._env.read(partial(rows.get_envelopes, wanted))
        return [is_here or now is not None for is_here, now in zip(here, stored, strict=True)]

    def is_out(self, envelope: Envelope) -> bool:
        return number_of(envelope) in self._out

    async def claim(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        """Those of them that are not out and are stored as given; they are out from now on.

        Each is given back through `settle`, as if it had been handed over, or `unclaim`.
        """
        free = [each for each in envelopes if number_of(each) not in self._out]
        # At once: no lease that is under way hands them over.
        self._out.update((number_of(each), 0) for each in free)
        stored: list[Envelope | None] = list(free)
        try:
            stored = await self._env.read(partial(rows.get_envelopes, free))
        except BaseException:
            self._release(free, stored)
            raise
        changed = [(e, now) for e, now in zip(free, stored, strict=True) if e != now]
        self._release([e for e, _ in changed], [now for _, now in changed])
        return [e for e, now in zip(free, stored, strict=True) if e == now]

    def unclaim(self, claimed: Sequence[Envelope]) -> None:
        """They were left as they are stored."""
        self._release(claimed, claimed)

    def _release(self, claimed: Sequence[Envelope], stored: Sequence[Envelope | None]) -> None:
        for envelope, as_stored in zip(claimed, stored, strict=True):
            self.take_back(envelope)
            if as_stored is not None:
                self.note_waiting(as_stored)

    async def start(self, deliver: Deliver) -> None:
        """Before the first accept: hand over what was out when the last process ended.

        `deliver` is called from now on with each envelope that is to go out, with its message
        where memory still has it; each is given back once, through `settle`.
        """
        self._deliver = deliver
        await upgrade(self._env)
        for lane in await self._env.read(rows.scan_lanes):
            self._lanes.found(*lane)
        found = await self._env.read(segment.recover)
        self._tick = max(self._tick, found.last_id >> 8)
        self._move_aside(found.unreadable)
        for empty in found.empty:
            self._settle(Delivered(self, empty))
        for inside, envelope in found.envelopes:
            self.fresh[envelope.message] = inside
            self._out[number_of(envelope)] = 0
            deliver(envelope, None)
        self._keeper = asyncio.ensure_future(self._give_back_pages())

    async def _give_back_pages(self) -> None:
        while True:
            await self._env.give_back_pages()
            await asyncio.sleep(PAGES_INTERVAL)

    def _move_aside(self, operations: Sequence[rows.MoveAside | segment.MoveEntryAside]) -> None:
        for operation in operations:
            ASIDE.value += 1
            key = operation.key.hex()
            log.error("row %s of %s cannot be read: moved aside", key, operation.database)
            self._env.submit(operation)

    # About

    def statistics(self) -> Statistics:
        """How much there is; a few look-ups in pages that are in memory.

        The loop asks: while the disk is slow to read, or is being reopened, the last figures stand.
        """
        with suppress(lmdb.Error):
            self._statistics = self._env.glance(self._count) or self._statistics
        return self._statistics

    def _count(self, txn: Transaction, db: Databases) -> Statistics:
        stats = {name: txn.stat(handle) for name, handle in db.items()}
        pages = [s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats.values()]
        size, last_page = stats["waiting"]["psize"], self._env.last_page()
        return Statistics(
            envelopes=len(self.fresh) + stats["envelopes"]["entries"],
            held=stats["envelopes"]["entries"] - stats["waiting"]["entries"],
            oldest=rows.oldest_time(txn, db),
            file_octets=last_page * size,
            free_octets=max(0, last_page - sum(pages)) * size,
            disk_octets=self._disk,
            blocked=self._lanes.blocked,
        )

    def _watch_space(self) -> None:
        """Below the floor mail is refused, before LMDB fails; pages free in the file count."""
        self._space_timer = self._loop.call_later(SPACE_INTERVAL, self._watch_space)
        self._env.forget_dead_readers()
        self._disk = self._free_on_disk()
        free = self._disk + self.statistics().free_octets
        if (is_full := free < self._min_free) != self._is_full:
            self._is_full = is_full
            log.warning(
                "%s: %d MiB can be written and the floor is %d MiB, so mail is %s",
                self._env.folder,
                free >> 20,
                self._min_free >> 20,
                "refused" if is_full else "taken again",
            )

    def _free_on_disk(self) -> int:
        try:
            disk = os.statvfs(self._env.folder)
        except OSError:  # what is written now fails as well, and its sender has to hear
            return self._disk
        return disk.f_bavail * disk.f_frsize

    async def close(self) -> None:
        """Write what is settled, and let go of the files."""
        self._space_timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
        self._write_partial(all=True)
        deadline = self._loop.time() + CLOSE_SECONDS
        while self.unsettled and self._loop.time() < deadline:
            self._env.flush()
            await asyncio.sleep(SETTLE_DELAY)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        await self._env.close()
        if self.unsettled:
            log.error(
                "%s: the ends of %d attempts could not be written, so these will be made again",
                self._env.folder,
                self.unsettled,
            )
