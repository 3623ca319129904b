"""Messages read from the disk.

A deep queue leaves memory no bodies, so each delivery reads one; those that are asked for at a
time come together.
"""

from functools import partial

from fastmta.store import rows, segment
from fastmta.store.env import Databases, Environment, Transaction
from fastmta.store.gather import Gather
from fastmta.store.segment import Segment


class Bodies:
    """Reads for one shard."""

    def __init__(self, env: Environment) -> None:
        self._gather = Gather(env)

    async def read(self, message: int, first: int, inside: Segment | None) -> list[bytes]:
        """See Spool.read; `inside` is the segment that may hold the whole."""
        return await self._gather.look(partial(_find, message, first, inside))


def _find(
    message: int, first: int, inside: Segment | None, txn: Transaction, db: Databases
) -> list[bytes]:
    if inside is not None:
        body = segment.find_body(txn, db, inside.key, message)
        if body:
            return [body]
    return rows.read_chunks(message, first, txn, db)
