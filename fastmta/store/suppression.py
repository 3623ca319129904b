"""The suppression list: addresses that get no mail any more, in an LMDB environment of its own.

All workers and the commands have it open at a time. A look into it is two gets in a read
transaction, some microseconds; changes are synced transactions, one process after the other.

Rows: domain "@" local part -> version, Entry as msgpack. The local part is in lower case. RFC 5321
section 2.4 leaves its case to the host that it is at, but no large host tells Bob@ from bob@, and
an operator who suppresses one means both. A whole domain has an empty local part.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import lmdb
import msgspec
from msgspec import Struct

from fastmta.mail.address import is_domain, is_mailbox, normal_domain
from fastmta.store.env import (
    Databases,
    Environment,
    Operation,
    Transaction,
    make_private,
    open_environment,
)
from fastmta.store.records import UNDECODABLE

DATABASE = "entries"
BATCH = 1000  # rows in one transaction of a command, or looked at by one step of cleaning
_VERSION = b"\x01"
_LONGEST_KEY = 511  # octets; LMDB's own limit

Reason = Literal["bounce", "complaint", "manual"]
REASONS: tuple[str, ...] = get_args(Reason)


class Entry(Struct, frozen=True, array_like=True):
    """One suppressed address. Times are seconds since the epoch."""

    address: str  # "bob@example.test", or "@example.test" for a whole domain
    reason: Reason
    added: float
    expires: float = 0.0  # 0: never
    category: str = ""  # of a bounce: mail.classification; of a complaint: its Feedback-Type
    source: str = ""  # id of the message that brought it, or whose delivery failed
    reply: str = ""

    def is_over(self, now: float) -> bool:
        return 0 < self.expires <= now


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def key_of(address: str) -> bytes:
    """Where an address, or a whole domain, stands; ValueError for what is neither."""
    local, _, domain = address.rpartition("@")
    if not (is_mailbox(address) if local else address[:1] == "@" and is_domain(domain)):
        raise ValueError(f"{address[:80]!r} is no address; write bob@example.test or @example.test")
    return _key(local, domain)


def _key(local: str, domain: str) -> bytes:
    key = f"{normal_domain(domain)}@{local.lower()}".encode()
    if len(key) > _LONGEST_KEY:
        raise ValueError(f"an address of {len(key)} octets")
    return key


def _unpack(row: bytes) -> Entry | None:
    """None for a row that cannot be read: mail to its address goes out."""
    try:
        return _decode(row[1:]) if row[:1] == _VERSION else None
    except UNDECODABLE:
        return None


# In a transaction.


def find(txn: Transaction, db: Databases, key: bytes, now: float) -> Entry | None:
    """What keeps mail from the address of this key: its own entry, or its domain's."""
    for each in (key, key[: key.index(b"@") + 1]):
        row = txn.get(each, db=db[DATABASE])
        if row is not None and (entry := _unpack(row)) and not entry.is_over(now):
            return entry
    return None


def put(txn: Transaction, db: Databases, entry: Entry, now: float) -> None:
    """Write an entry; what came of itself gives way to what holds longer."""
    key = key_of(entry.address)
    row = txn.get(key, db=db[DATABASE])
    old = _unpack(row) if row is not None else None
    if old and not old.is_over(now) and entry.reason != "manual" and _lasts_longer(old, entry):
        return
    txn.put(key, _VERSION + _encode(entry), db=db[DATABASE])


def _lasts_longer(old: Entry, new: Entry) -> bool:
    return not old.expires or (new.expires > 0 and old.expires > new.expires)


def clean(txn: Transaction, db: Databases, start: bytes, now: float) -> bytes:
    """Remove what is over among some rows from a key on; gives the key to go on from."""
    with txn.cursor(db[DATABASE]) as cursor:
        more = cursor.set_range(start)
        for _ in range(BATCH):
            if not more:
                return b""
            entry = _unpack(cursor.value())
            more = cursor.delete() if entry and entry.is_over(now) else cursor.next()
        return cursor.key() if more else b""


class _Add:
    """An operation of the writer's thread."""

    __slots__ = ("_done", "_entries", "_now")

    def __init__(self, entries: list[Entry], now: float, done: Callable[[bool], object]) -> None:
        self._entries, self._now, self._done = entries, now, done

    def apply(self, txn: Transaction, db: Databases) -> None:
        for entry in self._entries:
            put(txn, db, entry, self._now)

    def finished(self, error: Exception | None) -> None:
        self._done(error is None)


class _Clean:
    """One step of cleaning; the list remembers how far it came."""

    __slots__ = ("_list", "_next", "_now")

    def __init__(self, of: "SuppressionList", now: float) -> None:
        self._list, self._now, self._next = of, now, b""

    def apply(self, txn: Transaction, db: Databases) -> None:
        self._next = clean(txn, db, self._list.cleaned, self._now)

    def finished(self, error: Exception | None) -> None:
        if error is None:
            self._list.cleaned = self._next


def _apply(operations: Sequence[Operation], txn: Transaction, db: Databases) -> None:
    for operation in operations:
        operation.apply(txn, db)


class SuppressionList:
    """The list as a worker has it open: never waits, bound to the running loop."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._env = Environment(folder, (DATABASE,), _apply, shared=True)
        self._clock = clock
        self.cleaned = b""  # the key that cleaning goes on from

    def find(self, address: str) -> Entry | None:
        """What keeps mail from an address that a client gave, or None."""
        local, _, domain = address.rpartition("@")
        try:
            key, now = _key(local, domain), self._clock()
            return self._env.glance(lambda txn, db: find(txn, db, key, now))
        except (ValueError, lmdb.Error):  # too long for the list, or a disk that fails
            return None

    def add(self, entries: list[Entry], done: Callable[[bool], object]) -> None:
        """`done` hears in the loop whether they are safe; addresses are such (`key_of`)."""
        self._env.submit(_Add(entries, self._clock(), done))

    def clean(self) -> None:
        """Look at some more rows, and remove those that are over."""
        self._env.forget_dead_readers()
        self._env.submit(_Clean(self, self._clock()))

    async def close(self) -> None:
        await self._env.close()


class SuppressionFile:
    """The list as a command has it open; a server may run or not. lmdb.Error where it fails."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        *,
        readonly: bool = False,
    ) -> None:
        if not readonly:
            make_private(folder)
        self._env, self._db = open_environment(folder, (DATABASE,), readonly=readonly)
        self._clock = clock

    def entries(self, domain: str = "") -> Iterator[Entry]:
        """Those in force, by domain; of one domain where it is named. Short reads only."""
        prefix = f"{normal_domain(domain)}@".encode() if domain else b""
        key: bytes | None = prefix
        while key is not None:
            found, key = self._some(key, prefix)
            yield from found

    def _some(self, start: bytes, prefix: bytes) -> tuple[list[Entry], bytes | None]:
        found: list[Entry] = []
        now = self._clock()
        with self._env.begin() as txn, txn.cursor(self._db[DATABASE]) as cursor:
            more = cursor.set_range(start)
            for _ in range(BATCH):
                if not more or not cursor.key().startswith(prefix):
                    return found, None
                entry = _unpack(cursor.value())
                if entry and not entry.is_over(now):
                    found.append(entry)
                more = cursor.next()
            return found, cursor.key() if more else None

    def find(self, address: str) -> Entry | None:
        key, now = key_of(address), self._clock()
        with self._env.begin() as txn:
            return find(txn, self._db, key, now)

    def count(self) -> int:
        """Rows, among them what is over and not yet cleaned."""
        with self._env.begin() as txn:
            return int(txn.stat(self._db[DATABASE])["entries"])

    def add(self, entries: Iterable[Entry]) -> None:
        """All in one transaction."""
        now = self._clock()
        with self._env.begin(write=True) as txn:
            for entry in entries:
                put(txn, self._db, entry, now)

    def delete(self, address: str) -> bool:
        """Whether it was there."""
        key = key_of(address)
        with self._env.begin(write=True) as txn:
            return bool(txn.delete(key, db=self._db[DATABASE]))

    def close(self) -> None:
        self._env.close()
