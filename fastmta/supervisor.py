"""Starts the workers, starts again what died, drains them all; answers on the admin listener."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Raw, msgpack, structs

from fastmta import control, kept, metrics, notify, privileges, vitals
from fastmta.config import Config, ConfigError, Endpoint, Source, Tls, changes, read
from fastmta.config_tls import check_times
from fastmta.control_server import ControlServer, ForSupervisor
from fastmta.held import Held
from fastmta.limits_desk import Freed, LimitsDesk, Overs
from fastmta.metrics import Sample
from fastmta.order_desk import OrderDesk
from fastmta.privileges import Identity
from fastmta.queue.arbiter import Arbiter
from fastmta.queue.limits import Answer, Request
from fastmta.queue.permits import ArbiterLoop
from fastmta.queue.requests import Allowance, Allowances
from fastmta.queue.standing import CannotStand
from fastmta.server.counts import Row
from fastmta.server.http import HttpServer
from fastmta.server.tls import show_expiry
from fastmta.store.env import LOCK, OWNER_LOCK, Locked, own
from fastmta.store.restore import MOVING
from fastmta.store.view import shard_folders
from fastmta.web.metrics import Health, admin_app
from fastmta.web.totals import Totals
from fastmta.worker_process import CannotStart, WorkerProcess

logger = logging.getLogger(__name__)

WORKERS = metrics.gauge("fastmta_workers", "Workers that there should be")
READY = metrics.gauge("fastmta_workers_ready", "Workers that answered when they were last asked")
RESTARTS = metrics.counter("fastmta_worker_restarts_total", "Workers that died and began again")

DRAIN_SECONDS = 85.0  # a worker gives its listeners and its connections 30 each, and then closes
ORPHANS_SECONDS = 15.0  # for workers whose supervisor was killed
RESTART_FIRST = 0.1  # seconds before a worker that died is started again, doubling
RESTART_MOST = 10.0
_decode_request = msgpack.Decoder(Request).decode
# What the spool's folders and shards hang on, and who owns them.
NEEDS_RESTART = ("data_dir", "workers", "user", "group")


_OURS = -1  # this process, among the numbers of the workers


class Supervisor:
    """Owns the data directory; at its end no worker is left."""

    def __init__(self, path: Path, source: Source, config: Config) -> None:
        """Call it in the loop; `path` is where the configuration, now `source`, is read anew."""
        self._path, self._config = path, config
        self._held = Held()
        self._kept: dict[str, int] = {}
        self._identity: Identity | None = None  # that we have become
        self._source = structs.replace(source, **self._staying())
        self._workers = [WorkerProcess(index, self) for index in range(config.workers)]
        self._limits = ArbiterLoop(Arbiter(time.monotonic), self._tell, asyncio.get_running_loop())
        self._clients = LimitsDesk(config, self._workers)
        self._ending = asyncio.Event()
        self._hang_up = asyncio.Event()  # SIGHUP came
        self._totals = Totals()
        WORKERS.value = config.workers
        vitals.show()
        self._http = HttpServer(admin_app(self._samples, self._health))

    async def run(self) -> bool:
        """Return after SIGTERM or SIGINT, True if every worker ended well.

        CannotStart or OSError if something is in the way at the start.
        """
        lock = await self._prepare()
        _look_at_certificates(self._config.tls)
        self._desk = _open_desk(self._config.data_dir, self._workers)
        self._control = ControlServer(self._config.data_dir, self._workers, self._desk, self._reply)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up.set)
        try:
            await self._start()
            return await self._keep()
        finally:
            self._desk.stop()
            self._control.close()
            await self._http.close()
            self._limits.close()
            os.close(lock)

    async def _prepare(self) -> int:
        """Take the data directory and see that ports are free, as root bind them, and be root no
        longer; gives the descriptor of the lock."""
        config = self._config
        try:
            self._identity = identity = privileges.to_become(config)
            if identity:
                privileges.make_folder(config.data_dir, identity)
            with privileges.acting_as(identity):
                privileges.check_owner(config.data_dir)
                lock = _take(config.data_dir)
                await _await_orphans(shard_folders(config.data_dir))
            for listener in config.listener:
                _check_free(listener.bind)
            if identity:
                self._held.listen(config, identity.uid)
                self._kept = kept.keep(config)
                privileges.become(identity)
                self._go_on_as(identity)
        except (privileges.CannotBecome, ConfigError) as error:
            raise CannotStart(str(error)) from None
        return lock

    def _go_on_as(self, identity: Identity) -> None:
        """Look at the configuration as the user sees it; ConfigError."""
        kept.let_go_of_readable(self._kept)
        self._source = structs.replace(self._source, kept=self._kept)
        self._config = self._source.parse()
        for path in [str(self._path), *self._kept]:
            if not os.access(path, os.R_OK):
                logger.warning("%s: %s cannot read it, so no reload will", path, identity.user)

    async def _start(self) -> None:
        started = await asyncio.gather(
            *(self._start_one(worker) for worker in self._workers), return_exceptions=True
        )
        try:
            if errors := [one for one in started if one is not None]:
                raise errors[0]
            self._desk.start()
            await self._control.start()
            for endpoint in _admin(self._config):
                await self._http.listen(endpoint, self._held.admin(endpoint))
        except BaseException:
            self._signal(signal.SIGTERM)
            await asyncio.gather(*(worker.wait() for worker in self._workers))
            raise
        where = ", ".join(f"{one.service} on {one.bind}" for one in self._config.listener)
        logger.info("ready: %s; workers: %d", where, len(self._workers))
        notify.tell("READY=1", f"STATUS={where}")

    async def _start_one(self, worker: WorkerProcess) -> None:
        source, holds = self._source, self._desk.holds
        await worker.start(source, holds, self._held.sockets(worker.index))
        self._clients.welcome(worker)
        self._desk.tell(worker, holds)  # what has changed meanwhile, as below
        if source is not self._source:  # there was a reload that it could not hear
            await worker.reload(self._source)

    async def _keep(self) -> bool:
        """Start again what dies, until told to end; then drain. True if all ended well."""
        reloading = asyncio.ensure_future(self._reload_when_told())
        keepers = [asyncio.ensure_future(self._keep_one(worker)) for worker in self._workers]
        await self._ending.wait()
        notify.tell("STOPPING=1")
        reloading.cancel()
        self._held.close()
        self._control.close()
        self._desk.stop()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                codes = await asyncio.gather(*keepers)
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
            RESTARTS.value += 1
            await self._pause(pause)
            if self._ending.is_set():
                return 0
            try:
                await self._start_one(worker)
            except (CannotStart, OSError) as error:
                logger.error("%s", error)
            if self._ending.is_set():  # it was told to end before it could hear
                worker.signal(signal.SIGTERM)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.signal(number)

    async def _reload_when_told(self) -> None:
        while True:
            await self._hang_up.wait()
            self._hang_up.clear()
            try:
                await self._reload()
            except Exception:
                logger.exception("the configuration could not be reloaded")

    async def _reload(self) -> None:
        """Read the configuration anew, and go on with it if it can be used."""
        try:
            source = structs.replace(read(self._path), kept=self._kept)
            self._name_what_stays(source.parse())
            source = structs.replace(source, **self._staying())
            config = source.parse()
            self._check_new_listeners(config)
        except (ConfigError, CannotStart) as error:
            for problem in str(error).splitlines():
                logger.error("%s: %s", self._path, problem)
            logger.error("nothing is reloaded, the configuration from before stays in force")
            if self._identity:
                logger.error("files are read, and ports opened, as %s now", self._identity.user)
            return
        before, self._source, self._config = self._config, source, config
        _look_at_certificates(config.tls)
        await self._go_on_with(before, config)

    def _staying(self) -> dict[str, Any]:
        config = self._config
        return {
            "data_dir": str(config.data_dir),
            "workers": config.workers,
            "user": config.user,
            "group": config.group,
            "kept": self._kept,
        }

    def _name_what_stays(self, config: Config) -> None:
        for name in changes(self._config, config):
            if name in NEEDS_RESTART:
                value = getattr(self._config, name)
                text = f"{name} stays {value}" if value else f"there is still no {name}"
                logger.warning("%s: it changes with a restart only", text)

    def _check_new_listeners(self, config: Config) -> None:
        """CannotStart where another program has the port; on one of ours the address may change."""
        ours = {listener.bind.port for listener in self._config.listener}
        for listener in config.listener:
            if listener.bind.port not in ours:
                _check_free(listener.bind)
            elif self._identity and not self._is_ours(listener.bind):
                _check_allowed(listener.bind)

    def _is_ours(self, bind: Endpoint) -> bool:
        return bind in self._http.endpoints or self._held.has(bind)

    async def _go_on_with(self, before: Config, config: Config) -> None:
        logging.getLogger().setLevel(config.log.level.upper())
        self._clients.configure(config)
        self._held.let_go({each.bind for each in before.listener} - _smtp(config))
        for path in self._source.kept:
            if not os.access(path, os.R_OK):
                logger.error("reload: %s cannot be read, what it held at the start stays", path)
        old, new = self._http.endpoints, _admin(config)
        for endpoint in old - new:
            await self._http.unlisten(endpoint)
        workers = self._workers
        problems = await asyncio.gather(*(worker.reload(self._source) for worker in workers))
        for worker, of_worker in zip(workers, problems, strict=True):
            for problem in of_worker:
                logger.error("reload: worker %d: %s", worker.index, problem)
        for endpoint in new - old:
            try:
                await self._http.listen(endpoint)
            except OSError as error:
                logger.error("reload: cannot listen on %s: %s", endpoint, error.strerror)
        certificates = ["certificates"] if config.tls else []
        changed = changes(before, config) + certificates
        logger.info("reloaded: %s", ", ".join(changed) or "nothing has changed")

    # The limits that all workers share.

    def permit(self, worker: WorkerProcess, payload: Raw) -> None:
        self._limits.handle(worker.index, _decode_request(payload))

    def counted(self, worker: WorkerProcess, rows: list[Row]) -> None:
        self._clients.counted(worker, rows)

    def _reply(self, asked: ForSupervisor) -> Allowances | Overs | Freed:
        if isinstance(asked, Allowance):
            return self._limits.allow(asked)
        return self._clients.answer(asked)

    def gone(self, worker: WorkerProcess) -> None:
        self._limits.gone(worker.index)
        self._totals.ended(worker.index)

    def _tell(self, index: int, answer: Answer) -> None:
        self._workers[index].permit(control.pack(answer))

    async def _samples(self) -> Iterator[Sample]:
        """Of all processes: what paths share is counted here."""
        await self._collect()
        self._totals.take(_OURS, metrics.snapshot())
        return self._totals.samples()

    async def _collect(self) -> list[list[Sample]]:
        """What each worker says; [] of one that does not answer."""
        answers = await asyncio.gather(*(worker.snapshot() for worker in self._workers))
        for worker, samples in zip(self._workers, answers, strict=True):
            self._totals.take(worker.index, samples)
        READY.value = len(list(filter(None, answers)))
        return answers

    async def _health(self) -> Health:
        answers = await self._collect()
        missing = tuple(index for index, samples in enumerate(answers) if not samples)
        return Health(len(answers), len(answers) - len(missing), missing)


def _look_at_certificates(tls: Tls | None) -> None:
    """Tell of what is wrong with their time, which keeps nobody from starting."""
    show_expiry(tls)
    for problem in check_times(tls, time.time()) if tls else ():
        logger.error("%s", problem)


def _admin(config: Config) -> set[Endpoint]:
    return {listener.bind for listener in config.listener if listener.service == "admin"}


def _smtp(config: Config) -> set[Endpoint]:
    return {listener.bind for listener in config.listener} - _admin(config)


def _take(folder: Path) -> int:
    """Take the data directory for this process and those that it starts."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / MOVING).exists():
        raise CannotStart(f"{folder} is half restored: give fastmta restore again")
    try:
        return own(folder / LOCK)
    except Locked:
        raise CannotStart(f"another fastmta is running with data_dir {folder}") from None


def _open_desk(folder: Path, workers: list[WorkerProcess]) -> OrderDesk:
    try:
        return OrderDesk(folder, workers)
    except CannotStand as error:
        raise CannotStart(str(error)) from None


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
        _probe(probe, endpoint)


def _check_allowed(endpoint: Endpoint) -> None:
    """Whether the user that we have become may have a port, one that we listen on elsewhere."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _probe(probe, endpoint)


def _probe(probe: socket.socket, endpoint: Endpoint) -> None:
    try:
        probe.bind((endpoint.host, endpoint.port))
    except PermissionError:
        text = f"cannot listen on {endpoint}: ports below 1024 are for root, so at a start only"
        raise CannotStart(text) from None
    except OSError as error:
        raise CannotStart(f"cannot listen on {endpoint}: {error.strerror}") from None
