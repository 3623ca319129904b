"""Whether all rows of the mailboxes can be read, and agree with each other.

Transactions are short, so a server may run. Who has which body is counted in many of them, and
meanwhile mail comes and goes: what does not agree by that count is a suspect only, and looked at
again in one transaction over the entries. Memory does not grow with the mail.
"""

from array import array
from typing import NamedTuple

from fastmta._core.mail_rows import place_of
from fastmta.store import mail_mend as mends
from fastmta.store import mail_records as records
from fastmta.store import rows
from fastmta.store.env import Transaction
from fastmta.store.findings import Look, MoveRow, wrong_checksum
from fastmta.store.mail_rebuild import next_numbers
from fastmta.store.mail_records import Body, Mailbox, Next
from fastmta.store.records import Unreadable, checksum_of, chunk_key

WINDOW = 4_000_000  # bodies of which owners are counted at a time
KEYS = {"names": 4, "entries": 8, "shares": 8, "chunks": 12}  # octets
SUSPECTS = 100_000  # that are looked at again together


def check_mail(look: Look) -> dict[str, int]:
    """Look at the mailboxes; how much there is."""
    check = MailCheck(look)
    check.run()
    return check.counts


class Owners(NamedTuple):
    """The entries that have a body: how many, and how many octets one of them tells."""

    entries: int = 0
    octets: int = 0


class MailCheck:
    """One look at everything."""

    def __init__(self, look: Look) -> None:
        self._look, self._db = look, look.db
        self.counts = {"mailboxes": 0, "messages": 0, "octets": 0, "bodies": 0}
        self._first, self._last = 1, 0  # bodies that there are, or that entries have
        self._suspects: dict[int, Owners] = {}

    def run(self) -> None:
        self._check_keys()
        self._check_mailboxes()
        self._check_totals()
        self._check_strays()
        self._see_bodies()
        first = self._first
        while first <= self._last:
            first = self._check_bodies(first, min(self._last, first + WINDOW - 1))
        self._check_suspects()
        self._check_chunks()
        self._check_receipts()
        self._check_next()

    def _check_keys(self) -> None:
        """Those that name something else, by their length; they are out of the way of all else."""
        for name, length in KEYS.items():
            for key in self._look.keys(name):
                if len(key) != length:
                    what = f"row {key.hex()} of {name} is that of nothing"
                    self._look.find(what, MoveRow(name, key))

    # Mailboxes and their entries

    def _check_mailboxes(self) -> None:
        for key in self._look.keys("mailboxes"):
            with self._look.env.begin() as txn:
                self._check_mailbox(txn, key, txn.get(key, db=self._db["mailboxes"]))

    def _check_mailbox(self, txn: Transaction, key: bytes, row: bytes | None) -> None:
        self.counts["mailboxes"] += 1
        if not _can_be_read(key):
            what = f"mailbox {key.hex()} has no name that can be read"
            self._look.find(what, MoveRow("mailboxes", key))
            return
        name = " ".join(records.split_name(key))
        try:
            mailbox = records.unpack_mailbox(row or b"")
        except Unreadable as error:
            self._look.find(f"{name}: its row cannot be read: {error}", mends.Mailbox(key))
            return
        if txn.get(records.mailbox_key(mailbox.id), db=self._db["names"]) != key:
            what = f"{name}: number {mailbox.id} is not known as its own"
            self._look.find(what, mends.Name(key, mailbox.id))
        self._check_entries(txn, key, name, mailbox)

    def _check_entries(self, txn: Transaction, key: bytes, name: str, mailbox: Mailbox) -> None:
        messages = octets = last = 0
        start = records.mailbox_key(mailbox.id)
        with txn.cursor(self._db["entries"]) as cursor:
            more = cursor.set_range(start)
            while more and (place := cursor.key()).startswith(start):
                if len(place) != KEYS["entries"]:
                    more = cursor.next()
                    continue
                last = int.from_bytes(place[4:])
                try:
                    entry = records.unpack_entry(cursor.value())
                    octets += entry.size
                    self._see(entry.body)
                except Unreadable as error:
                    mend = mends.Entry(place)
                    self._look.find(f"{name}: message {last} cannot be read: {error}", mend)
                messages += 1
                more = cursor.next()
        self._look.passed(messages)
        if last >= mailbox.uidnext:
            what = f"{name}: message {last} is not below the next uid"
            self._look.find(what, mends.Recount(key))
        if (mailbox.messages, mailbox.octets) != (messages, octets):
            self._look.find(
                f"{name}: counted as {mailbox.messages} messages of {mailbox.octets} octets,"
                f" is {messages} of {octets}",
                mends.Recount(key),
            )
        self.counts["messages"] += messages
        self.counts["octets"] += octets

    def _check_totals(self) -> None:
        """That INBOX counts what its whole account has, as the rows of its mailboxes tell it."""
        for key in filter(_can_be_read, self._look.keys("mailboxes")):
            if records.is_inbox(key):
                with self._look.env.begin() as txn:
                    self._check_total(txn, key)

    def _check_total(self, txn: Transaction, key: bytes) -> None:
        messages = octets = 0
        inbox: Mailbox | None = None
        with txn.cursor(self._db["mailboxes"]) as cursor:
            more = cursor.set_range(start := records.account_key(key))
            while more and cursor.key().startswith(start):
                try:
                    each = records.unpack_mailbox(cursor.value())
                except Unreadable:
                    return  # and is told as such
                if cursor.key() == key:
                    inbox = each
                messages, octets = messages + each.messages, octets + each.octets
                more = cursor.next()
        if inbox is not None and (inbox.all_messages, inbox.all_octets) != (messages, octets):
            self._look.find(
                f"{records.split_name(key)[0]}: counted as {inbox.all_messages} messages of"
                f" {inbox.all_octets} octets, is {messages} of {octets}",
                mends.Recount(key),
            )

    def _check_strays(self) -> None:
        """Entries of mailboxes that are not there."""
        for txn, start in self._look.groups("entries", 4):
            if len(start) < 4:
                continue  # and is told as such: what begins so is not of one mailbox
            key = txn.get(start, db=self._db["names"])
            row = None if key is None else txn.get(key, db=self._db["mailboxes"])
            try:
                is_there = row is not None and records.unpack_mailbox(row).id == int.from_bytes(
                    start
                )
            except Unreadable:
                continue  # and is told as such
            if not is_there and not self._has_row(txn, int.from_bytes(start)):
                what = f"messages are in mailbox {int.from_bytes(start)}, which is not there"
                is_named = key is not None and row is None and _can_be_read(key)
                mend = mends.Mailbox(key or b"") if is_named else mends.Strays(start)
                self._look.find(what, mend)

    def _has_row(self, txn: Transaction, number: int) -> bool:
        """Whether a mailbox is there that is not known by its number, which is told as such."""
        with txn.cursor(self._db["mailboxes"]) as cursor:
            for _, row in cursor:
                try:
                    if records.unpack_mailbox(row).id == number:
                        return True
                except Unreadable:
                    return True  # it may be this one, and is mended first
        return False

    # Bodies

    def _see(self, body: int) -> None:
        if self._last == 0:
            self._first = body
        self._first, self._last = min(self._first, body), max(self._last, body)

    def _see_bodies(self) -> None:
        with self._look.env.begin() as txn, txn.cursor(self._db["bodies"]) as cursor:
            if cursor.first():
                self._see(_body_of(cursor.key()))
                cursor.last()
                self._see(_body_of(cursor.key()))

    def _check_bodies(self, first: int, last: int) -> int:
        """That each body is whole, and counts the entries that have it; the next one to look at.

        A damaged id may be far from all others.
        """
        following = self._last + 1
        counts = array("I", bytes(4 * (last - first + 1)))
        octets = array("Q", bytes(8 * (last - first + 1)))  # as the entries tell
        for _, _, row in self._look.rows("entries"):
            if (place := place_of(row)) and first <= (body := int.from_bytes(place[0])) <= last:
                counts[body - first] += 1
                octets[body - first] = place[1] - place[2]
            elif place and last < body:
                following = min(following, body)
        start = records.body_key(first) if first > self._first else b""
        for txn, key, row in self._look.rows("bodies", start):
            if key != records.body_key(body := _body_of(key)):
                what = f"row {key.hex()} of bodies is that of no body"
                self._look.find(what, MoveRow("bodies", key))
                continue
            if body > last:
                following = min(following, body)
                break
            self.counts["bodies"] += 1
            at = body - first
            self._check_body(txn, body, row, Owners(counts[at], octets[at]))
            counts[at] = 0
        for at, count in enumerate(counts):
            if count:
                self._suspect(first + at)
        return following

    def _check_body(self, txn: Transaction, body: int, row: bytes, owners: Owners) -> None:
        try:
            found = records.unpack_body(row)
            shares = self._shares(txn, body)
        except Unreadable as error:
            self._look.find(f"body {body} cannot be read: {error}", mends.Body(body))
            return
        if wrong := self._wrong(txn, body, row, found):
            self._look.find(f"body {body}: {wrong}", mends.Body(body))
        elif owners != (shares, found.size):
            self._suspect(body)

    def _shares(self, txn: Transaction, body: int) -> int:
        return records.unpack_count(txn.get(records.body_key(body), b"", db=self._db["shares"]))

    def _wrong(self, txn: Transaction, body: int, row: bytes, found: Body) -> str:
        """How the octets of a body are not those that came, or nothing."""
        plain, seal = records.unseal(row)
        checksum = checksum_of([plain])
        if found.octets is None:
            there = 0
            for number, (key, chunk) in enumerate(rows.all_chunks(body, txn, self._db)):
                if key != chunk_key(body, number):
                    return "a part of its octets is missing"
                there += len(chunk)
                checksum = checksum_of([chunk], checksum)
            if there != found.size:
                return f"{there} octets are there of {found.size}"
        return "" if seal in (None, checksum) else wrong_checksum(checksum, seal)

    def _suspect(self, body: int) -> None:
        self._suspects[body] = Owners()
        if len(self._suspects) == SUSPECTS:
            self._check_suspects()

    def _check_suspects(self) -> None:
        suspects, self._suspects = self._suspects, {}
        if not suspects:
            return
        with self._look.env.begin() as txn:
            with txn.cursor(self._db["entries"]) as cursor:
                for row in cursor.iternext(keys=False):
                    place = place_of(row)
                    if place and (known := suspects.get(body := int.from_bytes(place[0]))):
                        suspects[body] = Owners(known.entries + 1, place[1] - place[2])
            for body, owners in sorted(suspects.items()):
                self._check_owners(txn, body, owners)

    def _check_owners(self, txn: Transaction, body: int, owners: Owners) -> None:
        row = txn.get(records.body_key(body), db=self._db["bodies"])
        if row is None:
            if owners.entries:
                what = f"body {body} of {owners.entries} messages is not there"
                self._look.find(what, mends.Body(body))
            return
        size, shares = records.unpack_body(row).size, self._shares(txn, body)
        if owners.entries == 0:
            self._look.find(f"body {body} is in no mailbox", mends.Body(body))
        elif owners.entries != shares:
            what = f"body {body} is counted for {shares} messages, is in {owners.entries}"
            self._look.find(what, mends.Shares(body, owners.entries))
        elif owners.octets != size:
            what = f"body {body}: {size} octets where the message tells {owners.octets}"
            self._look.find(what, mends.Size(body))

    def _check_chunks(self) -> None:
        """That none is left of a body that is gone."""
        for txn, key in self._look.groups("chunks", 8):
            if len(key) == 8 and txn.get(key, db=self._db["bodies"]) is None:
                body = int.from_bytes(key)
                what = f"chunks are left of body {body}, which is not there"
                self._look.find(what, mends.Body(body))

    def _check_receipts(self) -> None:
        for _, key, row in self._look.rows("receipts"):
            try:
                records.unpack_receipts(row)
            except Unreadable as error:
                what = f"row {key.hex()} of receipts cannot be read: {error}"
                self._look.find(what, MoveRow("receipts", key))

    def _check_next(self) -> None:
        """That nobody gets a mailbox of another."""
        with self._look.env.begin() as txn:
            free = next_numbers(txn, self._db)
            row = txn.get(b"next", db=self._db["meta"])
        try:
            known = records.unpack_next(row) if row is not None else Next()
        except Unreadable as error:
            what = f"the row of the next mailbox cannot be read: {error}"
            self._look.find(what, mends.Next())
            return
        if known.mailbox < free.mailbox or known.uidvalidity < free.uidvalidity:
            last = free.mailbox - 1
            what = f"the next mailbox is {known.mailbox}, and there are others up to {last}"
            self._look.find(what, mends.Next())


def _body_of(key: bytes) -> int:
    """The number of a key of `bodies`; where that is too short or too long, one as it sorts."""
    return int.from_bytes(key[:8].ljust(8, b"\0"))


def _can_be_read(key: bytes) -> bool:
    try:
        account, name = records.split_name(key)
        return bool(account and name)
    except UnicodeDecodeError:
        return False
