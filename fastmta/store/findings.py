"""What a look at the rows of an environment has found, and how each of it is mended."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
from msgspec import Struct

from fastmta.store import residence, rows
from fastmta.store.aside import Aside
from fastmta.store.env import Databases, Transaction

MOST_PROBLEMS = 1000  # that are told, and mended in one round
# Seconds of one read transaction: one that lasts keeps the writer from using freed pages again.
LOOK = 0.01
_GLANCE = 64  # rows between looks at the clock
_KEYS = 1000  # that are read in one transaction

# Takes what is wrong out of the way, within a write transaction; says what it did.
Mend = Callable[[Transaction, Databases, Aside], str]


class Part(Struct):
    """One environment of a data directory, and what is wrong with it."""

    name: str  # its folder below the data directory: "spool/0"
    counts: dict[str, int] = {}
    aside: int = 0  # rows that were moved aside at some time; no problem by themselves
    problems: list[str] = []
    more: int = 0  # problems that are not among these
    mended: list[str] = []  # what a repair did
    online: bool = False  # a server had it: its pages were not looked at

    @property
    def found(self) -> int:
        return len(self.problems) + self.more


class MoveRow:
    """A row that says nothing to anybody is moved aside."""

    def __init__(self, database: str, key: bytes) -> None:
        self._database, self._key = database, key

    def __call__(self, txn: Transaction, db: Databases, aside: Aside) -> str:
        row = txn.get(self._key, b"", db=db[self._database])
        rows.MoveAside(self._database, self._key).apply(txn, db)
        return f"moved aside as {aside.save(self._key.hex(), row=row)}"


class Finding(NamedTuple):
    what: str
    mend: Mend


class Look:
    """Rows of one environment, read in short transactions; each is consistent by itself."""

    def __init__(
        self, env: lmdb.Environment, db: Databases, file: Path, told: Callable[[int, int], None]
    ) -> None:
        self.env, self.db = env, db
        self._file, self._told = file, told
        self.findings: list[Finding] = []
        self.more = 0
        self._done = 0
        with env.begin() as txn:
            self._all = sum(self.entries(txn, name) for name in db)

    def entries(self, txn: Transaction, database: str) -> int:
        return int(txn.stat(self.db[database])["entries"])

    def find(self, what: str, mend: Mend) -> None:
        if len(self.findings) < MOST_PROBLEMS:
            self.findings.append(Finding(what, mend))
        else:
            self.more += 1

    def rows(self, database: str, start: bytes = b"") -> Iterator[tuple[Transaction, bytes, bytes]]:
        """Rows from a key on, each with the transaction that it was read in."""
        key: bytes | None = start
        while key is not None:
            with self.env.begin() as txn, txn.cursor(self.db[database]) as cursor:
                begun, count = time.monotonic(), 0
                more = cursor.set_range(key)
                while more and (count % _GLANCE or time.monotonic() - begun < LOOK):
                    yield txn, cursor.key(), cursor.value()
                    count += 1
                    more = cursor.next()
                key = cursor.key() if more else None
            self.passed(count)

    def keys(self, database: str) -> Iterator[bytes]:
        """All keys, without a transaction that lasts while its user works."""
        start: bytes | None = b""
        while start is not None:
            found: list[bytes] = []
            with self.env.begin() as txn, txn.cursor(self.db[database]) as cursor:
                more = cursor.set_range(start)
                while more and len(found) < _KEYS:
                    found.append(cursor.key())
                    more = cursor.next()
                start = cursor.key() if more else None
            yield from found

    def groups(self, database: str, size: int) -> Iterator[tuple[Transaction, bytes]]:
        """What the keys begin with in their first octets, each once."""
        start: bytes | None = b""
        while start is not None:
            with self.env.begin() as txn, txn.cursor(self.db[database]) as cursor:
                begun = time.monotonic()
                while start is not None and time.monotonic() - begun < LOOK:
                    if not cursor.set_range(start):
                        return
                    group = cursor.key()[:size]
                    yield txn, group
                    start = following(group)
            self.passed(0)

    def passed(self, rows: int) -> None:
        """So many rows are done; what was read is not to count as our memory."""
        self._done += rows
        self._told(min(self._done, self._all), self._all)
        residence.give_back(self._file)


def wrong_checksum(there: int, wanted: int) -> str:
    return f"its octets have the checksum {there:08x} instead of {wanted:08x}"


def following(prefix: bytes) -> bytes | None:
    """What no key with a prefix sorts behind, and all later ones do; None after the last."""
    number = int.from_bytes(prefix) + 1
    return None if number >> 8 * len(prefix) else number.to_bytes(len(prefix))
