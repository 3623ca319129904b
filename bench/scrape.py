"""A scrape costs no worker its loop, however many sites are known.

Each message goes to another domain with hosts of its own, so that the relay comes to know as many
sites as there are messages: bench.load -> fastmta -> bench.sink, names from a DNS server in this
process. /metrics is read before, meanwhile once a second, and afterwards.

\b
time     from the request to the last octet, as Prometheus sees it
size     of the text, and the time series in it
collect  how long one scrape keeps the loop of a worker busy, as fastmta_collect_seconds has it: the
         mean, and the bound under which all are
lag      how late a worker's loop was, 99.9 per cent of its looks (fastmta_loop_lag_seconds)
"""

import asyncio
import re
import shlex
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import click
import msgspec
import uvloop
from msgspec import Struct
from rich.table import Table

from bench import command, fanout, processes, relay, report
from bench.load import Result
from bench.peers.fastmta import missing, version
from fastmta.sink.tally import parse_ranges

QUIET_SCRAPES = 20
COUNTED = 10.0  # seconds until what has arrived must be counted; it is within a second
SITES = "fastmta_site_transactions_total{"
A, MX = 1, 15  # RFC 1035 section 3.2.2
Text = dict[str, float]  # a line of /metrics -> its number


class Options(Struct, frozen=True, kw_only=True):
    sites: int = 100_000
    size: int = 1024
    clients: int = 50
    workers: int = 2


class Scrapes(Struct):
    """What reading /metrics came to, in one part of the run. Times in seconds."""

    when: str
    scrapes: int
    median: float
    worst: float
    octets: int
    series: int
    collect_mean: float
    collect_most: float  # a bound under which all are
    lag: float  # of 99.9 per cent, the same
    stalls: int


class Outcome(Struct):
    messages: int
    lost: int
    phases: list[Scrapes]


class Names(asyncio.DatagramProtocol):
    """dN.example.test has the mail exchanger dN.example.test, and that has an address."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(b"\0", 12) + 5  # of the question: its name, type and class
        kind = int.from_bytes(data[end - 4 : end - 2])
        found = re.match(rb".d(\d+)\x07example", data[12:])
        rdata = b""
        if found and kind == MX:
            rdata = b"\0\x0a\xc0\x0c"  # preference 10, and the name that was asked for
        elif found and kind == A:
            number = int(found[1])
            rdata = bytes((127, 1 + (number >> 16), number >> 8 & 255, number & 255))
        answer = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 86_400, len(rdata)) + rdata
        # A response with recursion; one question, and an answer where there is something.
        head = data[:2] + struct.pack("!HHHHH", 0x8580, 1, bool(rdata), 0, 0)
        self._transport.sendto(head + data[12:end] + (answer if rdata else b""), addr)


@contextmanager
def names(port: int) -> Iterator[None]:
    """Serve them in a thread."""
    started = threading.Event()
    end: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        transport, _ = await loop.create_datagram_endpoint(Names, ("127.0.0.1", port))
        end.append(lambda: loop.call_soon_threadsafe(ending.set))
        started.set()
        await ending.wait()
        transport.close()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    try:
        started.wait()
        yield
    finally:
        end[0]()
        thread.join()


class Reader:
    """Reads /metrics and keeps how long that took."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._begin = self._first()
        self._times: list[float] = []
        self._octets = 0

    def _first(self) -> Text:
        """The admin listener opens after the others."""
        deadline = time.monotonic() + processes.START_LIMIT
        while True:
            try:
                return self._read()
            except URLError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _read(self) -> Text:
        with urlopen(self._url, timeout=60) as answer:
            text = answer.read().decode()
        self._octets = len(text)
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, value in lines}

    def scrape(self) -> None:
        began = time.perf_counter()
        self._last = self._read()
        self._times.append(time.perf_counter() - began)

    def delivered(self) -> float:
        """Transactions, as they are counted by site."""
        self.scrape()
        counts = self._last.items()
        return sum(n for name, n in counts if name.startswith(SITES) and 'end="delivered"' in name)

    def grown(self) -> Text:
        """How much more each is by now than it was at the beginning."""
        self.scrape()
        return self._grown()

    def _grown(self) -> Text:
        return {name: self._last[name] - self._begin.get(name, 0.0) for name in self._last}

    def told(self, when: str) -> Scrapes:
        """Since it began, or told last."""
        grown = self._grown()
        collects = max(1.0, grown["fastmta_collect_seconds_count"])
        scrapes = Scrapes(
            when=when,
            scrapes=len(self._times),
            median=median(self._times),
            worst=max(self._times),
            octets=self._octets,
            series=len(self._last),
            collect_mean=grown["fastmta_collect_seconds_sum"] / collects,
            collect_most=bound(grown, "fastmta_collect_seconds", 1.0),
            lag=bound(grown, "fastmta_loop_lag_seconds", 0.999),
            stalls=int(grown["fastmta_loop_stalls_total"]),
        )
        self._begin, self._times = self._last, []
        return scrapes


def bound(grown: Text, histogram: str, part: float) -> float:
    """The bound under which this part of what was observed is."""
    wanted = part * grown[f"{histogram}_count"]
    buckets = {
        float(name.partition('le="')[2].rstrip('"}')): count
        for name, count in grown.items()
        if name.startswith(f"{histogram}_bucket")
    }
    return min(bound for bound, count in buckets.items() if count >= wanted)


def run(options: Options, base: Path) -> Outcome:
    ports = fanout.Ports(*(processes.free_port() for _ in range(4)))
    mail = fanout.Options(
        messages=options.sites,
        domains=options.sites,
        size=options.size,
        clients=options.clients,
        workers=options.workers,
    )
    listen = f"0.0.0.0:{ports.next_hop}"
    with relay.scratch(base) as folder:
        log = folder / "sink"
        with (
            processes.running(relay.sink_command(listen), log) as sink,
            names(ports.dns),
            fanout.serving(folder, mail, ports),
        ):
            processes.greets(ports.next_hop, sink)
            reader = Reader(ports.admin)
            phases = [_quiet(reader, "before")]
            acknowledged = _send(fanout.load_command(mail, ports), reader, sink, log)
            phases.append(reader.told("under load"))
            phases.append(_quiet(reader, "afterwards"))
            arrived = parse_ranges(relay.ask(sink, log).numbers)
    return Outcome(len(acknowledged), len(acknowledged - arrived), phases)


def _quiet(reader: Reader, when: str) -> Scrapes:
    for _ in range(QUIET_SCRAPES):
        reader.scrape()
    return reader.told(when)


def _send(load: list[str], reader: Reader, sink: "subprocess.Popen[bytes]", log: Path) -> set[int]:
    """All mail, until it has arrived; the numbers of what was acknowledged."""
    with subprocess.Popen(load, stdout=subprocess.PIPE) as sending:
        while sending.poll() is None:
            reader.scrape()
            time.sleep(1.0)
        assert sending.stdout is not None
        sent = msgspec.json.decode(sending.stdout.read(), type=Result)
    acknowledged = parse_ranges(sent.acknowledged)
    relay.arrived(sink, log, acknowledged, relay.STALL)
    deadline = time.monotonic() + COUNTED
    while reader.delivered() < len(acknowledged) and time.monotonic() < deadline:
        time.sleep(0.2)
    return acknowledged


def table(outcome: Outcome) -> Table:
    columns = ("scrapes", "time ms", "worst ms", "KB", "series", "collect ms", "all below ms")
    shown = Table("", *columns, "lag ms", "stalls", title="scrape")
    for each in outcome.phases:
        shown.add_row(
            each.when,
            str(each.scrapes),
            *(f"{seconds * 1e3:.1f}" for seconds in (each.median, each.worst)),
            f"{each.octets / 1e3:.0f}",
            str(each.series),
            *(f"{s * 1e3:.1f}" for s in (each.collect_mean, each.collect_most, each.lag)),
            str(each.stalls),
        )
    return shown


@click.command(help=__doc__)
@click.option("--sites", type=click.IntRange(1, 1 << 20), default=100_000, show_default=True)
@click.option("--size", type=click.IntRange(600), default=1024, show_default=True, help="Octets.")
@click.option("--clients", type=click.IntRange(1), default=50, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@command.dir_option
@command.json_option
def main(folder: Path, output: Path | None, **values: int) -> None:
    options = Options(**values)
    if reason := missing():
        raise click.ClickException(reason)
    facts = {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "machine": report.machine(folder.resolve()),
        "version": version(),
        "options": options,
    }
    for name, value in msgspec.to_builtins(facts).items():
        click.echo(f"{name}: {value}")
    with command.failures_told():
        outcome = run(options, folder.resolve())
    command.console().print(table(outcome))
    click.echo(f"{outcome.messages:,} messages to as many sites, {outcome.lost} lost")
    command.write(output, {**facts, "outcome": outcome})
    sys.exit(bool(outcome.lost))
