"""One worker as its supervisor sees it: a process, and what it says."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
from msgspec import Raw

from fastmta import control
from fastmta.config import Source
from fastmta.metrics import Sample
from fastmta.queue.orders import Order
from fastmta.server.counts import Row

ANSWER_SECONDS = 2.0  # for a snapshot; a worker that is slower counts as not well
RELOAD_SECONDS = 30.0

CommandMessage = control.Progress | control.Answer | control.Ended
_decoder = msgspec.msgpack.Decoder(control.ToSupervisor)


class CannotStart(Exception):
    """The text says what is in the way."""


class Arbiter(Protocol):
    """Who knows what the workers share."""

    def permit(self, worker: "WorkerProcess", payload: Raw) -> None:
        """A worker asks for something of it."""

    def counted(self, worker: "WorkerProcess", rows: list[Row]) -> None:
        """A worker has counted what its clients did."""

    def gone(self, worker: "WorkerProcess") -> None:
        """A worker has ended, and with it all that it held."""


class WorkerProcess:
    """Starts it, speaks with it, and knows when it has ended."""

    def __init__(self, index: int, arbiter: Arbiter) -> None:
        self.index = index
        self.is_ready = False
        self._arbiter = arbiter
        self._process: asyncio.subprocess.Process | None = None
        self._channel: control.Channel[control.ToSupervisor] | None = None
        self._started: asyncio.Future[bool] | None = None
        self._snapshot: asyncio.Future[list[Sample]] | None = None  # that all wait for
        self._reloaded: asyncio.Future[list[str]] | None = None
        self._commands: dict[int, Receive] = {}
        self._last_command = 0

    async def start(
        self, source: Source, holds: list[Order], sockets: dict[str, int] | None = None
    ) -> None:
        """Start the process and return when it is ready; CannotStart if it ends before.

        `sockets` are held for it: see control.Start.
        """
        sockets = sockets or {}
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    # -P: nothing is imported from the folder that we happen to be in.
                    *(sys.executable, "-P", "-m", "fastmta.worker", str(theirs.fileno())),
                    pass_fds=[theirs.fileno(), *sockets.values(), *source.kept.values()],
                )
        except BaseException:
            ours.close()
            raise
        self._channel = control.Channel(_decoder, self._received, self._lost)
        channel = self._channel
        await loop.create_unix_connection(lambda: channel, sock=ours)
        channel.send(control.Start(source, self.index, holds, sockets))
        if not await self._started:
            code = await self._process.wait()
            raise CannotStart(f"worker {self.index} ended with {code} at its start")

    async def wait(self) -> int:
        """The exit code, when the process has ended; 0 if it never began."""
        code = await self._process.wait() if self._process is not None else 0
        if self._channel is not None:
            self._channel.abort()
        return code

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def snapshot(self) -> list[Sample]:
        """What the worker counted; [] when it does not answer in time."""
        if not self.is_ready:
            return []
        if self._snapshot is None or self._snapshot.done():  # one question at a time
            self._snapshot = asyncio.get_running_loop().create_future()
            self._send(control.Ask())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(self._snapshot)
        except TimeoutError:
            return []

    async def reload(self, source: Source) -> list[str]:
        """Hand it another configuration; gives what of it the worker could not take on."""
        if not self.is_ready:
            return []
        if self._reloaded is None or self._reloaded.done():
            self._reloaded = asyncio.get_running_loop().create_future()
        self._send(control.Reload(source))
        try:
            async with asyncio.timeout(RELOAD_SECONDS):
                return await asyncio.shield(self._reloaded)
        except TimeoutError:
            return ["it does not answer"]

    def permit(self, payload: Raw) -> None:
        self._send(control.Permit(payload))

    def tell(self, message: control.Counted | control.Lifted) -> None:
        """About limits for clients."""
        self._send(message)

    # Commands.

    def command(self, request: Raw, receive: "Receive") -> int:
        """Pass a command on; `receive` gets all that comes of it, Ended last. Gives its number."""
        self._last_command += 1
        number = self._last_command
        if self.is_ready:
            self._commands[number] = receive
            self._send(control.Command(number, request))
        else:
            receive(self, control.Ended(number, "is not running now"))
        return number

    def more(self, number: int) -> None:
        """One message of the command has been dealt with."""
        if number in self._commands:
            self._send(control.More(number))

    def cancel(self, number: int) -> None:
        if self._commands.pop(number, None):
            self._send(control.Cancel(number))

    # What it says.

    def _send(self, message: control.Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _received(self, message: control.ToSupervisor) -> None:
        match message:
            case control.Permit(payload):
                self._arbiter.permit(self, payload)
            case control.Counted(rows):
                self._arbiter.counted(self, rows)
            case control.Snapshot(samples):
                _answer(self._snapshot, samples)
            case control.Ready():
                self.is_ready = True
                _answer(self._started, True)
            case control.Reloaded(problems):
                _answer(self._reloaded, problems)
            case control.Ended(number):
                if receive := self._commands.pop(number, None):
                    receive(self, message)
            case control.Progress(number) | control.Answer(number):
                if receive := self._commands.get(number):
                    receive(self, message)

    def _lost(self) -> None:
        self.is_ready = False
        self._arbiter.gone(self)
        _answer(self._started, False)
        _answer(self._snapshot, [])
        _answer(self._reloaded, [])
        commands, self._commands = self._commands, {}
        for number, receive in commands.items():
            receive(self, control.Ended(number, "ended in the middle of it"))


Receive = Callable[[WorkerProcess, CommandMessage], None]
T = TypeVar("T")


def _answer(waiting: asyncio.Future[T] | None, value: T) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)
