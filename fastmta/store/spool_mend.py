"""How what is wrong with a spool is taken out of the way; nothing that may be mail is deleted.

Each mend is called in a write transaction, looks at the rows as they are by then, and says what
it did. What cannot be sent any more goes into a folder (`aside`), and its rows into the database
of that name.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from fastmta.mail.envelope import format_id
from fastmta.store import records, rows, segment
from fastmta.store.aside import Aside, facts_of
from fastmta.store.env import Databases, Transaction
from fastmta.store.records import Entry, Unreadable


def name_of(key: bytes) -> str:
    """How people call the envelope of a key in `envelopes`."""
    index = int.from_bytes(key[8:])
    return f"envelope {format_id(records.message_of(key))}" + (f".{index}" if index else "")


class Segment:
    """A segment of which nobody can say what is in it, or what was delivered."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, db=db["fresh"]) or b""
        name = aside.save(f"segment-{_name(self._key)}", row=row)
        saved = 0
        for entry in _readable(row):
            _save_entry(txn, db, aside, entry)
            saved += 1
        rows.MoveAside("fresh", self._key).apply(txn, db)
        if txn.get(self._key, db=db["settled"]) is not None:
            rows.MoveAside("settled", self._key).apply(txn, db)
        return f"moved aside as {name}.row, with {saved} messages that could be read"


class Settled:
    """Notes of messages that were never in their segment."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, records.EMPTY_SEGMENT, db=db["fresh"])
        known = {entry.message for entry in records.unpack_segment(row)}
        noted = records.unpack_ids(txn.get(self._key, records.NO_IDS, db=db["settled"]))
        txn.put(self._key, records.pack_ids(sorted(noted & known)), db=db["settled"])
        return "the note is taken back"


class FreshMessage:
    """A message of a segment that cannot be sent."""

    def __init__(self, key: bytes, message: int) -> None:
        self._key, self._message = key, message

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, records.EMPTY_SEGMENT, db=db["fresh"])
        entries = list(records.unpack_segment(row))
        name = ""
        for entry in entries:
            if entry.message == self._message:
                name = _save_entry(txn, db, aside, entry)
                of = _segment(txn, db, self._key, len(entries))
                segment.MoveEntryAside(of, entry).apply(txn, db)
        if not rows.has_envelopes(txn, db, self._message):
            rows.delete_body(txn, db, self._message)
        return f"moved aside as {name}"


class Doubled:
    """A message that is in its segment, and whole in `envelopes`, where the later state is."""

    def __init__(self, key: bytes, message: int) -> None:
        self._key, self._message = key, message

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, records.EMPTY_SEGMENT, db=db["fresh"])
        total = len(list(records.unpack_segment(row)))
        segment.mark(txn, db, _segment(txn, db, self._key, total), [self._message])
        return "taken out of the segment"


class Waiting:
    """An envelope that cannot be read, or whose message is not whole."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, b"", db=db["envelopes"])
        message = records.message_of(self._key)
        turn: bytes | None = None
        facts: dict[str, Any] | None = None
        with suppress(Unreadable, ValueError, OverflowError):  # it may be due at no time
            envelope = records.unpack_envelope(row)
            facts = facts_of(envelope)
            turn = records.waiting_key(envelope)
        name = aside.save(_name(self._key), _chunks(txn, db, message), facts, b"" if facts else row)
        rows.MoveAside("envelopes", self._key, turn).apply(txn, db)
        if not (rows.has_envelopes(txn, db, message) or message in fresh_messages(txn, db)):
            rows.delete_body(txn, db, message)  # it is in the folder
        return f"moved aside as {name}"


class Turn:
    """An envelope that nobody would come across."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        envelope = records.unpack_envelope(txn.get(self._key, b"", db=db["envelopes"]))
        rows.put_envelope(txn, db, envelope)
        return "it has its turn again"


class NoTurn:
    """A turn of nobody."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        txn.delete(self._key, db=db["waiting"])
        return "the turn is taken away"


class Stray:
    """Octets of a message that has no envelope."""

    def __init__(self, message: int) -> None:
        self._message = message

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        name = aside.save(format_id(self._message), _chunks(txn, db, self._message))
        rows.delete_body(txn, db, self._message)
        return f"moved aside as {name}"


def fresh_messages(txn: Transaction, db: Databases) -> set[int]:
    """What is in segments and not delivered, as far as they can be read."""
    found: set[int] = set()
    with txn.cursor(db["fresh"]) as cursor:
        for key, row in cursor:
            with suppress(Unreadable):
                gone = segment.settled_of(txn, db, key)
                found |= {entry.message for entry in records.unpack_segment(row)} - gone
    return found


def _segment(txn: Transaction, db: Databases, key: bytes, total: int) -> segment.Segment:
    of = segment.Segment(records.message_of(key), total)
    of.is_marked = txn.get(key, db=db["settled"]) is not None
    return of


def _name(key: bytes) -> str:
    index = int.from_bytes(key[8:])
    return format_id(records.message_of(key)) + (f".{index}" if index else "")


def _chunks(txn: Transaction, db: Databases, message: int) -> Iterator[bytes]:
    """All that there is of a message, whatever is missing in between."""
    return (octets for _, octets in rows.all_chunks(message, txn, db))


def _readable(row: bytes) -> Iterator[Entry]:
    """The messages of a segment up to where it is broken."""
    with suppress(Unreadable):
        yield from records.unpack_segment(row)


def _save_entry(txn: Transaction, db: Databases, aside: Aside, entry: Entry) -> str:
    octets: Iterable[bytes] = [entry.body] if entry.body else _chunks(txn, db, entry.message)
    try:
        envelope = records.unpack_envelope(entry.envelope)
    except Unreadable:
        return aside.save(format_id(entry.message), octets, row=entry.envelope)
    return aside.save(format_id(entry.message), octets, facts_of(envelope))
