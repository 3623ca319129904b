"""The socket on which operators speak to a running server: their commands go to the workers."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Raw

from fastmta import control
from fastmta.limits_desk import Freed, Lift, Overs, WhoIsOver
from fastmta.order_desk import Case, OrderDesk, Refused
from fastmta.queue.requests import Allowance, Allowances
from fastmta.worker_process import CommandMessage, WorkerProcess

logger = logging.getLogger(__name__)

MAX_CLIENTS = 16
SUPERVISOR = -1  # instead of a worker's index, where the supervisor itself answers
IDLE_SECONDS = 60.0  # without a request

_decoder = msgspec.msgpack.Decoder(control.Request)
ForSupervisor = Allowance | WhoIsOver | Lift
Reply = Callable[[ForSupervisor], Allowances | Overs | Freed]
_for_supervisor: msgspec.msgpack.Decoder[ForSupervisor] = msgspec.msgpack.Decoder(ForSupervisor)


class ControlServer:
    """Listens in the data directory, for whoever may write there: its owner."""

    def __init__(
        self, data_dir: Path, workers: list[WorkerProcess], desk: OrderDesk, reply: Reply
    ) -> None:
        """`reply` answers what workers are not asked: what they share, the supervisor knows."""
        self.workers, self.desk, self.reply = workers, desk, reply
        self._data_dir = data_dir
        self._server: asyncio.AbstractServer | None = None
        self._clients: set[Client] = set()

    async def start(self) -> None:
        """Call it by the owner of the data directory alone: a socket that is there is stale."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listening.fileno(), 0o600)  # before it has a name
            (self._data_dir / control.SOCKET).unlink(missing_ok=True)
            with control.socket_path(self._data_dir) as path:
                listening.bind(path)
        except BaseException:
            listening.close()
            raise
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Client(self), sock=listening)

    def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        with suppress(OSError):
            (self._data_dir / control.SOCKET).unlink()
        for client in list(self._clients):
            client.end("the server is shutting down")

    def admit(self, client: "Client") -> bool:
        if len(self._clients) >= MAX_CLIENTS:
            return False
        self._clients.add(client)
        return True

    def remove(self, client: "Client") -> None:
        self._clients.discard(client)


class Client(control.Channel[control.Request]):
    """One operator's program: one request at a time."""

    def __init__(self, server: ControlServer) -> None:
        super().__init__(_decoder, self._ask, self._gone)
        self._server = server
        self._running: dict[WorkerProcess, int] = {}  # and the command's number there
        self._case: Case | None = None  # where that is about orders
        self._is_well = True  # no worker has failed
        self._unpaid: list[tuple[WorkerProcess, int]] = []  # that may go on when there is room
        self._paying: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._server.admit(self):
            self._wait()
        else:
            self.end(f"{MAX_CLIENTS} others are being served")

    def end(self, why: str) -> None:
        self.send(control.Done(why))
        self.close()

    def _wait(self) -> None:
        """For a request, and not for ever."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(IDLE_SECONDS, self.end, "no request came")

    def _ask(self, request: control.Request) -> None:
        if self._running:
            return self.end("a request is under way")
        if self._timer is not None:
            self._timer.cancel()
        if (asked := _about_what_is_shared(request.payload)) is not None:
            self._answer(control.pack(self._server.reply(asked)))
            return self._done()
        workers = self._server.workers
        if request.worker is not None:
            workers = [one for one in workers if one.index == request.worker]
        if not workers:
            return self._done(f"there is no worker {request.worker}")
        try:
            self._case = self._server.desk.open(request.payload)
        except Refused as refused:
            return self._done(str(refused))
        payload, self._is_well = request.payload, True
        if self._case is not None:
            payload = self._case.request
            self._answer(self._case.first)
        self._running = dict.fromkeys(workers, 0)
        for worker in workers:
            number = worker.command(payload, self._receive)
            if worker in self._running:  # it has not refused
                self._running[worker] = number
        return None

    def _answer(self, payload: Raw) -> None:
        self.send(control.Relayed(SUPERVISOR, control.Answer(0, payload)))

    def _close_case(self, is_done: bool) -> None:
        case, self._case = self._case, None
        if case is not None:
            case.close(is_done)

    def _receive(self, worker: WorkerProcess, message: CommandMessage) -> None:
        """Pass on what a worker says; it sends more when there is room for it."""
        self.send(control.Relayed(worker.index, message))
        if isinstance(message, control.Ended):
            del self._running[worker]
            self._is_well = self._is_well and not message.error
            if not self._running:
                self._close_case(self._is_well)
                self._done()
        elif self.has_room:
            worker.more(message.number)
        else:
            self._unpaid.append((worker, message.number))
            if self._paying is None:
                self._paying = asyncio.ensure_future(self._pay())

    async def _pay(self) -> None:
        await self.drain()
        self._paying = None
        unpaid, self._unpaid = self._unpaid, []
        for worker, number in unpaid:
            worker.more(number)

    def _done(self, error: str = "") -> None:
        self.send(control.Done(error))
        self._wait()

    def _gone(self) -> None:
        """Nobody waits for the answers any longer."""
        for worker, number in self._running.items():
            worker.cancel(number)
        self._running.clear()
        self._close_case(False)
        if self._timer is not None:
            self._timer.cancel()
        self._server.remove(self)


def _about_what_is_shared(payload: Raw) -> ForSupervisor | None:
    """What the supervisor answers by itself; None for any other request."""
    try:
        return _for_supervisor.decode(payload)
    except msgspec.ValidationError:
        return None
