"""What changes in a mailbox, as typed records that other sessions and processes follow.

Of each transaction that changed or took away entries, `changes` has one row of these. What was
added has none: an entry tells the modseq with which it came, and uids grow with it. The history
is bounded: who asks for more than it tells looks at the whole mailbox.
"""

from array import array
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from fastmta.store import mail_records as records
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_records import Mailbox
from fastmta.store.records import CHUNK, UNDECODABLE, Unreadable

HISTORY = 512  # rows of a mailbox

_VERSION = b"\x01"


class Added(Struct, tag=0, array_like=True, frozen=True):
    """Messages came; `ranges` are pairs of the first uid and the last."""

    ranges: tuple[tuple[int, int], ...]


class Flagged(Struct, tag=1, array_like=True, frozen=True):
    """Flags or keywords of messages are others."""

    ranges: tuple[tuple[int, int], ...]


class Expunged(Struct, tag=2, array_like=True, frozen=True):
    """Messages are gone."""

    ranges: tuple[tuple[int, int], ...]


Change = Added | Flagged | Expunged

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Flagged | Expunged]).decode


class Changes(Struct, frozen=True):
    """What happened in a mailbox behind a modseq, in its order.

    `changes` is None where the history does not reach back so far: then only the mailbox as a
    whole tells. Ranges may name uids that are gone since.
    """

    modseq: int  # up to which this tells
    uidnext: int
    messages: int
    changes: list[Change] | None


def ranges_of(uids: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted uids as pairs of the first and the last of each run."""
    ranges: list[tuple[int, int]] = []
    first = last = -2
    for uid in uids:
        if uid != last + 1:
            if last >= 0:
                ranges.append((first, last))
            first = uid
        last = uid
    if last >= 0:
        ranges.append((first, last))
    return tuple(ranges)


def uids_of(ranges: Sequence[tuple[int, int]]) -> "array[int]":
    """The uids in ranges."""
    return array("I", (uid for first, last in ranges for uid in range(first, last + 1)))


def note_changes(
    txn: Transaction, db: Databases, mailbox: Mailbox, changes: Sequence[Change]
) -> None:
    """Write down one transaction's changes, and forget those that are too many."""
    row = _VERSION + _encode(changes)
    if len(row) > CHUNK:  # who follows looks at the whole mailbox
        _forget(txn, db, mailbox, keep=0)
        mailbox.floor = mailbox.modseq
        return
    txn.put(records.change_key(mailbox.id, mailbox.modseq), row, db=db["changes"])
    mailbox.history += 1
    if mailbox.history > HISTORY:
        _forget(txn, db, mailbox, keep=HISTORY)


def _forget(txn: Transaction, db: Databases, mailbox: Mailbox, keep: int) -> None:
    start = records.mailbox_key(mailbox.id)
    with txn.cursor(db["changes"]) as cursor:
        more = cursor.set_range(start)
        while more and mailbox.history > keep and cursor.key().startswith(start):
            mailbox.floor = int.from_bytes(cursor.key()[len(start) :])
            more = cursor.delete()
            mailbox.history -= 1


def read_changes(mailbox: int, since: int, txn: Transaction, db: Databases) -> Changes:
    """What happened behind modseq `since`; KeyError if there is no such mailbox."""
    name = txn.get(records.mailbox_key(mailbox), db=db["names"])
    row = txn.get(bytes(name), db=db["mailboxes"]) if name is not None else None
    if row is None:
        raise KeyError(mailbox)
    now = records.unpack_mailbox(row)
    changes: list[Change] | None = None
    if since >= now.floor:
        changes = _read_added(now, since, txn, db)
        try:
            changes += _read_noted(mailbox, since, txn, db)
        except Unreadable:
            changes = None
    return Changes(now.modseq, now.uidnext, now.messages, changes)


def _read_added(now: Mailbox, since: int, txn: Transaction, db: Databases) -> list[Change]:
    """From the last entry back to the first that came behind `since`."""
    first = now.uidnext
    start = records.mailbox_key(now.id)
    with txn.cursor(db["entries"]) as cursor:
        more = cursor.set_range(records.mailbox_key(now.id + 1))
        more = cursor.prev() if more else cursor.last()
        while more and (key := cursor.key()).startswith(start):
            if records.added_of(cursor.value()) <= since:
                break
            first = int.from_bytes(key[len(start) :])
            more = cursor.prev()
    return [Added(((first, now.uidnext - 1),))] if first < now.uidnext else []


def _read_noted(mailbox: int, since: int, txn: Transaction, db: Databases) -> list[Change]:
    changes: list[Change] = []
    start = records.mailbox_key(mailbox)
    with txn.cursor(db["changes"]) as cursor:
        more = cursor.set_range(records.change_key(mailbox, since + 1))
        while more and cursor.key().startswith(start):
            row = cursor.value()
            records.check_version(row)
            try:
                changes += _decode(row[1:])
            except UNDECODABLE as error:
                raise Unreadable(str(error)) from error
            more = cursor.next()
    return changes
