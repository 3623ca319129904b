"""What is done to the spool's rows inside a transaction; `records` says what they look like."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple

import lmdb

from fastmta.mail.envelope import Envelope, id_time
from fastmta.store import records
from fastmta.store.env import LONGEST_KEY, Databases, Transaction
from fastmta.store.lanes import Look

PASSED = 4096  # rows that one look passes over
READ_OCTETS = 1 << 20  # about what one `read_body` gives


class MoveAside:
    """Take a row that cannot be read out of the way, and keep it."""

    __slots__ = ("database", "key", "waiting")

    def __init__(self, database: str, key: bytes, waiting: bytes | None = None) -> None:
        self.database, self.key, self.waiting = database, key, waiting

    def apply(self, txn: Transaction, db: Databases) -> None:
        row = txn.pop(self.key, db=db[self.database])
        if row is not None:
            txn.put(aside_key(self.database, self.key), row, db=db["aside"])
        if self.waiting is not None:
            txn.delete(self.waiting, db=db["waiting"])

    def finished(self, error: Exception | None) -> None:
        pass  # it was reported when it was found, and is found again where this failed


def aside_key(database: str, key: bytes) -> bytes:
    """Where a row is kept that is moved aside."""
    return (database.encode() + b":" + key)[:LONGEST_KEY]


class Found:
    """Rows of one lane as they were read: what can go out, and what cannot be read."""

    __slots__ = ("envelopes", "mark", "position", "soonest", "unreadable")

    def __init__(self, position: bytes) -> None:
        self.envelopes: list[Envelope] = []
        self.unreadable: list[MoveAside] = []
        self.position = position  # the last row that was read
        self.soonest = inf  # when the next one is due
        self.mark = b""  # of that


class LaneStart(NamedTuple):
    """The first row of a lane."""

    lane: bytes
    mark: bytes
    position: bytes
    due: float


def put_envelope(txn: Transaction, db: Databases, envelope: Envelope) -> None:
    txn.put(records.envelope_key(envelope), records.pack_envelope(envelope), db=db["envelopes"])
    if not envelope.held:
        mark = records.mark_of(envelope)
        txn.put(records.waiting_key(envelope), mark, db=db["waiting"])


def delete_envelope(txn: Transaction, db: Databases, envelope: Envelope) -> None:
    if not envelope.held:
        txn.delete(records.waiting_key(envelope), db=db["waiting"])
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


def read_chunks(
    message: int, first: int, txn: Transaction, db: Databases, most: int = READ_OCTETS
) -> list[bytes]:
    """Chunks of a message from number `first` on, about `most` octets; [] at the end.

    The end is also where one is missing: what stands behind it is not to be taken for it.
    """
    chunks: list[bytes] = []
    octets = 0
    key = records.chunk_key(message, first)
    with txn.cursor(db["chunks"]) as cursor:
        found = cursor.set_range(key)
        while found and octets < most and cursor.key() == key:
            chunks.append(cursor.value())
            octets += len(chunks[-1])
            key = records.chunk_key(message, first + len(chunks))
            found = cursor.next()
    return chunks


def all_chunks(message: int, txn: Transaction, db: Databases) -> Iterator[tuple[bytes, bytes]]:
    """Keys and octets of all that there is of a message, whatever is missing in between."""
    prefix = records.message_key(message)
    with txn.cursor(db["chunks"]) as cursor:
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            yield cursor.item()
            more = cursor.next()


def scan_lanes(txn: Transaction, db: Databases) -> list[LaneStart]:
    """The first row of each lane; its cost is that of the lanes, however long they are."""
    found: list[LaneStart] = []
    key: bytes | None = b""
    with txn.cursor(db["waiting"]) as cursor:
        while key is not None and cursor.set_range(key):
            lane, position = _split(cursor.key())
            due = records.position_time(position)
            found.append(LaneStart(lane, cursor.value(), position, due))
            key = records.next_lane(lane)
    return found


def read_lanes(
    looks: Sequence[Look],
    room: int,
    now: float,
    is_out: Callable[[int], bool],
    txn: Transaction,
    db: Databases,
) -> list[Found]:
    """Lanes in their order, until `room` envelopes are found that are due and not out."""
    found: list[Found] = []
    with txn.cursor(db["waiting"]) as cursor:
        for look in looks:
            if room <= 0:
                break
            one = _read_lane(cursor, look, min(room, look.count), now, is_out, txn, db)
            room -= len(one.envelopes)
            found.append(one)
    return found


def _read_lane(
    cursor: "lmdb.Cursor[bytes]",
    look: Look,
    room: int,
    now: float,
    is_out: Callable[[int], bool],
    txn: Transaction,
    db: Databases,
) -> Found:
    found = Found(look.position)
    more = cursor.set_range(look.key + look.position)
    passed = 0
    while more and (key := cursor.key()).startswith(look.key):
        position = key[records.LANE_SIZE :]
        if look.past and passed < PASSED and cursor.value() in look.past:
            passed += 1
            found.position = position
            more = cursor.next()
            continue
        due = records.position_time(position)
        if due > now or len(found.envelopes) >= room or passed == PASSED:
            # What is still to be passed over is as good as due.
            found.soonest, found.mark = 0.0 if passed == PASSED else due, cursor.value()
            break
        found.position = position
        name = records.position_envelope(position)
        if not is_out(int.from_bytes(name)):
            _add(found, key, name, txn.get(name, db=db["envelopes"]))
        more = cursor.next()
    return found


def _split(key: bytes) -> tuple[bytes, bytes]:
    return key[: records.LANE_SIZE], key[records.LANE_SIZE :]


def _add(found: Found, waiting: bytes, name: bytes, row: bytes | None) -> None:
    try:
        found.envelopes.append(records.unpack_envelope(row or b""))
    except records.Unreadable:
        found.unreadable.append(MoveAside("envelopes", name, waiting))


def scan_envelopes(
    after: bytes, count: int, txn: Transaction, db: Databases
) -> tuple[list[Envelope], bytes | None]:
    """Envelopes that wait or are held, behind a key; and the key to go on from, None at the end.

    A row that cannot be read is passed over: whoever reads its lane moves it aside.
    """
    found: list[Envelope] = []
    with txn.cursor(db["envelopes"]) as cursor:
        more = cursor.set_range(after)
        if more and cursor.key() == after:
            more = cursor.next()
        for _ in range(count):
            if not more:
                return found, None
            key, row = cursor.item()
            with suppress(records.Unreadable):
                found.append(records.unpack_envelope(row))
            more = cursor.next()
    return found, key if more else None


def scan_ahead(
    start: bytes, after: float, count: int, txn: Transaction, db: Databases
) -> tuple[list[Envelope], bytes | None]:
    """Envelopes that wait for a time after this one, from key `start` on; and the key to go on
    from, None at the end. Its cost is that of the lanes and of what is found."""
    found: list[Envelope] = []
    place = records.position_after(after)
    key: bytes | None = start
    with txn.cursor(db["waiting"]) as cursor:
        while key is not None and cursor.set_range(key):
            lane, _ = _split(cursor.key())
            more = cursor.set_range(max(key, lane + place))
            while more and (row := cursor.key()).startswith(lane):
                if len(found) == count:
                    return found, row
                name = records.position_envelope(row[records.LANE_SIZE :])
                with suppress(records.Unreadable):  # whoever reads its lane moves it aside
                    found.append(records.unpack_envelope(txn.get(name, b"", db=db["envelopes"])))
                more = cursor.next()
            key = records.next_lane(lane)
    return found, None


def get_envelopes(
    wanted: Iterable[Envelope], txn: Transaction, db: Databases
) -> list[Envelope | None]:
    """As they are stored now; None where there is no such row, or none that can be read."""
    found: list[Envelope | None] = []
    for envelope in wanted:
        row = txn.get(records.envelope_key(envelope), b"", db=db["envelopes"])
        try:
            found.append(records.unpack_envelope(row))
        except records.Unreadable:
            found.append(None)
    return found


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
