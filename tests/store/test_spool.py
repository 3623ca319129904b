"""The spool on a real disk: what it promises, also over a restart and over failing writes."""

import asyncio
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest

from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.store import env as store_env
from fastmta.store import records, rows, spool
from fastmta.store.env import Locked
from fastmta.store.spool import Spool
from tests.support import run, until

NOTHING = dict.fromkeys(records.DATABASES, 0)


class Box:
    """A scheduler that only keeps what it is handed."""

    def __init__(self) -> None:
        self.handed: list[tuple[Envelope, list[bytes] | None]] = []
        self._changed = asyncio.Event()

    def deliver(self, envelope: Envelope, parts: list[bytes] | None) -> None:
        self.handed.append((envelope, parts))
        self._changed.set()

    async def wait(self, count: int) -> list[Envelope]:
        while len(self.handed) < count:
            self._changed.clear()
            await self._changed.wait()
        return [envelope for envelope, _ in self.handed]


@asynccontextmanager
async def opened(folder: Path, shard: int = 0) -> AsyncIterator[tuple[Spool, Box]]:
    box = Box()
    one = Spool(folder, shard, min_free=0)
    await one.start(box.deliver)
    try:
        yield one, box
    finally:
        await one.close()


def arrival(one: Spool, *addresses: str, content: bytes = b"Subject: x\r\n\r\nHi\r\n") -> Arrival:
    return Arrival(
        message=one.new_id(),
        sender="alice@from.test",
        recipients=[Recipient(address) for address in addresses],
        parts=[content],
        size=len(content),
        received=time.time(),
    )


async def accept(one: Spool, what: Arrival) -> Reply | None:
    answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
    one.accept(what, answer.set_result)
    return await answer


def rows_in(folder: Path) -> dict[str, int]:
    """What a crash at this moment would leave: a copy of the file, opened anew."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / "data.mdb", copy)
        env, db = store_env.open_environment(Path(copy), records.DATABASES)
        with env, env.begin() as txn:
            return {name: txn.stat(handle)["entries"] for name, handle in db.items()}


def test_what_stands_behind_a_lost_part_is_not_taken_for_it(tmp_path: Path) -> None:
    """Else as many octets were read as the message had, and others."""
    content = b"".join(b"%06d\r\n" % n for n in range(100 * records.CHUNK // 8))

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test", content=content))
            [envelope] = await box.wait(1)
        env, db = store_env.open_environment(tmp_path, records.DATABASES)
        with env, env.begin(write=True) as txn:
            for number in range(3, 6):
                txn.delete(records.chunk_key(envelope.message, number), db=db["chunks"])
        async with opened(tmp_path) as (one, _):
            parts: list[bytes] = []
            while more := await one.read(envelope.message, len(parts)):
                parts += more
            assert b"".join(parts) == content[: 3 * records.CHUNK]

    run(scenario())


def test_one_put_and_one_delete_for_a_message_that_leaves_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            assert await accept(one, arrival(one, "bob@to.test")) is None
            [envelope] = await box.wait(1)
            assert rows_in(tmp_path) == NOTHING | {"fresh": 1}
            assert box.handed[0][1] == [b"Subject: x\r\n\r\nHi\r\n"]
            one.settle(envelope, None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_messages_that_come_together_share_a_row_until_the_last_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            what = [arrival(one, f"u{n}@to.test", content=b"%d" % n * 9000) for n in range(10)]
            assert await asyncio.gather(*(accept(one, each) for each in what)) == [None] * 10
            assert rows_in(tmp_path) == NOTHING | {"fresh": 4}
            envelopes = await box.wait(10)
            for envelope in envelopes[:4]:
                one.settle(envelope, None)
            await until(lambda: rows_in(tmp_path) == NOTHING | {"fresh": 3, "settled": 1})
            defer(one, envelopes[4], time.time() + 1000)
            await flushed(one)
            assert rows_in(tmp_path)["settled"] == 1
        async with opened(tmp_path) as (one, box):
            left = await box.wait(5)
            assert [e.message for e in left] == [e.message for e in envelopes[5:]]
            assert [await one.read(e.message, 0) for e in left] == [e.parts for e in what[5:]]
            assert await one.read(envelopes[4].message, 0) == what[4].parts
            for envelope in left:
                one.settle(envelope, None)
        left_rows = rows_in(tmp_path)
        assert left_rows == NOTHING | {"envelopes": 1, "waiting": 1, "chunks": 1}

    run(scenario())


def test_what_was_accepted_is_there_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        big = b"x" * 100_000
        async with opened(tmp_path) as (one, _):
            for content in (b"small", big):
                await accept(one, arrival(one, "bob@to.test", content=content))
            await accept(one, arrival(one, "a@one.test", "b@two.test", "c@one.test"))
        async with opened(tmp_path) as (one, box):
            await one.wait_due()
            await one.lease()
            envelopes = await box.wait(4)
            assert [e.domain for e in envelopes] == ["to.test", "to.test", "one.test", "two.test"]
            assert [r.address for r in envelopes[2].recipients] == ["a@one.test", "c@one.test"]
            assert await one.read(envelopes[0].message, 0) == [b"small"]
            assert b"".join(await one.read(envelopes[1].message, 0)) == big
            assert await one.read(envelopes[1].message, 4) == []
            for envelope in envelopes:
                one.settle(envelope, None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


@pytest.mark.parametrize("size", [0, 1, records.CHUNK, records.CHUNK + 1, 5 << 20])
def test_bodies_of_all_sizes_come_back_whole_after_a_deferral(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        content = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
        async with opened(tmp_path) as (one, box):
            what = arrival(one, "bob@to.test", content=content)
            what.parts = [content[:1000], content[1000:]]
            await accept(one, what)
            [envelope] = await box.wait(1)
            one.settle(envelope, msgspec.structs.replace(envelope, due=time.time(), attempts=1))
            await flushed(one)
            await one.lease()
            _, again = await box.wait(2)
            assert again.attempts == 1
            chunks: list[bytes] = []
            while more := await one.read(again.message, len(chunks)):
                assert sum(map(len, more)) <= rows.READ_OCTETS + records.CHUNK
                chunks += more
            assert b"".join(chunks) == content
            one.settle(again, None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_the_body_stays_until_its_last_envelope_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "a@one.test", "b@two.test"))
            first, second = await box.wait(2)
            one.settle(first, None)
            await flushed(one)
            assert rows_in(tmp_path)["chunks"] == 1
            one.settle(second, None)
            await flushed(one)
            assert rows_in(tmp_path) == NOTHING

    run(scenario())


class Marker:
    """An operation that changes nothing and says when all before it is durable."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def apply(self, txn: object, db: object) -> None:
        pass

    def finished(self, error: Exception | None) -> None:
        self.done.set()


async def flushed(one: Spool) -> None:
    one._env.submit(marker := Marker())
    await marker.done.wait()


def test_a_shard_has_one_owner(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path):
            with pytest.raises(Locked, match="in use"):
                Spool(tmp_path, 0, 0)
        async with opened(tmp_path):
            pass

    run(scenario())


def test_nobody_else_may_look_into_the_folders_that_it_makes(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "spool" / "0"

    async def scenario() -> None:
        async with opened(folder):
            pass

    before = os.umask(0)
    try:
        run(scenario())
    finally:
        os.umask(before)
    made = [folder.parent.parent, folder.parent, folder]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_ids_grow_and_name_their_shard_also_after_a_restart_with_the_clock_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, shard=3) as (one, _):
            ids = [one.new_id() for _ in range(10_000)]
            assert ids == sorted(set(ids))
            assert {i & 0xFF for i in ids} == {3}
            await accept(one, what := arrival(one, "bob@to.test"))
        monkeypatch.setattr(time, "time", lambda: 1000.0)
        async with opened(tmp_path, shard=3) as (one, _):
            assert one.new_id() > what.message
            assert one.new_id() & 0xFF == 3

    run(scenario())


def test_ids_grow_past_each_message_of_a_segment_with_the_clock_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            what = [arrival(one, f"u{n}@to.test") for n in range(3)]
            await asyncio.gather(*(accept(one, each) for each in what))
            assert rows_in(tmp_path)["fresh"] == 1
        monkeypatch.setattr(time, "time", lambda: 1000.0)
        async with opened(tmp_path) as (one, _):
            assert one.new_id() > max(each.message for each in what)

    run(scenario())


def defer(one: Spool, envelope: Envelope, due: float) -> Envelope:
    later = msgspec.structs.replace(envelope, due=due, attempts=envelope.attempts + 1)
    one.settle(envelope, later)
    return later


def test_due_envelopes_come_in_the_order_of_their_time_and_once_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            now = time.time()
            for n in range(5):
                await accept(one, arrival(one, f"u{n}@to.test"))
            for n, envelope in enumerate(await box.wait(5)):
                defer(one, envelope, now - n)
            await flushed(one)
            box.handed.clear()
            await one.lease()
            assert [e.due for e in await box.wait(5)] == [now - n for n in (4, 3, 2, 1, 0)]
            await one.lease()
            assert len(box.handed) == 5

    run(scenario())


def test_a_lease_wakes_for_what_falls_due_and_not_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            waiting = asyncio.ensure_future(one.wait_due())
            await accept(one, arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            due = time.time() + 0.2
            defer(one, envelope, due)
            await waiting
            assert time.time() >= due - 0.001  # rows know milliseconds
            await one.lease()
            assert (await box.wait(2))[1].attempts == 1

    run(scenario())


def test_who_waits_for_what_falls_due_is_cancelled_also_while_that_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):

            async def wait_for_ever() -> None:
                while True:
                    await one.wait_due()

            waiting = asyncio.ensure_future(wait_for_ever())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            one.reconsider()
            waiting.cancel()
            await asyncio.wait([waiting])

    run(scenario())


def test_an_earlier_row_is_found_behind_what_was_read_already(tmp_path: Path) -> None:
    """The clock went back, or an operator asked for it now."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for name in ("a", "b"):
                await accept(one, arrival(one, f"{name}@to.test"))
            first, second = await box.wait(2)
            now = time.time()
            first = defer(one, first, now)
            await flushed(one)
            await one.lease()
            await box.wait(3)
            defer(one, second, now - 1000)
            defer(one, first, now - 2000)
            await flushed(one)
            await one.lease()
            assert [e.due for e in (await box.wait(5))[3:]] == [now - 2000, now - 1000]

    run(scenario())


def look_at_every_row_again(one: Spool, envelope: Envelope) -> None:
    one._lanes.note(records.lane_of(envelope), records.mark_of(envelope), b"", 0.0)


def test_what_comes_back_while_the_rows_are_read_is_not_handed_over_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            waiting = defer(one, envelope, time.time() - 10)
            await flushed(one)
            box.handed.clear()
            await one.lease()
            for _ in range(200):
                look_at_every_row_again(one, waiting)
                leasing = asyncio.ensure_future(one.lease())
                waiting = defer(one, waiting, time.time() - 10)
                await flushed(one)
                await leasing
                await one.lease()
                assert box.handed[-1][0].due == waiting.due
                assert len({e.due for e, _ in box.handed}) == len(box.handed)

    run(scenario())


def test_over_the_window_mail_waits_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 10)
    monkeypatch.setattr(spool, "LEASE", 4)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            scheduler = asyncio.ensure_future(_schedule(one))
            for n in range(50):
                assert await accept(one, arrival(one, f"u{n}@to.test")) is None
            assert len(box.handed) == 10
            assert rows_in(tmp_path)["waiting"] == 40
            for n in range(50):
                envelopes = await box.wait(n + 1)
                one.settle(envelopes[n], None)
                assert len(one._out) <= 10
            assert len({e.id for e in envelopes}) == 50
            scheduler.cancel()
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


async def _schedule(one: Spool) -> None:
    while True:
        await one.wait_due()
        await one.lease()


@pytest.mark.parametrize("by", ["a client", "a bounce"])
def test_what_a_lease_finds_before_its_owner_hears_of_the_commit_goes_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(spool, "WINDOW", 2)
    committed, told = threading.Event(), threading.Event()
    commit = store_env.Environment._commit

    def slow_to_tell(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        commit(env, batch)
        committed.set()
        told.wait()

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for name in ("a", "b"):
                await accept(one, arrival(one, f"{name}@to.test"))
            first, second = await box.wait(2)
            box.handed.clear()
            monkeypatch.setattr(store_env.Environment, "_commit", slow_to_tell)
            what = arrival(one, "c@to.test")
            if by == "a bounce":
                one.settle(first, None, what)
            else:
                one.accept(what, lambda _: None)
            one.settle(second, None)
            await until(committed.is_set)
            await one.lease()
            told.set()
            await flushed(one)
            await one.lease()
            assert [e.message for e, _ in box.handed] == [what.message]

    run(scenario())


def test_memory_holds_a_bounded_number_of_octets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RESIDENT_OCTETS", 2500)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for n in range(4):
                await accept(one, arrival(one, f"u{n}@to.test", content=b"x" * 1000))
            envelopes = await box.wait(4)
            assert [parts is not None for _, parts in box.handed] == [True, True, False, False]
            assert await one.read(envelopes[3].message, 0) == [b"x" * 1000]
            for envelope in envelopes:
                one.settle(envelope, None)
            await flushed(one)
            assert one._octets == 0

    run(scenario())


def test_a_bounce_comes_in_with_the_settlement_that_caused_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            bounce = arrival(one, "alice@from.test", content=b"sorry")
            one.settle(envelope, None, bounce)
            await box.wait(2)
            assert box.handed[1][0].message == bounce.message
            assert rows_in(tmp_path)["fresh"] == 1

    run(scenario())


def test_a_write_that_fails_is_answered_451_and_mail_flows_again(tmp_path: Path) -> None:
    """A file that may not grow is what a full disk is to LMDB."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            size = (tmp_path / "data.mdb").stat().st_size
            await accept(one, arrival(one, "first@to.test"))
            [envelope] = await box.wait(1)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                answer = await accept(one, arrival(one, "x@to.test", content=b"x" * 1_000_000))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert answer == spool.STORAGE_FAILED
            assert len(box.handed) == 1
            assert await accept(one, arrival(one, "again@to.test")) is None
            for envelope in await box.wait(2):
                one.settle(envelope, None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_a_settlement_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY_DELAY", 0.01)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            errors = store_env.SPOOL.errors.value
            try:
                one.settle(envelope, None)
                await until(lambda: store_env.SPOOL.errors.value >= errors + 2)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await until(lambda: rows_in(tmp_path)["fresh"] == 0)

    run(scenario())


def test_one_broken_operation_does_not_take_its_batch_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            what = arrival(one, "bob@to.test")
            broken = arrival(one, "broken@to.test", "b@other.test")
            broken.parts = ["no octets"]  # type: ignore[list-item]
            answers = await asyncio.gather(
                accept(one, what), accept(one, broken), accept(one, arrival(one, "c@to.test"))
            )
            assert answers == [None, spool.STORAGE_FAILED, None]

    run(scenario())


def test_a_disk_that_says_nothing_of_its_room_does_not_keep_senders_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise lmdb.DiskError("planted")

    def broken(path: Path) -> os.statvfs_result:
        raise OSError(5, "Input/output error")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            with monkeypatch.context() as patched:
                patched.setattr(os, "statvfs", broken)
                patched.setattr(store_env.Environment, "_commit", fail)
                assert await accept(one, arrival(one, "bob@to.test")) == spool.STORAGE_FAILED
            assert await accept(one, arrival(one, "bob@to.test")) is None

    run(scenario())


def test_below_the_floor_mail_is_refused_and_above_it_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            assert one.refusal() is None
            one._min_free = 1 << 60
            one._watch_space()
            assert one.refusal() == spool.STORAGE_FULL
            one._min_free = 0
            one._watch_space()
            assert one.refusal() is None

    run(scenario())


@pytest.mark.parametrize("database", ["fresh", "envelopes"])
@pytest.mark.parametrize(
    "garbage",
    [
        *(b"", b"\x01\x05", b"\xff" * 40, b"\x01\x00\x00\x00\x05nope!x"),
        records.pack_envelope(Envelope(1, 0, "a@b.test", "b.test", [], 1, 1)).replace(
            b"a@", b"\xf1@"
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_moved_aside(
    tmp_path: Path, database: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, what := arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            if database == "envelopes":
                envelope = defer(one, envelope, time.time() - 1)
            await accept(one, arrival(one, "good@to.test"))
        key = {
            "fresh": records.message_key(what.message),
            "envelopes": records.envelope_key(envelope),
        }[database]
        env, db = store_env.open_environment(tmp_path, records.DATABASES)
        with env, env.begin(write=True) as txn:
            txn.put(key, garbage, db=db[database])
        async with opened(tmp_path) as (one, box):
            await one.lease()
            assert [e.recipients[0].address for e in await box.wait(1)] == ["good@to.test"]
            await flushed(one)
        left = rows_in(tmp_path)
        assert (left["aside"], left[database], left["waiting"]) == (1, int(database == "fresh"), 0)
        assert "moved aside" in caplog.text

    run(scenario())


@pytest.mark.parametrize("database", ["fresh", "settled"])
def test_a_segment_that_cannot_be_read_takes_along_what_was_settled_of_it(
    tmp_path: Path, database: str
) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            what = [arrival(one, f"u{n}@to.test") for n in range(3)]
            await asyncio.gather(*(accept(one, each) for each in what))
            one.settle((await box.wait(3))[0], None)
        assert rows_in(tmp_path) == NOTHING | {"fresh": 1, "settled": 1}
        env, db = store_env.open_environment(tmp_path, records.DATABASES)
        with env, env.begin(write=True) as txn:
            txn.put(records.message_key(what[0].message), b"\xff", db=db[database])
        async with opened(tmp_path) as (one, box):
            assert not box.handed
        assert rows_in(tmp_path) == NOTHING | {"aside": 2}

    run(scenario())


def test_a_body_read_from_fresh_or_chunks_is_empty_at_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            await accept(one, what := arrival(one, "bob@to.test"))
            assert await one.read(what.message, 1) == []
            assert await one.read(what.message + 256, 0) == []

    run(scenario())


def test_250_waits_for_the_commit_that_holds_the_message(tmp_path: Path) -> None:
    """At the moment of the answer another process can read the message from the files."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, _):
            for n in range(20):
                seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                one.accept(
                    arrival(one, "bob@to.test"),
                    lambda _, seen=seen: seen.set_result(rows_in(tmp_path)["fresh"]),
                )
                assert await seen == n + 1

    run(scenario())


@pytest.mark.parametrize("size", [0, 1000, records.CHUNK + 1])
def test_a_commit_that_came_through_and_is_said_to_have_failed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(spool, "RETRY_DELAY", 0.01)
    commit = store_env.Environment._commit
    commits: list[int] = []

    def late_error(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        commit(env, batch)
        commits.append(len(batch))
        if len(commits) == 1:
            raise lmdb.DiskError("the meta page")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, what := arrival(one, "bob@to.test", content=b"x" * size))
            [envelope] = await box.wait(1)
            monkeypatch.setattr(store_env.Environment, "_commit", late_error)
            later = msgspec.structs.replace(envelope, due=time.time(), attempts=1)
            one.settle(envelope, later, bounce := arrival(one, "alice@from.test"))
            await box.wait(2)
            await one.lease()
            assert [e.message for e in await box.wait(3)][1:] == [bounce.message, what.message]
            assert b"".join(await one.read(what.message, 0)) == b"x" * size
            for envelope, _ in box.handed[1:]:
                one.settle(envelope, None)
        assert len(commits) >= 2
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_a_bounce_without_room_waits_for_its_settlement_to_be_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it out before that, it would come in again when the settlement is made again."""
    monkeypatch.setattr(spool, "WINDOW", 1)
    monkeypatch.setattr(spool, "RETRY_DELAY", 0.05)
    commit = store_env.Environment._commit
    failed = threading.Event()

    def late_error(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        commit(env, batch)
        if not failed.is_set():
            failed.set()
            raise lmdb.DiskError("the meta page")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test"))
            [envelope] = await box.wait(1)
            monkeypatch.setattr(store_env.Environment, "_commit", late_error)
            one.settle(envelope, None, bounce := arrival(one, "alice@from.test"))
            monkeypatch.setattr(spool, "WINDOW", 20)
            await until(failed.is_set)
            await one.lease()
            assert len(box.handed) == 1
            await until(lambda: not one.unsettled)
            await one.lease()
            assert (await box.wait(2))[1].message == bounce.message
            one.settle(box.handed[1][0], None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_what_could_not_be_written_at_first_is_written_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY_DELAY", 0.1)
    commit = store_env.Environment._commit
    failures: list[str] = []

    def fail_once(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        if not failures:
            failures.append("once")
            raise lmdb.DiskError("full")
        commit(env, batch)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            what = [arrival(one, f"u{n}@to.test") for n in range(3)]
            await asyncio.gather(*(accept(one, each) for each in what))
            first, second, _ = await box.wait(3)
            monkeypatch.setattr(store_env.Environment, "_commit", fail_once)
            one.settle(first, None)
            defer(one, second, time.time() + 1000)
            await until(lambda: failures)
        async with opened(tmp_path) as (one, box):
            assert [e.message for e in await box.wait(1)] == [what[2].message]
        assert rows_in(tmp_path)["waiting"] == 1

    run(scenario())


def test_written_waits_for_what_was_settled_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for address in ("a@a.test", "b@b.test"):
                one.accept(arrival(one, address), lambda reply: None)
            for envelope in await box.wait(2):
                one.settle(envelope, msgspec.structs.replace(envelope, due=4e9))
            await one.written()
            found, _ = await one.scan(b"", 10)
            assert sorted(each.domain for each in found) == ["a.test", "b.test"]
            assert not any(map(one.is_out, found))

    run(scenario())


def test_written_waits_for_what_could_not_be_written_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY_DELAY", 0.05)
    commit = store_env.Environment._commit
    failures: list[str] = []

    def fail(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        if len(failures) < 2:
            failures.append("once")
            raise lmdb.DiskError("full")
        commit(env, batch)

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "a@a.test"))
            (envelope,) = await box.wait(1)
            monkeypatch.setattr(store_env.Environment, "_commit", fail)
            defer(one, envelope, time.time() + 1000)
            await until(lambda: failures)
            await one.written()
            assert len(failures) == 2
            assert not one.is_out(envelope)

    run(scenario())


def test_written_waits_for_what_was_delivered_of_a_segment(tmp_path: Path) -> None:
    """A crash behind it hands nothing over again, though others of the segment are still out."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            what = [arrival(one, f"u{n}@to.test") for n in range(3)]
            await asyncio.gather(*(accept(one, each) for each in what))
            envelopes = await box.wait(3)
            one.settle(envelopes[1], None)
            await one.written()
            assert rows_in(tmp_path) == NOTHING | {"fresh": 1, "settled": 1}
            one.settle(envelopes[0], None)
            one.settle(envelopes[2], None)
            await one.written()
            assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_several_messages_are_stored_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = store_env.Environment._commit

    def fail(env: store_env.Environment, batch: list[store_env.Operation]) -> None:
        raise lmdb.DiskError("full")

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            answers: list[Reply | None] = []
            what = [arrival(one, "a@a.test"), arrival(one, "b@b.test", content=b"x" * 100_000)]
            monkeypatch.setattr(store_env.Environment, "_commit", fail)
            one.accept_all(what, answers.append)
            await until(lambda: answers)
            monkeypatch.setattr(store_env.Environment, "_commit", commit)
            assert answers == [spool.STORAGE_FAILED]
            assert rows_in(tmp_path) == NOTHING
            what = [arrival(one, "a@a.test", "c@c.test"), arrival(one, "b@b.test")]
            one.accept_all(what, answers.append)
            envelopes = await box.wait(3)
            assert answers == [spool.STORAGE_FAILED, None]
            assert sorted(each.domain for each in envelopes) == ["a.test", "b.test", "c.test"]
            for envelope in envelopes:
                one.settle(envelope, None)
        assert rows_in(tmp_path) == NOTHING

    run(scenario())


def test_whether_an_envelope_is_still_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            for address in ("fresh@to.test", "waits@to.test", "gone@to.test"):
                await accept(one, arrival(one, address))
            fresh, waits, gone = await box.wait(3)
            one.settle(waits, msgspec.structs.replace(waits, due=4e9))
            one.settle(gone, None)
            await one.written()
            assert await one.holds([fresh, waits, gone]) == [True, True, False]
            named = Envelope(waits.message, waits.index, "", "", [], 0.0, 0)
            other = Envelope(waits.message, waits.index + 1, "", "", [], 0.0, 0)
            assert await one.holds([named, other]) == [True, False]

    run(scenario())


def test_an_envelope_is_held_while_its_deferral_is_being_written(tmp_path: Path) -> None:
    """Else what tells that it is in a mailbox already would be thrown away."""

    async def scenario() -> None:
        async with opened(tmp_path) as (one, box):
            await accept(one, arrival(one, "bob@to.test"))
            (envelope,) = await box.wait(1)
            later = msgspec.structs.replace(envelope, due=time.time() + 60, attempts=1)
            one.settle(envelope, later)
            assert await one.holds([envelope]) == [True]
            await one.written()
            assert await one.holds([envelope]) == [True]

    run(scenario())
