"""The clock was set back, and what waits does not wait until it has caught up."""

import asyncio
import time
from pathlib import Path

import pytest
from msgspec import structs

from fastmta.queue import clock
from fastmta.queue.clock import ClockWatch
from tests.store.backlog import fill, waiting
from tests.store.test_spool import accept, arrival, opened
from tests.support import run

HOUR, DAY = 3600.0, 86_400.0


def watch(one: object) -> ClockWatch:
    return ClockWatch(one, lambda: 4 * HOUR)


def test_what_waits_longer_than_any_pause_is_due_at_once(tmp_path: Path) -> None:
    now = time.time()
    fill(
        tmp_path,
        [
            waiting(1, "soon.test", now + HOUR),
            waiting(2, "soon.test", now + DAY),  # behind one that is right
            waiting(3, "late.test", now + DAY),
            waiting(4, "held.test", now + DAY, held="by hand"),
            # A fifth is added to a pause at the most.
            waiting(5, "longest.test", now + 4.8 * HOUR),
        ],
    )

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await watch(one).bring_back()
            await one.wait_due()
            await one.lease()
            assert {e.domain for e in await box.wait(2)} == {"soon.test", "late.test"}
            assert {e.message >> 20 for e, _ in box.handed} == {2, 3}
            left, _ = await one.scan(b"", 100)
            assert [e.due > now + 1 for e in left] == [True, False, False, True, True]

    run(scenario())


def test_a_thousand_of_many_lanes_are_brought_back(tmp_path: Path) -> None:
    later = time.time() + DAY
    fill(tmp_path, (waiting(n, f"d{n % 7}.test", later + n) for n in range(1, 1202)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await watch(one).bring_back()
            while len(box.handed) < 1201:
                await one.wait_due()
                await one.lease()
            assert len({e.message for e, _ in box.handed}) == 1201

    run(scenario())


def test_what_is_brought_back_and_stays_out_keeps_nothing_waiting(tmp_path: Path) -> None:
    """A batch is in ready queues, for as long as a destination is slow; more waits behind it."""
    later = time.time() + DAY
    fill(tmp_path, (waiting(n, f"d{n % 7}.test", later + n) for n in range(1, 1202)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            runner = asyncio.ensure_future(watch(one).run())
            while len(box.handed) < 1201:  # none of which is settled
                await one.wait_due()
                await one.lease()
            runner.cancel()

    run(scenario())


def test_a_clock_that_was_ahead_between_two_looks_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "LOOK", 0.01)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            runner = asyncio.ensure_future(watch(one).run())
            for number in (1, 2):  # again after it was brought back once
                await accept(one, arrival(one, "bob@to.test"))
                *_, envelope = await box.wait(2 * number - 1)
                one.settle(envelope, structs.replace(envelope, due=time.time() + DAY))
                while len(box.handed) < 2 * number:
                    await one.wait_due()
                    await one.lease()
                again, _ = box.handed[-1]
                assert (again.message, again.due < time.time()) == (envelope.message, True)
                one.settle(again, None)
            runner.cancel()

    run(scenario())


def test_mail_is_not_due_because_pauses_are_shorter_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "LOOK", 0.01)
    fill(tmp_path, [waiting(1, "to.test", time.time() + 4 * HOUR)])
    pauses = iter([4 * HOUR])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            looked = asyncio.Event()

            def longest() -> float:
                if (pause := next(pauses, None)) is None:
                    looked.set()
                return pause or HOUR

            runner = asyncio.ensure_future(ClockWatch(one, longest).run())
            await looked.wait()
            looked.clear()
            await looked.wait()
            ((envelope,), _) = await one.scan(b"", 10)
            assert envelope.due > time.time() + HOUR
            assert not box.handed
            runner.cancel()

    run(scenario())


def test_what_has_no_room_after_the_clock_went_back_is_due_when_there_is(tmp_path: Path) -> None:
    """It came in with a time that is far ahead by now."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            early = arrival(one, "bob@to.test")
            early.received = time.time() + DAY
            await accept(one, early)
            (envelope,) = await box.wait(1)
            one.put_back(envelope, "path")
            one.room("path")
            while len(box.handed) < 2:
                await one.wait_due()
                await one.lease()

    run(scenario())
