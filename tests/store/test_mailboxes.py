"""The mailbox store: what is delivered, read, taken away, and known after a crash."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import pytest

from fastmta._core.mime import Node
from fastmta._core.mime_pack import unpack
from fastmta.store import env as store_env
from fastmta.store import mail_changes
from fastmta.store import mail_records as records
from fastmta.store.env import LONGEST_KEY
from fastmta.store.mail_changes import Added, Expunged, Flagged
from fastmta.store.mail_records import Flags
from fastmta.store.mailbox_lock import MailboxLock
from fastmta.store.mailboxes import FILE, Mailboxes
from fastmta.store.post import Drop, Flagging, Post, Refused, Stored
from fastmta.store.records import CHUNK, Unreadable
from tests.store.test_env import break_meta_page
from tests.store.whole import problems
from tests.support import run, until

BOB, ALICE = "bob@example.test", "alice@example.test"


def no_quota(account: str) -> int:
    return 0


@asynccontextmanager
async def mailboxes(
    folder: Path, quota_of: Callable[[str], int] = no_quota
) -> AsyncIterator[Mailboxes]:
    opened = Mailboxes(folder / "mail", quota_of)
    try:
        yield opened
    finally:
        await opened.close()


def post(body: bytes, *to: Drop | str, receipt: bytes = b"") -> Post:
    drops = [Drop(each) if isinstance(each, str) else each for each in to]
    return Post(receipt, [body], len(body), 1.5, drops)


def receipt(number: int, shard: int = 3) -> bytes:
    return bytes([shard]) + number.to_bytes(10)


async def read(box: Mailboxes, mailbox: int, uid: int) -> bytes:
    pieces: list[bytes] = []
    while more := await box.read(mailbox, uid, len(pieces)):
        pieces += more
    return b"".join(pieces)


async def contents(box: Mailboxes, account: str, mailbox: str = "INBOX") -> list[bytes]:
    """Of each message of a mailbox; their sizes are as it says."""
    snapshot = await box.open(account, mailbox)
    found = [await read(box, snapshot.mailbox, uid) for uid in snapshot.uids]
    assert [len(each) for each in found] == list(snapshot.sizes)
    return found


def count(box: Mailboxes, database: str) -> int:
    """Rows."""
    return box._env.read_now(lambda txn, db: int(txn.stat(db[database])["entries"]))


def damage(box: Mailboxes, database: str, key: bytes, row: bytes | None) -> None:
    with box._env._env.begin(write=True) as txn:
        if row is None:
            assert txn.delete(key, db=box._env._db[database])
            return
        assert txn.replace(key, row, db=box._env._db[database]) is not None


async def rows(folder: Path) -> dict[str, int]:
    """What is left of the databases that are not empty, once they are closed."""
    async with mailboxes(folder) as box:
        found = {name: count(box, name) for name in records.DATABASES}
        return {name: number for name, number in found.items() if number}


def test_a_message_is_delivered_and_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            (first,) = await box.append(post(b"hello", Drop(BOB, front=b"Delivered-To: bob\r\n")))
            (second,) = await box.append(post(b"", BOB))
            assert isinstance(first, Stored) and isinstance(second, Stored)
            assert (first.uid, second.uid) == (1, 2)
            snapshot = await box.open(BOB)
            assert (list(snapshot.uids), list(snapshot.sizes)) == ([1, 2], [24, 0])
            assert snapshot.uidvalidity == first.uidvalidity and snapshot.uidnext == 3
            assert await box.read(snapshot.mailbox, 1) == [b"Delivered-To: bob\r\n", b"hello"]
            assert await box.read(snapshot.mailbox, 1, 1) == [b"hello"]
            assert await box.read(snapshot.mailbox, 1, 2) == []
            assert await contents(box, BOB) == [b"Delivered-To: bob\r\nhello", b""]
            assert box.usage(BOB) == (2, 24)

    run(scenario())


def test_a_row_with_the_longest_name_is_moved_aside_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        name = "x" * (LONGEST_KEY - len(BOB) - 1)
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"one", Drop(BOB, name)))
            damage(box, "mailboxes", records.name_key(BOB, name), b"\xff")
            await box.append(post(b"two", Drop(BOB, name)))
            assert await contents(box, BOB, name) == [b"one", b"two"]
            assert count(box, "aside") == 1

    run(scenario())


@pytest.mark.parametrize("row", [b"", b"\1\xff"], ids=["lost", "unreadable"])
def test_nobody_gets_the_number_of_another(tmp_path: Path, row: bytes) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"one", BOB))
            with box._env._env.begin(write=True) as txn:
                txn.delete(b"next", db=box._env._db["meta"])
                if row:
                    txn.put(b"next", row, db=box._env._db["meta"])
            await box.append(post(b"two", ALICE))
            assert await contents(box, BOB) == [b"one"]
            assert await contents(box, ALICE) == [b"two"]

    run(scenario())


def test_figures_stand_while_the_files_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise lmdb.DiskError("planted")

    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"x" * CHUNK, BOB))
            before = FILE.sample()
            with monkeypatch.context() as broken:
                broken.setattr(store_env, "open_environment", refuse)
                break_meta_page(tmp_path / "mail")
                with pytest.raises(lmdb.Error):
                    await box.append(post(b"y", BOB))
                assert FILE.sample() == before  # a scrape goes on
            with pytest.raises(lmdb.Error):
                await box.append(post(b"y", BOB))
            await box.append(post(b"y", BOB))

    run(scenario())


@pytest.mark.parametrize(
    "size", [records.MOST_INLINE, records.MOST_INLINE + 1, 2 * CHUNK, 3_000_000]
)
def test_a_large_message_comes_in_pieces(tmp_path: Path, size: int) -> None:
    async def scenario() -> None:
        body = bytes(range(251)) * (size // 251 + 1)
        async with mailboxes(tmp_path) as box:
            await box.append(post(body[:size], Drop(BOB, front=b"A: b\r\n")))
            assert await contents(box, BOB) == [b"A: b\r\n" + body[:size]]
            snapshot = await box.open(BOB)
            assert sum(map(len, await box.read(snapshot.mailbox, 1))) < 1_200_000
            await box.expunge(snapshot.mailbox, [1])
            assert [count(box, name) for name in ("entries", "bodies", "chunks")] == [0, 0, 0]

    run(scenario())


def test_pieces_are_as_large_as_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"x" * 10 * CHUNK, BOB))
            mailbox = (await box.open(BOB)).mailbox
            assert list(map(len, await box.read(mailbox, 1, 0, CHUNK))) == [0, CHUNK]
            assert list(map(len, await box.read(mailbox, 1, 2, 3 * CHUNK))) == [CHUNK] * 3
            assert list(map(len, await box.read(mailbox, 1, 10, 3 * CHUNK))) == [CHUNK]
            assert await box.read(mailbox, 1, 11, CHUNK) == []

    run(scenario())


def test_several_messages_are_read_in_one_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            large = b"y" * 3 * CHUNK
            for body in (b"one", large, b"three", b"four"):
                await box.append(post(body, Drop(BOB, front=b"front\r\n")))
            mailbox = (await box.open(BOB)).mailbox
            await box.expunge(mailbox, [3])
            damage(box, "entries", records.entry_key(mailbox, 4), b"?")
            found = await box.read_several(mailbox, [2, 3, 1, 4])
            assert [one if isinstance(one, bytes) else type(one) for one in found] == [
                b"front\r\n" + large,
                KeyError,
                b"front\r\none",
                Unreadable,
            ]
            assert await box.read_several(mailbox, []) == []
            assert await contents(box, BOB) == [b"front\r\none", b"front\r\n" + large]

    run(scenario())


def test_a_message_for_several_is_stored_once_and_freed_with_the_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        accounts = [f"u{number}@example.test" for number in range(3)]
        async with mailboxes(tmp_path) as box:
            drops = [Drop(each, front=each.encode()) for each in accounts]
            assert await box.append(post(b"all" * 20_000, *drops))
            assert [count(box, name) for name in ("entries", "bodies", "shares")] == [3, 1, 1]
            for left, account in zip((2, 1, 0), accounts, strict=True):
                assert await contents(box, account) == [account.encode() + b"all" * 20_000]
                await box.expunge((await box.open(account)).mailbox, [1])
                assert count(box, "entries") == left
                assert count(box, "bodies") == (left > 0)
                assert count(box, "shares") == (left > 1)
                assert box.usage(account) == (0, 0)
            assert count(box, "chunks") == 0

    run(scenario())


def test_a_receipt_keeps_a_message_from_being_stored_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        mail = post(b"once", BOB, ALICE, receipt=receipt(7))
        async with mailboxes(tmp_path) as box:
            outcomes = await box.append(mail)
            assert await box.append(mail) == outcomes
        async with mailboxes(tmp_path) as box:  # as after a crash before the spool had settled it
            assert box.receipts(2) == []
            assert box.receipts(3) == [receipt(7)]
            assert await box.append(mail) == outcomes
            assert await contents(box, BOB) == [b"once"]
            box.forget(receipt(7))
        assert "receipts" not in await rows(tmp_path)

    run(scenario())


def test_what_was_refused_has_no_receipt(tmp_path: Path) -> None:
    async def scenario() -> None:
        quota = {BOB: 0, ALICE: 10}
        mail = post(b"a" * 20, BOB, ALICE, receipt=receipt(1))
        async with mailboxes(tmp_path, quota.__getitem__) as box:
            first = await box.append(mail)
            assert first[1] is Refused.OVER_QUOTA
            quota[ALICE] = 20
            again = await box.append(post(b"a" * 20, ALICE, receipt=receipt(1)))
            assert isinstance(again[0], Stored)
            assert await box.append(mail) == [first[0], again[0]]
            assert await contents(box, BOB) == await contents(box, ALICE) == [b"a" * 20]
            box.forget(receipt(1))
        assert "receipts" not in await rows(tmp_path)

    run(scenario())


def test_receipts_of_one_commit_share_a_row_until_the_last_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            posts = [post(b"x", BOB, receipt=receipt(number)) for number in range(5)]
            await asyncio.gather(*map(box.append, posts))
            assert count(box, "receipts") == 1
            for number in range(4):
                box.forget(receipt(number))
        assert (await rows(tmp_path))["receipts"] == 1
        async with mailboxes(tmp_path) as box:
            assert len(box.receipts(3)) == 5
            for number in range(5):
                box.forget(receipt(number))
        assert "receipts" not in await rows(tmp_path)

    run(scenario())


def test_a_commit_that_came_through_and_is_said_to_have_failed_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = store_env.Environment._commit
    faults = [True, False, True, False]

    def late_error(self: store_env.Environment, batch: list[object]) -> None:
        commit(self, batch)
        if faults and faults.pop(0):
            raise lmdb.DiskError("planted")

    monkeypatch.setattr(store_env.Environment, "_commit", late_error)

    async def scenario() -> None:
        posts = [post(b"%d" % number, BOB, receipt=receipt(number)) for number in range(3)]
        async with mailboxes(tmp_path) as box:
            results = await asyncio.gather(*map(box.append, posts), return_exceptions=True)
            assert all(isinstance(each, lmdb.Error) for each in results)
            await asyncio.gather(*map(box.append, posts[:2]))
            with pytest.raises(lmdb.Error):
                await box.append(post(b"new", BOB, receipt=receipt(9)))
            await box.append(post(b"new", BOB, receipt=receipt(9)))
            assert await contents(box, BOB) == [b"0", b"1", b"2", b"new"]
            for number in (0, 1, 9):
                box.forget(receipt(number))
            await box.append(posts[2])
            assert len(await contents(box, BOB)) == 4
            box.forget(receipt(2))
        assert "receipts" not in await rows(tmp_path)

    run(scenario())


def test_deletes_are_all_or_none_and_uids_are_never_used_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await asyncio.gather(*(box.append(post(b"%d" % n, BOB)) for n in range(6)))
            snapshot = await box.open(BOB)
            await box.expunge(snapshot.mailbox, [2, 4, 6, 99])
            assert await contents(box, BOB) == [b"0", b"2", b"4"]
            with pytest.raises(KeyError):
                await box.read(snapshot.mailbox, 4)
            with pytest.raises(KeyError):
                await box.expunge(snapshot.mailbox + 1, [1])
            (stored,) = await box.append(post(b"new", BOB))
            assert isinstance(stored, Stored) and stored.uid == 7
            assert box.usage(BOB) == (4, 6)

    run(scenario())


def test_inbox_is_there_and_others_have_to_be_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            empty = await box.open(BOB)
            assert (len(empty), empty.uidnext) == (0, 1)
            assert (await box.open(BOB, "inbox")).mailbox == empty.mailbox
            with pytest.raises(KeyError):
                await box.open(BOB, "Sent")
            await box.append(post(b"12345", Drop(BOB, "Sent", flags=Flags.SEEN)))
            sent = await box.open(BOB, "Sent")
            assert sent.mailbox != empty.mailbox and sent.uidvalidity > empty.uidvalidity
            assert box.usage(BOB) == (1, 5)

    run(scenario())


def test_a_lock_is_one_session_s_also_across_processes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            assert box.lock.take(BOB)
            assert not box.lock.take(BOB)
            assert box.lock.take(ALICE)
            other = MailboxLock(tmp_path / "mail" / "sessions.lock")  # another open file
            assert not other.take(BOB)
            box.lock.release(BOB)
            assert other.take(BOB)
            assert not box.lock.take(BOB)
            other.close()
            assert box.lock.take(BOB)

    run(scenario())


def test_who_follows_hears_of_changes_through_another_environment(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard: list[str] = []
        async with mailboxes(tmp_path) as box:
            bob, alice = await box.open(BOB), await box.open(ALICE)
            end = box.follow(bob.mailbox, lambda: heard.append("bob"))
            box.follow(alice.mailbox, lambda: heard.append("alice"))
            await box.append(post(b"1", BOB))
            await until(lambda: heard)
            assert heard == ["bob"]
            changes = await box.changes(bob.mailbox, bob.modseq)
            assert (changes.uidnext, changes.messages) == (2, 1)
            end()
            await box.append(post(b"2", BOB, ALICE))
            await until(lambda: len(heard) > 1)
            assert heard == ["bob", "alice"]

    run(scenario())


def test_flags_and_keywords_change_and_changes_tell_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await asyncio.gather(*(box.append(post(b"%d" % n, BOB)) for n in range(5)))
            start = await box.open(BOB)
            mailbox = start.mailbox
            seen = await box.flag(mailbox, [4, 2, 3], Flagging(set=Flags.SEEN))
            assert seen == (start.modseq + 1, [])
            again = await box.flag(mailbox, [2, 3], Flagging(set=Flags.SEEN))
            assert again.modseq == seen.modseq  # nothing was changed
            await box.flag(mailbox, [3], Flagging(clear=Flags.SEEN, set_keywords=("$Junk",)))
            late = Flagging(replace=True, set=Flags.DELETED, unchanged_since=seen.modseq)
            assert (await box.flag(mailbox, [2, 3], late)).modified == [3]
            await box.expunge(mailbox, [2])
            await box.append(post(b"new", Drop(BOB, flags=Flags.DRAFT, keywords=("a", "b"))))
            told = await box.changes(mailbox, start.modseq)
            assert told.changes == [
                Added(((6, 6),)),
                *(Flagged(((2, 4),)), Flagged(((3, 3),)), Flagged(((2, 2),))),
                Expunged(((2, 2),)),
            ]
            assert (await box.changes(mailbox, told.modseq)).changes == []
            entries = dict(await box.entries(mailbox))
            assert [(uid, e.flags, e.keywords) for uid, e in entries.items()] == [
                *((1, 0, []), (3, 0, ["$Junk"]), (4, 1, []), (5, 0, []), (6, 16, ["a", "b"])),
            ]
            assert await box.entries(mailbox, 6) == []

    run(scenario())


def test_the_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_changes, "HISTORY", 3)

    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"x", BOB))
            start = await box.open(BOB)
            for number in range(5):
                flags = Flagging(set=Flags.SEEN) if number % 2 else Flagging(clear=Flags.SEEN)
                await box.flag(start.mailbox, [1], Flagging(set_keywords=(str(number),)))
                await box.flag(start.mailbox, [1], flags)
            assert count(box, "changes") == 3
            now = (await box.open(BOB)).modseq
            assert (await box.changes(start.mailbox, start.modseq)).changes is None
            assert len((await box.changes(start.mailbox, now - 3)).changes or ()) == 3
            await box.append(post(b"x", BOB))
            monkeypatch.setattr(mail_changes, "CHUNK", 4)  # what is longer is not kept
            now = (await box.flag(start.mailbox, [1, 2], Flagging(set=Flags.FLAGGED))).modseq
            assert count(box, "changes") == 0
            assert (await box.changes(start.mailbox, now - 1)).changes is None
            assert (await box.changes(start.mailbox, now)).changes == []

    run(scenario())


def test_the_structure_is_kept_and_fits_every_recipient(tmp_path: Path) -> None:
    async def scenario() -> None:
        mail = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b--\r\n"
        for body in (mail, mail + b"x" * 100_000):
            async with mailboxes(tmp_path) as box:
                fronts = [b"Delivered-To: bob\r\n", b"", b"A: b\r\n"]
                to = [Drop(BOB, front=front) for front in fronts]
                outcomes = await box.append(post(body, *to))
                mailbox = (await box.open(BOB)).mailbox
                for front, stored in zip(fronts, outcomes, strict=True):
                    assert isinstance(stored, Stored)
                    packed, before = await box.structure(mailbox, stored.uid)
                    root = unpack(packed, front + body, Node, before)
                    assert [part.data[part.body_start : part.end] for part in root.parts] == [
                        b"one"
                    ]

    run(scenario())


@pytest.mark.parametrize("lost", [0, 3, 19, 99])
@pytest.mark.parametrize("size", [100, 20])
def test_a_message_that_has_lost_a_part_is_not_given_for_a_whole_one(
    tmp_path: Path, size: int, lost: int
) -> None:
    """It may be longer than what one look gives, or not."""

    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await box.append(post(b"x" * (size * CHUNK - 1), BOB))
            mailbox = (await box.open(BOB)).mailbox
            chunk = min(lost, size - 1)
            damage(box, "chunks", records.body_key(1) + chunk.to_bytes(4), None)
            pieces = 0
            with pytest.raises(Unreadable):
                while more := await box.read(mailbox, 1, pieces):
                    pieces += len(more)
            (begin,) = await box.read_several(mailbox, [1])
            assert isinstance(begin, Unreadable) == (chunk < 20)
            assert list((await box.open(BOB)).uids) == [1]  # for a repair to keep what there is

    run(scenario())


def test_what_cannot_be_read_is_moved_aside(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            await asyncio.gather(*(box.append(post(b"%d" % n, BOB)) for n in range(4)))
            snapshot = await box.open(BOB)
            mailbox = snapshot.mailbox
            damage(box, "entries", records.entry_key(mailbox, 2), b"\x09broken")
            damage(box, "bodies", records.body_key(3), b"\x01\x00")
            assert list((await box.open(BOB)).uids) == [1, 3, 4]
            with pytest.raises(Unreadable):
                await box.read(mailbox, 3)
            await until(lambda: count(box, "aside") == 3)
            assert list((await box.open(BOB)).uids) == [1, 4]
            assert box.usage(BOB).messages == 2
            told = await box.changes(mailbox, snapshot.modseq)
            assert told.changes == [Expunged(((2, 2),)), Expunged(((3, 3),))]

    run(scenario())


@pytest.mark.parametrize("name", ["INBOX", "Sent"])
@pytest.mark.parametrize("first", ["deliver", "open", "usage", "flag"])
def test_a_mailbox_whose_row_is_damaged_is_made_anew(tmp_path: Path, name: str, first: str) -> None:
    async def scenario() -> None:
        async with mailboxes(tmp_path) as box:
            for place in ("INBOX", "Sent"):
                await asyncio.gather(
                    *(box.append(post(b"%d" % n, Drop(BOB, place))) for n in (1, 2, 3))
                )
            before = await box.open(BOB, name)
            await box.expunge(before.mailbox, [2])
            known = (await box.flag(before.mailbox, [1], Flagging(set=Flags.SEEN))).modseq
            damage(box, "mailboxes", records.name_key(BOB, name), b"\x09broken")
            if first == "deliver":
                await asyncio.gather(
                    box.append(post(b"4", ALICE, Drop(BOB, name))), box.append(post(b"x", ALICE))
                )
                assert sorted(await contents(box, ALICE)) == [b"4", b"x"]
            elif first == "usage":
                box.usage(BOB)
                await until(lambda: box.usage(BOB).messages)
            elif first == "flag":
                await box.flag(before.mailbox, [1], Flagging(set=Flags.FLAGGED))
            after = await box.open(BOB, name)
            assert after.uidvalidity > before.uidvalidity and after.mailbox == before.mailbox
            assert (await contents(box, BOB, name))[:2] == [b"1", b"3"]
            new = first == "deliver"
            assert list(after.uids) == [1, 3, 4][: 2 + new] and after.uidnext == 4 + new
            assert after.modseq > known
            assert (await box.changes(after.mailbox, known)).changes is None
            assert box.usage(BOB) == (5 + new, 5 + new)
            assert count(box, "aside") == 1
        assert problems(tmp_path / "mail") == []

    if not (first == "usage" and name == "Sent"):  # nobody asks for its row there
        run(scenario())


# Written by the first release with mailboxes; a later one has to read it as well.
OLD = Path(__file__).parent / "data" / "mailboxes.mdb.gz"


def test_what_an_older_release_has_written_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "mail").mkdir()
        (tmp_path / "mail" / "data.mdb").write_bytes(gzip.decompress(OLD.read_bytes()))
        async with mailboxes(tmp_path) as box:
            found = [(account, name) async for account, name, _ in box.names()]
            assert found == [(ALICE, "INBOX"), *((BOB, name) for name in ("INBOX", "Old", "Sent"))]
            inbox = await box.open(BOB)
            assert (inbox.uidvalidity, inbox.uidnext, inbox.modseq) == (1795446358, 5, 7)
            assert (list(inbox.uids), list(inbox.sizes)) == ([1, 2, 3], [149, 171, 68017])
            assert box.usage(BOB) == (5, 149 + 171 + 68017 + 17 + 15)
            first, shared, long = await contents(box, BOB)
            front = b"Return-Path: <a@b.test>\r\nDelivered-To: bob@example.test\r\n"
            assert first.startswith(front + b"Subject: parts\r\n")
            assert await contents(box, ALICE) == [shared.replace(b"bob@", b"alice@")]
            assert long.endswith(b"0123456789ABCDE\r\n" * 4000)
            packed, before = await box.structure(inbox.mailbox, 1)
            parts = unpack(packed, first, Node, before).parts
            assert [first[part.body_start : part.end] for part in parts] == [b"one", b"two"]
            ((_, entry),) = await box.entries((await box.open(ALICE)).mailbox)
            assert (entry.flags, entry.keywords) == (Flags.SEEN, ["$Junk", "später"])
            assert entry.date == 1_700_000_002.5
            told = await box.changes(inbox.mailbox, 1)
            assert told.changes == [
                *(Added(((1, 4),)), Flagged(((1, 1), (3, 3))), Expunged(((4, 4),))),
            ]
            assert box.receipts(3) == [receipt(3)]
            assert box.progress(b"source") == b"\x01after"
            await box.append(post(b"new", BOB))
            assert (await contents(box, BOB))[-1] == b"new"
        assert problems(tmp_path / "mail") == []

    run(scenario())
