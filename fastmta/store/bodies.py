"""Messages read from the disk: those that are asked for while others are read come together.

A deep queue leaves memory no bodies, so each delivery reads one. By itself that costs two hops
between threads, which is more than the delivery.
"""

import asyncio
from functools import partial
from typing import NamedTuple

from fastmta.store import rows, segment
from fastmta.store.env import Databases, Environment, Transaction
from fastmta.store.segment import Segment

AT_ONCE = 32  # messages; of each about 1 MiB at the most


class _Wanted(NamedTuple):
    message: int
    first: int  # number of a chunk
    inside: Segment | None  # where the whole may be
    found: "asyncio.Future[list[bytes]]"


class Bodies:
    """Reads for one shard."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._wanted: list[_Wanted] = []
        self._reader: asyncio.Task[None] | None = None

    async def read(self, message: int, first: int, inside: Segment | None) -> list[bytes]:
        """See Spool.read; `inside` is the segment that may hold the whole."""
        found: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._wanted.append(_Wanted(message, first, inside, found))
        if self._reader is None:
            self._reader = asyncio.ensure_future(self._read_all())
        return await found

    async def _read_all(self) -> None:
        while self._wanted:
            some, self._wanted = self._wanted[:AT_ONCE], self._wanted[AT_ONCE:]
            try:
                bodies = await self._env.read(partial(_look, some))
            except Exception as error:
                for each in some:
                    if not each.found.done():
                        each.found.set_exception(error)
                continue
            for each, body in zip(some, bodies, strict=True):
                if not each.found.done():  # nobody has given up waiting
                    each.found.set_result(body)
        self._reader = None


def _look(some: list[_Wanted], txn: Transaction, db: Databases) -> list[list[bytes]]:
    return [_find(each, txn, db) for each in some]


def _find(wanted: _Wanted, txn: Transaction, db: Databases) -> list[bytes]:
    if wanted.inside is not None:
        body = segment.find_body(txn, db, wanted.inside.key, wanted.message)
        if body:
            return [body]
    return rows.read_chunks(wanted.message, wanted.first, txn, db)
