"""The clock was set back, and what waits does not wait until it has caught up."""

import time
from pathlib import Path

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
