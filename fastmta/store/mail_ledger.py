"""The mailboxes inside one transaction: rows that its operations share are read and written once.

What is always true at the end of a transaction:
- a mailbox's row counts its entries, and INBOX's row those of its whole account;
- a body is there exactly as long as an entry has it;
- what changed in a mailbox has the modseq that its row tells, and no other change has it.
"""

import time
from collections.abc import Iterable, Sequence

from fastmta._core.mail_rows import body_keys, entry_keys, place_of
from fastmta.store import mail_records as records
from fastmta.store import rows
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_changes import Change, Expunged, note_changes
from fastmta.store.mail_rebuild import (
    count_entries,
    find_number,
    next_numbers,
    sum_mailboxes,
)
from fastmta.store.mail_records import Entry, Gone, Mailbox, Next
from fastmta.store.post import Step
from fastmta.store.records import Unreadable

MOST_MAILBOXES = 1000  # of an account


class NoRoom(Exception):
    """There are as many mailboxes as an account may have, or all uids are used."""


class Ledger:
    """One transaction's changes; `write` puts down what they share."""

    def __init__(self, txn: Transaction, db: Databases) -> None:
        self.txn, self.db = txn, db
        self.unreadable: list[tuple[str, bytes]] = []  # what was moved aside: database, key
        self._mailboxes: dict[bytes, Mailbox] = {}
        self._touched: set[bytes] = set()  # mailboxes that something happened in
        self._counted: set[bytes] = set()  # of which only what their account has is another
        self._changes: dict[int, list[Change]] = {}
        self._receipts: dict[int, list[bytes]] = {}
        self._imports: dict[bytes, bytes] = {}
        self._last_body = -1

    # Mailboxes

    def find(self, key: bytes) -> Mailbox | None:
        """The row at a key of `name_key`; one that cannot be read is made anew."""
        mailbox = self._mailboxes.get(key)
        if mailbox is None:
            row = self.txn.get(key, db=self.db["mailboxes"])
            if row is None:
                return None
            try:
                mailbox = records.unpack_mailbox(row)
            except Unreadable:
                return self._rebuild(key)
            self._mailboxes[key] = mailbox
        return mailbox

    def make(self, key: bytes) -> Mailbox:
        """The row at a key, a new one where there is none; NoRoom if there are too many."""
        if mailbox := self.find(key):
            return mailbox
        if not records.is_inbox(key):
            self.make(records.inbox_key(key))  # it always exists, and counts for all
            self._check_number(key)
        mailbox = self._mailboxes[key] = self._new_mailbox()
        self.txn.put(records.mailbox_key(mailbox.id), key, db=self.db["names"])
        if records.is_inbox(key):  # others may be there, if a damaged file has lost it
            sum_mailboxes(self.txn, self.db, key, mailbox)
        self._counted.add(key)
        return mailbox

    def _new_mailbox(self) -> Mailbox:
        numbers = self._numbers()
        # Greater than that of any mailbox that had this name before (RFC 9051 section 2.3.1.1).
        uidvalidity = max(numbers.uidvalidity, int(time.time()))
        after = records.pack_next(Next(numbers.mailbox + 1, uidvalidity + 1))
        self.txn.put(b"next", after, db=self.db["meta"])
        return Mailbox(numbers.mailbox, uidvalidity)

    def _numbers(self) -> Next:
        row = self.txn.get(b"next", db=self.db["meta"])
        try:
            if row is not None:
                return records.unpack_next(row)
        except Unreadable:
            self.move_aside("meta", b"next")
        return next_numbers(self.txn, self.db)

    def _rebuild(self, key: bytes) -> Mailbox | None:
        """A row as its entries tell it, and a new UIDVALIDITY: who knows what was deleted?

        None where nobody knows which entries they are.
        """
        self.move_aside("mailboxes", key)
        number = find_number(self.txn, self.db, key)
        if number is None:
            return None
        mailbox = self._mailboxes[key] = self._new_mailbox()
        mailbox.id = number
        count_entries(self.txn, self.db, mailbox)
        if records.is_inbox(key):
            sum_mailboxes(self.txn, self.db, key, mailbox)
        self._counted.add(key)
        return mailbox

    def _check_number(self, key: bytes) -> None:
        start = records.account_key(key)
        number = 0
        with self.txn.cursor(self.db["mailboxes"]) as cursor:
            more = cursor.set_range(start)
            while more and cursor.key().startswith(start):
                number += 1
                more = cursor.next()
        if number >= MOST_MAILBOXES:
            raise NoRoom(f"an account has at most {MOST_MAILBOXES} mailboxes")

    def key_of(self, mailbox: int) -> bytes:
        """Where a mailbox's row is; KeyError if there is none."""
        key = self.txn.get(records.mailbox_key(mailbox), db=self.db["names"])
        if key is None:
            raise KeyError(mailbox)
        return bytes(key)

    def open(self, mailbox: int) -> tuple[bytes, Mailbox]:
        """A mailbox by its id; KeyError if there is none."""
        key = self.key_of(mailbox)
        found = self.find(key)
        if found is None:
            raise KeyError(mailbox)
        return key, found

    def total(self, key: bytes) -> Mailbox:
        """The row that counts what the account of a mailbox has."""
        return self.make(records.inbox_key(key))

    def touch(self, key: bytes, mailbox: Mailbox) -> int:
        """The modseq of what this transaction changes in a mailbox."""
        if key not in self._touched:
            self._touched.add(key)
            mailbox.modseq += 1
        return mailbox.modseq

    def note(self, mailbox: int, change: Change) -> None:
        """Keep in the mailbox's history what was changed of entries, or that they are gone."""
        self._changes.setdefault(mailbox, []).append(change)

    def count(self, key: bytes, mailbox: Mailbox, messages: int, octets: int) -> None:
        """A mailbox has so many more."""
        mailbox.messages += messages
        mailbox.octets += octets
        total = self.total(key)
        total.all_messages += messages
        total.all_octets += octets
        if total is not mailbox:
            self._counted.add(records.inbox_key(key))

    # Entries

    def add(self, key: bytes, mailbox: Mailbox, entry: Entry) -> int:
        """Put a message behind the others; its uid. NoRoom where all are used."""
        uid = mailbox.uidnext
        if uid > records.LAST_UID:
            raise NoRoom("all uids of the mailbox are used")
        entry.added = entry.modseq = self.touch(key, mailbox)
        self.put_entry(mailbox.id, uid, entry)
        mailbox.uidnext += 1
        self.count(key, mailbox, 1, entry.size)
        return uid

    def put_entry(self, mailbox: int, uid: int, entry: Entry) -> None:
        row = records.pack_entry(entry)
        self.txn.put(records.entry_key(mailbox, uid), row, db=self.db["entries"])

    def entry(self, name: bytes, mailbox: Mailbox, uid: int) -> Entry | None:
        """None where it is gone; one that cannot be read is moved aside, and so it is gone."""
        key = records.entry_key(mailbox.id, uid)
        row = self.txn.get(key, db=self.db["entries"])
        if row is None:
            return None
        try:
            return records.unpack_entry(row)
        except Unreadable:
            self.lose(name, mailbox, uid, 0)  # `verify` counts its octets anew
            return None

    def lose(self, name: bytes, mailbox: Mailbox, uid: int, octets: int) -> None:
        """Move an entry aside."""
        self.move_aside("entries", records.entry_key(mailbox.id, uid))
        self.touch(name, mailbox)
        self.note(mailbox.id, Expunged(((uid, uid),)))
        self.count(name, mailbox, -1, -octets)

    def delete_entries(
        self, name: bytes, mailbox: Mailbox, uids: Sequence[int]
    ) -> tuple[list[int], int]:
        """Take entries away, and bodies that no other has; the uids that were there, and octets.

        What cannot be read is moved aside.
        """
        keys = entry_keys(mailbox.id, uids)
        with self.txn.cursor(self.db["entries"]) as cursor:
            entries = dict(cursor.getmulti(keys))
        with self.txn.cursor(self.db["shares"]) as cursor:
            shared = set(cursor.getmulti(body_keys(list(entries.items())), values=False))
        gone: list[int] = []
        octets = 0
        for uid, key in zip(uids, keys, strict=True):
            if (row := entries.pop(key, None)) is None:
                continue
            if (place := place_of(row)) is None:
                self.lose(name, mailbox, uid, 0)  # `verify` counts its octets anew
                continue
            body, size, front = place
            self.txn.delete(key, db=self.db["entries"])
            if not (body in shared and self._has_others(body)):
                self._delete_body(body, size - front)
            gone.append(uid)
            octets += size
        return gone, octets

    # Bodies

    def new_body(self) -> int:
        """An id for a body; higher than those that are there, so that rows are put at the end."""
        if self._last_body < 0:
            with self.txn.cursor(self.db["bodies"]) as cursor:
                self._last_body = int.from_bytes(cursor.key()) if cursor.last() else 0
        self._last_body += 1
        return self._last_body

    def put_body(
        self, body: int, size: int, structure: bytes, parts: list[bytes], shares: int
    ) -> None:
        """Store the octets of a message that `shares` entries have."""
        key, is_inline = records.body_key(body), records.is_inline(size, structure)
        row = records.pack_body(size, structure, parts)
        self.txn.put(key, row, append=True, db=self.db["bodies"])
        if not is_inline:
            rows.put_body(self.txn, self.db, body, parts)
        if shares > 1:
            self.txn.put(key, records.pack_count(shares), db=self.db["shares"])

    def _has_others(self, body: bytes) -> bool:
        """Whether other entries have a body that one entry has no more."""
        left = records.unpack_count(self.txn.get(body, b"", db=self.db["shares"])) - 1
        if left > 1:
            self.txn.put(body, records.pack_count(left), db=self.db["shares"])
        elif left == 1:
            self.txn.delete(body, db=self.db["shares"])
        return left > 0

    def _delete_body(self, body: bytes, octets: int) -> None:
        self.txn.delete(body, db=self.db["bodies"])
        if records.may_have_chunks(octets):
            rows.delete_body(self.txn, self.db, int.from_bytes(body))

    def has_good_body(self, entry: Entry) -> bool:
        """Whether its body is there; one that cannot be read is moved aside."""
        key = records.body_key(entry.body)
        row = self.txn.get(key, db=self.db["bodies"])
        try:
            return row is not None and bool(records.unpack_body(row))
        except Unreadable:
            self.move_aside("bodies", key)
            return False

    def move_aside(self, database: str, key: bytes) -> None:
        """Take a row that cannot be read out of the way, and keep it."""
        rows.MoveAside(database, key).apply(self.txn, self.db)
        self.unreadable.append((database, key))

    # Receipts

    def note_receipt(self, receipt: bytes, gone: list[Gone]) -> bytes:
        """Keep what was stored of a post; the key of the row that will tell so."""
        self._receipts.setdefault(receipt[0], []).append(records.pack_receipt(receipt, gone))
        return records.receipts_key(receipt[0], self.txn.id())

    # Imports

    def is_at(self, step: Step) -> bool:
        """Whether an import has come as far as it says."""
        known = self._imports.get(step.source) or self.txn.get(step.source, db=self.db["imports"])
        return known == step.before

    def go_on(self, step: Step) -> None:
        self._imports[step.source] = step.after

    # The end

    def write(self) -> None:
        """Put down what the operations share."""
        for number, changes in self._changes.items():
            mailbox = self._mailboxes[self.key_of(number)]
            note_changes(self.txn, self.db, mailbox, changes)
        for key in self._touched | self._counted:
            row = records.pack_mailbox(self._mailboxes[key])
            self.txn.put(key, row, db=self.db["mailboxes"])
        for shard, receipts in self._receipts.items():
            name = records.receipts_key(shard, self.txn.id())
            self.txn.put(name, records.pack_receipts(receipts), db=self.db["receipts"])
        for source, row in self._imports.items():
            self.txn.put(source, row, db=self.db["imports"])
        if self._touched:
            self._tell(self._mailboxes[key].id for key in self._touched)

    def _tell(self, mailboxes: Iterable[int]) -> None:
        number = self.txn.id()
        row = records.pack_touched(number, mailboxes)
        self.txn.put(records.touched_key(number), row, db=self.db["touched"])
