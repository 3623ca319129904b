"""Whether all rows of the mailboxes can be read, and agree with each other.

All is looked at in one read transaction, so a server may run. While that lasts, pages that it
frees are not used again. Memory does not grow with the mail: who has which body is counted for
some million bodies at a time.
"""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from fastmta.store import mail_records as records
from fastmta.store import residence, rows
from fastmta.store.env import Databases, Transaction, open_environment
from fastmta.store.mail_records import Mailbox
from fastmta.store.records import Unreadable

WINDOW = 4_000_000  # bodies of which owners are counted at a time
MOST_PROBLEMS = 1000  # that are told
OFTEN = 1000  # rows after which progress is told
GIVE_BACK = 2000  # rows after which the pages that were read are given back


class Report(Struct):
    mailboxes: int = 0
    messages: int = 0
    octets: int = 0
    bodies: int = 0
    aside: int = 0  # rows that were moved aside at some time; no problem by themselves
    problems: list[str] = []
    more: int = 0  # problems that are not among these

    def add(self, problem: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1


def verify(folder: Path, told: Callable[[int, int], None]) -> Report:
    """Look at everything; `told` hears of how many rows of how many.

    lmdb.Error where there are no mailboxes, or the file itself is broken.
    """
    env, db = open_environment(folder, records.DATABASES, readonly=True)
    with env, env.begin() as txn:
        return Verification(txn, db, told, folder / "data.mdb").run()


class Verification:
    """One look at everything."""

    def __init__(
        self, txn: Transaction, db: Databases, told: Callable[[int, int], None], file: Path
    ) -> None:
        self._txn, self._db, self._told, self._file = txn, db, told, file
        self._report = Report()
        self._done = self._read = 0
        self._all = self._entries("entries") + self._entries("bodies")

    def _entries(self, database: str) -> int:
        return int(self._txn.stat(self._db[database])["entries"])

    def _step(self) -> None:
        self._done += 1
        if self._done % OFTEN == 0:
            self._told(self._done, self._all)

    def run(self) -> Report:
        self._check_mailboxes()
        self._check_strays()
        first, last = self._range()
        while first <= last:
            self._check_bodies(first, min(last, first + WINDOW - 1))
            first += WINDOW
        self._check_chunks()
        self._report.aside = self._entries("aside")
        return self._report

    def _rows(self, database: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(self._db[database]) as cursor:
            more = cursor.set_range(start)
            while more:
                yield cursor.item()
                more = cursor.next()
                self._read += 1
                if self._read % GIVE_BACK == 0:
                    residence.give_back(self._file)

    # Mailboxes and their entries

    def _check_mailboxes(self) -> None:
        account, inbox = "", Mailbox(0, 0)
        messages = octets = 0
        for key, row in self._rows("mailboxes"):
            self._report.mailboxes += 1
            owner, name = records.split_name(key)
            if owner != account:
                self._check_total(account, inbox, messages, octets)
                account, inbox, messages, octets = owner, Mailbox(0, 0), 0, 0
            try:
                mailbox = records.unpack_mailbox(row)
            except Unreadable as error:
                self._report.add(f"{owner} {name}: its row cannot be read: {error}")
                continue
            if self._txn.get(records.mailbox_key(mailbox.id), db=self._db["names"]) != key:
                self._report.add(f"{owner} {name}: number {mailbox.id} is not known as its own")
            if name == records.INBOX:
                inbox = mailbox
            count, size = self._check_entries(f"{owner} {name}", mailbox)
            messages, octets = messages + count, octets + size
        self._check_total(account, inbox, messages, octets)

    def _check_total(self, account: str, inbox: Mailbox, messages: int, octets: int) -> None:
        if (inbox.all_messages, inbox.all_octets) != (messages, octets):
            self._report.add(
                f"{account}: counted as {inbox.all_messages} messages of {inbox.all_octets} octets,"
                f" is {messages} of {octets}"
            )

    def _check_entries(self, name: str, mailbox: Mailbox) -> tuple[int, int]:
        messages = octets = 0
        start = records.mailbox_key(mailbox.id)
        for key, row in self._rows("entries", start):
            if not key.startswith(start):
                break
            uid = int.from_bytes(key[4:])
            try:
                octets += records.unpack_entry(row).size
            except Unreadable as error:
                self._report.add(f"{name}: message {uid} cannot be read: {error}")
            messages += 1
            if uid >= mailbox.uidnext:
                self._report.add(f"{name}: message {uid} is not below the next uid")
            self._step()
        if (mailbox.messages, mailbox.octets) != (messages, octets):
            self._report.add(
                f"{name}: counted as {mailbox.messages} messages of {mailbox.octets} octets,"
                f" is {messages} of {octets}"
            )
        self._report.messages += messages
        self._report.octets += octets
        return messages, octets

    def _check_strays(self) -> None:
        """Entries of mailboxes that are not there: as many as were not counted."""
        if strays := self._entries("entries") - self._report.messages:
            self._report.add(f"{strays} messages are in mailboxes that are not there")

    # Bodies

    def _range(self) -> tuple[int, int]:
        with self._txn.cursor(self._db["bodies"]) as cursor:
            if not cursor.first():
                return 1, 0
            first = int.from_bytes(cursor.key())
            cursor.last()
            return first, int.from_bytes(cursor.key())

    def _check_bodies(self, first: int, last: int) -> None:
        """That each body is whole, and counts the entries that have it."""
        owners = array("I", bytes(4 * (last - first + 1)))
        sizes = array("Q", bytes(8 * (last - first + 1)))  # as the entries tell
        self._count_owners(first, last, owners, sizes)
        for key, row in self._rows("bodies", records.body_key(first)):
            body = int.from_bytes(key)
            if body > last:
                break
            at = body - first
            self._check_body(body, row, owners[at], sizes[at])
            owners[at] = 0
            self._report.bodies += 1
            self._step()
        for at, count in enumerate(owners):
            if count:
                self._report.add(f"body {first + at} of {count} messages is not there")

    def _count_owners(
        self, first: int, last: int, owners: "array[int]", sizes: "array[int]"
    ) -> None:
        for _, row in self._rows("entries"):
            try:
                entry = records.unpack_entry(row)
            except Unreadable:
                continue
            if first <= entry.body <= last:
                owners[entry.body - first] += 1
                sizes[entry.body - first] = entry.size - len(entry.front)

    def _check_body(self, body: int, row: bytes, owners: int, size: int) -> None:
        key = records.body_key(body)
        try:
            found = records.unpack_body(row)
            shares = records.unpack_count(self._txn.get(key, b"", db=self._db["shares"]))
        except Unreadable as error:
            self._report.add(f"body {body} cannot be read: {error}")
            return
        if found.octets is None:
            there = self._octets_in_chunks(body)
            if there != found.size:
                self._report.add(f"body {body}: {there} octets are there of {found.size}")
        if owners == 0:
            self._report.add(f"body {body} is in no mailbox")
        elif owners != shares:
            self._report.add(f"body {body} is counted for {shares} messages, is in {owners}")
        elif size != found.size:
            self._report.add(f"body {body}: {found.size} octets where the message tells {size}")

    def _octets_in_chunks(self, body: int) -> int:
        octets = number = 0
        while chunks := rows.read_chunks(body, number, self._txn, self._db):
            octets += sum(map(len, chunks))
            number += len(chunks)
        return octets

    def _check_chunks(self) -> None:
        """That none is left of a body that is gone."""
        start: bytes | None = b""
        with self._txn.cursor(self._db["chunks"]) as cursor:
            while start is not None and cursor.set_range(start):
                body = int.from_bytes(cursor.key()[:8])
                if self._txn.get(records.body_key(body), db=self._db["bodies"]) is None:
                    self._report.add(f"chunks are left of body {body}, which is not there")
                start = records.body_key(body + 1)
