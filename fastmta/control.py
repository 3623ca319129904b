"""What the supervisor and its workers say to each other, over a socket pair, and to operators.

Each message is a frame: its length in four octets, then msgpack. Whoever receives one has checked
its type. What waits to be written is bounded: messages that may be many have a window of their
own (`More`), and an end that does not read at all loses its connection.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Raw, Struct, msgpack

from fastmta.metrics import Sample

logger = logging.getLogger(__name__)

MAX_FRAME: Final = 4 << 20  # octets of one message
WINDOW: Final = 2  # messages of one command that a worker sends before it is told More
_HEADER = 4
_ROOM = 1 << 20  # octets; while so many wait to be written, `drain` waits
_MOST = 16 << 20  # octets; so many wait only for an end that has stopped reading


class Message(Struct, frozen=True, tag=str.lower):
    """One frame."""


# From the supervisor to a worker.


class Start(Message, frozen=True):
    """The first message: what to be."""

    config: str  # the text of the configuration
    folder: str  # from which its relative paths count
    index: int


class Ask(Message, frozen=True):
    """Answered with a Snapshot."""


class Reload(Message, frozen=True):
    """Go on with this configuration. Answered with Reloaded."""

    config: str
    folder: str


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


# Both ways.


class Permit(Message, frozen=True):
    """A request for shared limits, or what became of one (queue.arbiter)."""

    payload: Raw


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


# What every worker answers.


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


ToWorker = Start | Ask | Reload | Command | More | Cancel | Permit
ToSupervisor = Ready | Snapshot | Reloaded | Progress | Answer | Ended | Permit

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
            transport.abort()

    async def drain(self) -> None:
        """Return when there is room for more, or nobody to read it."""
        await self._room.wait()

    def close(self) -> None:
        """End the connection, after what waits to be written."""
        if self._transport is not None:
            self._transport.close()

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
            assert self._transport is not None
            return self._transport.abort()
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
