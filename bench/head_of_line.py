"""Sites that take no mail do not slow down those that do.

Two relays in turns, each with routes to 100 sites: through one goes mail for 60 good sites alone;
the other has a backlog, more than its window in memory, for the 40 others:

\b
10 refuse connections
10 do not answer them at all
10 read one octet a second
10 answer 450 to each recipient

The rate is that of the good mail, from the first connection until it has all arrived. The backlog
is tried again all the while, five seconds after the first attempt and then every ten: sixty times
as often as by default. The aim is nine tenths.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from statistics import median

import click
import msgspec
import uvloop
from msgspec import Struct

from bench import command, processes, relay
from bench.load import Load
from bench.peers.fastmta import PROGRAM
from fastmta.config import Endpoint
from fastmta.sink import Behaviour, Sink

AIM = 0.9
GOOD, REFUSING, SILENT, SLOW, TEMPORARY = "good", "refusing", "silent", "slow", "temporary"
SITES = {GOOD: 60, REFUSING: 10, SILENT: 10, SLOW: 10, TEMPORARY: 10}
STALL = 60.0  # seconds without an arrival after which a round is given up

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = 1

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"

[retry]
first        = "{retry}s"
max_interval = "{twice}s"
"""
ROUTE = """
[[route]]
domain   = "{domain}"
next_hop = ["{address}:{port}"]
"""


class Site(Struct, frozen=True):
    kind: str
    domain: str
    address: str


class Round(Struct):
    relay: str  # "alone", "beside"
    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


def sites() -> list[Site]:
    """Each has a loopback address of its own."""
    return [
        Site(kind, f"{kind}{number}.example.test", f"127.1.{block}.{number}")
        for block, (kind, count) in enumerate(SITES.items())
        for number in range(1, count + 1)
    ]


class Mailing(Load):
    """Messages that go to domains in turns."""

    def __init__(self, messages: int, size: int, domains: list[str]) -> None:
        super().__init__(messages, size)
        self._names = domains

    def envelope(self, number: int) -> bytes:
        domain = self._names[number % len(self._names)]
        sender, recipient = "load@client.example.test", f"user@{domain}"
        return f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()


# The destinations, all in this process.


class Hosts:
    """All hosts on one port, each on its address."""

    def __init__(self) -> None:
        self.port = processes.free_port()
        self.good: list[Sink] = []

    def arrived(self) -> int:
        return sum(sink.totals.messages for sink in self.good)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for site in sites():
                if site.kind in (GOOD, TEMPORARY):
                    refused = 1.0 if site.kind == TEMPORARY else 0.0
                    sink = Sink(Behaviour(tempfail=refused))
                    await sink.start(site.address, self.port)
                    stack.push_async_callback(sink.stop)
                    if site.kind == GOOD:
                        self.good.append(sink)
                elif site.kind == SILENT:
                    stack.enter_context(_silent(site.address, self.port))
                elif site.kind == SLOW:
                    await stack.enter_async_context(_slow(site.address, self.port))
            yield


@contextmanager
def _silent(address: str, port: int) -> Iterator[None]:
    """A queue of connections that is full: the kernel answers no more of them."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect((address, port))
        yield


@asynccontextmanager
async def _slow(address: str, port: int) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            await loop.sock_sendall(client, b"220 slow.example.test\r\n")
            while await loop.sock_recv(client, 1):  # noqa: ASYNC110
                await asyncio.sleep(1)

    async def accept(listener: socket.socket) -> None:
        while True:
            client, _ = await loop.sock_accept(listener)
            tasks.add(asyncio.ensure_future(serve(client)))

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.bind((address, port))
        listener.listen(128)
        listener.setblocking(False)
        tasks.add(asyncio.ensure_future(accept(listener)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


# The relays.


def configuration(port: int, hosts: int, retry: int) -> str:
    routes = [ROUTE.format(domain=s.domain, address=s.address, port=hosts) for s in sites()]
    return CONFIGURATION.format(port=port, retry=retry, twice=2 * retry) + "".join(routes)


class Options(Struct, frozen=True, kw_only=True):
    messages: int
    backlog: int
    repeats: int
    retry: int = 5
    clients: int = 50
    size: int = 2048


async def measure(options: Options, folder: Path) -> list[Round]:
    hosts, rounds = Hosts(), []
    async with hosts.running():
        with ExitStack() as stack:
            ports = {}
            for name in ("alone", "beside"):
                ports[name] = port = processes.free_port()
                (folder / name).mkdir()
                file = folder / name / "fastmta.toml"
                file.write_text(configuration(port, hosts.port, options.retry))
                command = [str(PROGRAM), "serve", "-c", str(file)]
                process = stack.enter_context(processes.running(command, folder / name / "output"))
                await asyncio.to_thread(processes.greets, port, process)
            bad = [site.domain for site in sites() if site.kind != GOOD]
            await _send(ports["beside"], options.backlog, options, bad)
            for _ in range(options.repeats):
                for name, port in ports.items():
                    rounds.append(await _round(name, port, options, hosts))
                    click.echo(f"{name}: {rounds[-1].rate:,.0f} messages a second")
    return rounds


async def _send(port: int, messages: int, options: Options, domains: list[str]) -> None:
    load = Mailing(messages, options.size, domains)
    result = await load.run(Endpoint("127.0.0.1", port), options.clients)
    if result.refused or result.disconnects:
        raise RuntimeError(f"{result.refused} refused, {result.disconnects} disconnects")


async def _round(name: str, port: int, options: Options, hosts: Hosts) -> Round:
    good = [site.domain for site in sites() if site.kind == GOOD]
    before, begun = hosts.arrived(), time.monotonic()
    await _send(port, options.messages, options, good)
    seen, moved = 0, time.monotonic()
    while (now := hosts.arrived() - before) < options.messages:
        if now != seen:
            seen, moved = now, time.monotonic()
        if time.monotonic() - moved > STALL:
            raise RuntimeError(f"{name}: {now} of {options.messages} arrived")
        await asyncio.sleep(0.01)
    return Round(name, options.messages, time.monotonic() - begun)


def _rate(rounds: list[Round], relay: str) -> float:
    return median(one.rate for one in rounds if one.relay == relay)


@click.command(help=__doc__)
@click.option("--messages", type=click.IntRange(1), default=6000, show_default=True)
@click.option("--backlog", type=click.IntRange(0), default=25_000, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--retry", type=click.IntRange(1), default=5, show_default=True, help="Seconds.")
@command.dir_option
@command.json_option
def main(
    messages: int, backlog: int, repeats: int, retry: int, folder: Path, output: Path | None
) -> None:
    options = Options(messages=messages, backlog=backlog, repeats=repeats, retry=retry)
    with command.failures_told(), relay.scratch(folder.resolve()) as kept:
        rounds = uvloop.run(measure(options, kept))
    rates = {
        name: median(r.rate for r in rounds if r.relay == name) for name in ("alone", "beside")
    }
    share = rates["beside"] / rates["alone"]
    click.echo(f"beside 40 sites that take nothing: {share:.2f} of the rate alone, aim {AIM}")
    if output:
        output.write_bytes(msgspec.json.encode({"rounds": rounds, "share": share, "aim": AIM}))
    sys.exit(share < AIM)
