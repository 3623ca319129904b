"""The operators' socket: who may use it, how many, how much waits, and what a client hears."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastmta import control
from fastmta.control import Answer, Done, Ended, Progress, Relayed, Request, pack
from fastmta.control_server import MAX_CLIENTS, SUPERVISOR, ControlServer
from fastmta.order_desk import OrderDesk
from fastmta.queue.requests import Allowance, Allowances
from fastmta.queue.shared_path import SharedPath
from tests.support import run, until
from tests.test_control import End, listening


class Worker:
    """What the server needs of a WorkerProcess."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.requests: list[Any] = []
        self.cancelled: list[int] = []
        self.paid = 0
        self.is_ready = True

    def command(self, request: Any, receive: Any) -> int:
        self.requests.append(request)
        self._receive = receive
        if not self.is_ready:
            self.say(Ended(1, "is not running now"))
        return len(self.requests)

    def say(self, message: control.Message) -> None:
        self._receive(self, message)

    def more(self, number: int) -> None:
        self.paid += 1

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


def allow(asked: Allowance) -> Allowances:
    return Allowances([SharedPath(name, 0.0).report(0.0) for name in asked.paths], [])


@asynccontextmanager
async def serving(folder: Path, workers: int = 2) -> AsyncIterator[tuple[ControlServer, Any]]:
    players: Any = [Worker(index) for index in range(workers)]
    server = ControlServer(folder, players, OrderDesk(folder, players), allow)
    await server.start()
    try:
        yield server, players
    finally:
        server.close()
        await asyncio.sleep(0)


def connected(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    with control.socket_path(folder) as path:
        sock.connect(path)
    return sock


@asynccontextmanager
async def client(folder: Path) -> AsyncIterator[End]:
    async with listening(connected(folder), control.ToOperator) as end:
        yield end


def test_what_workers_say_comes_marked_and_then_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, (one, other)), client(tmp_path) as end:
            end.channel.send(Request(pack("what")))
            await until(lambda: other.requests)
            said = [Progress(1, 1, 2), Answer(1, pack("page")), Ended(1)]
            for message in said:
                one.say(message)
            other.say(Ended(1, "failed"))
            await until(lambda: end.received[-1:] == [Done()])
            assert end.received[:-1] == [
                *(Relayed(0, message) for message in said),
                Relayed(1, Ended(1, "failed")),
            ]
            assert one.requests == other.requests == [pack("what")]
            assert (one.paid, other.paid) == (2, 0)
            end.channel.send(Request(pack("again"), worker=1))
            await until(lambda: len(other.requests) == 2)
            assert len(one.requests) == 1

    run(scenario())


def test_what_paths_may_do_the_supervisor_says_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, (one, other)), client(tmp_path) as end:
            for name in ("a", "b"):
                asked = Allowance(paths=(name,))
                end.channel.send(Request(pack(asked)))
                await until(lambda: end.received[-1:] == [Done()])
                assert end.received == [Relayed(SUPERVISOR, Answer(0, pack(allow(asked)))), Done()]
                end.received.clear()
            assert one.requests == other.requests == []

    run(scenario())


def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, (one, other)), client(tmp_path) as end:
            end.channel.send(Request(pack("what"), worker=2))
            await until(lambda: end.received)
            assert end.received.pop() == Done("there is no worker 2")
            one.is_ready = other.is_ready = False
            end.channel.send(Request(pack("what")))
            await until(lambda: len(end.received) == 3)
            gone = Ended(1, "is not running now")
            assert end.received == [Relayed(0, gone), Relayed(1, gone), Done()]

    run(scenario())


def test_a_client_that_goes_away_cancels(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, (one, other)):
            async with client(tmp_path) as end:
                end.channel.send(Request(pack("what")))
                await until(lambda: other.requests)
            await until(lambda: other.cancelled)
            assert one.cancelled == other.cancelled == [1]

    run(scenario())


def test_a_client_that_does_not_read_holds_the_workers_and_no_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, workers=1) as (_, (one,)):
            with connected(tmp_path) as slow:
                slow.sendall(control.frame(Request(pack("what"))))
                await until(lambda: one.requests)
                page, sent = Answer(1, pack(b"x" * control.PAGE)), 0
                while sent < one.paid + control.WINDOW:
                    one.say(page)
                    sent += 1
                assert sent * control.PAGE < 4 << 20
                slow.settimeout(10)
                read = asyncio.get_running_loop().run_in_executor(None, slow.recv, 8 << 20)
                assert await read
                await until(lambda: self_paid(one, sent, slow))
            await until(lambda: one.cancelled)

    def self_paid(one: Worker, sent: int, slow: socket.socket) -> bool:
        slow.setblocking(False)
        try:
            slow.recv(1 << 20)
        except BlockingIOError:
            pass
        return one.paid == sent

    run(scenario())


def test_only_so_many_clients_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (server, _):
            sockets = [connected(tmp_path) for _ in range(MAX_CLIENTS)]
            await until(lambda: len(server._clients) == MAX_CLIENTS)
            async with client(tmp_path) as refused:
                await until(lambda: refused.is_lost)
                assert refused.received == [Done("16 others are being served")]
            sockets.pop().close()
            await until(lambda: len(server._clients) == MAX_CLIENTS - 1)
            async with client(tmp_path) as end:
                end.channel.send(Request(pack("what"), worker=9))
                await until(lambda: end.received == [Done("there is no worker 9")])
            for each in sockets:
                each.close()
            await until(lambda: not server._clients)

    run(scenario())


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", control.frame(control.Ask())])
def test_a_client_that_talks_nonsense_is_closed(tmp_path: Path, octets: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (server, _), client(tmp_path) as end:
            end.channel._transport.write(octets)
            await until(lambda: end.is_lost)
            assert not server._clients

    run(scenario())


def test_a_second_request_meanwhile_ends_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, (one, _)), client(tmp_path) as end:
            end.channel.send(Request(pack(1)))
            end.channel.send(Request(pack(2)))
            await until(lambda: end.is_lost)
            assert end.received == [Done("a request is under way")]
            assert one.cancelled == [1]

    run(scenario())


def test_the_socket_is_the_owners_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "control"
        path.write_text("stale")
        async with serving(tmp_path):
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
        assert not path.exists()

    previous = os.umask(0)
    try:
        run(scenario())
    finally:
        os.umask(previous)


def test_a_client_hears_of_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (server, (one, _)), client(tmp_path) as end:
            end.channel.send(Request(pack("what")))
            await until(lambda: one.requests)
            server.close()
            await until(lambda: end.is_lost)
            assert end.received == [Done("the server is shutting down")]

    run(scenario())


def test_a_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = tmp_path / ("x" * 120)
        folder.mkdir()
        async with serving(folder), client(folder) as end:
            end.channel.send(Request(pack("what"), worker=9))
            await until(lambda: end.received)
        assert not (folder / "control").exists()

    run(scenario())
