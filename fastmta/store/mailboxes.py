"""The mailboxes of all accounts: one LMDB environment that all workers and commands have open.

What is always true:
- `deliver` calls back only after the synced commit that holds the message in all its mailboxes;
- what has a receipt is stored once for each recipient, however often it is delivered;
- a message for several recipients is stored once;
- a uid is never used again in a mailbox, and every change has a higher modseq than those before;
- each transaction is one process's: others see it whole or not at all.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import lmdb

from fastmta import metrics
from fastmta._core.mime_pack import pack
from fastmta.store import mail_reading
from fastmta.store import mail_records as records
from fastmta.store.env import MAP_SIZE, Databases, Environment, Meters, Transaction
from fastmta.store.gather import Gather
from fastmta.store.mail_changes import Changes, read_changes
from fastmta.store.mail_follow import Followers
from fastmta.store.mail_operations import (
    Deliver,
    Expunge,
    Flag,
    ForgetImport,
    Make,
    MoveAside,
    Waited,
    apply,
)
from fastmta.store.mail_reading import Page, Snapshot, Usage
from fastmta.store.mail_receipts import DropReceipts, Receipts, read_receipts
from fastmta.store.mail_records import INBOX, MOST_STRUCTURE, Entry, Mailbox, name_key
from fastmta.store.mailbox_lock import MailboxLock
from fastmta.store.post import Done, Flagging, FlagResult, Outcome, Post, Step
from fastmta.store.records import Unreadable
from fastmta.store.rows import READ_OCTETS

log = logging.getLogger(__name__)

METERS = Meters("mail")
FILE = metrics.gauge("fastmta_mail_file_bytes", "Size of the mailboxes' file in use", combine="max")
MAP = metrics.gauge(
    "fastmta_mail_map_bytes", "Size that the mailboxes' file may grow to", combine="max"
)
PARSE_NOW = 1 << 16  # octets of a message that is parsed on the loop, within 0.1 ms
KEEP_INTERVAL = 2.0  # seconds after which pages are given back, and dead readers forgotten


class Mailboxes:
    """The mailboxes as a worker or a command has them open, bound to the running loop.

    lmdb.Error where a look at the disk fails. A mailbox's id is never used again.
    """

    def __init__(self, folder: Path, quota_of: Callable[[str], int]) -> None:
        """Open `folder` (`data_dir/mail/0`), making it if need be.

        `quota_of` gives the octets that an account may have, 0 for any number. It is called on
        the loop, for each drop of a delivery.
        """
        self._env = Environment(folder, records.DATABASES, apply, shared=True, meters=METERS)
        self._gather = Gather(self._env)
        self._receipts = Receipts()
        self._quota_of = quota_of
        self._followers = Followers(self._env)
        self._loop = asyncio.get_running_loop()
        self._size = 0.0  # octets of the file
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="store-parser")
        self._parsing: set[asyncio.Future[bytes]] = set()
        self.lock = MailboxLock(folder / "sessions.lock")
        self._env.forget_dead_readers()
        FILE.read, MAP.read = self._octets, lambda: float(MAP_SIZE)
        self._keeper = asyncio.ensure_future(self._keep())

    def _octets(self) -> float:
        """Of all workers: they have the same file. Where the disk fails, the last figure stands."""
        with suppress(lmdb.Error):
            self._size = self._env.glance(self._measure) or self._size
        return self._size

    def _measure(self, txn: Transaction, db: Databases) -> float:
        page: int = txn.stat(next(iter(db.values())))["psize"]
        return float(self._env.last_page() * page)

    # Mail comes in

    def deliver(self, post: Post, done: Done) -> None:
        """Put a message into mailboxes, in one synced transaction that it may share with others.

        `done` is called on the loop after the commit with an outcome for each of `post.to`, in
        their order; drops that are refused do not keep others from being stored. It is called
        with an Exception where nothing of this is known to be stored: the disk failed. Then the
        same post, with its receipt, may be delivered again: what was stored after all is not
        stored twice.

        ValueError, at once, for what can never be stored: an account or mailbox whose name is too
        long, or a `front` above 65,535 octets.
        """
        quotas = [self._quota_of(drop.account) for drop in post.to]
        operation = Deliver(post, quotas, self._receipts, done)
        if post.size <= PARSE_NOW:
            operation.structure = structure_of(post)
            self._env.submit(operation)
            return
        parsed = self._loop.run_in_executor(self._parser, structure_of, post)
        self._parsing.add(parsed)
        parsed.add_done_callback(partial(self._submit, operation))

    def _submit(self, operation: Deliver, parsed: "asyncio.Future[bytes]") -> None:
        self._parsing.discard(parsed)
        if error := parsed.exception():  # there was no memory for it
            log.error("a message could not be parsed: %s", error)
        else:
            operation.structure = parsed.result()
        self._env.submit(operation)

    def forget(self, receipt: bytes) -> None:
        """The spool has settled this envelope for good: nobody delivers it again.

        Causes no commit; what the disk still has of it is told by `receipts` at the next start.
        """
        for row in self._receipts.forget(receipt):
            self._env.submit_lazily(DropReceipts(row))

    def receipts(self, shard: int) -> list[bytes]:
        """The receipts of a spool shard that are there, for its owner's start; a short read, now.

        To be called before the first `deliver` of an envelope of that shard: it also tells this
        process what is stored already. `forget` those whose envelope the spool no longer has.
        """
        found: dict[bytes, None] = {}  # one whose recipients came at two times is in two rows
        for key, row in self._env.read_now(partial(read_receipts, shard)):
            try:
                found.update(dict.fromkeys(self._receipts.load(key, row)))
            except Unreadable as error:
                log.error("a row of receipts cannot be read: %s: %s", key.hex(), error)
                self._env.submit_lazily(DropReceipts(key, keep=True))
        return list(found)

    async def append(self, post: Post) -> list[Outcome]:
        """As `deliver`, for who waits: IMAP's APPEND, import. Raises what failed."""
        told: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

        def done(result: list[Outcome] | Exception) -> None:
            if told.done():
                return
            if isinstance(result, Exception):
                told.set_exception(result)
            else:
                told.set_result(result)

        self.deliver(post, done)
        return await told

    def take_in(self, post: Post, step: Step, done: Done) -> None:
        """As `deliver`, for an import: in the order of the calls, and without a quota.

        `step` is in the same transaction. `done` gets OutOfStep where it does not follow what is
        stored of the import: then the message is not stored.
        """
        operation = Deliver(post, [0] * len(post.to), self._receipts, done)
        operation.step, operation.structure = step, structure_of(post)
        self._env.submit(operation)

    def progress(self, source: bytes) -> bytes | None:
        """The last `step.after` of an import; a short read, now."""
        return self._env.read_now(lambda txn, db: txn.get(source, db=db["imports"]))

    async def forget_progress(self, source: bytes) -> None:
        """An import is to begin anew."""
        await self._do(ForgetImport(source))

    def usage(self, account: str) -> Usage:
        """What an account has, for its quota; a short read, now."""
        key = name_key(account, INBOX)
        try:
            mailbox = self._env.read_now(partial(mail_reading.get_mailbox, key))
        except Unreadable:
            make = Make(key)
            make.done.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._env.submit(make)
            return Usage(0, 0)  # `deliver` looks once more
        return Usage(mailbox.all_messages, mailbox.all_octets) if mailbox else Usage(0, 0)

    # Mail is read

    async def open(self, account: str, mailbox: str = INBOX) -> Snapshot:
        """A mailbox with its messages, read off the loop in pages; INBOX is made if need be.

        KeyError if there is no such mailbox. Messages that cannot be read are moved aside.
        """
        key = name_key(account, mailbox)
        page = await self._page(key, 0)
        if page is None and key == name_key(account, INBOX):
            await self._do(Make(key))
            page = await self._page(key, 0)
        if page is None:
            raise KeyError(mailbox)
        first, uids, sizes = page.mailbox, page.uids, page.sizes
        while page is not None and page.after:
            page = await self._page(key, page.after)
            if page is not None and page.mailbox.id == first.id:
                uids += page.uids
                sizes += page.sizes
        return Snapshot(first.id, first.uidvalidity, first.uidnext, first.modseq, uids, sizes)

    async def _page(self, key: bytes, after: int) -> Page | None:
        look = partial(mail_reading.read_page, key, after)
        try:
            page = await self._gather.look(look)
        except Unreadable:
            await self._do(Make(key))
            page = await self._gather.look(look)
        if page is not None:
            for uid in page.unreadable:
                log.error("message %d of mailbox %d cannot be read", uid, page.mailbox.id)
                self._env.submit(MoveAside(page.mailbox.id, uid))
        return page

    async def read(
        self, mailbox: int, uid: int, first: int = 0, octets: int = READ_OCTETS
    ) -> list[bytes]:
        """A message in pieces from piece number `first` on, about `octets`; [] at the end.

        Piece 0 is what stands in front, and may be empty. A message of up to 32 KiB comes whole at
        the first call; who has as many octets as the Snapshot told need not ask again. Reads that
        are asked for at a time share a transaction.

        KeyError if the message is gone; Unreadable if it is damaged: then it is moved aside.
        """
        look = partial(mail_reading.read_message, mailbox, uid, first, octets)
        try:
            return await self._gather.look(look)
        except Unreadable as error:
            self._move_aside(mailbox, uid, error)
            raise

    async def read_several(self, mailbox: int, uids: Sequence[int]) -> list[bytes | Exception]:
        """Messages of up to a mebibyte, each whole, in one look; or what `read` raises."""
        found = await self._gather.look(partial(mail_reading.read_messages, mailbox, uids))
        for uid, one in zip(uids, found, strict=True):
            if isinstance(one, Unreadable):
                self._move_aside(mailbox, uid, one)
        return found

    def _move_aside(self, mailbox: int, uid: int, error: Unreadable) -> None:
        log.error("message %d of mailbox %d cannot be read: %s", uid, mailbox, error)
        self._env.submit(MoveAside(mailbox, uid))

    async def expunge(self, mailbox: int, uids: Sequence[int]) -> None:
        """Take messages away: all or none, durable when it returns.

        Those that are gone already are no fault. KeyError if there is no such mailbox.
        """
        await self._do(Expunge(mailbox, uids))

    async def structure(self, mailbox: int, uid: int) -> tuple[bytes, int]:
        """The tree of a message's parts as `_core.mime_pack.unpack` takes it, and its `before`.

        Empty where the message has too many parts for it to be kept. KeyError if it is gone.
        """
        return await self._gather.look(partial(mail_reading.read_structure, mailbox, uid))

    async def entries(self, mailbox: int, after: int = 0) -> list[tuple[int, Entry]]:
        """Uids and entries behind uid `after`, a page of them; [] at the end.

        What cannot be read is left out.
        """
        return await self._gather.look(partial(mail_reading.read_entries, mailbox, after))

    async def flag(self, mailbox: int, uids: Sequence[int], flagging: Flagging) -> FlagResult:
        """Change flags and keywords; durable when it returns.

        Messages that are gone are no fault. KeyError if there is no such mailbox.
        """
        operation = Flag(mailbox, uids, flagging)
        await self._do(operation)
        return FlagResult(operation.modseq, operation.modified)

    async def _do(self, operation: Waited) -> None:
        self._env.submit(operation)
        await operation.done

    async def names(self, account: str = "") -> AsyncIterator[tuple[str, str, Mailbox | None]]:
        """Account, name and row of each mailbox, of one account or all; None if it is damaged."""
        start = after = f"{account}\0".encode() if account else b""
        while page := await self._gather.look(partial(mail_reading.read_mailboxes, after)):
            for key, mailbox in page:
                if not key.startswith(start):
                    return
                yield (*records.split_name(key), mailbox)
            after = page[-1][0] + b"\0"

    # What others do

    async def changes(self, mailbox: int, since: int) -> Changes:
        """What happened in a mailbox behind the modseq `since`; KeyError if there is none."""
        return await self._gather.look(partial(read_changes, mailbox, since))

    def follow(self, mailbox: int, heard: Callable[[], None]) -> Callable[[], None]:
        """Call `heard` on the loop soon after any process has changed a mailbox.

        It is called once for several changes; `changes` tells what they were. Returns what ends
        this.
        """
        return self._followers.add(mailbox, heard)

    # The end

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_INTERVAL)
            self._env.forget_dead_readers()
            await self.give_back_pages()

    async def give_back_pages(self) -> None:
        """What was read is not to count as our memory; for who reads much in little time."""
        await self._env.give_back_pages()

    async def close(self) -> None:
        """Write what is pending, tell its owners, and let go of all locks."""
        FILE.read = MAP.read = None
        self._keeper.cancel()
        self._followers.close()
        if self._parsing:
            await asyncio.wait(self._parsing)
            await asyncio.sleep(0)  # and they are submitted
        self._parser.shutdown()
        await self._env.close()
        self.lock.close()


def folder_of(data_dir: Path) -> Path:
    """Where the mailboxes are."""
    return data_dir / "mail" / "0"


def structure_of(post: Post) -> bytes:
    """The packed tree of its parts, as each recipient will have it; empty where it is too long."""
    front = post.to[0].front if post.to else b""
    packed = pack(b"".join((front, *post.parts)), len(front))
    return packed if len(packed) <= MOST_STRUCTURE else b""
