"""Receipts: what of a spool shard's envelopes is in mailboxes already.

A receipt is in the transaction of its delivery, and what one transaction delivers shares a row.
Only the process that owns the spool shard delivers from it, so what was stored is known in its
memory, and the rows are read at its start alone. An exception is a commit that was said to have
failed: it may have come through, so whoever delivers again looks into its row first.
"""

from contextlib import suppress

from fastmta.store import mail_records as records
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_ledger import Ledger
from fastmta.store.mail_records import Gone
from fastmta.store.records import Unreadable

Drops = dict[bytes, Gone]


class Row:
    """A row of `receipts`, and how many of its receipts are still needed."""

    __slots__ = ("key", "left")

    def __init__(self, key: bytes, left: int) -> None:
        self.key, self.left = key, left


class Known:
    """What was stored of one post, in one transaction or several."""

    __slots__ = ("drops", "rows")

    def __init__(self) -> None:
        self.drops: Drops = {}
        self.rows: list[Row] = []


class Receipts:
    """What this process knows of the receipts of its shards."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._rows: dict[bytes, Row] = {}
        self._doubtful: dict[bytes, set[bytes]] = {}  # receipt -> rows that may tell of it

    def load(self, key: bytes, row: bytes) -> list[bytes]:
        """Take on a row that is on disk; its receipts. Unreadable if it is none."""
        found = records.unpack_receipts(row)
        if key not in self._rows:
            self._rows[key] = Row(key, 0)
            for receipt, drops in found.items():
                self._add(receipt, key, drops)
        return list(found)

    def before(self, receipt: bytes, ledger: Ledger) -> Drops:
        """What was stored of a post, by drop; within a transaction, in the writer's thread."""
        for key in self._doubtful.pop(receipt, ()):
            row = ledger.txn.get(key, db=ledger.db["receipts"])
            with suppress(Unreadable):  # it is moved aside at the next start
                if row is not None and receipt in records.unpack_receipts(row):
                    self.load(key, row)
        known = self._known.get(receipt)
        return known.drops if known else {}

    def stored(self, receipt: bytes, key: bytes, drops: list[Gone]) -> None:
        """A post's transaction is durable, with its receipt in a row."""
        if key not in self._rows:
            self._rows[key] = Row(key, 0)
        self._add(receipt, key, drops)

    def doubt(self, receipt: bytes, key: bytes) -> None:
        """A transaction is said to have failed."""
        self._doubtful.setdefault(receipt, set()).add(key)

    def _add(self, receipt: bytes, key: bytes, drops: list[Gone]) -> None:
        known = self._known.get(receipt)
        if known is None:
            known = self._known[receipt] = Known()
        row = self._rows[key]
        row.left += 1
        known.rows.append(row)
        known.drops.update((each.drop, each) for each in drops)

    def forget(self, receipt: bytes) -> list[bytes]:
        """A post is never delivered again; the rows that nobody needs any more."""
        self._doubtful.pop(receipt, None)
        known = self._known.pop(receipt, None)
        done: list[bytes] = []
        for row in known.rows if known else ():
            row.left -= 1
            if row.left == 0:
                del self._rows[row.key]
                done.append(row.key)
        return done


class DropReceipts:
    """Take away a row of receipts that nobody needs; `keep` it where it cannot be read."""

    __slots__ = ("_keep", "_key")

    def __init__(self, key: bytes, *, keep: bool = False) -> None:
        self._key, self._keep = key, keep

    def work(self, ledger: Ledger) -> None:
        if self._keep:
            ledger.move_aside("receipts", self._key)
        else:
            ledger.txn.delete(self._key, db=ledger.db["receipts"])

    def finished(self, error: Exception | None) -> None:
        pass  # where it failed, the next start finds it and takes it away


def read_receipts(shard: int, txn: Transaction, db: Databases) -> list[tuple[bytes, bytes]]:
    """The rows of a spool shard."""
    found: list[tuple[bytes, bytes]] = []
    start = bytes([shard])
    with txn.cursor(db["receipts"]) as cursor:
        more = cursor.set_range(start)
        while more and cursor.key().startswith(start):
            found.append(cursor.item())
            more = cursor.next()
    return found
