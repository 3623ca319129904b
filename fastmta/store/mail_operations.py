"""What changes in the mailboxes: each operation in its transaction, and what follows from it.

An operation is made again where its batch failed, so it keeps nothing of an earlier time. Where
the disk failed, nobody knows whether the commit came through: what has a receipt asks it first.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import lmdb

from fastmta import metrics
from fastmta.store import mail_records as records
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_changes import Expunged, Flagged, ranges_of
from fastmta.store.mail_ledger import Ledger, NoRoom
from fastmta.store.mail_receipts import Drops, Receipts
from fastmta.store.mail_records import Entry, Gone
from fastmta.store.post import Done, Drop, Flagging, Outcome, OutOfStep, Post, Refused, Step, Stored

log = logging.getLogger(__name__)

_AT_ONCE = 1000  # entries that are read before they are deleted

ASIDE = metrics.counter("fastmta_mail_unreadable_total", "Rows of mailboxes moved aside")


class Work(Protocol):
    """An operation on the mailboxes."""

    def work(self, ledger: Ledger) -> None:
        """Make the change; runs in the writer thread, and again if its batch failed."""

    def finished(self, error: Exception | None) -> None:
        """Hear how it ended; runs on the loop."""


def apply(operations: Sequence[Work], txn: Transaction, db: Databases) -> None:
    """Make the changes of a batch; rows that they share are written once."""
    ledger = Ledger(txn, db)
    for operation in operations:
        operation.work(ledger)
    ledger.write()
    for database, key in ledger.unreadable:
        ASIDE.value += 1
        log.error("a row of %s cannot be read and is moved aside: %s", database, key.hex())


class Deliver:
    """Store a post."""

    __slots__ = (
        *("_done", "_failure", "_gone", "_keys", "_outcomes", "_post", "_quotas"),
        *("_receipts", "_row", "step", "structure"),
    )

    def __init__(
        self,
        post: Post,
        quotas: Sequence[int],
        receipts: Receipts,
        done: Done,
    ) -> None:
        """ValueError for what can never be stored; `quotas` are octets, 0 is none."""
        self._post, self._quotas = post, quotas
        self.structure = b""
        self.step: Step | None = None
        self._receipts, self._done = receipts, done
        self._keys = [records.name_key(drop.account, drop.mailbox) for drop in post.to]
        if any(len(drop.front) > records.MOST_FRONT for drop in post.to):
            raise ValueError("too much is to stand before a message")
        self._outcomes: list[Outcome] = []
        self._gone: list[Gone] = []  # what is stored in this transaction
        self._row = b""  # the key of the row with its receipt
        self._failure: OutOfStep | None = None

    def work(self, ledger: Ledger) -> None:
        self._outcomes, self._gone, self._row, self._failure = [], [], b"", None
        post = self._post
        if self.step and not ledger.is_at(self.step):
            self._failure = OutOfStep()
            return
        before = self._receipts.before(post.receipt, ledger) if post.receipt else {}
        body = ledger.new_body()
        for drop, key, quota in zip(post.to, self._keys, self._quotas, strict=True):
            self._outcomes.append(self._place(ledger, drop, key, quota, body, before))
        if self._gone:
            shares = len(self._gone)
            ledger.put_body(body, post.size, self.structure, post.parts, shares)
            if post.receipt:
                self._row = ledger.note_receipt(post.receipt, self._gone)
            if self.step:
                ledger.go_on(self.step)

    def _place(
        self,
        ledger: Ledger,
        drop: Drop,
        key: bytes,
        quota: int,
        body: int,
        before: Drops,
    ) -> Outcome:
        name = records.drop_hash(key, drop.front)
        if stored := before.get(name):
            return Stored(stored.uid, stored.uidvalidity)
        post, size = self._post, self._post.size + len(drop.front)
        try:
            mailbox = ledger.make(key)
            if quota and ledger.total(key).all_octets + size > quota:
                return Refused.OVER_QUOTA
            keywords = list(drop.keywords)
            entry = Entry(body, size, post.received, 0, 0, drop.flags, drop.front, keywords)
            uid = ledger.add(key, mailbox, entry)
        except NoRoom:
            return Refused.NO_ROOM
        self._gone.append(Gone(name, mailbox.uidvalidity, uid))
        return Stored(uid, mailbox.uidvalidity)

    def finished(self, error: Exception | None) -> None:
        if error is not None:
            if self._row and isinstance(error, lmdb.Error):
                self._receipts.doubt(self._post.receipt, self._row)
            return self._done(error)
        if self._row:
            self._receipts.stored(self._post.receipt, self._row, self._gone)
        return self._done(self._failure or self._outcomes)


class Waited:
    """An operation that one caller waits for."""

    __slots__ = ("_failure", "done")

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None  # its own, that others do not share

    def finished(self, error: Exception | None) -> None:
        if self.done.done():  # nobody waits any longer
            return
        if error := error or self._failure:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class Make(Waited):
    """See that a mailbox is there, and that its row can be read."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key

    def work(self, ledger: Ledger) -> None:
        try:
            ledger.make(self._key)
        except NoRoom as error:
            self._failure = error


class Expunge(Waited):
    """Take messages out of a mailbox; those that are gone already are no fault."""

    __slots__ = ("_mailbox", "_uids")

    def __init__(self, mailbox: int, uids: Sequence[int]) -> None:
        super().__init__()
        self._mailbox, self._uids = mailbox, sorted(uids)

    def work(self, ledger: Ledger) -> None:
        try:
            key, mailbox = ledger.open(self._mailbox)
        except KeyError as error:
            self._failure = error
            return
        gone: list[int] = []
        octets = 0
        for i in range(0, len(self._uids), _AT_ONCE):
            some = ledger.delete_entries(key, mailbox, self._uids[i : i + _AT_ONCE])
            gone += some[0]
            octets += some[1]
        if gone:
            ledger.touch(key, mailbox)
            ledger.note(mailbox.id, Expunged(ranges_of(gone)))
            ledger.count(key, mailbox, -len(gone), -octets)


class Flag(Waited):
    """Change flags and keywords of messages."""

    __slots__ = ("_flagging", "_mailbox", "_uids", "modified", "modseq")

    def __init__(self, mailbox: int, uids: Sequence[int], flagging: Flagging) -> None:
        super().__init__()
        self._mailbox, self._uids, self._flagging = mailbox, sorted(uids), flagging
        self.modified: list[int] = []  # uids that were left as they are
        self.modseq = 0

    def work(self, ledger: Ledger) -> None:
        self.modified = []
        try:
            key, mailbox = ledger.open(self._mailbox)
        except KeyError as error:
            self._failure = error
            return
        changed: list[int] = []
        for uid in self._uids:
            entry = ledger.entry(key, mailbox, uid)
            if entry is None:
                continue
            if entry.modseq > self._flagging.unchanged_since:
                self.modified.append(uid)
            elif self._flagging.change(entry):
                entry.modseq = ledger.touch(key, mailbox)
                ledger.put_entry(mailbox.id, uid, entry)
                changed.append(uid)
        if changed:
            ledger.note(mailbox.id, Flagged(ranges_of(changed)))
        self.modseq = mailbox.modseq


class ForgetImport(Waited):
    """An import is to begin anew."""

    __slots__ = ("_source",)

    def __init__(self, source: bytes) -> None:
        super().__init__()
        self._source = source

    def work(self, ledger: Ledger) -> None:
        ledger.txn.delete(self._source, db=ledger.db["imports"])


class MoveAside:
    """Take an entry out of its mailbox that cannot be read, or its body, and keep the rows."""

    __slots__ = ("_mailbox", "_uid")

    def __init__(self, mailbox: int, uid: int) -> None:
        self._mailbox, self._uid = mailbox, uid

    def work(self, ledger: Ledger) -> None:
        with suppress(KeyError):
            key, mailbox = ledger.open(self._mailbox)
            entry = ledger.entry(key, mailbox, self._uid)
            if entry and not ledger.has_good_body(entry):
                ledger.lose(key, mailbox, self._uid, entry.size)

    def finished(self, error: Exception | None) -> None:
        pass  # it is found again where this failed
