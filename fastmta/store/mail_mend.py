"""How what is wrong with the mailboxes is put right; nothing that may be mail is deleted.

Each mend is called in a write transaction, looks at the rows as they are by then, and says what
it did. Who follows a mailbox hears of messages that are gone, as if they had been expunged.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from msgspec import structs

from fastmta._core.mail_rows import place_of
from fastmta.store import mail_records as records
from fastmta.store import rows
from fastmta.store.aside import Aside
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_ledger import Ledger
from fastmta.store.mail_rebuild import next_numbers, sum_mailboxes
from fastmta.store.records import Unreadable


class Mailbox:
    """A row of a mailbox that is gone or cannot be read is made anew of its entries."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, b"", db=db["mailboxes"])
        name = aside.save(f"mailbox-{self._key.hex()}", row=row)
        if not row:
            txn.put(self._key, b"\0", db=db["mailboxes"])  # which cannot be read
        ledger = Ledger(txn, db)
        found = ledger.find(self._key)
        ledger.write()
        return "made anew" if found else f"moved aside as {name}"


class Name:
    """A mailbox that is not known by its number."""

    def __init__(self, key: bytes, number: int) -> None:
        self._key, self._number = key, number

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        other = txn.get(number := records.mailbox_key(self._number), db=db["names"])
        if other is not None and txn.get(other, db=db["mailboxes"]) is not None:
            rows.MoveAside("mailboxes", self._key).apply(txn, db)
            return "the number is another's: moved aside"
        txn.put(number, self._key, db=db["names"])
        return "it is known again"


class Next:
    """The numbers of the mailbox that is made next."""

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        numbers = next_numbers(txn, db)
        txn.put(b"next", records.pack_next(numbers), db=db["meta"])
        return f"the next mailbox is {numbers.mailbox}"


class Recount:
    """What a mailbox, and its account, is told to have."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        recount(txn, db, self._key)
        return "counted anew"


class Entry:
    """A message whose entry cannot be read; its body is found to be nobody's then."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, b"", db=db["entries"])
        name = aside.save(f"entry-{self._key.hex()}", row=row)
        _take_out(txn, db, self._key)
        return f"moved aside as {name}"


class Strays:
    """Messages of a mailbox that is not there; their bodies are found to be nobody's then."""

    def __init__(self, start: bytes) -> None:
        self._start = start

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        count = 0
        with txn.cursor(db["entries"]) as cursor:
            more = cursor.set_range(self._start)
            while more and (key := cursor.key()).startswith(self._start):
                row = cursor.value()
                aside.save(f"entry-{key.hex()}", facts=_facts(key, row, b""), row=row)
                txn.put(rows.aside_key("entries", key), row, db=db["aside"])
                count += 1
                more = cursor.delete()
        return f"{count} moved aside"


class Body:
    """A body that is not whole, or that no message has."""

    def __init__(self, body: int) -> None:
        self._body = body

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        key = records.body_key(self._body)
        row = txn.get(key, b"", db=db["bodies"])
        octets = list(_octets(txn, db, self._body, row))
        owners = _owners(txn, db, key)
        names = [self._save(txn, db, aside, owner, octets) for owner in owners]
        if not owners:
            names.append(aside.save(f"body-{self._body}", octets, row=b"" if octets else row))
        for owner in owners:
            _take_out(txn, db, owner)
        if octets:
            txn.delete(key, db=db["bodies"])  # all of it is in the folder
        else:
            rows.MoveAside("bodies", key).apply(txn, db)
        rows.delete_body(txn, db, self._body)
        txn.delete(key, db=db["shares"])
        return f"moved aside as {', '.join(names)}"

    def _save(
        self, txn: Transaction, db: Databases, aside: Aside, owner: bytes, octets: list[bytes]
    ) -> str:
        row = txn.get(owner, b"", db=db["entries"])
        name = txn.get(owner[:4], b"", db=db["names"])
        _, front = records.unpack_place(row)
        facts = _facts(owner, row, name)
        return aside.save(f"mailbox-{facts['mailbox']}-{facts['uid']}", [front, *octets], facts)


class Shares:
    """How many messages have a body."""

    def __init__(self, body: int, owners: int) -> None:
        self._key, self._owners = records.body_key(body), owners

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        if self._owners > 1:
            txn.put(self._key, records.pack_count(self._owners), db=db["shares"])
        else:
            txn.delete(self._key, db=db["shares"])
        return "counted anew"


class Size:
    """Entries that tell another size than their body, which is whole, has."""

    def __init__(self, body: int) -> None:
        self._key = records.body_key(body)

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        size = records.unpack_body(txn.get(self._key, b"", db=db["bodies"])).size
        for owner in _owners(txn, db, self._key):
            entry = records.unpack_entry(txn.get(owner, b"", db=db["entries"]))
            entry.size = size + len(entry.front)
            txn.put(owner, records.pack_entry(entry), db=db["entries"])
            _recount_of(txn, db, owner)
        return "the messages tell that now"


def recount(txn: Transaction, db: Databases, key: bytes) -> None:
    """Set what a mailbox's row tells to what its entries are; of INBOX, also of its account."""
    with suppress(Unreadable):
        mailbox = records.unpack_mailbox(txn.get(key, b"", db=db["mailboxes"]))
        _count(txn, db, mailbox)
        if records.is_inbox(key):
            sum_mailboxes(txn, db, key, mailbox)
        txn.put(key, records.pack_mailbox(mailbox), db=db["mailboxes"])


def _count(txn: Transaction, db: Databases, mailbox: records.Mailbox) -> None:
    mailbox.messages = mailbox.octets = 0
    with txn.cursor(db["entries"]) as cursor:
        more = cursor.set_range(start := records.mailbox_key(mailbox.id))
        while more and (key := cursor.key()).startswith(start):
            mailbox.messages += 1
            mailbox.uidnext = max(mailbox.uidnext, int.from_bytes(key[4:]) + 1)
            place = place_of(cursor.value())
            mailbox.octets += place[1] if place else 0
            more = cursor.next()


def _recount_of(txn: Transaction, db: Databases, entry: bytes) -> None:
    if key := txn.get(entry[:4], db=db["names"]):
        recount(txn, db, key)


def _take_out(txn: Transaction, db: Databases, entry: bytes) -> None:
    """Take a message out of its mailbox, and keep its row."""
    ledger = Ledger(txn, db)
    try:
        name, mailbox = ledger.open(int.from_bytes(entry[:4]))
    except (KeyError, Unreadable):
        rows.MoveAside("entries", entry).apply(txn, db)
        return
    ledger.lose(name, mailbox, int.from_bytes(entry[4:]), 0)
    ledger.write()
    recount(txn, db, name)


def _owners(txn: Transaction, db: Databases, body: bytes) -> list[bytes]:
    """The keys of the entries that have a body."""
    found: list[bytes] = []
    with txn.cursor(db["entries"]) as cursor:
        for key, row in cursor:
            place = place_of(row)
            if place and place[0] == body:
                found.append(key)
    return found


def _octets(txn: Transaction, db: Databases, body: int, row: bytes) -> Iterator[bytes]:
    """What there is of a body, in its row or in chunks."""
    with suppress(Unreadable):
        if (inside := records.unpack_octets(row)) is not None:
            yield inside
            return
    yield from (octets for _, octets in rows.all_chunks(body, txn, db))


def _facts(key: bytes, row: bytes, name: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"mailbox": int.from_bytes(key[:4]), "uid": int.from_bytes(key[4:])}
    if name:
        facts["account"], _, facts["name"] = name.decode("utf-8", "replace").partition("\0")
    with suppress(Unreadable):
        facts |= structs.asdict(records.unpack_entry(row))
        facts["front"] = facts["front"].decode("utf-8", "replace")
    return facts
