"""Segments: messages that came in one commit and share one row of `fresh`."""

from collections.abc import Iterable

from fastmta.mail.envelope import Envelope
from fastmta.store import records, rows
from fastmta.store.env import Databases, Transaction

Pieces = list[bytes]  # one message of a segment, see records.pack_entry


class Segment:
    """A row of `fresh`, and how much of it is still needed.

    `left` counts its messages until they need it no more: a delivered one at once, one that
    moves elsewhere after the commit that moves it. At zero the row goes.
    """

    __slots__ = ("delivered", "has_waited", "is_marked", "key", "left", "total")

    def __init__(self, first: int, total: int) -> None:
        self.key = records.message_key(first)
        self.total = self.left = total
        self.delivered: list[int] = []  # messages of which that is not written down yet
        self.has_waited = False  # since the last flush, for the rest to be delivered too
        self.is_marked = False  # it may have a row in `settled`


def put(txn: Transaction, db: Databases, entries: Iterable[Pieces]) -> list[Segment]:
    """Store messages as `records.pack_entry` gave them; the segment of each, in their order."""
    placed: list[Segment] = []
    pieces: list[bytes] = []
    octets = members = 0
    for entry in entries:
        length = sum(map(len, entry))
        if members and octets + length > records.CHUNK:
            placed += _put_one(txn, db, pieces, members)
            pieces, octets, members = [], 0, 0
        pieces += entry
        octets += length
        members += 1
    return placed + _put_one(txn, db, pieces, members) if members else placed


def _put_one(txn: Transaction, db: Databases, pieces: list[bytes], members: int) -> list[Segment]:
    segment = Segment(records.first_of(pieces), members)
    row = records.pack_segment(pieces)
    is_new = txn.put(segment.key, row, overwrite=False, db=db["fresh"])
    # The same row is there already where a commit came through although it was said to have failed.
    if not is_new and txn.get(segment.key, db=db["fresh"]) != row:
        raise ValueError(f"segment {segment.key.hex()} is in the spool already")
    return [segment] * members


class Recovered:
    """What is left in `fresh` of an earlier process."""

    def __init__(self) -> None:
        self.envelopes: list[tuple[Segment, Envelope]] = []
        self.empty: list[Segment] = []
        self.unreadable: list[rows.MoveAside | MoveEntryAside] = []
        self.last_id = 0  # the highest: a row's key is only the id of its first message


def recover(txn: Transaction, db: Databases) -> Recovered:
    """Every message in `fresh` that was not settled."""
    found = Recovered()
    with txn.cursor(db["fresh"]) as cursor:
        for key, row in cursor:
            try:
                settled = settled_of(txn, db, key)
                entries = list(records.unpack_segment(row))
            except records.Unreadable:
                found.unreadable.append(rows.MoveAside("fresh", key))
                if txn.get(key, db=db["settled"]) is not None:  # says what of it was delivered
                    found.unreadable.append(rows.MoveAside("settled", key))
                continue
            found.last_id = max(found.last_id, 0, *(entry.message for entry in entries))
            segment = Segment(records.message_of(key), len(entries))
            _recover_segment(found, segment, [e for e in entries if e.message not in settled])
    return found


def settled_of(txn: Transaction, db: Databases, key: bytes) -> set[int]:
    """What was delivered of a segment; nothing where the file knows of none, as one from before."""
    if "settled" not in db:
        return set()
    return records.unpack_ids(txn.get(key, records.NO_IDS, db=db["settled"]))


def _recover_segment(found: Recovered, segment: Segment, left: list[records.Entry]) -> None:
    segment.left = len(left)
    segment.is_marked = segment.left < segment.total
    if not left:
        found.empty.append(segment)
    for entry in left:
        try:
            found.envelopes.append((segment, records.unpack_envelope(entry.envelope)))
        except records.Unreadable:
            found.unreadable.append(MoveEntryAside(segment, entry))


class MoveEntryAside:
    """Take one message that cannot be read out of its segment, and keep it."""

    __slots__ = ("database", "entry", "key", "segment")

    def __init__(self, segment: Segment, entry: records.Entry) -> None:
        self.segment, self.entry = segment, entry
        self.database, self.key = "fresh", records.message_key(entry.message)

    def apply(self, txn: Transaction, db: Databases) -> None:
        entry = self.entry
        txn.put(b"fresh:" + self.key, entry.envelope + entry.body, db=db["aside"])
        mark(txn, db, self.segment, [entry.message])

    def finished(self, error: Exception | None) -> None:
        if error is None:
            self.segment.left -= 1


def find_body(txn: Transaction, db: Databases, key: bytes, message: int) -> bytes | None:
    """A message's body in its segment, empty where that is in `chunks`; None if it is not there."""
    for entry in records.unpack_segment(txn.get(key, records.EMPTY_SEGMENT, db=db["fresh"])):
        if entry.message == message:
            return entry.body
    return None


def mark(txn: Transaction, db: Databases, of: Segment, messages: Iterable[int]) -> None:
    """Write down that these messages of a segment are settled; the last ones take it along."""
    with txn.cursor(db["fresh"]) as cursor:
        if not cursor.set_key(of.key):
            return
    before = txn.get(of.key, records.NO_IDS, db=db["settled"])
    ids = records.unpack_ids(before).union(messages)
    if len(ids) < of.total:
        of.is_marked = True
        txn.put(of.key, records.pack_ids(ids), db=db["settled"])
    else:
        drop(txn, db, of)


def drop(txn: Transaction, db: Databases, of: Segment) -> None:
    """Remove a segment of which nothing is left."""
    txn.delete(of.key, db=db["fresh"])
    if of.is_marked:
        txn.delete(of.key, db=db["settled"])
