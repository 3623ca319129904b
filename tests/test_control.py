"""Frames between the processes: whole, in pieces, broken, and when the other end does not read."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta import control
from fastmta.config import Source
from fastmta.control import (
    Answer,
    Ask,
    Cancel,
    Channel,
    Command,
    Ended,
    More,
    Permit,
    Progress,
    Ready,
    Reload,
    Reloaded,
    Snapshot,
    Start,
    ToSupervisor,
    ToWorker,
    pack,
)
from fastmta.metrics import Sample
from tests.support import run, until

TO_WORKER = [
    Start(Source("hostname = 1", "/etc"), 3, []),
    Ask(),
    Reload(Source("hostname = 2", "/etc", "/data", 2)),
    Command(1, pack({"what": ["ever"]})),
    More(1),
    Cancel(1),
    Permit(pack([1, 2])),
]
TO_SUPERVISOR = [
    Ready(),
    Snapshot([Sample("counter", "a", "A", (), [((), (1.0,))])]),
    Reloaded(["listener[1]: no"]),
    Progress(1, 2, 3, "half"),
    Answer(1, pack("page")),
    Ended(1, "failed"),
    Permit(pack({})),
]


class End:
    """A channel that writes down what it is given."""

    def __init__(self, kind: Any = ToWorker) -> None:
        self.received: list[Any] = []
        self.is_lost = False
        decoder = msgspec.msgpack.Decoder(kind)
        self.channel: Channel[Any] = Channel(decoder, self.received.append, self._lose)

    def _lose(self) -> None:
        self.is_lost = True


@asynccontextmanager
async def listening(sock: socket.socket, kind: Any = ToWorker) -> AsyncIterator[End]:
    end = End(kind)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: end.channel, sock=sock)
    try:
        yield end
    finally:
        end.channel.close()
        await until(lambda: end.is_lost)


@pytest.mark.parametrize(
    ("kind", "messages"), [(ToWorker, TO_WORKER), (ToSupervisor, TO_SUPERVISOR)]
)
def test_every_message_survives_the_way(kind: Any, messages: list[control.Message]) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        async with listening(ours, kind) as one, listening(theirs, kind) as other:
            for message in messages:
                one.channel.send(message)
            await until(lambda: len(other.received) == len(messages))
            assert other.received == messages
            one.channel.close()
            await until(lambda: other.is_lost)

    run(scenario())


@given(st.lists(st.integers(0, 200), max_size=8))
def test_messages_in_pieces(cuts: list[int]) -> None:
    octets = b"".join(map(control.frame, TO_WORKER))
    end, begin = End(), 0
    for cut in [*sorted(cuts), len(octets)]:
        end.channel.data_received(octets[begin:cut])
        begin = max(begin, cut)
    assert end.received == TO_WORKER


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x03abc",
        control.frame(Ready()),
        control.frame(Ask())[:-1] + b"\xff",
    ],
)
def test_what_is_no_message_ends_the_connection(octets: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        async with listening(theirs) as end:
            with ours:
                ours.send(control.frame(Ask()) + octets)
                await until(lambda: end.is_lost)
        assert end.received in ([], [Ask()])

    run(scenario())


@given(st.binary(max_size=60))
def test_no_octets_raise(octets: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        async with listening(theirs) as end:
            with ours:
                ours.send(octets)
            await until(lambda: end.is_lost)

    run(scenario())


def test_an_end_that_does_not_read_is_waited_for_and_then_given_up() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        page = Answer(1, pack(b"x" * (1 << 20)))
        with ours:
            async with listening(theirs) as end:
                end.channel.send(page)
                end.channel.send(page)
                waiting = asyncio.ensure_future(end.channel.drain())
                await asyncio.sleep(0)
                assert not waiting.done()
                while end.channel.is_open:
                    end.channel.send(page)
                await until(lambda: end.is_lost)
                await waiting

    run(scenario())


def test_a_message_that_is_too_large_is_the_senders_mistake() -> None:
    with pytest.raises(ValueError, match="octets are too many"):
        control.frame(Answer(1, pack(b"x" * control.MAX_FRAME)))
