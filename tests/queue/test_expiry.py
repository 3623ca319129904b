"""What is too old goes back, wherever it waits."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from fastmta.config import Reports
from fastmta.log import Bounced, Deferred, Delivered
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue import expiry, retry
from fastmta.queue.expiry import Expiry
from fastmta.queue.orders import Orders
from fastmta.queue.outcome import expired
from fastmta.queue.ready import Job, ReadyQueue
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool
from tests.store.backlog import fill, waiting
from tests.store.test_spool import Box, accept, arrival
from tests.support import run

DAY = 86_400.0


class Policy:
    first, max_interval, give_up_after = 300.0, 4 * 3600.0, 5 * DAY


class Hasty(Policy):
    give_up_after = 3600.0


@pytest.mark.parametrize(
    ("age", "due", "is_expired"),
    [
        (0.0, 0.0, False),
        (5 * DAY - 1, 5 * DAY - 100, False),
        (5 * DAY, 5 * DAY - 100, True),
        (9 * DAY, 0.1, True),
        # The last attempt falls on the expiry, and has an hour to be made.
        (5 * DAY - 1, 5 * DAY, False),
        (5 * DAY, 5 * DAY, False),
        (5 * DAY + 3599, 5 * DAY, False),
        (5 * DAY + 3600, 5 * DAY, True),
        # The policy was longer once.
        (5 * DAY, 6 * DAY, True),
    ],
)
def test_when_it_is_expired(age: float, due: float, is_expired: bool) -> None:
    assert retry.is_expired(Policy(), 1e9, 1e9 + due, 1e9 + age) == is_expired


def test_the_last_attempt_is_not_expired_when_it_falls_due() -> None:
    due = retry.next_due(Policy(), 1, 1e9 + 0.123, 50, 1e9 + 5 * DAY - 1)
    assert due is not None
    assert not retry.is_expired(Policy(), 1e9 + 0.123, due, due + 1)


def test_the_sender_hears_the_last_reply() -> None:
    envelope = waiting(1, "to.test", 5.0)
    assert "before it could be tried" in expired(envelope, 7.0).reply.text
    busy = Disposition.of_reply(Reply(451, "4.2.1", "Mailbox busy"), "mx.test", 3.0)
    envelope = msgspec.structs.replace(envelope, last=busy)
    end = expired(envelope, 7.0)
    assert (end.reply.code, end.reply.enhanced, end.time, end.host) == (
        554,
        "5.4.7",
        7.0,
        "mx.test",
    )
    assert "Mailbox busy" in end.reply.text


class Journal:
    """The events instead of a file."""

    def __init__(self) -> None:
        self.events: list[Bounced | Delivered | Deferred] = []
        self.write = self.events.append


@asynccontextmanager
async def started(
    folder: Path, ready: ReadyQueue | None = None
) -> AsyncIterator[tuple[Spool, Box, Expiry, Journal]]:
    one, box, journal = Spool(folder, 0, min_free=0), Box(), Journal()
    settlement = Settlement(one, lambda _: Policy(), Reports(), "me.test", journal, Orders())
    await one.start(box.deliver)
    policies = {"hasty.test": Hasty()}
    withdraw = (ReadyQueue(1) if ready is None else ready).take_matching
    sweeper = Expiry(one, settlement, lambda d: policies.get(d, Policy()), lambda: 3600.0, withdraw)
    try:
        yield one, box, sweeper, journal
    finally:
        await settlement.finish()
        await one.close()


def aged(number: int, domain: str, days: float, due_in: float, held: str = "") -> Envelope:
    now = time.time()
    return waiting(number, domain, now + due_in, received=now - days * DAY, held=held)


def test_a_sweep_returns_what_is_past_its_expiry_in_whatever_state(tmp_path: Path) -> None:
    fill(
        tmp_path,
        [
            aged(1, "late.test", 6, 100),
            aged(2, "held.test", 6, 100, held="by hand"),
            aged(3, "blocked.test", 6, -100),
            aged(4, "out.test", 6, -100),
            aged(5, "hasty.test", 0.1, 100),
            aged(6, "young.test", 0.1, 100),
            aged(7, "young.test", 4.9, 100, held="by hand"),
        ],
    )

    async def scenario() -> None:
        async with started(tmp_path) as (one, box, sweeper, journal):
            await one.lease()
            for envelope, _ in box.handed:
                if envelope.domain == "blocked.test":
                    one.put_back(envelope, "path")
            await sweeper.sweep()
            bounced = {event.domain for event in journal.events if isinstance(event, Bounced)}
            assert bounced == {"late.test", "held.test", "blocked.test", "hasty.test"}
            assert {event.code for event in journal.events} == {554}
            reports = [e for e, _ in box.handed if e.sender == ""]
            assert {e.recipients[0].address for e in reports} == {"alice@from.test"}
            assert len(reports) == 4
            left, _ = await one.scan(b"", 100)
            assert [e.domain for e in left] == ["out.test", "young.test", "young.test"]
            await sweeper.sweep()
            assert len(journal.events) == 4

    run(scenario())


def test_a_sweep_ends_where_nothing_can_have_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "BATCH", 10)
    fill(tmp_path, (aged(n, "to.test", 6 if n < 25 else 0, 100) for n in range(1, 201)))

    async def scenario() -> None:
        async with started(tmp_path) as (one, _, sweeper, journal):
            scans = []
            scan = one.scan

            async def counted(after: bytes, count: int) -> tuple[list[Envelope], bytes | None]:
                scans.append(after)
                return await scan(after, count)

            monkeypatch.setattr(one, "scan", counted)
            await sweeper.sweep()
            assert (len(scans), len(journal.events)) == (3, 24)

    run(scenario())


def test_the_sweep_pauses_the_longer_the_longer_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with started(tmp_path) as (_, _, sweeper, _):
            pauses: list[float] = []
            clock = iter([0.0, 0.1, 10.0, 14.0])

            async def sleep(seconds: float) -> None:
                pauses.append(seconds)
                if len(pauses) == 2:
                    raise asyncio.CancelledError

            async def nothing() -> None:
                pass

            monkeypatch.setattr(sweeper, "sweep", nothing)
            with monkeypatch.context() as patch:
                patch.setattr(expiry.asyncio, "sleep", sleep)
                patch.setattr(expiry.time, "monotonic", lambda: next(clock))
                task = asyncio.ensure_future(sweeper.run())
                await until_done(task)
            assert pauses == [60.0, 200.0]

    run(scenario())


async def until_done(task: "asyncio.Task[None]") -> None:
    await asyncio.wait([task])


def test_a_sweep_returns_what_waits_for_a_slow_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [aged(1, "out.test", 6, -100), aged(2, "young.test", 0.1, -100)])

    async def scenario() -> None:
        ready = ReadyQueue(100)
        async with started(tmp_path, ready) as (one, box, sweeper, journal):
            await one.lease()
            await accept(one, fresh := arrival(one, "a@fresh.test"))
            for envelope, parts in box.handed:
                ready.put(Job(envelope, parts))
            await sweeper.sweep()
            assert [event.domain for event in journal.events] == ["out.test"]
            assert sorted(each.envelope.domain for each in ready.jobs()) == [
                "fresh.test",
                "young.test",
            ]
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 6 * DAY)
            await sweeper.sweep()
            assert not ready
            assert len(journal.events) == 3
            sweeper._began = now + 1  # after a restart it would have had no attempt
            ready.put(next(Job(e, p) for e, p in box.handed if e.message == fresh.message))
            await sweeper.sweep()
            assert len(ready) == 1

    run(scenario())
