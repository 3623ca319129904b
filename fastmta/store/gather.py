"""Looks into an environment: those that are asked for while others are under way come together.

By itself each look costs two hops between threads, which is more than what most of them do.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import lmdb

from fastmta.store.env import Databases, Environment, Transaction

AT_ONCE = 32  # looks in one transaction; of each about 1 MiB at the most

T = TypeVar("T")
Look = Callable[[Transaction, Databases], T]


class _Wanted(NamedTuple):
    look: Look[Any]
    found: "asyncio.Future[Any]"


class Gather:
    """Looks into one environment."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._wanted: list[_Wanted] = []
        self._reader: asyncio.Task[None] | None = None

    async def look(self, look: Look[T]) -> T:
        """What `look` gives, or raises, in a transaction that it may share with others."""
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wanted.append(_Wanted(look, found))
        if self._reader is None:
            self._reader = asyncio.ensure_future(self._look_all())
        return await found

    async def _look_all(self) -> None:
        while self._wanted:
            some, self._wanted = self._wanted[:AT_ONCE], self._wanted[AT_ONCE:]
            try:
                results = await self._env.read(partial(_look, [each.look for each in some]))
            except Exception as error:
                results = [error] * len(some)
            for each, result in zip(some, results, strict=True):
                if each.found.done():  # nobody waits any longer
                    continue
                if isinstance(result, Exception):
                    each.found.set_exception(result)
                else:
                    each.found.set_result(result)
        self._reader = None


def _look(looks: list[Look[Any]], txn: Transaction, db: Databases) -> list[Any]:
    """The result of each, or what it raised."""
    results: list[Any] = []
    for look in looks:
        try:
            results.append(look(txn, db))
        except lmdb.Error:  # the disk's: all share its fate
            raise
        except Exception as error:
            results.append(error)
    return results
