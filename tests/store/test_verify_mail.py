"""Each kind of damage to mailboxes is found, named and repaired; what is whole stays."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from random import Random
from subprocess import PIPE

import pytest

from fastmta.store import mail_records as records
from fastmta.store import verify
from fastmta.store.env import Databases, Locked, Transaction, open_environment
from fastmta.store.findings import Look, Part
from fastmta.store.mail_ledger import Ledger
from fastmta.store.mail_records import CHUNK, Flags
from fastmta.store.mail_verify import check_mail
from fastmta.store.mailboxes import Mailboxes, folder_of
from fastmta.store.post import Drop, Flagging, Post
from tests.store.test_verify import SEEDS, flip, nothing, taken_out
from tests.support import run

BOB, EVE = "bob@example.test", "eve@example.test"
LARGE = b"4" * 100_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four messages of Bob, of which Eve has the third too, and one in his mailbox "Sent"."""

    async def scenario() -> None:
        boxes = Mailboxes(folder_of(tmp_path / "data"), lambda account: 0)
        for body in (b"1", b"2", b"3", LARGE):
            to = [Drop(BOB, front=b"F: x\r\n")] + ([Drop(EVE)] if body == b"3" else [])
            await boxes.append(Post(b"", [body], len(body), 1.0, to))
        await boxes.append(Post(b"", [b"5"], 1, 1.0, [Drop(BOB, "Sent")]))
        await boxes.close()

    run(scenario())
    return tmp_path / "data"


def stored(data: Path) -> list[tuple[str, str, bytes]]:
    """All mail, as its readers have it; it can be flagged and taken away too."""
    found: list[tuple[str, str, bytes]] = []

    async def scenario() -> None:
        boxes = Mailboxes(folder_of(data), lambda account: 0)
        for account, name in ((BOB, "INBOX"), (BOB, "Sent"), (EVE, "INBOX")):
            try:
                mailbox = await boxes.open(account, name)
            except KeyError:
                continue
            for uid in mailbox.uids:
                pieces: list[bytes] = []
                while more := await boxes.read(mailbox.mailbox, uid, len(pieces)):
                    pieces += more
                found.append((account, name, b"".join(pieces)))
            await boxes.flag(mailbox.mailbox, list(mailbox.uids), Flagging(Flags.SEEN))
        await boxes.close()

    run(scenario())
    return found


FRONT = b"F: x\r\n"
ALL = [
    *((BOB, "INBOX", FRONT + body) for body in (b"1", b"2", b"3", LARGE)),
    (BOB, "Sent", b"5"),
    (EVE, "INBOX", b"3"),
]


def without(*numbers: int) -> list[tuple[str, str, bytes]]:
    return [each for at, each in enumerate(ALL) if at not in numbers]


def damage(data: Path, how: Callable[[Transaction, Databases], object]) -> None:
    env, db = open_environment(folder_of(data), records.DATABASES)
    with env, env.begin(write=True) as txn:
        how(txn, db)


def set_row(database: str, key: bytes, row: bytes | None, txn: Transaction, db: Databases) -> None:
    if row is None:
        assert txn.delete(key, db=db[database])
    else:
        txn.put(key, row, db=db[database])


def look(data: Path) -> Part:
    (part,) = verify.verify(data, nothing)
    return part


def test_what_is_whole_is_found_whole(data: Path) -> None:
    part = look(data)
    assert part.problems == []
    assert (part.counts["mailboxes"], part.counts["messages"], part.counts["bodies"]) == (3, 6, 5)
    assert stored(data) == ALL


INBOX = records.name_key(BOB, "INBOX")
INBOX_ROW = records.pack_mailbox(records.Mailbox(1, 1, 9, 9, 4, 9, 0, 0, 9, 9))
NO_NAME = b"b\xacb@example.test\0INBOX"
NO_UIDS = records.pack_mailbox(records.Mailbox(1, 1, 2, 9, 4, 9, 0, 0, 9, 9))
BODY = records.body_key
STRAY = records.pack_entry(records.Entry(2, 7, 1.0, 1, 1, 0, FRONT, []))
FAR = records.pack_entry(records.Entry(1 << 63, 7, 1.0, 1, 1, 0, FRONT, []))

DAMAGE = [
    # database, key, row, what is told, what is there afterwards, ends of files that are kept
    ("entries", records.entry_key(1, 2), b"\x01short", "message 2 cannot be read", without(1),
     {"mail-0-entry-0000000100000002.row", "mail-0-body-2.eml"}),
    ("entries", records.entry_key(1, 2), None, "counted as 4 messages", without(1),
     {"mail-0-body-2.eml"}),
    ("entries", records.entry_key(7, 2), b"\x01", "messages are in mailbox 7, which is not", ALL,
     {"mail-0-entry-0000000700000002.row"}),
    ("entries", records.entry_key(7, 2), STRAY, "messages are in mailbox 7, which is not", ALL,
     {"mail-0-entry-0000000700000002.row", "mail-0-entry-0000000700000002.json"}),
    ("entries", records.entry_key(1, 2), FAR, f"body {1 << 63} of 1 messages is not", without(1),
     {"mail-0-mailbox-1-2.json", "mail-0-body-2.eml"}),
    ("bodies", BODY(2), None, "body 2 of 1 messages is not there", without(1),
     {"mail-0-mailbox-1-2.eml", "mail-0-mailbox-1-2.json"}),
    ("bodies", BODY(3), None, "body 3 of 2 messages is not there", without(2, 5),
     {"mail-0-mailbox-1-3.json"}),
    ("bodies", BODY(2), b"\x01\x00", "body 2 cannot be read", without(1),
     {"mail-0-mailbox-1-2.json"}),
    ("bodies", BODY(9), records.pack_body(1, b"", (b"x",)), "body 9 is in no mailbox", ALL,
     {"mail-0-body-9.eml"}),
    ("bodies", BODY(1 << 63), records.pack_body(1, b"", (b"x",)), f"body {1 << 63} is in no", ALL,
     {f"mail-0-body-{1 << 63}.eml"}),
    ("entries", records.entry_key(1, 2) + bytes(500), b"x", "of entries is that of nothing", ALL,
     {f"mail-0-0000000100000002{'0' * 177}.row"}),
    ("entries", b"\0", b"x", "row 00 of entries is that of nothing", ALL, {"mail-0-00.row"}),
    ("mailboxes", b"bob", INBOX_ROW, "mailbox 626f62 has no name that can be read", ALL,
     {"mail-0-626f62.row"}),
    ("bodies", bytes(511), b"x", f"row {'00' * 511} of bodies is that of no body", ALL,
     {f"mail-0-{'0' * 193}.row"}),
    ("chunks", b"\0", b"x", "row 00 of chunks is that of nothing", ALL, {"mail-0-00.row"}),
    ("bodies", b"\0", b"x", "row 00 of bodies is that of no body", ALL, {"mail-0-00.row"}),
    ("bodies", b"\1", b"x", "row 01 of bodies is that of no body", ALL, {"mail-0-01.row"}),
    ("bodies", BODY(2), records.pack_body(3, b"", (b"xyz",)), "where the message tells",
     [*ALL[:1], (BOB, "INBOX", FRONT + b"xyz"), *ALL[2:]], set()),
    ("bodies", BODY(2), records.pack_body(1, b"", (b"2",))[:-1] + b"x",
     "body 2: its octets have the checksum", without(1),
     {"mail-0-mailbox-1-2.eml", "mail-0-mailbox-1-2.json"}),
    ("chunks", BODY(4) + bytes(4), LARGE[:CHUNK - 1] + b"x", "body 4: its octets have the checksum",
     without(3), {"mail-0-mailbox-1-4.eml", "mail-0-mailbox-1-4.json"}),
    ("shares", BODY(2), records.pack_count(3), "counted for 3 messages, is in 1", ALL, set()),
    ("shares", BODY(3), None, "counted for 1 messages, is in 2", ALL, set()),
    ("chunks", BODY(9) + bytes(4), b"x", "chunks are left of body 9", ALL, {"mail-0-body-9.eml"}),
    ("chunks", BODY(4) + bytes(4), None, "a part of its octets is missing", without(3),
     {"mail-0-mailbox-1-4.eml", "mail-0-mailbox-1-4.json"}),
    ("mailboxes", INBOX, b"", "its row cannot be read", ALL, set()),
    ("mailboxes", INBOX, INBOX_ROW, "counted as 9 messages of 9", ALL, set()),
    ("mailboxes", INBOX, NO_UIDS, "message 4 is not below the next uid", ALL, set()),
    ("mailboxes", records.name_key(BOB, "Sent"), records.pack_mailbox(records.Mailbox(3, 1, 9, 9)),
     "Sent: counted as 0 messages of 0", ALL, set()),
    ("mailboxes", NO_NAME, INBOX_ROW, "has no name that can be read", ALL,
     {f"mail-0-{NO_NAME.hex()}.row"}),
    ("mailboxes", INBOX, None, "messages are in mailbox 1, which is not there", ALL, set()),
    ("names", records.mailbox_key(1), None, "is not known as its own", ALL, set()),
    ("meta", b"next", None, "the next mailbox is 1, and there are others up to 3", ALL, set()),
    ("meta", b"next", b"\1\x91\1", "the next mailbox is 1, and", ALL, set()),
    ("meta", b"next", b"\1\xff", "the row of the next mailbox cannot be read", ALL, set()),
    ("receipts", b"\0" * 9, b"\1x", "of receipts cannot be read", ALL,
     {f"mail-0-{bytes(9).hex()}.row"}),
]  # fmt: skip


@pytest.mark.parametrize(("database", "key", "row", "told", "left", "files"), DAMAGE)
def test_damage_is_found_and_repaired(
    data: Path,
    database: str,
    key: bytes,
    row: bytes | None,
    told: str,
    left: list[tuple[str, str, bytes]],
    files: set[str],
) -> None:
    damage(data, partial(set_row, database, key, row))
    assert told in " | ".join(look(data).problems)
    assert not (data / "aside").exists()  # a look changes nothing
    (mended,) = verify.repair(data, nothing)
    assert told in " | ".join(mended.problems)
    assert mended.mended
    assert look(data).problems == []
    assert files <= taken_out(data).keys()
    assert bool(files) == bool(taken_out(data))
    assert stored(data) == left
    assert look(data).problems == []


@pytest.mark.parametrize("body", [2, 4])
def test_each_bit_of_a_body_that_is_another_is_found(data: Path, body: int) -> None:
    env, db = open_environment(folder_of(data), records.DATABASES)
    with env:
        with env.begin() as txn:
            row = txn.get(BODY(body), db=db["bodies"])
        for at in range(len(row)):
            with env.begin(write=True) as txn:
                txn.put(BODY(body), flip(at, 1 << at % 8)(row), db=db["bodies"])
            flipped = Look(env, db, folder_of(data) / "data.mdb", lambda done, total: None)
            check_mail(flipped)
            assert flipped.findings, f"octet {at}"


def test_all_bodies_gone_is_found(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        txn.drop(db["bodies"], delete=False)

    damage(data, how)
    assert look(data).found == 6  # five bodies, and the chunks of one
    list(verify.repair(data, nothing))
    assert look(data).problems == []
    assert stored(data) == []
    assert taken_out(data)["mail-0-mailbox-1-4.eml"] == FRONT + LARGE


def test_an_inbox_that_was_lost_counts_for_its_account_again(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        for database, key in (("mailboxes", INBOX), ("names", records.mailbox_key(1))):
            assert txn.delete(key, db=db[database])

    damage(data, how)
    list(verify.repair(data, nothing))
    assert stored(data) == without(0, 1, 2, 3)  # and changes what is left
    assert look(data).problems == []


def test_a_chunk_that_has_another_number_is_kept_once(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        txn.delete(BODY(4) + bytes(4), db=db["chunks"])
        txn.put(BODY(4) + b"\x80\0\0\0", LARGE[:CHUNK], db=db["chunks"])

    damage(data, how)
    assert look(data).problems == ["body 4: a part of its octets is missing"]
    list(verify.repair(data, nothing))
    assert taken_out(data)["mail-0-mailbox-1-4.eml"] == FRONT + LARGE
    assert stored(data) == without(3)


def test_the_suspects_of_one_count_are_looked_at_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmta.store.mail_verify.WINDOW", 2)
    monkeypatch.setattr("fastmta.store.mail_verify.SUSPECTS", 1)
    assert look(data).problems == []
    damage(data, partial(set_row, "bodies", BODY(2), None))
    damage(data, partial(set_row, "shares", BODY(3), None))
    assert len(look(data).problems) == 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_octets_are_others_the_rest_goes_on(data: Path, seed: int) -> None:
    """What is found is repaired for good, and what is left can be read and changed."""
    random = Random(seed)
    file = folder_of(data) / "data.mdb"
    octets = bytearray(file.read_bytes())
    for _ in range(random.randrange(1, 20)):
        octets[random.randrange(2 * 4096, len(octets))] ^= random.randrange(1, 256)
    file.write_bytes(octets)
    found = look(data).problems
    (mended,) = verify.repair(data, nothing)
    assert bool(found) == bool(mended.mended)
    assert look(data).problems == []
    assert len(stored(data)) <= len(ALL)
    assert look(data).problems == []


# Opens the mailboxes below a folder, says so, and has them until it is told to end.
COMMAND = """
import sys
from pathlib import Path
from fastmta.store import mail_records
from fastmta.store.env import open_environment
env, _ = open_environment(Path(sys.argv[1]), mail_records.DATABASES)
print(flush=True)
sys.stdin.read()
"""


def test_a_file_that_a_command_has_open_is_not_made_anew(data: Path) -> None:
    """What it stores would be in the broken file."""
    folder = folder_of(data)
    arguments = [sys.executable, "-c", COMMAND, str(folder)]
    with subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        command.stdout.readline()
        octets = (folder / "data.mdb").read_bytes()
        (folder / "data.mdb").write_bytes(octets[:-PAGESIZE])  # the file it has, cut
        with pytest.raises(Locked):
            list(verify.repair(data, nothing))
        assert not (data / "aside").exists()
        command.stdin.close()
    (mended,) = verify.repair(data, nothing)
    assert "is kept as" in mended.mended[0]


class Busy(Look):
    """Mail is taken away just when all owners of bodies have been counted."""

    is_done = False

    def rows(self, database: str, start: bytes = b"") -> Iterator[tuple[Transaction, bytes, bytes]]:
        yield from super().rows(database, start)
        if database == "entries" and not self.is_done:
            self.is_done = True
            with self.env.begin(write=True) as txn:
                ledger = Ledger(txn, self.db)
                name, mailbox = ledger.open(1)
                gone, octets = ledger.delete_entries(name, mailbox, [1, 3])
                ledger.touch(name, mailbox)
                ledger.count(name, mailbox, -len(gone), -octets)
                ledger.write()


def test_mail_that_goes_meanwhile_is_no_false_alarm(data: Path) -> None:
    env, db = open_environment(folder_of(data), records.DATABASES)
    with env:
        busy = Busy(env, db, folder_of(data) / "data.mdb", lambda done, total: None)
        check_mail(busy)
        assert busy.is_done
        assert busy.findings == []
    assert stored(data) == without(0, 2)
