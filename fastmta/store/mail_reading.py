"""Looks into the mailboxes, each in a short read transaction."""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from msgspec import Struct

from fastmta._core.mail_rows import body_keys, entry_keys, join_messages, list_entries
from fastmta.store import mail_records as records
from fastmta.store import rows
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_records import Entry, Mailbox
from fastmta.store.records import CHUNK, Unreadable

PAGE = 2048  # entries that one look passes over


class Usage(NamedTuple):
    """What an account has, in all its mailboxes; octets count what stands in front too."""

    messages: int
    octets: int


class Snapshot(Struct):
    """A mailbox as it was at one time: its messages in order, `uids[i]` of `sizes[i]` octets.

    The arrays take 12 octets a message. What another session takes away in the meantime may be
    missing from them, or still be in them.
    """

    mailbox: int  # its id
    uidvalidity: int
    uidnext: int
    modseq: int
    uids: "array[int]"
    sizes: "array[int]"

    def __len__(self) -> int:
        return len(self.uids)


class Page(NamedTuple):
    """Some entries of a mailbox; `after` is the uid to go on from, 0 at the end."""

    mailbox: Mailbox
    uids: "array[int]"
    sizes: "array[int]"
    unreadable: list[int]
    after: int


def read_mailboxes(
    start: bytes, txn: Transaction, db: Databases
) -> list[tuple[bytes, Mailbox | None]]:
    """A page of keys and rows from key `start` on; None for a row that cannot be read."""
    found: list[tuple[bytes, Mailbox | None]] = []
    with txn.cursor(db["mailboxes"]) as cursor:
        more = cursor.set_range(start)
        while more and len(found) < PAGE:
            try:
                found.append((cursor.key(), records.unpack_mailbox(cursor.value())))
            except Unreadable:
                found.append((cursor.key(), None))
            more = cursor.next()
    return found


def get_mailbox(key: bytes, txn: Transaction, db: Databases) -> Mailbox | None:
    """The row at a key of `name_key`."""
    row = txn.get(key, db=db["mailboxes"])
    return None if row is None else records.unpack_mailbox(row)


def read_page(key: bytes, after: int, txn: Transaction, db: Databases) -> Page | None:
    """The mailbox at a key with its entries behind uid `after`; None if there is none."""
    mailbox = get_mailbox(key, txn, db)
    if mailbox is None:
        return None
    uids, sizes = array("I"), array("Q")
    unreadable: list[int] = []
    start = records.mailbox_key(mailbox.id)
    more = 0
    with txn.cursor(db["entries"]) as cursor:
        if cursor.set_range(records.entry_key(mailbox.id, after + 1)):
            more = list_entries(cursor.iternext(), start, PAGE, uids, sizes, unreadable)
    return Page(mailbox, uids, sizes, unreadable, more)


def read_entries(
    mailbox: int, after: int, txn: Transaction, db: Databases
) -> list[tuple[int, Entry]]:
    """A page of entries behind uid `after`; those that can be read."""
    found: list[tuple[int, Entry]] = []
    start = records.mailbox_key(mailbox)
    with txn.cursor(db["entries"]) as cursor:
        more = cursor.set_range(records.entry_key(mailbox, after + 1))
        while more and len(found) < PAGE and (key := cursor.key()).startswith(start):
            with suppress(Unreadable):
                found.append((int.from_bytes(key[4:]), records.unpack_entry(cursor.value())))
            more = cursor.next()
    return found


def read_structure(mailbox: int, uid: int, txn: Transaction, db: Databases) -> tuple[bytes, int]:
    """The packed structure of a message, and the octets in front; see Mailboxes.structure."""
    row = txn.get(records.entry_key(mailbox, uid), db=db["entries"])
    if row is None:
        raise KeyError(uid)
    entry = records.unpack_entry(row)
    body = records.unpack_body(txn.get(records.body_key(entry.body), b"", db=db["bodies"]))
    return body.structure, len(entry.front)


def read_message(
    mailbox: int, uid: int, first: int, octets: int, txn: Transaction, db: Databases
) -> list[bytes]:
    """Pieces of a message from number `first` on, about so many octets.

    The first is what stands in front. KeyError if the message is gone; Unreadable if its row or
    its body's cannot be read, or a part of it is missing: who reads has no other way to know.
    """
    row = txn.get(records.entry_key(mailbox, uid), db=db["entries"])
    if row is None:
        raise KeyError(uid)
    body, front = records.unpack_place(row)
    row = txn.get(records.body_key(body), db=db["bodies"])
    if row is None:
        raise Unreadable(f"body {body} is not there")
    known = records.unpack_body(row)
    if known.octets is not None:
        return [front, known.octets][first:]
    number = max(0, first - 1)
    chunks = rows.read_chunks(body, number, txn, db, octets)
    if sum(map(len, chunks)) < min(octets, known.size - number * CHUNK):
        raise Unreadable(f"a part of body {body} is missing")
    return chunks if first else [front, *chunks]


def read_messages(
    mailbox: int, uids: Sequence[int], txn: Transaction, db: Databases
) -> list[bytes | Exception]:
    """Each message whole, or the KeyError or Unreadable of `read_message`."""
    keys = entry_keys(mailbox, uids)
    with txn.cursor(db["entries"]) as cursor:
        entries = cursor.getmulti(keys)
    with txn.cursor(db["bodies"]) as cursor:
        bodies = cursor.getmulti(body_keys(entries))
    found = join_messages(keys, entries, bodies, records.MOST_INLINE)
    return [
        _read_whole(mailbox, uid, txn, db) if message is None else message
        for uid, message in zip(uids, found, strict=True)
    ]


def _read_whole(mailbox: int, uid: int, txn: Transaction, db: Databases) -> bytes | Exception:
    try:
        return b"".join(read_message(mailbox, uid, 0, rows.READ_OCTETS, txn, db))
    except (KeyError, Unreadable) as error:
        return error
