"""Starts the workers, starts again what died, drains them all; answers on the admin listener."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from fastmta import control
from fastmta.config import Config, Endpoint
from fastmta.metrics import Sample
from fastmta.server.http import HttpServer
from fastmta.store.env import OWNER_LOCK, Locked, own
from fastmta.store.view import shard_folders
from fastmta.web.metrics import Health, admin_app

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 85.0  # a worker gives its listeners and its connections 30 each, and then closes
ORPHANS_SECONDS = 15.0  # for workers whose supervisor was killed
ANSWER_SECONDS = 2.0  # for a snapshot; a worker that is slower counts as not well
RESTART_FIRST = 0.1  # seconds before a worker that died is started again, doubling
RESTART_MOST = 10.0


class CannotStart(Exception):
    """The text says what is in the way."""


class WorkerProcess:
    """One worker as its supervisor sees it."""

    def __init__(self, path: Path, index: int) -> None:
        self._path, self.index = path, index
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._next: asyncio.Future[list[Sample]] | None = None
        self._is_ready = False

    async def start(self) -> None:
        """Start the process and return when it is ready; CannotStart if it ends before."""
        self._is_ready = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fastmta.worker"),
                *(str(self._path), str(self.index), str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listener = asyncio.ensure_future(self._listen(reader))
        if not await self._snapshot():
            code = await self._process.wait()
            raise CannotStart(f"worker {self.index} ended with {code} at its start")
        self._is_ready = True

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        samples: list[Sample] = []
        try:
            while True:
                samples = await control.read_snapshot(reader)
                if self._next is not None and not self._next.done():
                    self._next.set_result(samples)
        except (asyncio.IncompleteReadError, ConnectionError):
            if self._next is not None and not self._next.done():
                self._next.set_result([])

    async def _snapshot(self) -> list[Sample]:
        """The next snapshot that comes, shared by all who wait for it; [] when none can."""
        if self._listener is None or self._listener.done():
            return []
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._next)

    async def snapshot(self) -> list[Sample]:
        """What the worker counted; [] when it does not answer in time."""
        if self._writer is None or self._writer.is_closing():
            return []
        self._writer.write(control.ASK)
        try:
            return await asyncio.wait_for(self._snapshot(), ANSWER_SECONDS)
        except TimeoutError:
            return []

    async def wait(self) -> int:
        """The exit code, when the process has ended; 0 if it never began."""
        code = await self._process.wait() if self._process is not None else 0
        if self._writer is not None:
            self._writer.close()
        return code

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def reload(self) -> None:
        """SIGHUP, which would end a worker that does not listen to it yet."""
        if self._is_ready:
            self.signal(signal.SIGHUP)


class Supervisor:
    """Owns the data directory; at its end no worker is left."""

    def __init__(self, path: Path, config: Config) -> None:
        self._config = config
        self._workers = [WorkerProcess(path, index) for index in range(config.workers)]
        self._ending = asyncio.Event()
        self._http = HttpServer(admin_app(self._collect, self._health))

    async def run(self) -> bool:
        """Return after SIGTERM or SIGINT, True if every worker ended well.

        CannotStart or OSError if something is in the way at the start.
        """
        lock = _take(self._config.data_dir)
        await _await_orphans(shard_folders(self._config.data_dir))
        for listener in self._config.listener:
            _check_free(listener.bind)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            await self._start()
            return await self._keep()
        finally:
            await self._http.close()
            os.close(lock)

    async def _start(self) -> None:
        started = await asyncio.gather(
            *(worker.start() for worker in self._workers), return_exceptions=True
        )
        try:
            if errors := [one for one in started if one is not None]:
                raise errors[0]
            for listener in self._config.listener:
                if listener.service == "admin":
                    await self._http.listen(listener.bind)
        except BaseException:
            self._signal(signal.SIGTERM)
            await asyncio.gather(*(worker.wait() for worker in self._workers))
            raise
        where = ", ".join(f"{one.service} on {one.bind}" for one in self._config.listener)
        logger.info("ready: %s; workers: %d", where, len(self._workers))

    async def _keep(self) -> bool:
        """Start again what dies, until told to end; then drain. True if all ended well."""
        keepers = [asyncio.ensure_future(self._keep_one(worker)) for worker in self._workers]
        await self._ending.wait()
        self._signal(signal.SIGTERM)
        try:
            codes = await asyncio.wait_for(asyncio.gather(*keepers), DRAIN_SECONDS)
        except TimeoutError:
            logger.error("workers did not end in %d seconds and are killed", DRAIN_SECONDS)
            self._signal(signal.SIGKILL)
            codes = await asyncio.gather(*(worker.wait() for worker in self._workers))
        logger.info("ended")
        # A worker that was just being started again does not listen to SIGTERM yet.
        return set(codes) <= {0, -signal.SIGTERM}

    async def _keep_one(self, worker: WorkerProcess) -> int:
        """The exit code with which it ended when it was told to."""
        pause = RESTART_FIRST
        while True:
            began = time.monotonic()
            code = await worker.wait()
            if self._ending.is_set():
                return code
            lived = time.monotonic() - began
            pause = RESTART_FIRST if lived > RESTART_MOST else min(pause * 2, RESTART_MOST)
            logger.error("worker %d ended with %d, starts again in %g s", worker.index, code, pause)
            await self._pause(pause)
            if self._ending.is_set():
                return 0
            try:
                await worker.start()
            except (CannotStart, OSError) as error:
                logger.error("%s", error)
            if self._ending.is_set():  # it was told to end before it could hear
                worker.signal(signal.SIGTERM)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), seconds)
        except TimeoutError:
            pass

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.signal(number)

    def _reload(self) -> None:
        for worker in self._workers:
            worker.reload()

    async def _collect(self) -> list[list[Sample]]:
        return await asyncio.gather(*(worker.snapshot() for worker in self._workers))

    async def _health(self) -> Health:
        answers = await self._collect()
        return Health(workers=len(answers), ready=sum(map(bool, answers)))


def _take(folder: Path) -> int:
    """Take the data directory for this process and those that it starts."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return own(folder / "lock")
    except Locked:
        raise CannotStart(f"another fastmta is running with data_dir {folder}") from None


async def _await_orphans(shards: list[Path]) -> None:
    """Workers whose supervisor was killed still finish what is under way."""
    deadline = time.monotonic() + ORPHANS_SECONDS
    for folder in shards:
        while True:
            try:
                os.close(own(folder / OWNER_LOCK))
                break
            except Locked as error:
                if time.monotonic() > deadline:
                    raise CannotStart(str(error)) from None
            await asyncio.sleep(0.05)


def _check_free(endpoint: Endpoint) -> None:
    """Workers share their ports, so nothing else would notice a second server on one."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            raise CannotStart(f"cannot listen on {endpoint}: {error.strerror}") from None
