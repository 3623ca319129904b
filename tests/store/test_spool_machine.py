"""The spool beside a model of it: random programs, crashes, and disks that fail.

The model says of each envelope what is on disk for certain, and what may be there already. After
each crash (a copy of the file, as a power cut after the last commit would leave it) and each end
the rows have to be one of these, and nothing else.

`SPOOL_MACHINE_EXAMPLES=2000 pytest tests/store/test_spool_machine.py --timeout=0` is a long run.
"""

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import lmdb
import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Priority, Recipient
from fastmta.mail.reply import Reply
from fastmta.store import env as store_env
from fastmta.store import lanes, operations, records, spool
from fastmta.store.env import Databases, Operation, Transaction
from fastmta.store.spool import Spool
from tests.store.backlog import change
from tests.store.spool_model import (
    CLOCK,
    PROGRAMS,
    Disk,
    Key,
    Mail,
    Message,
    Pending,
    Program,
    inspect,
    key_of,
    no_file_grows,
)
from tests.support import until

T = TypeVar("T")
BUSY = Reply(451, "4.2.1", "Busy")
SIZES = (
    *(0, 1, 500, 2000, 2000, 9000, 9000, 16_000),
    *(records.CHUNK - 1, records.CHUNK, records.CHUNK + 1, 2 * records.CHUNK, 1_300_000),
)
DELAYS = (-10.0, 0.0, 0.0, 1000.0)
PATHS = ("one", "two")


class WatchedEnvironment(store_env.Environment):
    """Lets the test come between commits, fails where told, and tells what is durable."""

    machine: "SpoolMachine"

    def _commit(self, batch: list[Operation]) -> None:
        fault = self.machine.faults.pop(0) if self.machine.faults else ""
        if fault == "disk":
            raise lmdb.DiskError("planted")
        if fault == "panic":
            raise lmdb.PanicError("planted")
        if fault == "operation":
            raise ValueError("planted")
        with self.machine.committing:
            super()._commit(batch)
        time.sleep(self.machine.writer_delay)  # a lease may see it before its owners hear
        if fault == "late":  # it is durable, and nobody hears so
            raise lmdb.DiskError("planted")

    def _read_once(self, look: Callable[[Transaction, Databases], T]) -> T:
        def look_late(txn: Transaction, db: Databases) -> T:
            time.sleep(self.machine.reader_delay)  # meanwhile what it sees grows old
            return look(txn, db)

        return super()._read_once(look_late)

    def _finish(self, batch: list[Operation], errors: list[Exception | None] | None) -> None:
        for operation, error in zip(batch, errors or [None] * len(batch), strict=True):
            if error is None:
                self.machine.has_committed(operation)
        super()._finish(batch, errors)


class SpoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.mails: dict[Key, Mail] = {}
        self.faults: list[str] = []
        self.committing = threading.Lock()
        self.offset = 0.0  # of the clock
        self.moment = 0.0  # while the clock stands still
        self.leasing: asyncio.Future[None] | None = None
        self.seen: list[Envelope] = []  # in the last scan, and perhaps no more as they were then
        self.problems: list[str] = []  # met in callbacks, where nobody hears an exception
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.patch = pytest.MonkeyPatch()
        self.home = Path(tempfile.mkdtemp())
        self.lives = 0
        self.is_broken = True  # until it is open, and from the first failure on

    # The spool's life

    @initialize(
        window=st.sampled_from([2, 6, 20_000]),
        resident=st.sampled_from([5000, 64 << 20]),
        delays=st.sampled_from([(0.0, 0.0), (0.004, 0.0), (0.0, 0.008)]),
    )
    def begin(self, window: int, resident: int, delays: tuple[float, float]) -> None:
        self.writer_delay, self.reader_delay = delays
        environment = type("Environment", (WatchedEnvironment,), {"machine": self})
        clock = SimpleNamespace(time=lambda: self.moment or time.time() + self.offset)
        for name, value in {
            "WINDOW": window,
            "LEASE": min(3, window),
            "RESIDENT_OCTETS": resident,
            "RETRY_DELAY": 0.005,
            "SETTLE_DELAY": 0.002,
            "Environment": environment,
            "time": clock,
        }.items():
            self.patch.setattr(spool, name, value)
        few = {"TURN": 2, "LOOK": 3, "LOOKS": 2, "LOOK_INTERVAL": 0.002, "RELEASE": 1}
        for name, number in few.items():
            self.patch.setattr(lanes, name, number)
        self.patch.setattr(lanes, "WIDTH", (1, 4))
        self.window = window
        self.folder = self.home / "0"
        self.run(self.open())

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        self.is_broken = True
        self.runner.run(asyncio.wait_for(scenario, 60))
        self.is_broken = False

    async def open(self) -> None:
        if self.folder.exists():
            disk = inspect(self.folder)
            self.compare(disk)
        else:
            disk = Disk({}, {}, {})
        self.spool = Spool(self.folder, 7, min_free=0)
        await self.spool.start(self.handed_over)
        out = {key for key, mail in self.mails.items() if mail.is_out}
        assert out == disk.fresh.keys()
        self.recovered = len(out)

    def compare(self, disk: Disk) -> None:
        """Take over what is on disk, if that is what has to be or may be there."""
        stored = disk.stored
        assert stored.keys() <= self.mails.keys(), "something was never accepted"
        bounces: dict[Key, bool] = {}  # whether each is to be there
        for key, mail in self.mails.items():
            mail.is_out = False
            if pending := mail.pending:
                done = stored.get(key) == pending.remaining
                if pending.bounce is not None:
                    bounces[pending.bounce] = done
                if done:
                    self.confirm(mail)
                mail.pending = None
        self.compare_unacknowledged(stored)
        for key, mail in self.mails.items():
            self.compare_one(key, mail, stored.get(key), bounces.get(key))
        for message, body in disk.bodies.items():
            assert body == next(m for k, m in self.mails.items() if k[0] == message).message.body

    def compare_unacknowledged(self, stored: dict[Key, Envelope]) -> None:
        """It may be there or not, and is there as a whole; from now on it has to stay."""
        for message in {id(m.message): m.message for m in self.mails.values()}.values():
            mails = {key: mail for key, mail in self.mails.items() if mail.message is message}
            there = mails.keys() & stored.keys()
            if not message.acknowledged and not any(m.has_appeared for m in mails.values()):
                assert there in (set(), mails.keys()), f"half a message is there: {there}"
                message.acknowledged = bool(there)
            message.acknowledged = bool(message.acknowledged)  # nobody says it any more

    def compare_one(
        self, key: Key, mail: Mail, stored: Envelope | None, wanted: bool | None
    ) -> None:
        if wanted is not None and not mail.is_gone:
            assert (stored is not None) == wanted, f"a bounce without its settlement: {key}"
            mail.message.acknowledged = wanted
        if stored is None:
            assert not mail.has_to_stay, f"{mail.envelope} was lost"
            mail.is_gone = True
            return
        assert not mail.is_gone, f"{stored} left and came again"
        assert stored == mail.envelope, f"left as {mail.envelope}, found as {stored}"
        mail.has_appeared = True

    async def close(self) -> None:
        if self.leasing is not None:
            await self.leasing
            self.leasing = None
        await self.spool.close()
        self.check_problems()

    # What the spool says

    def handed_over(self, envelope: Envelope, parts: list[bytes] | None) -> None:
        mail = self.mails.get(key_of(envelope))
        if mail is None:
            return self.problems.append(f"unknown: {envelope}")
        if mail.pending is not None and mail.pending.remaining is not None:
            self.confirm(mail)
        if mail.is_out or mail.is_gone or mail.pending or mail.envelope.held:
            self.problems.append(f"handed over twice: {envelope}")
        if mail.message.acknowledged is None:
            self.problems.append(f"handed over before its commit was heard of: {envelope}")
        if envelope != mail.envelope:
            self.problems.append(f"{envelope} was {mail.envelope}")
        if parts is not None and b"".join(parts) != mail.message.body:
            self.problems.append(f"another body: {envelope}")
        mail.is_out = mail.has_appeared = True
        return None

    def has_committed(self, operation: Operation) -> None:
        if isinstance(operation, spool.Settle):
            self.confirm(self.mails.get(key_of(operation.envelope)))
        elif isinstance(operation, spool.Delivered):
            for message in operation.messages:
                self.confirm(self.mails.get((message, 0)))

    def confirm(self, mail: Mail | None) -> None:
        if mail is None or mail.pending is None:
            return
        remaining, bounce = mail.pending
        mail.pending = None
        if remaining is None:
            mail.is_gone = True
        else:
            mail.envelope = remaining
        if bounce is not None:
            self.mails[bounce].message.acknowledged = True

    def check_problems(self) -> None:
        assert not self.problems, "\n".join(self.problems)

    # What is done to it

    async def execute(self, program: Program) -> None:
        for verb, a, b in program:
            if verb == "accept":
                self.accept(a, b)
            elif verb == "lease":
                if self.leasing is None or self.leasing.done():
                    self.leasing = asyncio.ensure_future(self.spool.lease())
            elif verb == "pause":
                await asyncio.sleep(a % 4 / 1000)
            elif verb == "rest":
                await self.rest()
            elif verb == "room":
                self.spool.room(PATHS[a % 2])
            elif verb == "scan":
                await self.scan()
            elif verb == "change":
                if self.seen:
                    await self.change(self.seen[a % len(self.seen)], b)
            elif out := [mail for mail in self.mails.values() if mail.is_out]:
                mail = out[a % len(out)]
                if verb == "read":
                    await self.read(mail)
                else:
                    getattr(self, verb)(mail, b)

    def new_arrival(
        self, size: int, domains: int, priority: int = 1, sender: str = "a@from.test"
    ) -> Arrival:
        number = self.spool.new_id()
        assert number & 0xFF == 7
        for key in [key for key in self.mails if key[0] == number]:
            # The clock went back: only what left no trace on the disk may be forgotten.
            assert self.mails.pop(key).is_gone, f"{number} is given twice"
        body = (number.to_bytes(8) * (size // 8 + 1))[:size]
        return Arrival(
            message=number,
            sender=sender,
            recipients=[Recipient(f"u{n}@to{n % domains}.test") for n in range(3)],
            parts=[body[: size // 3], body[size // 3 :]],
            size=size,
            received=spool.time.time(),
            priority=Priority(priority),
            tenant=("", "acme")[number >> 8 & 1],
        )

    def expect(self, arrival: Arrival, envelopes: list[Envelope]) -> Message:
        message = Message(b"".join(arrival.parts))
        for envelope in envelopes:
            self.mails[key_of(envelope)] = Mail(envelope, message)
        assert [r for e in envelopes for r in e.recipients] == sorted(
            arrival.recipients, key=lambda r: (r.address[3:], r.address)
        )
        return message

    def accept(self, a: int, b: int) -> None:
        domains = 1 if b % 4 else 1 + b // 4 % 3
        arrival = self.new_arrival(SIZES[a % len(SIZES)], domains, b // 16 % 3)
        envelopes = self.spool.accept(arrival, lambda reply: told(reply))
        message = self.expect(arrival, envelopes)
        life = self.lives

        def told(reply: Reply | None) -> None:
            if life != self.lives:
                return  # the power was cut: nobody hears this
            message.acknowledged = reply is None

    def settle(self, mail: Mail, remaining: Envelope | None, bounce: Arrival | None = None) -> None:
        mail.is_out = False
        name = (bounce.message, 0) if bounce else None
        mail.pending = Pending(remaining, name)
        if bounce is not None:
            # Its envelope is made inside: without room it is in `waiting` from the start.
            envelope = operations.envelopes_of(bounce)[0]
            envelope.due = 0.0 if self.spool._has_room([envelope]) else bounce.received
            self.expect(bounce, [envelope])
        self.spool.settle(mail.envelope, remaining, *filter(None, [bounce]))

    def deliver(self, mail: Mail, b: int) -> None:
        self.settle(mail, None)

    def later(self, mail: Mail, b: int, recipients: list[Recipient]) -> Envelope:
        now = spool.time.time()
        return msgspec.structs.replace(
            mail.envelope,
            recipients=recipients,
            attempts=mail.envelope.attempts + 1,
            due=now + DELAYS[b % len(DELAYS)],
            last=Disposition.of_reply(BUSY, "mx.test", now),
        )

    def defer(self, mail: Mail, b: int) -> None:
        self.settle(mail, self.later(mail, b, mail.envelope.recipients))

    def defer_some(self, mail: Mail, b: int) -> None:
        self.settle(mail, self.later(mail, b, mail.envelope.recipients[-1:]))

    def bounce(self, mail: Mail, b: int) -> None:
        self.settle(mail, None, self.new_bounce(b))

    def bounce_some(self, mail: Mail, b: int) -> None:
        remaining = self.later(mail, b, mail.envelope.recipients[-1:])
        self.settle(mail, remaining, self.new_bounce(b))

    def new_bounce(self, b: int) -> Arrival:
        return self.new_arrival(SIZES[b % len(SIZES)], 1, sender="")

    def hold(self, mail: Mail, b: int) -> None:
        due = spool.time.time()
        self.settle(mail, msgspec.structs.replace(mail.envelope, due=due, held="by hand"))

    def put_back(self, mail: Mail, b: int) -> None:
        """Nothing is written where it was read from the disk."""
        mail.is_out = False
        self.moment = now = spool.time.time()
        if mail.envelope.due == 0:  # it may have been received by a clock that was ahead
            later = msgspec.structs.replace(mail.envelope, due=min(mail.envelope.received, now))
            mail.pending = Pending(later, None)
        self.spool.put_back(mail.envelope, PATHS[b % 2])
        self.moment = 0.0

    async def scan(self) -> None:
        self.seen, key = [], b""
        while key is not None:
            found, key = await self.spool.scan(key, 2)  # type: ignore[assignment]
            self.seen += found

    async def change(self, seen: Envelope, b: int) -> None:
        """What an operator does: it is done to what is still as it was seen, and not out."""
        mail = self.mails.get(key_of(seen))
        held = "" if seen.held else "by hand"
        remaining = (
            None,
            msgspec.structs.replace(seen, held=held),
            msgspec.structs.replace(seen, due=spool.time.time(), priority=Priority(b % 3)),
        )[b % 3]
        # A scan may have seen what its owner has not heard of by the time of the claim.
        was_heard_of = mail is not None and mail.pending is None
        for _ in range(200):
            if changed := await change(self.spool, seen, remaining):
                break
            is_free = mail is not None and not (mail.pending or mail.is_out)
            if not (mail and was_heard_of and is_free and mail.has_to_stay):
                break
            if mail.envelope != seen:
                break
            await asyncio.sleep(0.01)  # a lease that fails has it for a moment
        else:
            raise AssertionError(f"could not be changed: {seen}")
        if not changed:
            return
        if mail is None or mail.is_out or mail.is_gone or mail.pending or mail.envelope != seen:
            self.problems.append(f"changed behind somebody's back: {seen}")
        else:
            mail.has_appeared = True
            mail.pending = Pending(remaining, None)

    def postpone(self, mail: Mail, b: int) -> None:
        due = spool.time.time() + DELAYS[b % len(DELAYS)]
        self.settle(mail, msgspec.structs.replace(mail.envelope, due=due))

    async def read(self, mail: Mail) -> None:
        chunks: list[bytes] = []
        while more := await self.spool.read(mail.envelope.message, len(chunks)):
            chunks += more
        assert b"".join(chunks) == mail.message.body

    async def rest(self) -> None:
        """Until everything that was begun has been told how it ended."""
        await until(
            lambda: (
                not any(
                    mail.pending or mail.message.acknowledged is None
                    for mail in self.mails.values()
                    if not mail.is_gone
                )
            )
        )

    # Rules

    @rule(program=PROGRAMS, clock=CLOCK)
    def work(self, program: Program, clock: float) -> None:
        self.offset += clock
        self.run(self.execute(program))

    @rule(
        program=PROGRAMS,
        faults=st.lists(
            st.sampled_from(["", "disk", "panic", "operation", "late"]), min_size=1, max_size=4
        ),
    )
    def work_with_faults(self, program: Program, faults: list[str]) -> None:
        self.faults += faults
        self.run(self.execute(program))

    @rule(program=PROGRAMS, more=st.sampled_from([0, 0, 4096, 40_000]))
    def work_on_a_full_disk(self, program: Program, more: int) -> None:
        with no_file_grows((self.folder / "data.mdb").stat().st_size + more):
            self.run(self.execute([step for step in program if step[0] != "rest"]))

    @rule(program=PROGRAMS, clock=CLOCK)
    def crash(self, program: Program, clock: float) -> None:
        self.run(self._crash(program, clock))

    async def _crash(self, program: Program, clock: float) -> None:
        await self.execute(program)
        old = self.folder
        self.lives += 1
        self.folder = self.home / str(self.lives)
        self.folder.mkdir()
        with self.committing:
            shutil.copy(old / "data.mdb", self.folder)
            left, self.mails = self.mails, {}
        self.faults.clear()
        problems, self.problems = self.problems, []
        await self.abandon()
        self.problems = problems
        self.check_problems()
        shutil.rmtree(old)
        self.mails = left
        self.offset += clock
        await self.open()

    async def abandon(self) -> None:
        """Let go of a spool that the power cut ended; what it says now, nobody hears."""
        self.spool._deliver = lambda envelope, parts: None
        if self.leasing is not None:
            self.leasing.cancel()
            self.leasing = None
        await self.spool.close()

    @rule(program=PROGRAMS, clock=CLOCK)
    def reopen(self, program: Program, clock: float) -> None:
        self.run(self._reopen(program, clock))

    async def _reopen(self, program: Program, clock: float) -> None:
        await self.execute(program)
        self.faults.clear()
        await self.close()
        stored = inspect(self.folder).stored
        for key, mail in self.mails.items():
            if mail.pending is not None:
                assert stored.get(key) == mail.pending.remaining, "not durable after a clean end"
        self.offset += clock
        await self.open()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.check_problems()
        if not self.is_broken:
            # A lease and a message of several domains may go over it, and what is not safe yet.
            unsafe = sum(mail.message.acknowledged is None for mail in self.mails.values())
            most = max(self.recovered, self.window) + spool.LEASE + 3
            unsafe += sum(mail.pending is not None for mail in self.mails.values())
            assert len(self.spool._out) <= most + unsafe
            assert self.spool._octets <= spool.RESIDENT_OCTETS

    def teardown(self) -> None:
        try:
            if not self.is_broken:
                self.run(self._empty())
        finally:
            self.runner.close()
            self.patch.undo()
            shutil.rmtree(self.home)

    async def _empty(self) -> None:
        """Deliver everything: no row may be left."""
        self.faults.clear()
        self.offset += 1e6
        for _ in range(2):  # what was refused and is there all the same comes at the next start
            await self.rest()
            await self._deliver_all()
            assert (self.spool._out, self.spool._octets, self.spool.fresh) == ({}, 0, {})
            await self.close()
            await self.open()
        await self.close()
        assert all(mail.is_gone for mail in self.mails.values())
        assert inspect(self.folder) == Disk({}, {}, {})

    async def _deliver_all(self) -> None:
        while left := [mail for mail in self.mails.values() if mail.has_to_stay]:
            if self.leasing is not None:
                await self.leasing
            for mail in left:
                if mail.envelope.held and not mail.pending:
                    await self.change(mail.envelope, 1)
            await self.rest()
            for path in PATHS:
                self.spool.room(path)
            for _ in range(100):  # a turn each for its lanes
                self.leasing = asyncio.ensure_future(self.spool.lease())
                await self.leasing
                if out := [mail for mail in self.mails.values() if mail.is_out]:
                    break
            assert out, f"nobody hands over {[mail.envelope for mail in left]}"
            for mail in out:
                self.deliver(mail, 0)
            await self.rest()


def test_the_spool_is_what_its_model_says() -> None:
    examples = int(os.environ.get("SPOOL_MACHINE_EXAMPLES", "50"))
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
