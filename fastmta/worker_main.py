"""What a worker's process does beside mail: signals, and the talk with its supervisor.

When the control socket closes, a worker knows that its supervisor is gone, and drains.
"""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import lmdb
import msgspec
import uvloop
from msgspec import Raw, structs

from fastmta import control, log, metrics, privileges, vitals
from fastmta.config import Config, ConfigError
from fastmta.policy_file import PolicyError
from fastmta.queue.orders import Order
from fastmta.server.counts import Row
from fastmta.store.env import Locked

logger = logging.getLogger(__name__)

COLLECT = metrics.histogram(
    "fastmta_collect_seconds", "Time for which a worker's loop was busy telling what it counted"
)

DRAIN_SECONDS = 30.0  # for messages that are under way, first those coming in, then those going out
ORPHAN_SECONDS = 3.0  # the same when the supervisor has died: a new one waits for the files
# Objects that come before the garbage collector looks at the youngest, how often it does so before
# it looks at those that were left, and at all. Mail that is under way is no garbage: with CPython's
# own (700, 10, 10) it is walked through for nothing a hundred times a second.
GARBAGE = (5_000, 10, 20)


class Worker(Protocol):
    """What a worker's process runs."""

    def stand(self, holds: list[Order]) -> None:
        """These are the holds that stand; before the start."""

    async def start(self, sockets: dict[str, int]) -> None:
        """`sockets`: see control.Start."""

    async def reload(self, config: Config) -> list[str]:
        """Go on with another configuration; gives what of it could not be taken on."""

    def command(self, request: Raw) -> AsyncIterator[Any]:
        """Do what an operator asks for.

        Gives pages of answers, each less than control.MAX_FRAME, and control.Progress; msgspec
        encodes them. Raises msgspec.ValidationError if it does not know the request.
        """

    def permit(self, payload: Raw) -> None:
        """Take what the arbiter of shared limits says."""

    def counted(self, rows: list[Row]) -> None:
        """Take what other workers count of clients."""

    def lift(self, subjects: set[str]) -> None:
        """Forget what was counted against these."""

    async def drain(self, seconds: float) -> None: ...


# Of a configuration, the worker's index, how to say something to the arbiter, and how to tell the
# other workers what was counted.
Make = Callable[[Config, int, Callable[[Raw], None], Callable[[list[Row]], None]], Worker]


def _leave_alone_what_stays() -> None:
    """Modules, classes and tables are half of what a full collection walks through, for 30 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


class WorkerMain:
    """Does what the supervisor says, one message after the other."""

    def __init__(self, make: Make) -> None:
        loop = asyncio.get_running_loop()
        self._make = make
        self._worker: Worker | None = None
        self._is_ready = False
        self._start: asyncio.Future[control.Start] = loop.create_future()
        self._end: asyncio.Future[float] = loop.create_future()  # seconds that draining may take
        self._reload: control.Reload | None = None  # the newest that is not taken on yet
        self._reloading: asyncio.Task[None] | None = None
        self._commands: dict[int, _Command] = {}
        decoder = msgspec.msgpack.Decoder(control.ToWorker)
        self._channel = control.Channel(decoder, self._received, self._lost)

    async def run(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        ours = socket.socket(fileno=descriptor)
        await loop.create_unix_connection(lambda: self._channel, sock=ours)
        loop.add_signal_handler(signal.SIGTERM, self._drain, DRAIN_SECONDS)
        start = await self._start
        config = start.source.parse()
        log.set_up(config.log.level, f"worker-{start.index}")
        if config.user:
            privileges.keep_memory_private()
        vitals.show()
        lag = vitals.LagMeter()
        self._worker = worker = self._make(
            config, start.index, self._tell_arbiter, self._tell_counts
        )
        worker.stand(start.holds)
        await worker.start(start.sockets)
        _leave_alone_what_stays()
        self._is_ready = True
        self._channel.send(control.Ready())
        self._take_on()
        seconds = await self._end
        await self._stop(worker, seconds)
        lag.stop()

    async def _stop(self, worker: Worker, seconds: float) -> None:
        logger.info("draining")
        self._is_ready = False
        for command in list(self._commands.values()):
            command.task.cancel()
        if self._reloading is not None:
            await self._reloading
        await worker.drain(seconds)
        logger.info("ended")

    def _drain(self, seconds: float) -> None:
        if not self._end.done():
            self._end.set_result(seconds)

    def _lost(self) -> None:
        self._drain(ORPHAN_SECONDS)
        if not self._start.done():
            self._start.set_exception(ConnectionResetError("the supervisor is gone"))

    def _tell_arbiter(self, payload: Raw) -> None:
        self._channel.send(control.Permit(payload))

    def _tell_metrics(self) -> None:
        began = time.perf_counter()
        try:
            samples = metrics.snapshot()
        except Exception:  # mail goes on, whatever it was; to its supervisor this one is not well
            logger.exception("what was counted cannot be told")
            samples = []
        self._channel.send(control.Snapshot(samples))
        COLLECT.observe(time.perf_counter() - began)

    def _tell_counts(self, rows: list[Row]) -> None:
        self._channel.send(control.Counted(rows))

    def _received(self, message: control.ToWorker) -> None:
        match message:
            case control.Permit(payload):
                if self._worker is not None:
                    self._worker.permit(payload)
            case control.Counted(rows):
                if self._worker is not None:
                    self._worker.counted(rows)
            case control.Lifted(subjects):
                if self._worker is not None:
                    self._worker.lift(set(subjects))
            case control.Ask():
                self._tell_metrics()
            case control.Start():
                self._start.set_result(message)
            case control.Reload():
                self._reload = message
                self._take_on()
            case control.Command():
                self._begin(message)
            case control.More(number):
                if command := self._commands.get(number):
                    command.window.release()
            case control.Cancel(number):
                if command := self._commands.get(number):
                    command.task.cancel()

    # Configurations.

    def _take_on(self) -> None:
        """Begin with the newest configuration, unless another is being taken on."""
        if self._is_ready and self._reload is not None and self._reloading is None:
            self._reloading = asyncio.ensure_future(self._take_on_all())

    async def _take_on_all(self) -> None:
        while self._worker is not None and (reload := self._reload) is not None:
            self._reload = None
            problems = await self._take_on_one(self._worker, reload)
            self._channel.send(control.Reloaded(problems))
        self._reloading = None

    async def _take_on_one(self, worker: Worker, reload: control.Reload) -> list[str]:
        try:
            config = reload.source.parse()
            logging.getLogger().setLevel(config.log.level.upper())
            return await worker.reload(config)
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        except Exception as error:  # mail goes on, whatever it was
            logger.exception("the configuration could not be taken on")
            return [f"{type(error).__name__}: {error}"]

    # Commands.

    def _begin(self, message: control.Command) -> None:
        if self._worker is None or not self._is_ready:
            self._channel.send(control.Ended(message.number, "is not ready"))
            return
        command = _Command(self._channel, self._worker, message)
        self._commands[message.number] = command
        command.task.add_done_callback(lambda _: self._commands.pop(message.number, None))


class _Command:
    """An operator's command under way."""

    def __init__(
        self, channel: "control.Channel[Any]", worker: Worker, message: control.Command
    ) -> None:
        self._channel, self._number = channel, message.number
        self.window = asyncio.Semaphore(control.WINDOW)
        self.task = asyncio.ensure_future(self._run(worker, message.request))

    async def _run(self, worker: Worker, request: Raw) -> None:
        error = "is shutting down"  # or nobody waits for it
        try:
            async with aclosing(worker.command(request)) as pages:  # type: ignore[type-var]
                async for page in pages:
                    await self.window.acquire()
                    self._channel.send(self._message(page))
            error = ""
        except msgspec.ValidationError as problem:
            error = f"does not know such a command: {problem}"
        except Exception:
            logger.exception("a command failed")
            error = "failed; its log says why"
        finally:
            self._channel.send(control.Ended(self._number, error))

    def _message(self, page: Any) -> control.Message:
        if isinstance(page, control.Progress):
            return structs.replace(page, number=self._number)
        return control.Answer(self._number, control.pack(page))


def main(make: Make) -> None:
    """Run until the supervisor says that it is enough; exit code 1 if it cannot start."""
    (descriptor,) = sys.argv[1:]
    # A terminal's Ctrl-C and its end reach the whole group; the supervisor tells us what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log.set_up("info", "worker")
    _raise_descriptor_limit()

    async def run() -> None:
        await WorkerMain(make).run(int(descriptor))

    try:
        uvloop.run(run())
    except ConfigError as error:
        logger.error("cannot start: %s", "; ".join(map(str, error.problems)))
        sys.exit(1)
    except (OSError, Locked, PolicyError, lmdb.Error) as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)


def _raise_descriptor_limit() -> None:
    """As far as the system allows: each session and each connection out needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
