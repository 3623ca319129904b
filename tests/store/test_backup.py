"""A backup is whole or not there; it goes back only where no mail is."""

import os
from contextlib import ExitStack
from pathlib import Path

import lmdb
import msgspec
import pytest

from fastmta.protocol.scram import Keys
from fastmta.store import backup as backups
from fastmta.store import env as store_env
from fastmta.store import mail_records as records
from fastmta.store import restore as restores
from fastmta.store import verify
from fastmta.store.accounts import Accounts
from fastmta.store.backup import CannotCopy, backup
from fastmta.store.mailboxes import Mailboxes, folder_of
from fastmta.store.post import Drop, Post
from fastmta.store.restore import MOVING, restore
from fastmta.store.suppression import SuppressionFile
from tests.store import test_verify
from tests.store.test_verify import ALL, delivered, nothing
from tests.support import run

BOB = "bob@example.test"
spool = test_verify.data  # a shard with mail in each state


@pytest.fixture
def data(spool: Path) -> Path:
    """All that a server keeps."""

    async def scenario() -> None:
        boxes = Mailboxes(folder_of(spool), lambda account: 0)
        for body in (b"1", b"2" * 100_000):
            receipt = b"\0receipt" if body == b"1" else b""
            await boxes.append(Post(receipt, [body], len(body), 1.0, [Drop(BOB)]))
        await boxes.close()

    run(scenario())
    accounts = Accounts(spool / "accounts")
    accounts.add(BOB, "", Keys(b"", 1, b"", b""))
    accounts.close()
    SuppressionFile(spool / "suppression").close()
    (spool / "orders.json").write_text("{}")
    (spool / "mail" / "logins").write_bytes(b"1234")
    (spool / "dispositions.jsonl").write_text("a log\n")
    return spool


def copy(data: Path, target: Path) -> backups.Note:
    return backup(data, target, "1", nothing)


def problems(folder: Path) -> list[str]:
    return [each for part in verify.verify(folder, nothing) for each in part.problems]


def there(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith("lock.mdb")}


def mail_of(data: Path) -> tuple[int, list[bytes], int]:
    """UIDVALIDITY, what Bob has, and the next uid."""
    found: list[bytes] = []

    async def scenario() -> tuple[int, list[bytes], int]:
        boxes = Mailboxes(folder_of(data), lambda account: 0)
        assert boxes.receipts(0) == [b"\0receipt"]
        mailbox = await boxes.open(BOB)
        for uid in mailbox.uids:
            pieces: list[bytes] = []
            while more := await boxes.read(mailbox.mailbox, uid, len(pieces)):
                pieces += more
            found.append(b"".join(pieces))
        await boxes.close()
        return mailbox.uidvalidity, found, mailbox.uidnext

    return run(scenario())


def test_all_that_was_there_comes_back(data: Path, tmp_path: Path) -> None:
    before = mail_of(data)
    note = copy(data, tmp_path / "copy")
    parts = ["spool/0", "mail/0", "accounts", "suppression"]
    assert [part.name for part in note.parts] == parts
    files = {*(f"{name}/data.mdb" for name in parts), "orders.json", "mail/logins"}
    assert there(tmp_path / "copy") == {*files, "backup.json"}
    assert problems(tmp_path / "copy") == []
    restore(tmp_path / "copy", tmp_path / "other", nothing)
    assert there(tmp_path / "other") == {*files, "lock"}
    assert problems(tmp_path / "other") == []
    assert delivered(tmp_path / "other") == ALL
    uidvalidity, found, uidnext = mail_of(tmp_path / "other")
    assert (uidvalidity, found) == before[:2]
    assert uidnext == before[2] + restores.UIDS_AHEAD
    accounts = Accounts(tmp_path / "other" / "accounts")
    assert accounts.get(BOB)
    accounts.close()


def test_it_is_for_its_owner_alone(data: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        copy(data, tmp_path / "copy")
        restore(tmp_path / "copy", tmp_path / "other", nothing)
    finally:
        os.umask(old)
    for folder in ("copy", "other"):
        for path in [tmp_path / folder, *(tmp_path / folder).rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_there_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(CannotCopy, match="is there already"):
        copy(data, tmp_path / "copy")
    (tmp_path / "copy").rmdir()
    copy(data, tmp_path / "copy")
    for name in restores.PARTS:
        other = tmp_path / f"data-with-{name}"
        (other / name).mkdir(parents=True)
        with pytest.raises(CannotCopy, match="is there already; move it away first"):
            restore(tmp_path / "copy", other, nothing)
        assert not any((other / name).iterdir())


def test_transactions_go_on_with_their_numbers(data: Path, tmp_path: Path) -> None:
    """Rows are named by them."""

    def last(folder: Path) -> int:
        env, _ = store_env.open_environment(folder, ())
        with env:
            return int(env.info()["last_txnid"])

    before = last(folder_of(data))
    copy(data, tmp_path / "copy")
    assert before <= last(folder_of(tmp_path / "copy")) <= before + 1


def test_modseqs_and_history_are_ahead_of_what_anybody_saw(data: Path, tmp_path: Path) -> None:
    copy(data, tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "other", nothing)
    env, db = store_env.open_environment(folder_of(tmp_path / "other"), records.DATABASES)
    with env, env.begin() as txn:
        row = records.unpack_mailbox(txn.get(records.name_key(BOB, "INBOX"), db=db["mailboxes"]))
        assert row.modseq == row.floor > restores.MODSEQS_AHEAD
        assert txn.stat(db["changes"])["entries"] == row.history == 0


def test_one_that_was_killed_is_not_there_and_is_in_nobodys_way(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy.partial" / "spool" / "0").mkdir(parents=True)
    (tmp_path / "copy.partial" / "spool" / "0" / "data.mdb").write_bytes(b"half")
    (tmp_path / "copy.partial" / "note").write_bytes(b"half")
    held = store_env.own(tmp_path / "copy.partial" / backups.LOCK)
    with pytest.raises(store_env.Locked):
        copy(data, tmp_path / "copy")
    os.close(held)
    monkeypatch.setattr(backups.pages, "set_transaction", broken)
    with pytest.raises(OSError, match="no room"):
        copy(data, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))
    monkeypatch.undo()
    copy(data, tmp_path / "copy")
    assert "note" not in there(tmp_path / "copy")
    assert problems(tmp_path / "copy") == []


def test_two_of_one_name_do_not_get_in_each_others_way(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, others = backups.flush_tree, list[bool]()

    def flush_while_another_begins(folder: Path) -> None:
        flush(folder)
        with pytest.raises(store_env.Locked):
            copy(data, tmp_path / "copy")
        others.append(True)

    monkeypatch.setattr(backups, "flush_tree", flush_while_another_begins)
    copy(data, tmp_path / "copy")
    assert others
    assert problems(tmp_path / "copy") == []
    assert backups.LOCK not in there(tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "other", nothing)


def broken(*_: object) -> None:
    raise OSError(28, "no room")


def test_a_restore_that_is_cut_short_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(data, tmp_path / "copy")
    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(restores, "flush_tree", broken)
        with pytest.raises(OSError, match="no room"):
            restore(tmp_path / "copy", other, nothing)
    assert not (other / MOVING).exists()
    with monkeypatch.context() as patched:
        patched.setattr(restores, "PARTS", ("spool", "mail"))
        with pytest.raises(OSError, match="not empty"):
            restore(tmp_path / "copy", other, nothing)
    assert (other / MOVING / "accounts").exists()
    restore(tmp_path / "copy", other, nothing)
    assert not list(other.glob("restoring*"))
    assert problems(other) == []
    assert delivered(other) == ALL


def test_nothing_is_restored_below_a_running_server(data: Path, tmp_path: Path) -> None:
    copy(data, tmp_path / "copy")
    (tmp_path / "other").mkdir()
    held = store_env.own(tmp_path / "other" / store_env.LOCK)
    with pytest.raises(store_env.Locked):
        restore(tmp_path / "copy", tmp_path / "other", nothing)
    os.close(held)


def test_what_is_no_backup_or_a_cut_one_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotCopy, match="is no backup"):
        restore(data, tmp_path / "other", nothing)
    note = copy(data, tmp_path / "copy")
    note.format += 1
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / backups.NOTE).write_bytes(msgspec.json.encode(note))
    with pytest.raises(CannotCopy, match="format 2, which is not known here"):
        restore(tmp_path / "later", tmp_path / "other", nothing)
    file = tmp_path / "copy" / "mail" / "0" / "data.mdb"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CannotCopy, match="is not as the backup was made"):
        restore(tmp_path / "copy", tmp_path / "other", nothing)
    assert not (tmp_path / "other").exists()


def test_a_broken_file_is_not_copied(data: Path, tmp_path: Path) -> None:
    file = data / "spool" / "0" / "data.mdb"
    os.truncate(file, file.stat().st_size - 4096)
    with pytest.raises(CannotCopy, match="see fastmta verify"):
        copy(data, tmp_path / "copy")
    file.write_bytes(b"")
    with pytest.raises((CannotCopy, lmdb.Error)):
        copy(data, tmp_path / "copy")
    with pytest.raises(CannotCopy, match="there is no mail"):
        copy(tmp_path / "nowhere", tmp_path / "copy")


def test_the_queue_is_seen_before_the_mailboxes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that goes from one into the other meanwhile is in both."""
    begin, seen = backups._begin, list[str]()

    def move_on(data_dir: Path, folder: Path, stack: ExitStack) -> backups.Snapshot:
        seen.append(str(folder.relative_to(data)))
        if seen[-1] == "mail/0":
            run(store_late(data))
        return begin(data_dir, folder, stack)

    monkeypatch.setattr(backups, "_begin", move_on)
    copy(data, tmp_path / "copy")
    assert seen == ["spool/0", "mail/0", "accounts", "suppression"]
    assert mail_of(tmp_path / "copy")[1][2:] == [b"late"]


async def store_late(data: Path) -> None:
    boxes = Mailboxes(folder_of(data), lambda account: 0)
    await boxes.append(Post(b"", [b"late"], 4, 1.0, [Drop(BOB)]))
    await boxes.close()


def test_holds_that_change_meanwhile_are_read_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, changes, begun = backups._begin, iter("ab"), list[Path]()

    def change_holds(data_dir: Path, folder: Path, stack: ExitStack) -> backups.Snapshot:
        begun.append(folder)
        if (text := next(changes, "")) != "":
            (data / "orders.json").write_text(text)
        (data / "mail" / "logins").write_bytes(os.urandom(4))  # as each login does
        return begin(data_dir, folder, stack)

    monkeypatch.setattr(backups, "_begin", change_holds)
    copy(data, tmp_path / "copy")
    assert (tmp_path / "copy" / "orders.json").read_text() == "b"
    assert len(begun) == 2 * 4  # all snapshots once more
