"""What is done to the spool's rows inside a transaction; `records` says what they look like."""

from collections.abc import Callable
from math import inf

import lmdb

from fastmta.mail.envelope import Envelope, id_time
from fastmta.store import records
from fastmta.store.env import Databases, Transaction

READ_OCTETS = 1 << 20  # about what one `read_body` gives


class MoveAside:
    """Take a row that cannot be read out of the way, and keep it."""

    __slots__ = ("database", "due", "key")

    def __init__(self, database: str, key: bytes, due: bytes | None = None) -> None:
        self.database, self.key, self.due = database, key, due

    def apply(self, txn: Transaction, db: Databases) -> None:
        row = txn.pop(self.key, db=db[self.database])
        if row is not None:
            txn.put(self.database.encode() + b":" + self.key, row, db=db["aside"])
        if self.due is not None:
            txn.delete(self.due, db=db["due"])

    def finished(self, error: Exception | None) -> None:
        pass  # it was reported when it was found, and is found again where this failed


class Found:
    """Rows as they were read: what can go out, and what cannot be read."""

    __slots__ = ("envelopes", "position", "soonest", "unreadable")

    def __init__(self, position: bytes = b"") -> None:
        self.envelopes: list[Envelope] = []
        self.unreadable: list[MoveAside] = []
        self.position = position  # the last `due` row that was read
        self.soonest = inf  # when the next one is due


def put_envelope(txn: Transaction, db: Databases, envelope: Envelope) -> None:
    txn.put(records.envelope_key(envelope), records.pack_envelope(envelope), db=db["envelopes"])
    txn.put(records.due_key(envelope), b"", db=db["due"])


def delete_envelope(txn: Transaction, db: Databases, envelope: Envelope) -> None:
    txn.delete(records.due_key(envelope), db=db["due"])
    txn.delete(records.envelope_key(envelope), db=db["envelopes"])


def has_envelopes(txn: Transaction, db: Databases, message: int) -> bool:
    key = records.message_key(message)
    with txn.cursor(db["envelopes"]) as cursor:
        return cursor.set_range(key) and cursor.key().startswith(key)


def put_body(txn: Transaction, db: Databases, message: int, body: list[bytes]) -> None:
    """Store the octets in chunks; at least one, so that an empty body is a body too."""
    number, rest = 0, bytearray()
    for part in body:
        rest += part
        start = 0
        while len(rest) - start >= records.CHUNK:
            chunk = bytes(rest[start : start + records.CHUNK])
            txn.put(records.chunk_key(message, number), chunk, db=db["chunks"])
            number, start = number + 1, start + records.CHUNK
        del rest[:start]
    if rest or number == 0:
        txn.put(records.chunk_key(message, number), bytes(rest), db=db["chunks"])


def delete_body(txn: Transaction, db: Databases, message: int) -> None:
    key = records.message_key(message)
    with txn.cursor(db["chunks"]) as cursor:
        found = cursor.set_range(key)
        while found and cursor.key().startswith(key):
            found = cursor.delete()


def read_chunks(message: int, first: int, txn: Transaction, db: Databases) -> list[bytes]:
    """Chunks of a message from number `first` on, about READ_OCTETS of them; [] at the end."""
    chunks: list[bytes] = []
    octets = 0
    key = records.message_key(message)
    with txn.cursor(db["chunks"]) as cursor:
        found = cursor.set_range(records.chunk_key(message, first))
        while found and octets < READ_OCTETS and cursor.key().startswith(key):
            chunks.append(cursor.value())
            octets += len(chunks[-1])
            found = cursor.next()
    return chunks


def read_due(
    position: bytes,
    room: int,
    now: float,
    is_out: Callable[[int], bool],
    txn: Transaction,
    db: Databases,
) -> Found:
    """At most `room` envelopes that are due and not out, from `position` in `due` on."""
    found = Found(position)
    with txn.cursor(db["due"]) as cursor:
        more = cursor.set_range(position)
        while more:
            key = cursor.key()
            if records.due_time(key) > now or len(found.envelopes) >= room:
                found.soonest = records.due_time(key)
                break
            found.position = key
            name = records.due_envelope(key)
            if not is_out(int.from_bytes(name)):
                _add_due(found, key, name, txn.get(name, db=db["envelopes"]))
            more = cursor.next()
    return found


def _add_due(found: Found, due: bytes, name: bytes, row: bytes | None) -> None:
    try:
        found.envelopes.append(records.unpack_envelope(row or b""))
    except records.Unreadable:
        found.unreadable.append(MoveAside("envelopes", name, due))


def last_id(txn: Transaction, db: Databases) -> int:
    """The highest message id in the spool; 0 when it is empty."""
    last = 0
    for name in ("fresh", "chunks", "envelopes"):
        with txn.cursor(db[name]) as cursor:
            if cursor.last():
                last = max(last, records.message_of(cursor.key()))
    return last


def oldest_time(txn: Transaction, db: Databases) -> float:
    """When the oldest message came, in seconds since the epoch; 0 when there is none."""
    times = [_first_time(txn, db[name]) for name in ("fresh", "envelopes")]
    return min(filter(None, times), default=0.0)


def _first_time(txn: Transaction, handle: "lmdb._Database") -> float:
    with txn.cursor(handle) as cursor:
        return id_time(records.message_of(cursor.key())) if cursor.first() else 0.0
