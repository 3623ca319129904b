"""What older releases wrote, moved to where this one reads it."""

import asyncio

from fastmta.store import records, rows
from fastmta.store.env import Databases, Environment, Transaction

BATCH = 1000  # rows in one transaction


class MoveDue:
    """Some rows of `due` (time, id, index -> nothing), which had no lanes, become `waiting`.

    Each goes in the transaction that brings its new row, so a crash in between loses nothing.
    """

    def __init__(self) -> None:
        self.moved = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def apply(self, txn: Transaction, db: Databases) -> None:
        self.moved = 0
        with txn.cursor(db["due"]) as cursor:
            cursor.first()
            while (key := cursor.key()) and self.moved < BATCH:
                self._move(records.position_envelope(key), txn, db)
                cursor.delete()  # and on to the next
                self.moved += 1

    def _move(self, name: bytes, txn: Transaction, db: Databases) -> None:
        try:
            row = txn.get(name, b"", db=db["envelopes"])
            rows.put_envelope(txn, db, records.unpack_envelope(row))
        except records.Unreadable:
            rows.MoveAside("envelopes", name).apply(txn, db)

    def finished(self, error: Exception | None) -> None:
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


async def upgrade(env: Environment) -> None:
    """Make of the files what this release writes; an error where the disk refuses it."""
    while env.has("due"):
        env.submit(move := MoveDue())
        await move.done
        if move.moved < BATCH:
            break
