"""What older releases have left on the disk goes out as if this one had written it."""

import gzip
import re
import shutil
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from fastmta.mail.envelope import Envelope, Priority, Recipient
from fastmta.store import env as store_env
from fastmta.store import passwords, records, upgrade
from fastmta.store.accounts import Accounts
from fastmta.store.spool import Spool
from fastmta.store.view import SpoolView
from tests.integration.mailboxes import mail_of
from tests.store.test_spool import Box, opened
from tests.support import run

# Written by the release before lanes: 38 envelopes in `due`, 5 in `fresh`.
OLD = Path(__file__).parent / "data" / "due.mdb.gz"
ENVELOPES = 43


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.mdb").write_bytes(gzip.decompress(OLD.read_bytes()))
    return tmp_path


def rows_in(folder: Path) -> dict[str, int]:
    env, db = store_env.open_environment(folder, records.DATABASES, records.RETIRED)
    with env, env.begin() as txn:
        return {name: txn.stat(handle)["entries"] for name, handle in db.items()}


async def deliver_all(one: Spool, box: Box, count: int) -> list[Envelope]:
    while len(box.handed) < count:
        await one.lease()
    envelopes = [envelope for envelope, _ in box.handed]
    for envelope in envelopes:
        body = b"".join(await one.read(envelope.message, 0))
        assert len(body) == envelope.size
        assert body.startswith(b"Subject: ")
        one.settle(envelope, None)
    return envelopes


def test_all_that_an_older_release_had_is_delivered(folder: Path) -> None:
    async def scenario() -> None:
        async with opened(folder) as (one, box):
            assert one.statistics().envelopes == ENVELOPES
            envelopes = await deliver_all(one, box, ENVELOPES)
            addresses = {r.address for e in envelopes for r in e.recipients}
            assert len(addresses) == len(envelopes) == ENVELOPES
            assert {"a@one.test", "b@two.test", "big@to0.test"} < addresses

    run(scenario())
    assert set(rows_in(folder).values()) == {0}


@pytest.mark.parametrize("batch", [1, 7, 19, 38, 39])
def test_a_crash_at_any_point_of_the_move_loses_nothing(
    folder: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of its commits the files are such that a start from them finds everything."""
    monkeypatch.setattr(upgrade, "BATCH", batch)
    commit, states = store_env.Environment._commit, []

    def kept(env: store_env.Environment, operations: list[store_env.Operation]) -> None:
        commit(env, operations)
        states.append(tempfile.mkdtemp(dir=folder))
        shutil.copy(folder / "data.mdb", states[-1])

    async def upgraded() -> None:
        async with opened(folder) as (one, _):
            assert one.statistics().held == 0

    async def finished(state: Path) -> None:
        async with opened(state) as (one, box):
            await deliver_all(one, box, ENVELOPES)

    with monkeypatch.context() as patch:
        patch.setattr(store_env.Environment, "_commit", kept)
        run(upgraded())
    assert len(states) == 38 // batch + 1
    for state in states[:: max(1, len(states) // 4)]:
        run(finished(Path(state)))
        assert set(rows_in(Path(state)).values()) == {0}


def test_a_row_of_due_whose_envelope_cannot_be_read_is_moved_aside(folder: Path) -> None:
    env, db = store_env.open_environment(folder, records.DATABASES)
    with env, env.begin(write=True) as txn, txn.cursor(db["envelopes"]) as cursor:
        cursor.first()
        txn.put(cursor.key(), b"\xff", db=db["envelopes"])

    async def scenario() -> None:
        async with opened(folder) as (one, box):
            await deliver_all(one, box, ENVELOPES - 1)

    run(scenario())
    left = rows_in(folder)
    assert (left["aside"], left["waiting"], left["due"], left["envelopes"]) == (1, 0, 0, 0)


def test_the_queue_can_be_looked_into_before_the_first_start(folder: Path) -> None:
    view = SpoolView(folder)
    assert len(list(view.envelopes())) == ENVELOPES
    view.close()


def test_an_upgrade_that_cannot_be_written_ends_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(env: store_env.Environment, operations: list[store_env.Operation]) -> None:
        raise OSError("no space")

    async def scenario() -> None:
        one = Spool(folder, 0, 0)
        try:
            await one.start(lambda envelope, parts: None)
        finally:
            await one.close()

    monkeypatch.setattr(store_env.Environment, "_commit", refused)
    with pytest.raises(OSError, match="no space"):
        run(scenario())
    assert rows_in(folder)["due"] == 38


def test_an_envelope_without_the_later_fields_is_read() -> None:
    envelope = Envelope(1 << 20, 0, "a@from.test", "to.test", [Recipient("b@to.test")], 5.0, 7)
    fields = msgspec.to_builtins(envelope)
    for count in range(7, len(fields) + 1):
        row = b"\1" + msgspec.msgpack.encode(fields[:count])
        assert records.unpack_envelope(row) == envelope
    assert (envelope.priority, envelope.tenant, envelope.held) == (Priority.NORMAL, "", "")


# Data directories of servers that were killed: of the release before segments, of one with lanes,
# and of the first with mailboxes. What their hosts were at the time is in the domains: of two.test
# and three.test nobody answered, and hangs.test never said a word.
DELIVERED_BEFORE = {"first": 0, "lanes": 0, "mailboxes": 5}
WAITED = 7  # messages
UNDER_WAY = 6
LARGE = 40_000  # octets of every last message of a kind; others have a tenth of that at most


def unpacked(name: str, folder: Path) -> Path:
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.11.2
    with tarfile.open(OLD.with_name(f"{name}.tar.xz")) as archive:
        archive.extractall(folder, **options)  # type: ignore[arg-type]
    return folder


def expected(name: str) -> dict[str, int]:
    """Number of the message that each address gets."""
    first = WAITED + DELIVERED_BEFORE[name] + 1
    numbers = {f"n{n}@two.test": n for n in range(1, WAITED + 1)}
    numbers |= {f"n{n}@hangs.test": n for n in range(first, first + UNDER_WAY)}
    last = first + UNDER_WAY - 1
    return numbers | {"n6@three.test": 6, "again6@two.test": 6, f"n{last}@two.test": last}


@pytest.mark.parametrize("name", DELIVERED_BEFORE)
def test_the_queue_of_an_older_server_goes_out_whole(name: str, tmp_path: Path) -> None:
    wanted = expected(name)
    spool = unpacked(name, tmp_path) / "spool" / "0"
    assert {r.address for e in SpoolView(spool).envelopes() for r in e.recipients} == set(wanted)
    got: dict[str, int] = {}

    async def scenario() -> None:
        async with opened(spool) as (one, box):
            while len(got) < len(wanted):
                await one.lease()
                for envelope, _ in box.handed:
                    got.update(await read_whole(one, envelope))
                    one.settle(envelope, None)
                box.handed.clear()

    run(scenario())
    assert got == wanted
    assert set(rows_in(spool).values()) == {0}


async def read_whole(one: Spool, envelope: Envelope) -> dict[str, int]:
    """The number of a message for each of its recipients; all of its octets are there."""
    body = b"".join(await one.read(envelope.message, 0))
    assert len(body) == envelope.size
    found = re.search(rb"\r\nX-Number: (\d+)\r\n\r\n((?:line \1 of an old message\r\n)+)$", body)
    assert found is not None
    number = int(found[1])
    assert (len(found[2]) > LARGE) == (number in (WAITED, WAITED + 5, WAITED + 10))
    return {recipient.address: number for recipient in envelope.recipients}


def test_the_mailboxes_and_accounts_of_an_older_server_are_read(tmp_path: Path) -> None:
    data = unpacked("mailboxes", tmp_path)
    found = mail_of(data, "alice@mine.test", "bob@mine.test")
    numbers = [
        [int(n) for mail in mails for n in re.findall(rb"X-Number: (\d+)\r\n", mail)]
        for mails in found.values()
    ]
    assert numbers == [[8, 9, 10, 11, 12], [12]]
    assert all(b"an old message" in mail for mails in found.values() for mail in mails)
    with closing(Accounts(data / "accounts")) as accounts:
        account = accounts.get("alice@mine.test")
        assert account is not None
        assert passwords.check_password(account.password, "correct horse")
