"""The suppression list: what matches, how long, and what gives way to what."""

import asyncio
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.store import suppression
from fastmta.store.suppression import Entry, SuppressionFile, SuppressionList, key_of
from tests.support import run

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def entries(tmp_path: Path, clock: Clock):
    file = SuppressionFile(tmp_path / "suppression", clock)
    yield file
    file.close()


def bounce(address: str, added: float, days: float = 90.0) -> Entry:
    return Entry(address, "bounce", added, added + days * DAY, "bad-mailbox", "0ID", "550 no")


def manual(address: str, added: float = 1.0) -> Entry:
    return Entry(address, "manual", added)


@pytest.mark.parametrize(
    ("listed", "asked", "matches"),
    [
        ("bob@example.test", "bob@example.test", True),
        ("Bob@Example.TEST", "bOB@eXAMPLE.test", True),
        ("bob@example.test", "bob@sub.example.test", False),
        ("bob@example.test", "bobby@example.test", False),
        ("@example.test", "anybody@EXAMPLE.test", True),
        ("@example.test", "anybody@sub.example.test", False),
        ("bob@bücher.example", "bob@xn--bcher-kva.example", True),
        ("jürgen@example.test", "JÜRGEN@example.test", True),
        ('"a b"@example.test', '"A B"@example.test', True),
    ],
)
def test_what_matches(entries: SuppressionFile, listed: str, asked: str, matches: bool) -> None:
    entries.add([manual(listed)])
    assert (entries.find(asked) is not None) is matches


@pytest.mark.parametrize(
    "text", ["", "bob", "bob@", "@", "a b@c.test", "a@b\r\n.test", "@-", "é@@"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        key_of(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_not(text: str) -> None:
    try:
        assert 0 < len(key_of(text)) <= 511
    except ValueError:
        pass


def test_an_entry_is_over_when_its_time_has_come(entries: SuppressionFile, clock: Clock) -> None:
    entries.add([bounce("bob@example.test", clock.now)])
    clock.now += 90 * DAY - 1
    assert entries.find("bob@example.test")
    clock.now += 1
    assert entries.find("bob@example.test") is None
    assert list(entries.entries()) == []
    assert entries.count() == 1  # until somebody cleans


def test_a_domain_counts_where_the_address_is_over(entries: SuppressionFile, clock: Clock) -> None:
    entries.add([bounce("bob@example.test", clock.now, 1), manual("@example.test")])
    clock.now += 2 * DAY
    found = entries.find("bob@example.test")
    assert found is not None
    assert found.address == "@example.test"


@pytest.mark.parametrize(
    ("days", "later", "stays"),
    [(90, 30, True), (30, 90, False), (90, 90, False), (0, 90, True)],
)
def test_what_came_of_itself_gives_way_to_what_holds_longer(
    entries: SuppressionFile, clock: Clock, days: float, later: float, stays: bool
) -> None:
    first = bounce("bob@example.test", clock.now, days) if days else manual("bob@example.test")
    second = bounce("bob@example.test", clock.now, later)
    entries.add([first])
    entries.add([second])
    assert entries.find("bob@example.test") == (first if stays else second)


def test_an_operator_always_has_his_way(entries: SuppressionFile, clock: Clock) -> None:
    entries.add([manual("bob@example.test")])
    shorter = Entry("bob@example.test", "manual", clock.now, clock.now + 1)
    entries.add([shorter])
    assert entries.find("bob@example.test") == shorter


def test_one_that_is_over_gives_way(entries: SuppressionFile, clock: Clock) -> None:
    entries.add([bounce("bob@example.test", clock.now, 9)])
    clock.now += 10 * DAY
    again = bounce("bob@example.test", clock.now, 1)
    entries.add([again])
    assert entries.find("bob@example.test") == again


def test_many_are_listed_by_domain(entries: SuppressionFile, monkeypatch) -> None:
    monkeypatch.setattr(suppression, "BATCH", 7)
    entries.add(manual(f"u{n:02}@{domain}.test") for n in range(20) for domain in ("b", "a", "ab"))
    names = [one.address for one in entries.entries()]
    assert names == [f"u{n:02}@{domain}.test" for domain in ("a", "ab", "b") for n in range(20)]
    assert [one.address for one in entries.entries("A.test")] == names[:20]
    assert entries.delete("U03@a.test")
    assert not entries.delete("U03@a.test")
    assert len(list(entries.entries("a.test"))) == 19


def test_a_row_of_another_release_suppresses_nobody(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "suppression"
    file = SuppressionFile(folder, clock)
    file.add([manual("bob@example.test")])
    with file._env.begin(write=True) as txn:
        txn.put(key_of("eve@example.test"), b"\x07what", db=file._db["entries"])
        txn.put(key_of("joe@example.test"), b"\x01what", db=file._db["entries"])
    assert [one.address for one in file.entries()] == ["bob@example.test"]
    assert file.find("eve@example.test") is None
    file.close()


async def added(to: SuppressionList, *entries: Entry) -> bool:
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    to.add(list(entries), done.set_result)
    return await done


def test_one_process_sees_what_another_wrote_once_it_is_safe(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        entries = SuppressionList(tmp_path / "suppression", clock)
        assert entries.find("bob@example.test") is None
        assert await added(entries, manual("bob@example.test"))
        assert entries.find("BOB@example.test") == manual("bob@example.test")
        assert entries.find("x" * 600 + "@example.test") is None
        await entries.close()

    run(scenario())


def test_cleaning_goes_round_and_takes_only_what_is_over(
    tmp_path: Path, clock: Clock, monkeypatch
) -> None:
    monkeypatch.setattr(suppression, "BATCH", 10)

    async def scenario() -> None:
        entries = SuppressionList(tmp_path / "suppression", clock)
        await added(entries, *(bounce(f"u{n:03}@a.test", clock.now, 1 + n % 2) for n in range(100)))
        clock.now += 1.5 * DAY
        for _ in range(11):
            entries.clean()
            await added(entries)  # the next transaction: the one before is over
        await entries.close()

    run(scenario())
    file = SuppressionFile(tmp_path / "suppression", clock)
    assert file.count() == 50
    assert [one.address for one in file.entries()] == [f"u{n:03}@a.test" for n in range(1, 100, 2)]
    file.close()


def test_cleaning_an_end_that_is_over(tmp_path: Path, clock: Clock, monkeypatch) -> None:
    """The last rows of the list go: there is no row after them to stand on."""
    monkeypatch.setattr(suppression, "BATCH", 4)
    file = SuppressionFile(tmp_path / "suppression", clock)
    file.add(bounce(f"u{n}@a.test", clock.now, 1) for n in range(6))
    clock.now += 2 * DAY
    with file._env.begin(write=True) as txn:
        key = suppression.clean(txn, file._db, b"", clock.now)
        assert suppression.clean(txn, file._db, key, clock.now) == b""
    assert file.count() == 0
    file.close()


def test_a_write_that_fails_is_told(tmp_path: Path, clock: Clock, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise lmdb.DiskError("no")

    async def scenario() -> None:
        entries = SuppressionList(tmp_path / "suppression", clock)
        monkeypatch.setattr(suppression, "put", fail)
        assert not await added(entries, manual("bob@example.test"))
        await entries.close()

    run(scenario())
