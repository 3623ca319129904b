"""Peers that break off at every step, talk for ever, never listen, or are slow in thousands."""

import asyncio
import resource
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

from fastmta.sink import Behaviour
from tests.faults.frame import Fault, Run
from tests.faults.rude import (
    HARMS_OF_CLIENTS,
    HARMS_OF_HOSTS,
    STEPS,
    WHOLE,
    Way,
    half_close,
    rude_client,
    rude_host,
)
from tests.integration.ledger import Ledger, Node, load, node, read_reply, sink
from tests.support import until

CROWD = 5000  # sessions in the long form
MANY = 1000
PER_CYCLE = 250  # slow sessions that come in each cycle
GOOD = 2.0  # seconds in which a good client's mail is there, whatever the crowd does
PER_CYCLE_OUT = 2 * len(HARMS_OF_HOSTS)  # connections out: two steps, from the last to the first
SLOWLY = 2.0  # seconds between two octets of a slow session


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _clients(run: Run) -> None:
    """Each way to break off at each step, all at once, while others send."""
    ledger = run.ledger
    ways = list(product(STEPS, HARMS_OF_CLIENTS))
    sent: list[tuple[Way, int]] = []  # how it was broken off, and which message
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1]) as one,
    ):
        workers, idle = one.pids(), open_files(one.pids()[1])
        async with load(ledger, one.port, clients=10):
            for _ in run.each():
                with run.recovering():
                    clients = [rude_client(ledger, one.port, *way) for way in ways]
                    sent += zip(ways, await asyncio.gather(*clients), strict=True)
                    await ledger.acknowledges(10)
        await run.settled(one)
        _check(ledger, sent)
        assert one.pids() == workers
        # Those to the sink stay open for more mail; of clients there are none any more.
        await until(lambda: open_files(workers[1]) <= idle + len(destination.sessions), 0.02)
        assert await one.stop() == 0
        assert "Traceback" not in one.stderr.read_text()


def _check(ledger: Ledger, sent: list[tuple[Way, int]]) -> None:
    """What was cut off is nobody's mail; who still listens hears that the whole is safe."""
    arrived, safe = {number for number, _ in ledger.arrived}, set(ledger.acknowledged)
    cut = {number for (step, _), number in sent if step not in WHOLE}
    heard = {number for (step, harm), number in sent if step in WHOLE and harm is half_close}
    assert not cut & arrived, f"{len(cut & arrived)} arrived that were cut off"
    assert heard <= safe, f"{len(heard - safe)} of {len(heard)} did not hear their 250"


async def _hosts(run: Run) -> None:
    """Where mail goes, every second connection is harmed, in each way before any comes again."""
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(close_after=5)) as destination,  # or few would be made
        rude_host(destination.endpoint[1], run.dice) as host,
        node(run.folder, host.port) as one,
    ):
        workers = one.pids()
        for _ in run.each():
            host.due += PER_CYCLE_OUT
            while host.due > 0:
                with run.recovering():
                    async with load(ledger, one.port, clients=5):
                        await ledger.acknowledges(20)
                    await until(lambda: not ledger.missing(), 0.02)
        await run.settled(one)
        assert not host.problems
        assert one.pids() == workers
        assert await one.stop() == 0
        assert "Traceback" not in one.stderr.read_text()


async def _slow_session(port: int, number: int) -> None:
    """Say something, an octet at a time; whoever is sent away comes again."""
    while True:
        with suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await read_reply(reader)
                await _trickle(reader, writer, number)
            finally:
                writer.close()
        await asyncio.sleep(SLOWLY)


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    if number % 4 == 0:  # some are in the middle of a message
        for group in (b"EHLO a", b"MAIL FROM:<slow@a.test>\r\nRCPT TO:<x@one.test>\r\nDATA"):
            writer.write(group + b"\r\n")
            codes = [await read_reply(reader) for _ in group.splitlines()]
        assert codes[-1] == 354
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(SLOWLY)


async def _good_mail(ledger: Ledger, one: Node) -> float:
    """A good client's mail; gives the seconds from its connection to its arrival."""
    began = time.monotonic()
    async with load(ledger, one.port, clients=1):
        await ledger.acknowledges(1)
    await until(lambda: not ledger.missing())
    return time.monotonic() - began


async def _crowd(run: Run) -> None:
    """One mail of a good client after the other, while all others are slow."""
    ledger = run.ledger
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    slow: list[asyncio.Task[None]] = []
    async with (
        sink(ledger) as destination,
        node(run.folder, destination.endpoint[1], workers=2) as one,  # 5,000 sessions each
    ):
        try:
            for _ in run.each():
                slow += _come(one, len(slow), min(PER_CYCLE, CROWD - len(slow)))
                many = len(slow)
                await until(lambda many=many: sum(map(open_files, one.pids()[1:])) > many, 0.02)
                ends = time.monotonic() + SLOWLY  # each of the crowd says something meanwhile
                while time.monotonic() < ends:
                    with run.recovering():
                        seconds = await _good_mail(ledger, one)
                    # Of fewer nothing follows; and the short form is for machines of any speed.
                    assert len(slow) < MANY or seconds < GOOD, (
                        f"{seconds:.1f} s with {len(slow)} slow sessions"
                    )
        finally:
            for each in slow:
                each.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await run.settled(one)
        assert await one.stop() == 0


def _come(one: Node, before: int, count: int) -> list[asyncio.Task[None]]:
    numbers = range(before, before + count)
    return [asyncio.ensure_future(_slow_session(one.port, number)) for number in numbers]


FAULTS = [
    Fault(
        name="peers-in",
        about="clients reset, half-close or stop reading at each step, also behind the dot",
        run=_clients,
        short=2,
        long=100,
    ),
    Fault(
        name="peers-out",
        about="half of the connections to hosts: reset, half-closed, endless replies, at each step",
        run=_hosts,
        short=2,
        long=21,
    ),
    Fault(
        name="peers-slow",
        about=f"{PER_CYCLE} more slow sessions in each cycle, up to {CROWD:,}, and a good client",
        run=_crowd,
        short=2,
        long=30,
    ),
]
