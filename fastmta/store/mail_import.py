"""Messages from a source go into a mailbox, each once, however often the import is begun again.

How far it is stands in the transaction that stores the message. So a process that is killed in
the middle loses nothing and doubles nothing, and an import that is done finds nothing more to do.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec import Struct

from fastmta.store.mail_records import name_key
from fastmta.store.mail_sources import Incoming, Source
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Outcome, Post, Refused, Step
from fastmta.store.records import UNDECODABLE, Unreadable

AT_ONCE = 512  # messages that are on their way to the disk
BATCH = 128  # messages after which those before may go there
OCTETS_AT_ONCE = 8 << 20

_VERSION = b"\x01"


class Progress(Struct, array_like=True):
    """How far an import is; `mark` is the source's."""

    path: str
    mark: bytes = b""
    count: int = 0  # messages


class Result(NamedTuple):
    imported: int
    before: int  # of an earlier time


class Failed(Exception):
    """Nothing more can be stored."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Progress).decode


def source_key(account: str, mailbox: str, source: Source) -> bytes:
    """Under which the progress of a source into a mailbox is known."""
    path = os.fsencode(source.path.resolve())
    return blake2b(name_key(account, mailbox) + b"\0" + path, digest_size=16).digest()


class Import:
    """One run."""

    def __init__(self, boxes: Mailboxes, account: str, mailbox: str, source: Source) -> None:
        """Unreadable where what is known of an earlier run cannot be read."""
        self._boxes, self._source = boxes, source
        self._account, self._mailbox = account, mailbox
        self._key = source_key(account, mailbox, source)
        self._stored = boxes.progress(self._key)
        self._progress = _unpack(self._stored, str(source.path.resolve()))
        self.before = self._progress.count
        self._waiting = self._octets = 0
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    async def run(self, told: Callable[[int], None]) -> Result:
        """Store what is behind the progress; `told` hears how much of `Source.total` is stored.

        What Source.messages raises, OutOfStep, Failed and lmdb.Error end it; what was stored
        before stays, and the next run goes on behind it.
        """
        try:
            for number, incoming in enumerate(self._source.messages(self._progress.mark), 1):
                self._take_in(incoming, told)
                if number % BATCH == 0:
                    await asyncio.sleep(0)
                while self._waiting >= AT_ONCE or self._octets >= OCTETS_AT_ONCE:
                    await self._wait()
                if self._failure:
                    break
        finally:
            while self._waiting:
                await self._wait()
        if self._failure:
            raise self._failure
        return Result(self._progress.count - self.before, self.before)

    def _take_in(self, incoming: Incoming, told: Callable[[int], None]) -> None:
        mail, size = incoming.mail, len(incoming.mail.octets)
        drop = Drop(self._account, self._mailbox, b"", mail.flags, mail.keywords)
        self._progress.mark, self._progress.count = incoming.mark, self._progress.count + 1
        after = _VERSION + _encode(self._progress)
        step, self._stored = Step(self._key, self._stored, after), after
        self._waiting += 1
        self._octets += size
        post = Post(b"", [mail.octets], size, mail.date or 0.0, [drop])
        self._boxes.take_in(post, step, partial(self._done, size, incoming.done, told))

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _done(
        self,
        size: int,
        behind: int,
        told: Callable[[int], None],
        result: list[Outcome] | Exception,
    ) -> None:
        self._waiting -= 1
        self._octets -= size
        self._changed.set()
        if isinstance(result, Exception):
            self._failure = self._failure or result
        elif isinstance(result[0], Refused):
            self._failure = self._failure or Failed(result[0].value)
        else:
            told(behind)


def _unpack(row: bytes | None, path: str) -> Progress:
    if row is None:
        return Progress(path)
    try:
        if row[:1] != _VERSION:
            raise Unreadable(f"version {row[0] if row else 'none'} is not known to this release")
        return _decode(row[1:])
    except UNDECODABLE as error:
        raise Unreadable(str(error)) from error
