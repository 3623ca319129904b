"""Whether all rows of a spool shard can be read, and agree with each other.

What belongs together is looked at in one read transaction, and each is short, so a server may
run: what comes, goes or moves meanwhile is seen before or after, never in between.
"""

from typing import NamedTuple

from fastmta.mail.envelope import Envelope, format_id
from fastmta.store import records, rows, segment, spool_mend
from fastmta.store.env import Transaction
from fastmta.store.findings import Look, MoveRow, wrong_checksum
from fastmta.store.records import Entry, Unreadable

CANDIDATES = 10_000  # messages with octets and no envelope of their own that are looked at together
LATEST = 1 << 44  # seconds since the epoch
_MESSAGE_KEY, _ENVELOPE_KEY = 8, 10  # octets


class Body(NamedTuple):
    """The octets of a message."""

    octets: int
    checksum: int


GAP = Body(-1, 0)


def check_spool(look: Look) -> dict[str, int]:
    """Look at a shard; how much there is."""
    check = SpoolCheck(look)
    check.run()
    return check.counts


class SpoolCheck:
    """One look at a shard."""

    def __init__(self, look: Look) -> None:
        self._look, self._db = look, look.db
        self.counts = {"envelopes": 0, "messages": 0, "octets": 0}
        self._last, self._body = -1, GAP  # the message whose chunks were counted last

    def run(self) -> None:
        for txn, key, row in self._look.rows("fresh"):
            self._check_segment(txn, key, row)
        for txn, key, _ in self._look.rows("settled") if "settled" in self._db else ():
            if txn.get(key, db=self._db["fresh"]) is None:
                self._look.find(
                    f"{_segment(key)} is not there, and what was delivered of it is noted",
                    MoveRow("settled", key),
                )
        for txn, key, row in self._look.rows("envelopes"):
            self._check_envelope(txn, key, row)
        if "waiting" in self._db:  # older releases had no lanes
            for txn, key, _ in self._look.rows("waiting"):
                self._check_turn(txn, key)
        self._check_chunks()

    # What came and has not waited

    def _check_segment(self, txn: Transaction, key: bytes, row: bytes) -> None:
        try:
            entries = list(records.unpack_segment(row))
            settled = segment.settled_of(txn, self._db, key)
        except Unreadable as error:
            self._look.find(f"{_segment(key)} cannot be read: {error}", spool_mend.Segment(key))
            return
        known = [entry.message for entry in entries]
        is_own = len(key) == _MESSAGE_KEY and known[:1] == [records.message_of(key)]
        if len({*known}) < len(known) or not is_own:
            what = f"{_segment(key)} has other messages than it says"
            self._look.find(what, spool_mend.Segment(key))
            return
        if strays := settled.difference(known):
            names = ", ".join(map(format_id, sorted(strays)))
            self._look.find(
                f"{_segment(key)} has no {names}, which is noted as delivered",
                spool_mend.Settled(key),
            )
        for entry in entries:
            if entry.message not in settled:
                self._check_entry(txn, key, entry)

    def _check_entry(self, txn: Transaction, key: bytes, entry: Entry) -> None:
        mend = spool_mend.FreshMessage(key, entry.message)
        name = f"message {format_id(entry.message)}"
        try:
            envelope = records.unpack_envelope(entry.envelope)
        except Unreadable as error:
            self._look.find(f"{name}: its envelope cannot be read: {error}", mend)
            return
        self._count(envelope)
        if envelope.size <= records.CHUNK:
            body = Body(len(entry.body), records.checksum_of([entry.body]))
        else:
            body = self._chunks(txn, entry.message)
        if wrong := (
            _wrong(envelope) or _is_other(envelope, entry.message, 0) or _is_not(envelope, body)
        ):
            self._look.find(f"{name}: {wrong}", mend)
        elif rows.has_envelopes(txn, self._db, entry.message) and self._waits(txn, envelope):
            what = f"{name} is in its segment and waits too"
            self._look.find(what, spool_mend.Doubled(key, entry.message))

    def _waits(self, txn: Transaction, envelope: Envelope) -> bool:
        """Whether it is whole in `envelopes` too; what is not is told there."""
        (other,) = rows.get_envelopes([envelope], txn, self._db)
        return other is not None and not _is_not(other, self._chunks(txn, other.message))

    # What waits

    def _check_envelope(self, txn: Transaction, key: bytes, row: bytes) -> None:
        name = spool_mend.name_of(key)
        try:
            envelope = records.unpack_envelope(row)
        except Unreadable as error:
            self._look.find(f"{name} cannot be read: {error}", spool_mend.Waiting(key))
            return
        self._count(envelope)
        wrong = _wrong(envelope)
        if not wrong and records.envelope_key(envelope) != key:
            wrong = "it is another"
        if wrong := wrong or _is_not(envelope, self._chunks(txn, records.message_of(key))):
            self._look.find(f"{name}: {wrong}", spool_mend.Waiting(key))
        elif not (envelope.held or self._has_turn(txn, envelope)):
            self._look.find(f"{name} has no turn, nobody would send it", spool_mend.Turn(key))

    def _has_turn(self, txn: Transaction, envelope: Envelope) -> bool:
        if "waiting" in self._db:
            mark = txn.get(records.waiting_key(envelope), db=self._db["waiting"])
            if mark == records.mark_of(envelope):
                return True
        if "due" in self._db:  # what an older release has left
            return txn.get(records.position_of(envelope), db=self._db["due"]) is not None
        return False

    def _check_turn(self, txn: Transaction, key: bytes) -> None:
        named = records.position_envelope(key[records.LANE_SIZE :])
        if len(named) != _ENVELOPE_KEY:  # LMDB looks for no key that is empty
            self._look.find(
                f"row {key.hex()} of waiting is that of no turn", spool_mend.NoTurn(key)
            )
            return
        row = txn.get(named, db=self._db["envelopes"])
        try:
            envelope = records.unpack_envelope(row) if row is not None else None
        except Unreadable:
            return  # and is told as such
        if envelope is not None and _wrong(envelope):
            return
        if envelope is None or envelope.held or records.waiting_key(envelope) != key:
            why = "that is not there" if envelope is None else "that has another or none"
            self._look.find(
                f"a turn is for {spool_mend.name_of(named)} {why}", spool_mend.NoTurn(key)
            )

    # Octets

    def _chunks(self, txn: Transaction, message: int) -> Body:
        """What is in the chunks of a message; GAP where one is missing in between."""
        if message != self._last:
            self._last, self._body = message, self._count_chunks(txn, message)
        return self._body

    def _count_chunks(self, txn: Transaction, message: int) -> Body:
        octets = checksum = 0
        for number, (key, chunk) in enumerate(rows.all_chunks(message, txn, self._db)):
            if key != records.chunk_key(message, number):
                return GAP
            octets += len(chunk)
            checksum = records.checksum_of([chunk], checksum)
        return Body(octets, checksum)

    def _check_chunks(self) -> None:
        """That nothing is left of a message whose envelopes are gone."""
        candidates: list[int] = []
        for txn, prefix in self._look.groups("chunks", _MESSAGE_KEY):
            if len(prefix) < _MESSAGE_KEY:
                what = f"row {prefix.hex()} of chunks is that of no message"
                self._look.find(what, MoveRow("chunks", prefix))
                continue
            message = int.from_bytes(prefix)
            if not rows.has_envelopes(txn, self._db, message):
                candidates.append(message)
        for first in range(0, len(candidates), CANDIDATES):
            self._check_strays(candidates[first : first + CANDIDATES])

    def _check_strays(self, candidates: list[int]) -> None:
        """A large message that has not waited has its envelope in some segment."""
        with self._look.env.begin() as txn:
            fresh = spool_mend.fresh_messages(txn, self._db)
            for message in candidates:
                if message in fresh or rows.has_envelopes(txn, self._db, message):
                    continue
                if any(rows.all_chunks(message, txn, self._db)):
                    self._look.find(
                        f"message {format_id(message)} has no envelope any more",
                        spool_mend.Stray(message),
                    )

    def _count(self, envelope: Envelope) -> None:
        self.counts["envelopes"] += 1
        if envelope.index == 0:
            self.counts["messages"] += 1
            self.counts["octets"] += envelope.size


def _wrong(envelope: Envelope) -> str:
    """What an envelope cannot be, or nothing."""
    if not envelope.recipients:
        return "it has no recipients"
    if not 0 <= envelope.due < LATEST:
        return "it is due at no time"
    return ""


def _is_not(envelope: Envelope, body: Body) -> str:
    """How these octets are not those that came, or nothing."""
    if body == GAP:
        return "a part of its octets is missing"
    if body.octets != envelope.size:
        return f"{body.octets} octets are there of {envelope.size}"
    if envelope.checksum not in (0, body.checksum):
        return wrong_checksum(body.checksum, envelope.checksum)
    return ""


def _is_other(envelope: Envelope, message: int, due: float) -> str:
    same = (envelope.message, envelope.index, envelope.due) == (message, 0, due)
    return "" if same else "its envelope is of another"


def _segment(key: bytes) -> str:
    return f"segment {format_id(records.message_of(key))}"
