"""Rows of the mailboxes as bytes: keys that sort as they are read, values that name their version.

    mailboxes  account, name        -> Mailbox
    names      mailbox              -> account, name: where its row is
    entries    mailbox, uid         -> Entry: body, size, dates, flags, and what stands in front
    bodies     body                 -> size, the packed structure, the octets where all that fits
                                       one chunk, and a checksum of it and of what is in chunks
    chunks     body, number         -> octets of a body that does not
    shares     body                 -> number of entries that have it, where there are several
    changes    mailbox, modseq      -> what one transaction changed, of a bounded history
    receipts   shard, transaction   -> what one transaction stored of a spool shard's envelopes
    touched    slot                 -> transaction, the mailboxes that it changed: a ring
    imports    hash of the source   -> how far an import has come
    meta       "next"               -> the next mailbox's id and UIDVALIDITY
    aside      database, key        -> what could not be read

A message for one recipient costs two rows, one in `entries` and one in `bodies`, and a change of
its mailbox's row, which all messages of a transaction share. What was added needs no row in
`changes`: an entry says when it came, and lies behind all that came before.
"""

import re
from collections.abc import Iterable, Sequence
from enum import IntFlag
from hashlib import blake2b
from struct import Struct as Layout
from struct import error as LayoutError
from typing import NamedTuple

import msgspec
from msgspec import Struct

from fastmta.store.env import LONGEST_KEY
from fastmta.store.records import CHUNK, UNDECODABLE, Unreadable, checksum_of

DATABASES = (
    *("mailboxes", "names", "entries", "bodies", "chunks", "shares"),
    *("changes", "receipts", "touched", "imports", "meta", "aside"),
)
INBOX = "INBOX"
_CONTROLS = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")  # RFC 9051 section 5.1
MOST_FRONT = (1 << 16) - 1  # octets
MOST_STRUCTURE = 8192  # octets; of a message with more than some hundred parts it is not kept
LAST_UID = (1 << 32) - 1  # RFC 9051 section 2.3.1.1
SLOTS = 1024  # transactions that `touched` remembers

_VERSION = b"\x01"
_SEALED = 2  # version of `bodies`; 1 in older releases, which had no checksum behind them
_MAILBOX = Layout(">I")
_ENTRY_KEY = Layout(">II")
_BODY_KEY = Layout(">Q")
_CHANGE_KEY = Layout(">IQ")
_RECEIPTS_KEY = Layout(">BQ")
_COUNT = Layout(">I")
# version, size, body, date, modseq when it came, modseq now, flags, octets in front.
# _core/mail_rows.pyx reads this row, its key and that of the body in the same layout.
_ENTRY = Layout(">BQQdQQIH")
_BODY = Layout(">BQI")  # version, size, octets of the structure
_SEAL = Layout(">I")  # CRC-32
_RECEIPT = Layout(">BH")  # octets of the receipt, number of drops
_DROP = Layout(">8sII")  # hash of the drop, UIDVALIDITY, uid
_TOUCHED = Layout(">Q")

MOST_INLINE = CHUNK - _BODY.size  # octets of structure and message in a row of `bodies`

mailbox_key = _MAILBOX.pack
entry_key = _ENTRY_KEY.pack
body_key = _BODY_KEY.pack
change_key = _CHANGE_KEY.pack
receipts_key = _RECEIPTS_KEY.pack


class Flags(IntFlag):
    """System flags (RFC 9051 section 2.3.2), as the bits that are stored."""

    SEEN = 1
    ANSWERED = 2
    FLAGGED = 4
    DELETED = 8
    DRAFT = 16


class Mailbox(Struct, array_like=True):
    """One mailbox. The row of INBOX also counts what its whole account has, for quotas."""

    id: int
    uidvalidity: int
    uidnext: int = 1
    modseq: int = 1  # the highest of its changes (RFC 7162 section 3.1.1: never 0)
    messages: int = 0
    octets: int = 0
    floor: int = 0  # `changes` tells all that came after this modseq
    history: int = 0  # rows in `changes`
    all_messages: int = 0
    all_octets: int = 0


class Entry(Struct):
    """One message in a mailbox."""

    body: int
    size: int  # octets, those in front included
    date: float  # internal date (RFC 9051 section 2.3.3), seconds since the epoch
    added: int  # the modseq with which it came
    modseq: int  # of its last change
    flags: int
    front: bytes  # what stands before the shared octets: Return-Path, Delivered-To
    keywords: list[str]


class Body(NamedTuple):
    """A row of `bodies`."""

    size: int
    structure: bytes  # empty where it is not kept
    octets: bytes | None  # None where they are in chunks


class Gone(NamedTuple):
    """A drop that was stored: hash of it, and where it went."""

    drop: bytes
    uidvalidity: int
    uid: int


class Next(Struct, array_like=True):
    mailbox: int = 1
    uidvalidity: int = 1


_encode = msgspec.msgpack.Encoder().encode
_decode_mailbox = msgspec.msgpack.Decoder(Mailbox).decode
_decode_keywords = msgspec.msgpack.Decoder(list[str]).decode
_decode_next = msgspec.msgpack.Decoder(Next).decode


def name_key(account: str, mailbox: str) -> bytes:
    """Where a mailbox's row is; INBOX in any case is INBOX (RFC 9051 section 5.1).

    ValueError for what cannot be a name.
    """
    name = INBOX if mailbox.upper() == INBOX else mailbox
    key = f"{account}\0{name}".encode()
    if not name or _CONTROLS.search(name) or "\0" in account or len(key) > LONGEST_KEY:
        raise ValueError(f"{mailbox[:80]!r} cannot be a mailbox of {account[:80]}")
    return key


def account_key(key: bytes) -> bytes:
    """What the keys of all mailboxes of an account begin with, of one of them."""
    return key[: key.index(0) + 1]


def inbox_key(key: bytes) -> bytes:
    """The key of the INBOX beside a mailbox."""
    return account_key(key) + b"INBOX"


def is_inbox(key: bytes) -> bool:
    return key.endswith(b"\0INBOX")


def split_name(key: bytes) -> tuple[str, str]:
    """Account and mailbox."""
    account, _, mailbox = key.decode().partition("\0")
    return account, mailbox


def drop_hash(key: bytes, front: bytes) -> bytes:
    """By which a receipt knows a recipient: the key of its mailbox, and what stands in front."""
    return blake2b(key + b"\0" + front, digest_size=8).digest()


def pack_mailbox(mailbox: Mailbox) -> bytes:
    return _VERSION + _encode(mailbox)


def unpack_mailbox(row: bytes) -> Mailbox:
    check_version(row)
    try:
        return _decode_mailbox(row[1:])
    except UNDECODABLE as error:
        raise Unreadable(str(error)) from error


def pack_next(numbers: Next) -> bytes:
    return _VERSION + _encode(numbers)


def unpack_next(row: bytes) -> Next:
    check_version(row)
    try:
        return _decode_next(row[1:])
    except UNDECODABLE as error:
        raise Unreadable(str(error)) from error


def pack_entry(entry: Entry) -> bytes:
    return (
        _ENTRY.pack(
            *(1, entry.size, entry.body, entry.date, entry.added, entry.modseq),
            *(entry.flags, len(entry.front)),
        )
        + entry.front
        + (_encode(entry.keywords) if entry.keywords else b"")
    )


def unpack_entry(row: bytes) -> Entry:
    check_version(row)
    try:
        _, size, body, date, added, modseq, flags, front = _ENTRY.unpack_from(row)
        start = _ENTRY.size
        rest = row[start + front :]
        keywords = _decode_keywords(rest) if rest else []
    except (LayoutError, *UNDECODABLE) as error:
        raise Unreadable(str(error)) from error
    return Entry(body, size, date, added, modseq, flags, row[start : start + front], keywords)


def unpack_place(row: bytes) -> tuple[int, bytes]:
    """Of an entry what reading takes: the body's id, and what stands in front."""
    check_version(row)
    try:
        _, _, body, _, _, _, _, length = _ENTRY.unpack_from(row)
    except LayoutError as error:
        raise Unreadable(str(error)) from error
    return body, row[_ENTRY.size : _ENTRY.size + length]


def added_of(row: bytes) -> int:
    """The modseq with which an entry came."""
    return int.from_bytes(row[25:33])


def pack_body(size: int, structure: bytes, octets: Sequence[bytes]) -> bytes:
    """A row of `bodies`, with the octets where they fit; else they go into chunks."""
    head = _BODY.pack(_SEALED, size, len(structure)) + structure
    seal = _SEAL.pack(checksum_of((head, *octets)))
    return b"".join((head, *octets, seal)) if is_inline(size, structure) else head + seal


def unseal(row: bytes) -> tuple[bytes, int | None]:
    """A row of `bodies` without its checksum, and that; None where it has none."""
    if row[:1] != bytes([_SEALED]):
        check_version(row)
        return row, None
    return row[: -_SEAL.size], int.from_bytes(row[-_SEAL.size :])


def is_inline(size: int, structure: bytes) -> bool:
    """Whether a body fits its row."""
    return size + len(structure) <= MOST_INLINE


def may_have_chunks(octets: int) -> bool:
    """Whether a body of so many may be in chunks, as far as an entry can tell."""
    return octets > MOST_INLINE - MOST_STRUCTURE


def unpack_body(row: bytes) -> Body:
    """Unreadable where it is not as long as it says; its checksum is not looked at."""
    octets = unpack_octets(row)
    _, size, length = _BODY.unpack_from(row)
    return Body(size, row[_BODY.size : _BODY.size + length], octets)


def unpack_octets(row: bytes) -> bytes | None:
    """The octets in a row of `bodies`; None where they are in chunks."""
    row, _ = unseal(row)
    if len(row) < _BODY.size:
        raise Unreadable(f"{len(row)} octets are no body")
    _, size, length = _BODY.unpack_from(row)
    if size + length > MOST_INLINE:
        return None
    start = _BODY.size + length
    if len(row) != start + size:
        raise Unreadable(f"{len(row) - start} octets of {size}")
    return row[start:]


def pack_count(count: int) -> bytes:
    return _VERSION + _COUNT.pack(count)


def unpack_count(row: bytes) -> int:
    """Entries of a body; absent is one."""
    if not row:
        return 1
    check_version(row)
    return int.from_bytes(row[1:])


def pack_receipt(receipt: bytes, gone: Sequence[Gone]) -> bytes:
    """What was stored of one post; a row of `receipts` holds one or more of these."""
    drops = [_DROP.pack(*drop) for drop in gone]
    return b"".join((_RECEIPT.pack(len(receipt), len(drops)), receipt, *drops))


def pack_receipts(records: Iterable[bytes]) -> bytes:
    return _VERSION + b"".join(records)


def unpack_receipts(row: bytes) -> dict[bytes, list[Gone]]:
    check_version(row)
    found: dict[bytes, list[Gone]] = {}
    at = 1
    try:
        while at < len(row):
            length, count = _RECEIPT.unpack_from(row, at)
            at += _RECEIPT.size + length
            drops = row[at : at + count * _DROP.size]
            found[row[at - length : at]] = [Gone(*each) for each in _DROP.iter_unpack(drops)]
            at += count * _DROP.size
    except LayoutError as error:
        raise Unreadable(str(error)) from error
    if at != len(row):
        raise Unreadable("a receipt ends in the middle")
    return found


def pack_touched(number: int, mailboxes: Iterable[int]) -> bytes:
    return _TOUCHED.pack(number) + b"".join(map(mailbox_key, mailboxes))


def unpack_touched(row: bytes) -> tuple[int, list[int]]:
    """The transaction, and the mailboxes that it changed."""
    (number,) = _TOUCHED.unpack_from(row)
    return number, [each for (each,) in _MAILBOX.iter_unpack(row[_TOUCHED.size :])]


def touched_key(number: int) -> bytes:
    return mailbox_key(number % SLOTS)


def check_version(row: bytes) -> None:
    if row[:1] != _VERSION:
        raise Unreadable(f"version {row[0] if row else 'none'} is not known to this release")
