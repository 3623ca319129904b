"""What the supervisor and its workers say to each other, over a socket pair, and to operators.

Each message is a frame: its length in four octets, then msgpack. Whoever receives one has checked
its type. What waits to be written is bounded: messages that may be many have a window of their
own (`More`), and an end that does not read at all loses its connection.

An operator's program connects to the socket `control` in the data directory and sends a Request.
It gets what comes of it from each worker in Relayed, and Done; then it may send the next. When it
goes away, the workers stop. What requests there are, and their answers, is in `worker`.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Raw, Struct, msgpack

from fastmta.config import Source
from fastmta.metrics import Sample
from fastmta.queue.orders import Order
from fastmta.server.counts import Row

logger = logging.getLogger(__name__)

MAX_FRAME: Final = 4 << 20  # octets of one message
PAGE: Final = 64 << 10  # octets; an answer of many parts is sent in pages of about this size
WINDOW: Final = 2  # messages of one command that a worker sends before it is told More
_HEADER = 4
_ROOM = 1 << 20  # octets; while so many wait to be written, `drain` waits
_MOST = 64 << 20  # octets; so many wait only for an end that has stopped reading


class Message(Struct, frozen=True, tag=str.lower):
    """One frame."""


# From the supervisor to a worker.


class Start(Message, frozen=True):
    """The first message: what to be."""

    source: Source
    index: int
    holds: list[Order]  # that stand
    sockets: dict[str, int] = {}  # address -> descriptor to listen on, where it is held


class Ask(Message, frozen=True):
    """Answered with a Snapshot."""


class Reload(Message, frozen=True):
    """Go on with this configuration. Answered with Reloaded."""

    source: Source


class Command(Message, frozen=True):
    """An operator's command; answered with Progress and Answers, and Ended in the end."""

    number: int
    request: Raw


class More(Message, frozen=True):
    """One message of this command has been passed on: the worker may send another."""

    number: int


class Cancel(Message, frozen=True):
    """Nobody waits for this command any longer. No answer."""

    number: int


class Lifted(Message, frozen=True):
    """Nothing counts against these any longer."""

    subjects: list[str]


# Both ways.


class Permit(Message, frozen=True):
    """A request for shared limits, or what became of one (queue.arbiter)."""

    payload: Raw


class Counted(Message, frozen=True):
    """What clients did, as far as a limit counts it: to the supervisor, and on to the others."""

    rows: list[Row]


# From a worker to the supervisor.


class Ready(Message, frozen=True):
    """Mail flows: shards are open, listeners listen."""


class Snapshot(Message, frozen=True):
    samples: list[Sample]


class Reloaded(Message, frozen=True):
    """What of the new configuration could not be taken on; the old stays in force there."""

    problems: list[str]


class Progress(Message, frozen=True):
    """How far a command is; `total` is 0 where nobody knows."""

    number: int
    done: int
    total: int
    note: str = ""


class Answer(Message, frozen=True):
    """One page of what a command gives."""

    number: int
    payload: Raw


class Ended(Message, frozen=True):
    """A command is over; `error` is "" where all went well."""

    number: int
    error: str = ""


# Between an operator's program and the supervisor.


class Request(Message, frozen=True):
    """Do this."""

    payload: Raw
    worker: int | None = None  # by its index; None: all


class Relayed(Message, frozen=True):
    """What one worker says of the request; its last is Ended."""

    worker: int
    message: Progress | Answer | Ended


class Done(Message, frozen=True):
    """All is over; `error` says why nothing was begun, or why it ended early."""

    error: str = ""


# A request that every worker answers.


class Status(Struct, frozen=True, tag="status"):
    """A request: how each worker stands."""


class WorkerStatus(Struct, frozen=True):
    """Its answer."""

    worker: int
    pid: int
    uptime: float  # seconds
    shards: list[int]
    sessions: int  # SMTP in
    connections: int  # SMTP out
    queued: int  # envelopes
    config: str  # the same for workers whose configurations are the same


ToWorker = Start | Ask | Reload | Command | More | Cancel | Permit | Counted | Lifted
ToOperator = Relayed | Done
ToSupervisor = Ready | Snapshot | Reloaded | Progress | Answer | Ended | Permit | Counted

SOCKET: Final = "control"  # its name in the data directory
_LONGEST_PATH = 107  # octets; unix(7)

M = TypeVar("M")
_encoder = msgpack.Encoder()


def pack(value: Any) -> Raw:
    """A value as a payload of a message."""
    return Raw(_encoder.encode(value))


def frame(message: Message) -> bytes:
    """A message as octets; ValueError if it is too large."""
    encoded = _encoder.encode(message)
    if len(encoded) > MAX_FRAME:
        raise ValueError(f"{type(message).__name__}: {len(encoded)} octets are too many")
    return len(encoded).to_bytes(_HEADER) + encoded


@contextmanager
def socket_path(data_dir: Path) -> Iterator[str]:
    """A path of the operators' socket that `bind` and `connect` can take, however deep it is."""
    path = str(data_dir / SOCKET)
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    folder = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)


class Channel(asyncio.Protocol, Generic[M]):
    """One end of a connection: `received` is called for each message, `lost` once at the end."""

    def __init__(
        self,
        decoder: msgpack.Decoder[M],
        received: Callable[[M], None],
        lost: Callable[[], None],
    ) -> None:
        self._decoder, self._received, self._lost = decoder, received, lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Write it now; nothing happens where the other end has gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(frame(message))
        if transport.get_write_buffer_size() > _MOST:
            logger.error("the other end has stopped reading and is given up")
            self.abort()

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    async def drain(self) -> None:
        """Return when there is room for more, or nobody to read it."""
        await self._room.wait()

    def close(self) -> None:
        """End the connection, after what waits to be written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_ROOM)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            messages = self._messages()
        except (ValueError, msgspec.DecodeError) as error:
            logger.error("not a message: %s", error)
            return self.abort()
        for message in messages:
            self._received(message)
        return None

    def _messages(self) -> list[M]:
        """The whole messages of what has come so far."""
        buffer, begin, found = self._buffer, 0, []
        while len(buffer) - begin >= _HEADER:
            length = int.from_bytes(buffer[begin : begin + _HEADER])
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} octets is too large")
            end = begin + _HEADER + length
            if len(buffer) < end:
                break
            found.append(self._decoder.decode(bytes(buffer[begin + _HEADER : end])))
            begin = end
        del buffer[:begin]
        return found

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._room.set()
        self._lost()
