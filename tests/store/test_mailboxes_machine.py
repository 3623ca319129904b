"""The mailboxes beside a model of them: random programs, crashes, and disks that fail.

Each message says whose it is, so whatever lies in a mailbox tells where it came from: it is there
once, where it was put, as long as nobody took it out. Who follows a mailbox by its changes sees
what is there, and `verify` finds nothing wrong in a file as a power cut would leave it.

`MAILBOXES_MACHINE_EXAMPLES=2000 pytest tests/store/test_mailboxes_machine.py --timeout=0` is a
long run.
"""

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import lmdb
import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from msgspec import Struct

from fastmta.store import env as store_env
from fastmta.store import mail_changes, mail_reading, mailboxes
from fastmta.store.mail_changes import Added, Changes, Expunged, Flagged, uids_of
from fastmta.store.mail_records import Entry
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Flagging, Outcome, Post, Refused, Stored
from fastmta.store.records import CHUNK
from tests.store.spool_model import no_file_grows
from tests.store.whole import problems
from tests.support import until

ACCOUNTS = ("a@x.test", "b@x.test", "c@x.test")
QUOTA = 100_000  # of c@x.test
PLACES = [(account, name) for account in ACCOUNTS for name in ("INBOX", "Sent")]
SIZES = (20, 20, 500, 2000, 9000, CHUNK - 100, CHUNK, CHUNK + 1, 2 * CHUNK, 300_000)
SHARD = 5

Step = tuple[str, int, int]
VERBS = (
    "deliver",
    "deliver",
    "deliver",
    "again",
    "forget",
    "expunge",
    "flag",
    "read",
    "pause",
    "rest",
)
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(VERBS), st.integers(0, 255), st.integers(0, 255)), max_size=15
)

Name = tuple[int, int]  # a post, and which of its drops
Where = tuple[tuple[str, str], int]  # a place and a uid


class Parcel(Struct):
    """A post, and what is known of it."""

    post: Post
    outcomes: list[Outcome] | None = None  # None until it was told
    is_under_way: bool = True
    is_forgotten: bool = False


class Removal(Struct):
    """An attempt to take messages away; None until it was told how it ended."""

    gone: set[Where]
    is_done: bool | None = None


class WatchedEnvironment(store_env.Environment):
    """Fails where told, and lets nobody copy the file in the middle of a commit."""

    machine: "MailboxesMachine"

    def _commit(self, batch: list[Any]) -> None:
        fault = self.machine.faults.pop(0) if self.machine.faults else ""
        if fault in ("disk", "panic"):
            raise {"disk": lmdb.DiskError, "panic": lmdb.PanicError}[fault]("planted")
        if fault == "operation":
            raise ValueError("planted")
        with self.machine.committing:
            super()._commit(batch)
        if fault == "late":  # it is durable, and nobody hears so
            raise lmdb.DiskError("planted")


class MailboxesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.parcels: list[Parcel] = []
        self.removals: list[Removal] = []
        self.seen: dict[Where, Name] = {}  # what ever lay there
        self.uidvalidities: dict[tuple[str, str], int] = {}
        self.replicas: dict[tuple[str, str], tuple[int, dict[int, Entry]]] = {}
        self.tasks: set[asyncio.Future[Any]] = set()
        self.faults: list[str] = []
        self.committing = threading.Lock()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.patch = pytest.MonkeyPatch()
        self.home = Path(tempfile.mkdtemp())
        self.lives = 0
        self.is_broken = True

    @initialize(page=st.sampled_from([1, 3, 2048]), history=st.sampled_from([2, 500]))
    def begin(self, page: int, history: int) -> None:
        environment = type("Environment", (WatchedEnvironment,), {"machine": self})
        self.patch.setattr(mailboxes, "Environment", environment)
        self.patch.setattr(mail_reading, "PAGE", page)
        self.patch.setattr(mail_changes, "HISTORY", history)
        self.folder = self.home / "0"
        self.run(self.open())

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        self.is_broken = True
        self.runner.run(asyncio.wait_for(scenario, 60))
        self.is_broken = False

    async def open(self) -> None:
        self.boxes = Mailboxes(self.folder, lambda account: QUOTA if account[0] == "c" else 0)
        left = self.boxes.receipts(SHARD)
        assert len(left) == len(set(left))
        for parcel in self.parcels:
            if parcel.is_forgotten:
                self.boxes.forget(parcel.post.receipt)

    # What is done to them

    async def execute(self, program: list[Step]) -> None:
        for verb, a, b in program:
            await getattr(self, verb)(a, b)

    async def deliver(self, a: int, b: int) -> None:
        number = len(self.parcels)
        size = SIZES[a % len(SIZES)]
        places = [PLACES[(b + each) % len(PLACES)] for each in range(1 + b // 8 % 3)]
        drops = [
            Drop(*place, b"%d %d\r\n" % (number, index), b % 16, ("k",) if b % 5 == 0 else ())
            for index, place in enumerate(places)
        ]
        body = (b"%d." % number * size)[:size]
        receipt = bytes([SHARD]) + number.to_bytes(10)
        self.parcels.append(Parcel(Post(receipt, [body[:7], body[7:]], size, 1.0, drops)))
        self.hand_over(self.parcels[-1])

    async def again(self, a: int, b: int) -> None:
        known = [p for p in self.parcels if not (p.is_under_way or p.is_forgotten)]
        if known:
            self.hand_over(known[a % len(known)])

    def hand_over(self, parcel: Parcel) -> None:
        parcel.is_under_way = True
        life = self.lives

        def told(result: list[Outcome] | Exception) -> None:
            if life != self.lives:
                return  # the power was cut: nobody hears this
            parcel.is_under_way = False
            if isinstance(result, Exception):
                return
            for before, after in zip(parcel.outcomes or (), result, strict=False):
                assert not isinstance(before, Stored) or before == after, "stored elsewhere"
            parcel.outcomes = result

        self.boxes.deliver(parcel.post, told)

    async def forget(self, a: int, b: int) -> None:
        done = [p for p in self.parcels if p.outcomes and not (p.is_under_way or p.is_forgotten)]
        if done:
            done[a % len(done)].is_forgotten = True
            self.boxes.forget(done[a % len(done)].post.receipt)

    async def expunge(self, a: int, b: int) -> None:
        place = PLACES[a % len(PLACES)]
        if snapshot := await self.look(place):
            uids = [uid for uid in snapshot.uids if (uid + b) % 3]
            removal = Removal({(place, uid) for uid in uids})
            self.removals.append(removal)
            await self.begin_task(self.boxes.expunge(snapshot.mailbox, [*uids, 9999]), removal)

    async def begin_task(self, work: Coroutine[Any, Any, Any], removal: Removal | None) -> None:
        async def watched() -> None:
            life = self.lives
            try:
                await work
                is_done = True
            except (lmdb.Error, ValueError):
                is_done = False
            if removal is not None and life == self.lives:
                removal.is_done = is_done

        task = asyncio.ensure_future(watched())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.sleep(0)  # it is submitted

    async def flag(self, a: int, b: int) -> None:
        if snapshot := await self.look(PLACES[a % len(PLACES)]):
            flagging = Flagging(set=b % 32, clear=b // 4 % 32, replace=b % 7 == 0)
            await self.begin_task(
                self.boxes.flag(snapshot.mailbox, snapshot.uids[b % 2 :: 2], flagging), None
            )

    async def look(self, place: tuple[str, str]) -> mail_reading.Snapshot | None:
        try:
            return await self.boxes.open(*place)
        except (KeyError, lmdb.Error, ValueError):
            return None

    async def read(self, a: int, b: int) -> None:
        await self.follow(PLACES[a % len(PLACES)])

    async def pause(self, a: int, b: int) -> None:
        await asyncio.sleep(a % 4 / 1000)

    async def rest(self, a: int = 0, b: int = 0) -> None:
        await until(lambda: not any(p.is_under_way for p in self.parcels) and not self.tasks)

    # What has to be

    async def check(self) -> None:
        """Nothing is under way: what is there has to be, and what has to be is there."""
        there: dict[Where, Name] = {}
        for place in PLACES:
            snapshot = await self.look(place)
            if snapshot is None:
                continue
            assert (
                self.uidvalidities.setdefault(place, snapshot.uidvalidity) == snapshot.uidvalidity
            )
            assert list(snapshot.uids) == sorted(snapshot.uids)
            assert all(uid < snapshot.uidnext for uid in snapshot.uids)
            for uid, size in zip(snapshot.uids, snapshot.sizes, strict=True):
                there[place, uid] = await self.name_of(place, snapshot.mailbox, uid, size)
            await self.follow(place)
        assert len(set(there.values())) == len(there), "something is there twice"
        for where, name in there.items():
            assert self.seen.setdefault(where, name) == name, f"{where} was another message"
        self.check_presence(there)
        self.check_removals(there)
        for account in ACCOUNTS:
            self.check_usage(account, there)

    async def name_of(self, place: tuple[str, str], mailbox: int, uid: int, size: int) -> Name:
        pieces: list[bytes] = []
        while more := await self.boxes.read(mailbox, uid, len(pieces)):
            pieces += more
        number, index = map(int, pieces[0].split())
        post = self.parcels[number].post
        drop = post.to[index]
        assert (drop.account, drop.mailbox) == place
        assert pieces[0] == drop.front and b"".join(pieces[1:]) == b"".join(post.parts)
        assert size == post.size + len(drop.front)
        return number, index

    def check_presence(self, there: dict[Where, Name]) -> None:
        where = {name: each for each, name in there.items()}
        taken = {each for removal in self.removals for each in removal.gone}
        for number, parcel in enumerate(self.parcels):
            for index, outcome in enumerate(parcel.outcomes or ()):
                drop = parcel.post.to[index]
                found = where.get((number, index))
                if isinstance(outcome, Refused):
                    assert found is None and drop.account[0] == "c"
                    continue
                place = (drop.account, drop.mailbox)
                assert outcome.uidvalidity == self.uidvalidities[place]
                assert found in ((place, outcome.uid), None)
                assert found or (place, outcome.uid) in taken, f"{number} is lost"
                self.seen[place, outcome.uid] = number, index

    def check_removals(self, there: dict[Where, Name]) -> None:
        for removal in self.removals:
            left = removal.gone & there.keys()
            others = [r.gone for r in self.removals if r is not removal]
            alone = removal.gone.difference(*others)
            assert not left or removal.is_done is not True, "it came again"
            assert not (alone - left) or not (alone & left), "half of them are gone"
            if removal.is_done is None and alone:
                removal.is_done = not left

    def check_usage(self, account: str, there: dict[Where, Name]) -> None:
        own = [name for (place, _), name in there.items() if place[0] == account]
        sizes = [
            self.parcels[number].post.size + len(self.parcels[number].post.to[index].front)
            for number, index in own
        ]
        assert self.boxes.usage(account) == (len(own), sum(sizes))
        assert account[0] != "c" or sum(sizes) <= QUOTA

    async def follow(self, place: tuple[str, str]) -> None:
        """Bring what a follower knows up to date by the changes, and compare it."""
        snapshot = await self.look(place)
        if snapshot is None:
            return
        modseq, known = self.replicas.get(place, (0, {}))
        is_quiet = not self.tasks and not any(p.is_under_way for p in self.parcels)
        try:
            told = await self.boxes.changes(snapshot.mailbox, modseq)
            now = dict(await self.entries(snapshot.mailbox))
        except lmdb.Error:
            return
        assert told.modseq >= modseq
        self.replicas[place] = told.modseq, replayed(told, known, now)
        if is_quiet:
            assert self.replicas[place][1] == now

    async def entries(self, mailbox: int) -> list[tuple[int, Entry]]:
        found: list[tuple[int, Entry]] = []
        while page := await self.boxes.entries(mailbox, found[-1][0] if found else 0):
            found += page
        return found

    # Rules

    @rule(program=PROGRAMS)
    def work(self, program: list[Step]) -> None:
        self.run(self.work_and_check(program))

    @rule(
        program=PROGRAMS,
        faults=st.lists(
            st.sampled_from(["", "disk", "panic", "operation", "late"]), min_size=1, max_size=4
        ),
    )
    def work_with_faults(self, program: list[Step], faults: list[str]) -> None:
        self.faults += faults
        self.run(self.work_and_check(program))

    async def work_and_check(self, program: list[Step]) -> None:
        await self.execute(program)
        await self.rest()
        self.faults.clear()
        await self.check()

    @rule(program=PROGRAMS, more=st.sampled_from([0, 4096, 40_000]))
    def work_on_a_full_disk(self, program: list[Step], more: int) -> None:
        with no_file_grows((self.folder / "data.mdb").stat().st_size + more):
            self.run(self.execute([step for step in program if step[0] != "rest"]))

    @rule(program=PROGRAMS)
    def crash(self, program: list[Step]) -> None:
        self.run(self._crash(program))

    async def _crash(self, program: list[Step]) -> None:
        await self.execute(program)
        self.lives += 1
        old, self.folder = self.folder, self.home / str(self.lives)
        self.folder.mkdir()
        with self.committing:
            shutil.copy(old / "data.mdb", self.folder)
        self.faults.clear()
        await self.boxes.close()
        shutil.rmtree(old)
        for parcel in self.parcels:
            parcel.is_under_way = False
        self.replicas.clear()  # a client would see modseqs that were lost
        await self.open()
        await self.check()
        self.verify()

    def verify(self) -> None:
        copy = self.home / "copy"
        copy.mkdir()
        with self.committing:
            shutil.copy(self.folder / "data.mdb", copy)
        store_env.open_environment(copy, ())[0].close()  # makes the lock file
        found = problems(copy)
        shutil.rmtree(copy)
        assert found == []

    @rule(program=PROGRAMS)
    def reopen(self, program: list[Step]) -> None:
        self.run(self._reopen(program))

    async def _reopen(self, program: list[Step]) -> None:
        await self.execute(program)
        self.faults.clear()
        await self.boxes.close()
        await self.rest()
        await self.open()
        await self.check()

    def teardown(self) -> None:
        try:
            self.faults.clear()
            self.run(self.boxes.close() if self.is_broken else self._empty())
        finally:
            self.runner.close()
            self.patch.undo()
            shutil.rmtree(self.home)

    async def _empty(self) -> None:
        """Take all out and forget all: nothing is left but the mailboxes themselves."""
        await self.rest()
        await self.check()
        for parcel in self.parcels:
            self.boxes.forget(parcel.post.receipt)
        for receipt in self.boxes.receipts(SHARD):  # as the start of a worker would
            self.boxes.forget(receipt)
        for place in PLACES:
            if snapshot := await self.look(place):
                await self.boxes.expunge(snapshot.mailbox, snapshot.uids)
        await self.boxes.close()
        env, db = store_env.open_environment(self.folder, mailboxes.records.DATABASES)
        with env, env.begin() as txn:
            left = {name: txn.stat(db[name])["entries"] for name in db}
        for name in ("entries", "bodies", "chunks", "shares", "receipts", "aside"):
            assert left[name] == 0, f"{left[name]} rows are left in {name}"


def replayed(told: Changes, known: dict[int, Entry], now: dict[int, Entry]) -> dict[int, Entry]:
    """What a follower knows after changes, who asks for what is there of those that they name."""
    if told.changes is None:
        return dict(now)
    known = dict(known)
    for change in told.changes:
        for uid in uids_of(change.ranges):
            if isinstance(change, Expunged) or uid not in now:
                known.pop(uid, None)
            else:
                assert isinstance(change, Added | Flagged)
                known[uid] = now[uid]
    return known


def test_the_mailboxes_are_what_their_model_says() -> None:
    examples = int(os.environ.get("MAILBOXES_MACHINE_EXAMPLES", "25"))
    run_state_machine_as_test(
        MailboxesMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
