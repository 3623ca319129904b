"""One worker: a uvloop loop with its shards, listeners and connections. The only wiring.

    python -m fastmta.worker CONFIG INDEX DESCRIPTOR

The descriptor is this worker's end of the control socket (`control`).
"""

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import uvloop

from fastmta import control, log, metrics
from fastmta.config import Config, ConfigError, load
from fastmta.delivery.dns import Resolver
from fastmta.delivery.router import Router
from fastmta.delivery.site import RoutingError, Site
from fastmta.delivery.smtp import Dispatcher
from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import format_id
from fastmta.mail.reply import Reply
from fastmta.queue.ready import Job
from fastmta.queue.scheduler import Scheduler
from fastmta.queue.settlement import Settlement
from fastmta.server.smtp import SmtpService
from fastmta.store.env import Locked
from fastmta.store.spool import Spool

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0  # for messages that are under way, first those coming in, then those going out
ORPHAN_SECONDS = 3.0  # the same when the supervisor has died: a new one waits for the files
JOURNAL_INTERVAL = 0.1  # seconds between writes of the disposition log

QUEUE = metrics.gauge("fastmta_queue_envelopes", "Envelopes in the queue")
OLDEST = metrics.gauge(
    "fastmta_queue_oldest_seconds", "Age of the oldest message in the queue", combine="max"
)
FILE = metrics.gauge("fastmta_spool_file_bytes", "Size of the spool's files in use")
FREE = metrics.gauge("fastmta_spool_free_bytes", "Space inside the spool's files for new rows")


class Shard:
    """One spool with what empties it."""

    def __init__(self, spool: Spool, settlement: Settlement, scheduler: Scheduler[Site]) -> None:
        self.spool, self.settlement, self.scheduler = spool, settlement, scheduler
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.spool.start(self.scheduler.admit)
        self._runner = asyncio.ensure_future(self.scheduler.run())

    async def stop_scheduling(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
        await self.scheduler.stop()

    async def close(self) -> None:
        await self.settlement.finish()
        await self.spool.close()


class Intake:
    """What listeners hand messages to: the worker's own shard, and a line in the log."""

    def __init__(self, spool: Spool, journal: log.DispositionLog) -> None:
        self._spool, self._journal = spool, journal
        self.new_id = spool.new_id
        self.refusal = spool.refusal

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        def stored(refusal: Reply | None) -> None:
            if refusal is None:
                self._journal.write(_received(arrival))
            done(refusal)

        self._spool.accept(arrival, stored)


def _received(arrival: Arrival) -> log.Received:
    return log.Received(
        time=arrival.received,
        id=format_id(arrival.message),
        sender=arrival.sender,
        recipients=[recipient.address for recipient in arrival.recipients],
        size=arrival.size,
        client=arrival.client,
        protocol=arrival.protocol,
    )


def shards_of(folder: Path, index: int, workers: int) -> list[int]:
    """The worker's own shard, then those that are left from more workers and fall to it."""
    found = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    return [index, *sorted(n for n in found if n >= workers and n % workers == index)]


class Worker:
    """Wires the parts together, and takes them apart in the order that loses nothing."""

    def __init__(self, config: Config, index: int) -> None:
        self._config, self._index = config, index
        path = config.log.dispositions
        self.journal = log.DispositionLog(path if path == "-" else str(config.data_dir / path))
        self._router = Router(config, Resolver(config.dns))
        self._dispatcher = Dispatcher(config.hostname, self._settle, self._read)
        self._shards: dict[int, Shard] = {}
        self._journal_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        folder = self._config.data_dir / "spool"
        for number in shards_of(folder, self._index, self._config.workers):
            self._shards[number] = self._open(folder / str(number), number)
        _show(list(self._shards.values()))
        intake = Intake(self._shards[self._index].spool, self.journal)
        self._smtp = SmtpService(self._config, intake, _tls(self._config))
        for shard in self._shards.values():
            await shard.start()
        for listener in self._config.listener:
            if listener.service == "smtp":
                await self._smtp.start(listener)
        self._write_journal()

    def _open(self, folder: Path, number: int) -> Shard:
        spool = Spool(folder, number, self._config.spool.min_free_space)
        settlement = Settlement(spool, self._config.retry, self._config.hostname, self.journal)
        scheduler = Scheduler(
            spool, settlement, self._router.cached, self._resolve, self._dispatcher.submit
        )
        return Shard(spool, settlement, scheduler)

    async def _resolve(self, domain: str) -> Site | Reply:
        try:
            return await self._router.site(domain)
        except RoutingError as error:
            return error.reply

    def _shard_of(self, message: int) -> Shard:
        return self._shards[message & 0xFF]  # see Spool.new_id

    def _settle(self, job: Job, site: str, ends: list[Disposition]) -> None:
        self._shard_of(job.envelope.message).settlement.settle(job, site, ends)

    async def _read(self, message: int, first: int) -> list[bytes]:
        return await self._shard_of(message).spool.read(message, first)

    def _write_journal(self) -> None:
        self.journal.flush()
        loop = asyncio.get_running_loop()
        self._journal_timer = loop.call_later(JOURNAL_INTERVAL, self._write_journal)

    async def drain(self, seconds: float) -> None:
        """Finish what is under way, keep what is not, and let go of everything.

        What comes in has so many seconds, then what goes out has as many.
        """
        await self._smtp.drain(seconds)
        for shard in self._shards.values():
            await shard.stop_scheduling()
        await self._dispatcher.drain(seconds)
        for shard in self._shards.values():
            await shard.close()
        if self._journal_timer is not None:
            self._journal_timer.cancel()
        self.journal.close()


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(config.tls.certificate, config.tls.key)
    return context


def _show(shards: list[Shard]) -> None:
    """Let the gauges read the spools when somebody asks."""

    def total(field: str) -> Callable[[], float]:
        return lambda: sum(getattr(shard.spool.statistics(), field) for shard in shards)

    def age() -> float:
        times = [shard.spool.statistics().oldest for shard in shards]
        oldest = min(filter(None, times), default=0.0)
        return max(0.0, time.time() - oldest) if oldest else 0.0

    QUEUE.read, FILE.read, FREE.read = (
        total("envelopes"),
        total("file_octets"),
        total("free_octets"),
    )
    OLDEST.read = age


async def _run(config: Config, index: int, descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    end: asyncio.Future[float] = loop.create_future()  # how many seconds draining may take

    def drain(seconds: float) -> None:
        if not end.done():
            end.set_result(seconds)

    worker = Worker(config, index)
    # A terminal's Ctrl-C reaches the whole group; the supervisor turns it into SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, drain, DRAIN_SECONDS)
    loop.add_signal_handler(signal.SIGHUP, worker.journal.reopen)
    await worker.start()
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    answering = asyncio.ensure_future(_answer(reader, writer))
    answering.add_done_callback(lambda _: drain(ORPHAN_SECONDS))
    seconds = await end
    logger.info("draining")
    await worker.drain(seconds)
    answering.cancel()
    logger.info("ended")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a snapshot now, which says that the worker is ready, and whenever asked.

    Returns when the supervisor is gone.
    """
    try:
        writer.write(control.pack_snapshot(metrics.snapshot()))
        while await reader.read(1):
            writer.write(control.pack_snapshot(metrics.snapshot()))
    except ConnectionError:
        pass


def _raise_descriptor_limit() -> None:
    """As far as the system allows: each session and each connection out needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    path, index, descriptor = sys.argv[1:]
    name = f"worker-{index}"
    log.set_up("info", name)
    _raise_descriptor_limit()
    try:
        config = load(Path(path))
        log.set_up(config.log.level, name)
        uvloop.run(_run(config, int(index), int(descriptor)))
    except ConfigError as error:
        logger.error("cannot start: %s", "; ".join(f"{path}: {one}" for one in error.problems))
        sys.exit(1)
    except (OSError, Locked, lmdb.Error) as error:
        logger.error("cannot start: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
