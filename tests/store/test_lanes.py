"""Lanes: whose turn it is on the disk, and what waits for room without holding up the others."""

import asyncio
import threading
import time
import tracemalloc
from itertools import groupby
from pathlib import Path

import pytest

from fastmta.mail.envelope import Envelope, Priority
from fastmta.store import env as store_env
from fastmta.store import lanes, records, rows, spool
from fastmta.store.spool import Spool
from tests.store.backlog import change, fill, waiting
from tests.store.test_spool import Box, accept, arrival, flushed, opened, rows_in
from tests.support import run, until

PAST = 1_700_000_000.0
URGENT, NORMAL, BULK = Priority


def colliding(domain: str) -> str:
    """Another domain in the same lane."""
    lane = records.lane_of(waiting(1, domain, 0.0))
    names = (f"x{number}.test" for number in range(10_000_000))
    return next(n for n in names if records.lane_of(waiting(1, n, 0.0)) == lane)


def order(box: Box) -> str:
    """The domains in the order in which they were handed over, with how many in a row."""
    names = (envelope.domain.split(".")[0] for envelope, _ in box.handed)
    return " ".join(f"{name}*{len(list(group))}" for name, group in groupby(names))


async def lease_all(one: Spool, box: Box, count: int) -> None:
    while len(box.handed) < count:
        await one.lease()


# Turns


def test_a_lane_has_a_few_dozen_at_a_turn_and_domains_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "WIDTH", (2, 2))
    fill(tmp_path, (waiting(n, "abc"[n % 3] + ".test", PAST + n) for n in range(1, 151)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 150)
            first, second = order(box).split()[:3], order(box).split()[3:]
            assert sorted(first) == ["a*32", "b*32", "c*32"]
            assert second == [name.replace("32", "18") for name in first]

    run(scenario())


def test_tenants_take_turns_before_their_domains_do(tmp_path: Path) -> None:
    """One tenant with a hundred domains has the same share as one with a single domain."""
    many = [waiting(n, f"d{n}.test", PAST, tenant="many") for n in range(1, 101)]
    few = [waiting(n, "single.test", PAST, tenant="few") for n in range(101, 301)]
    fill(tmp_path, many + few)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 300)
            places = [n for n, (e, _) in enumerate(box.handed) if e.tenant == "few"]
            assert places[-1] < 200 + 10

    run(scenario())


def test_what_is_urgent_overtakes_100_000_and_bulk_does_not_starve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 1_000)
    domains = [f"d{n}.test" for n in range(50)]
    bulk = (waiting(n, domains[n % 50], PAST, priority=BULK) for n in range(1, 100_001))
    urgent = (
        waiting(n, domains[n % 50], PAST + 1, priority=URGENT) for n in range(200_000, 210_000)
    )
    fill(tmp_path, [*bulk, *urgent])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await one.lease()
            found = [envelope.priority for envelope, _ in box.handed]
            assert found[:10] == [URGENT] * 10
            assert 0 < found.count(BULK) < found.count(URGENT) / 8
            assert one.statistics().envelopes == 110_000

    run(scenario())


def test_the_window_keeps_a_reserve_for_what_is_urgent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 100)  # five of them for urgent mail alone
    fill(tmp_path, (waiting(n, "to.test", PAST, priority=BULK) for n in range(1, 201)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for _ in range(10):
                await one.lease()
            assert len(box.handed) == 95
            await accept(one, arrival(one, "bulk@other.test"))
            assert len(box.handed) == 95
            now = arrival(one, "now@other.test")
            now.priority = URGENT
            await accept(one, now)
            assert box.handed[-1][0].message == now.message
            soon = waiting(1000, "other.test", PAST, priority=URGENT)
            one._env.submit(Put(soon))
            await flushed(one)
            one.note_waiting(soon)
            await one.wait_due()
            await one.lease()
            assert (len(box.handed), box.handed[-1][0]) == (97, soon)
            for envelope, _ in list(box.handed):
                one.settle(envelope, None)
            await flushed(one)
            await one.wait_due()
            await lease_all(one, box, 97 + 95)

    run(scenario())


class Put:
    """Store one envelope behind the spool's back."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    def apply(self, txn: store_env.Transaction, db: store_env.Databases) -> None:
        rows.put_envelope(txn, db, self.envelope)

    def finished(self, error: Exception | None) -> None:
        assert error is None


def test_thousands_of_lanes_with_one_envelope_each_are_read_in_few_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, (waiting(n, f"d{n}.test", PAST) for n in range(1, 5001)))
    reads = []
    read_lanes = rows.read_lanes
    monkeypatch.setattr(rows, "read_lanes", lambda *a: reads.append(1) or read_lanes(*a))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 5000)
            assert len(reads) < 15
            assert len({envelope.message for envelope, _ in box.handed}) == 5000

    run(scenario())


def test_the_start_looks_at_the_first_row_of_each_lane_alone(tmp_path: Path) -> None:
    fill(tmp_path, (waiting(n, f"d{n % 20}.test", PAST + n) for n in range(1, 10_001)))
    env, db = store_env.open_environment(tmp_path, records.DATABASES)
    with env, env.begin() as txn:
        found = rows.scan_lanes(txn, db)
    assert sorted(one.due for one in found) == [PAST + n for n in range(1, 21)]
    last = records.lane_of(waiting(1, "x.test", 0.0))
    assert records.next_lane(b"\xff" * 3) is None
    assert records.next_lane(last) > last  # type: ignore[operator]


def test_memory_grows_with_lanes_and_not_with_envelopes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 100)

    def grown(count: int) -> int:
        folder = tmp_path / f"{count}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        fill(folder, (waiting(n, f"d{n % 50}.test", PAST) for n in range(1, count + 1)))
        return run(scenario(folder))

    async def scenario(folder: Path) -> int:
        """Octets after every lane had its turn, and its path no room."""
        tracemalloc.start()
        async with opened(folder) as (one, box):
            for _ in range(20):
                await one.lease()
                for envelope, _ in box.handed:
                    one.put_back(envelope, "full")
                box.handed.clear()
            octets, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return octets

    grown(200)
    few, many = grown(200), grown(20_000)
    assert many < few + 50_000


# Held


def test_what_is_held_is_not_handed_over_until_it_is_released(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(1, "to.test", PAST), waiting(2, "to.test", PAST, held="by hand")])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await one.lease()
            assert [envelope.message for envelope, _ in box.handed] == [1 << 20]
            assert (one.statistics().envelopes, one.statistics().held) == (2, 1)
            [_, held], key = await one.scan(b"", 2)
            assert key is None or await one.scan(key, 2) == ([], None)
            assert held.held
            released = waiting(2, "to.test", PAST, received=held.received)
            assert await change(one, held, released)
            await flushed(one)
            assert one.statistics().held == 0
            await one.lease()
            assert box.handed[1][0] == released
            assert not await change(one, held, None)
            assert not await change(one, released, None)  # it is out

    run(scenario())


def test_a_change_under_a_lease_that_has_read_the_row_already_is_made_once(tmp_path: Path) -> None:
    fill(tmp_path, (waiting(n, "to.test", PAST) for n in range(1, 11)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            found, _ = await one.scan(b"", 100)
            # In the reader's thread the lease comes first: it sees rows that are not out.
            leasing = asyncio.ensure_future(one.lease())
            await asyncio.sleep(0)
            claimed = await one.claim(found[:5])
            await leasing
            handed = [envelope for envelope, _ in box.handed]
            assert (claimed, handed) == (found[:5], found[5:])
            assert await one.claim(found) == []

    run(scenario())


def test_a_claim_on_what_has_changed_meanwhile_leaves_it_to_its_lane(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(1, "to.test", PAST)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            [seen], _ = await one.scan(b"", 100)
            assert await change(one, seen, later := waiting(1, "to.test", PAST + 5, attempts=2))
            await flushed(one)
            assert await one.claim([seen]) == []
            await one.lease()
            assert [envelope for envelope, _ in box.handed] == [later]

    run(scenario())


def test_a_scan_goes_through_all_by_their_ids(tmp_path: Path) -> None:
    fill(tmp_path, (waiting(n, f"d{n % 3}.test", PAST - n) for n in range(1, 24)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            found, key = await one.scan(b"", 10)
            while key is not None:
                more, key = await one.scan(key, 10)
                found += more
            assert [envelope.message >> 20 for envelope in found] == list(range(1, 24))

    run(scenario())


# Blocked lanes


def test_a_lane_whose_path_is_full_waits_for_room_without_a_write(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(n, "full.test", PAST + n) for n in range(1, 101)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            commits = store_env.SPOOL.commits.value
            await one.lease()
            assert order(box) == "full*100"
            for envelope, _ in box.handed[10:]:
                one.put_back(envelope, "path")
            del box.handed[10:]
            one._lanes._next_look = time.time() + 1
            for _ in range(5):
                await one.lease()
            assert len(box.handed) == 10
            one.room("another path")
            await one.lease()
            assert len(box.handed) == 10
            waking = asyncio.ensure_future(one.wait_due())
            await asyncio.sleep(0)
            one.room("path")
            await waking
            await one.lease()
            assert [e.message >> 20 for e, _ in box.handed] == list(range(1, 101))
            assert store_env.SPOOL.commits.value == commits

    run(scenario())


def test_blocked_lanes_try_again_where_paths_may_be_others(tmp_path: Path) -> None:
    fill(tmp_path, (waiting(n, f"d{n}.test", PAST) for n in range(1, 101)))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 100)
            for number, (envelope, _) in enumerate(box.handed):
                one.put_back(envelope, f"path{number % 3}")
            box.handed.clear()
            one._lanes._next_look = time.time() + 1
            one.reconsider()
            await one.wait_due()
            while len(box.handed) < 100:
                await one.lease()
                assert one._lanes.next_time(time.time(), urgent=False) == 0 or box.handed[99:]

    run(scenario())


def test_what_collides_with_a_blocked_domain_is_found_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "LOOK_INTERVAL", 0.01)
    other = colliding("full.test")
    full = [waiting(n, "full.test", PAST + n) for n in range(1, 501)]
    fill(tmp_path, [*full, waiting(1000, other, PAST + 1000)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            leases = 0
            while other not in {envelope.domain for envelope, _ in box.handed}:
                await one.wait_due()
                await one.lease()
                leases += 1
                for envelope, _ in list(box.handed):
                    if envelope.domain == "full.test":
                        one.put_back(envelope, "path")
                box.handed = [each for each in box.handed if each[0].domain == other]
            assert leases <= 10
            # And from the first row on again: the path may have had room unheard.
            await one.wait_due()
            await one.lease()
            await one.wait_due()
            await one.lease()
            assert box.handed[1][0].message == 1 << 20

    run(scenario())


def test_when_a_path_has_room_not_all_of_its_lanes_are_read_at_once(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(n, f"d{n}.test", PAST) for n in range(1, 501)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 500)
            for envelope, _ in box.handed:
                one.put_back(envelope, "path")
            box.handed.clear()
            one._lanes._next_look = time.time() + 1
            one.room("path")
            await one.lease()
            assert len(box.handed) == lanes.RELEASE
            one.put_back(box.handed.pop()[0], "path")  # full again
            await one.lease()
            assert len(box.handed) == lanes.RELEASE - 1
            one.room("path")
            await lease_all(one, box, 500)  # and the others without being told again

    run(scenario())


def test_urgent_mail_goes_on_when_its_path_has_room_and_the_window_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 100)
    bulk = [waiting(n, "bulk.test", PAST, priority=BULK) for n in range(2, 201)]
    fill(tmp_path, [waiting(1, "urgent.test", PAST, priority=URGENT), *bulk])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await one.lease()
            urgent = box.handed[0][0]
            assert urgent.domain == "urgent.test"
            one.put_back(urgent, "path")
            while one._room(BULK) > 0:
                await one.lease()
            before = len(box.handed)
            one.room("path")
            await one.wait_due()
            await one.lease()
            assert [envelope for envelope, _ in box.handed[before:]] == [urgent]

    run(scenario())


def test_new_mail_for_a_lane_with_a_backlog_waits_behind_it(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(n, "full.test", PAST + n) for n in range(1, 11)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, first := arrival(one, "late@full.test"))
            await accept(one, arrival(one, "free@other.test"))
            assert order(box) == "other*1"
            assert rows_in(tmp_path)["fresh"] == 1
            await one.lease()
            assert order(box) == "other*1 full*11"
            assert box.handed[-1][0].message == first.message
            one.put_back(box.handed[-1][0], "path")
            await accept(one, arrival(one, "blocked@full.test"))
            assert len(box.handed) == 12
            one.room("path")
            await one.lease()
            await one.lease()
            assert [e.recipients[0].address for e, _ in box.handed[12:]] == [
                "late@full.test",
                "blocked@full.test",
            ]

    run(scenario())


def test_a_fresh_message_whose_path_is_full_waits_in_its_lane(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "a@to.test"))
            [envelope] = await box.wait(1)
            one.put_back(envelope, "path")
            await until(lambda: rows_in(tmp_path)["waiting"] == 1)
            await flushed(one)
            await accept(one, arrival(one, "b@to.test"))
            assert len(box.handed) == 1
            one.room("path")
            await lease_all(one, box, 3)
            assert [e.attempts for e, _ in box.handed] == [0, 0, 0]
            assert await one.read(envelope.message, 0) == [b"Subject: x\r\n\r\nHi\r\n"]

    run(scenario())


def test_lanes_are_forgotten_when_nothing_of_them_waits(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(n, f"d{n}.test", PAST) for n in range(1, 101)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await lease_all(one, box, 100)
            for envelope, _ in box.handed[:50]:
                one.put_back(envelope, "path")
            for envelope, _ in box.handed[50:]:
                one.settle(envelope, None)
            await flushed(one)
            assert len(one._lanes) == 50
            box.handed.clear()
            one.room("path")
            await lease_all(one, box, 50)
            for envelope, _ in box.handed:
                one.settle(envelope, None)
            await flushed(one)
            known = one._lanes
            assert (len(known), known._paths, known._blocked, known._open) == (0, {}, {}, {})

    run(scenario())


def test_a_lease_that_cannot_read_leaves_the_turns_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [waiting(n, f"d{n}.test", PAST + n) for n in range(1, 4)])

    def broken(*_: object) -> list[rows.Found]:
        raise ValueError("planted")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            with monkeypatch.context() as patch:
                patch.setattr(rows, "read_lanes", broken)
                with pytest.raises(ValueError, match="planted"):
                    await one.lease()
            await one.lease()
            assert order(box) == "d1*1 d2*1 d3*1"

    run(scenario())


@pytest.mark.parametrize("earlier", [5.0, -5.0])
def test_what_comes_into_a_lane_while_it_is_read_is_found_by_its_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: float
) -> None:
    """Behind the last row that was read, or before it."""
    fill(tmp_path, [waiting(1, "to.test", PAST)])
    reading, may_end = threading.Event(), threading.Event()
    read_lanes = rows.read_lanes

    def slow(*arguments: object) -> list[rows.Found]:
        found = read_lanes(*arguments)  # type: ignore[arg-type]
        reading.set()
        may_end.wait()
        return found

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            monkeypatch.setattr(rows, "read_lanes", slow)
            leasing = asyncio.ensure_future(one.lease())
            await until(reading.is_set)
            one._env.submit(Put(late := waiting(2, "to.test", PAST - earlier)))
            await flushed(one)
            one.note_waiting(late)
            may_end.set()
            await leasing
            assert [envelope.message >> 20 for envelope, _ in box.handed] == [1]
            await one.wait_due()
            await one.lease()
            assert [envelope.message >> 20 for envelope, _ in box.handed] == [1, 2]

    run(scenario())


def test_what_is_settled_while_its_lane_is_read_is_not_handed_over_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader sees the file as it was when it began."""
    fill(tmp_path, [waiting(n, "to.test", PAST + n) for n in (1, 2)])
    reading, may_go_on = threading.Event(), threading.Event()
    read_lanes = rows.read_lanes

    def slow(*arguments: object) -> list[rows.Found]:
        reading.set()
        may_go_on.wait()
        return read_lanes(*arguments)  # type: ignore[arg-type]

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await one.lease()
            first, second = (envelope for envelope, _ in box.handed)
            one.put_back(first, "path")
            one.room("path")
            monkeypatch.setattr(rows, "read_lanes", slow)
            leasing = asyncio.ensure_future(one.lease())
            await until(reading.is_set)
            later = waiting(2, "to.test", PAST + 100, attempts=2)
            one.settle(second, later)
            await flushed(one)
            may_go_on.set()
            await leasing
            await one.lease()
            assert [envelope for envelope, _ in box.handed[2:]] == [first, later]

    run(scenario())


def test_what_could_not_be_handed_over_is_handed_over_later(tmp_path: Path) -> None:
    fill(tmp_path, [waiting(n, "to.test", PAST + n) for n in range(1, 11)])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):

            def fail(envelope: Envelope, parts: list[bytes] | None) -> None:
                box.deliver(envelope, parts)
                if len(box.handed) == 4:
                    raise ValueError("planted")

            one._deliver = fail
            with pytest.raises(ValueError, match="planted"):
                await one.lease()
            await one.lease()
            assert [e.message >> 20 for e, _ in box.handed] == list(range(1, 11))

    run(scenario())


# Two domains in one lane, of which one has no room


def test_new_mail_goes_past_another_domain_that_its_lane_is_blocked_for(tmp_path: Path) -> None:
    other = colliding("full.test")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "a@full.test"))
            one.put_back(box.handed.pop()[0], "path")
            await flushed(one)
            await accept(one, arrival(one, "b@full.test"))
            assert not box.handed
            await accept(one, arrival(one, f"a@{other}"))
            assert order(box) == other.split(".")[0] + "*1"
            one.put_back(box.handed.pop()[0], "other path")
            await accept(one, arrival(one, f"b@{other}"))
            assert not box.handed

    run(scenario())


@pytest.mark.parametrize("is_known", [True, False])
def test_what_waits_behind_a_blocked_domain_is_found_in_few_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """However many of it there are, and of other lanes; known or, after a start, not known."""
    monkeypatch.setattr(rows, "PASSED", 1500)
    other = waiting(9000, colliding("full.test"), PAST + 9000)
    full = [waiting(n, "full.test", PAST + n) for n in range(1, 3001)]
    many = [waiting(n, f"d{n}.test", PAST) for n in range(3001, 3201)]
    fill(tmp_path, [*full, *many, *([] if is_known else [other])])

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):

            async def lease() -> None:
                await one.lease()
                for envelope, _ in [each for each in box.handed if each[0] != other]:
                    one.put_back(envelope, envelope.domain)
                box.handed = [each for each in box.handed if each[0] == other]

            monkeypatch.setattr(lanes, "LOOKS", 0)
            while len(one._lanes._blocked) < 201 or one._lanes._turns:
                await lease()
            if is_known:
                monkeypatch.setattr(lanes, "LOOK_INTERVAL", 0.0)
                for _ in range(20):  # nothing else is there: that is known then
                    await lease()
                assert not one._lanes._mixed
                one._env.submit(Put(other))
                await flushed(one)
                one.note_waiting(other)
            monkeypatch.setattr(lanes, "LOOK_INTERVAL", 0.0)
            for _ in range(4 if is_known else 24):
                await lease()
            assert [envelope for envelope, _ in box.handed] == [other]
            # What it costs to find nobody is paid once.
            for _ in range(20):
                await lease()
            assert not one._lanes._mixed

    run(scenario())


def test_what_falls_due_in_a_blocked_lane_is_found_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = PAST + 10_000
    monkeypatch.setattr(spool.time, "time", lambda: now)
    monkeypatch.setattr(lanes, "LOOKS", 0)
    full = [waiting(n, "full.test", PAST + n) for n in range(1, 301)]
    later = [waiting(400, "full.test", now + 5), waiting(401, colliding("full.test"), now + 10)]
    fill(tmp_path, [*full, *later])

    async def scenario() -> None:
        nonlocal now
        async with opened(tmp_path) as (one, box):
            for _ in range(12):
                await one.lease()
                for envelope, _ in box.handed:
                    one.put_back(envelope, "path")
                box.handed.clear()
                now += lanes.LOOK_INTERVAL / 4
            assert [lane.others for lane in one._lanes._mixed.values()] == [later[1].due]
            now = later[1].due + lanes.LOOK_INTERVAL
            await one.lease()
            assert [envelope for envelope, _ in box.handed] == [later[1]]

    run(scenario())
