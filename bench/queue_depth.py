"""A deep queue costs the worker no memory, its start no time, and new mail no speed.

A data folder with deferred envelopes is made through the store's own code, some of them due at
once and the others in hours, and one worker started with it. In one run, in turns with an empty
folder:

\b
memory   what is resident of the worker at rest, before new mail comes, and how much of that is
         anonymous: the rest are libraries and pages of the files, which the kernel can take back
start    from `serve` to the first delivery
relayed  bench.load -> fastmta -> bench.sink: messages a second, none lost, none doubled
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench import command, processes, relay
from bench.peers import PLAIN, Features
from bench.peers import fastmta as peer
from bench.relay import Run, scratch
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.store import records, rows
from fastmta.store.env import open_environment
from fastmta.store.spool import PAGES_INTERVAL

TRANSACTION = 100  # envelopes that are written in one
HOUR = 3600.0
# Seconds until the others are due. What waits longer than any pause does is due (queue/clock.py).
LATER = (HOUR, 4 * HOUR)
PATIENCE = 120.0  # seconds until what is due has to be delivered
BUSY = Reply(451, "4.7.1", "Greylisted, please try again later")


class Options(Struct, frozen=True, kw_only=True):
    envelopes: int = 100_000
    domains: int = 10_000
    due: int = 1000  # of them, that many are due when the server starts
    messages: int = 20_000  # new ones, in each run
    clients: int = 100
    size: int = 2048
    repeats: int = 3
    rest: float = PAGES_INTERVAL + 1  # seconds until what was read to start with is given back


class Depth(Struct, kw_only=True):
    """What one run came to."""

    envelopes: int  # that waited
    resident: int  # octets of the worker
    anonymous: int  # of them
    first: float  # seconds from `serve` to the first delivery; 0 where nothing was due
    ready: float  # seconds from `serve` to the greeting
    run: Run

    @property
    def rate(self) -> float:
        return self.run.rate


def backlog(
    options: Options, count: int, due: tuple[float, float], age: float
) -> Iterator[Envelope]:
    """Envelopes that were deferred once, and are due at some time between the two of `due`."""
    now = time.time()
    for number in range(count):
        received = now - age + age / 2 * number / count
        domain = f"d{number % options.domains}.test"
        yield Envelope(
            message=int(received * 1000) << 20 | (number & 0xFFF) << 8,
            index=0,
            sender="news@client.example.test",
            domain=domain,
            recipients=[Recipient(f"user{number}@{domain}")],
            received=received,
            size=options.size,
            client="client.example.test [192.0.2.1]",
            attempts=1,
            due=random.uniform(*due),
            last=Disposition.of_reply(BUSY, "mx.example.test [192.0.2.25]", received),
        )


def fill(folder: Path, envelopes: Iterator[Envelope], size: int) -> None:
    """Store them with a body each, as many in a transaction as a busy worker defers in one.

    So the file's pages lie as they would in one that has grown. Without a flush, which would only
    take time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = b"Subject: news\r\n\r\n" + b"x" * (size - 17)
    env, db = open_environment(folder, records.DATABASES, sync=False)
    with env:
        while some := list(islice(envelopes, TRANSACTION)):
            with env.begin(write=True) as txn:
                for envelope in some:
                    rows.put_envelope(txn, db, envelope)
                    rows.put_body(txn, db, envelope.message, [body])


class Started:
    """fastmta as a peer of bench.relay, on the data folder that is there."""

    __name__ = "started"

    def __init__(self, due: int, rest: float) -> None:
        self.due, self.rest = due, rest
        self.resident = self.anonymous = 0
        self.first = self.ready = 0.0

    def missing(self) -> str:
        return peer.missing()

    def version(self) -> str:
        return peer.version()

    def can(self, features: Features) -> bool:
        return peer.can(features)

    @contextmanager
    def running(
        self, folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
    ) -> Iterator[int]:
        log = folder / "data" / "dispositions.jsonl"
        log.unlink(missing_ok=True)
        begun = time.time()
        with peer.running(folder, port, next_hop, workers, features) as root:
            self.ready = time.time() - begun
            delivered = self._wait(log)
            self.first = delivered - begun if delivered else 0.0
            time.sleep(self.rest)
            self.resident, self.anonymous = memory(processes.tree(root)[-1])
            yield root

    def _wait(self, log: Path) -> float:
        """When the first of those that are due was delivered, once all of them are; 0: none is."""
        deadline = time.monotonic() + PATIENCE
        while self.due:
            lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
            events = [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]
            times = [event["time"] for event in events if event["event"] == "delivered"]
            if len(times) >= self.due:
                return float(min(times))
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(times)} of {self.due} that were due were delivered")
            time.sleep(0.1)
        return 0.0


def memory(pid: int) -> tuple[int, int]:
    """What is resident of a process, in octets, and how much of it is anonymous (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in status)}
    resident, anonymous = (int(fields[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


def run_all(options: Options, base: Path, progress: Callable[[str], None]) -> Iterator[Depth]:
    """Every run as it ends, the deep queue and an empty one in turns."""
    with scratch(base) as deep:
        shard, now = deep / "data" / "spool" / "0", time.time()
        progress(f"storing {options.envelopes:,} envelopes")
        later = (now + LATER[0], now + LATER[1])
        fill(shard, backlog(options, options.envelopes, later, 24 * HOUR), options.size)
        for repeat in range(options.repeats):
            progress(f"empty, {repeat + 1} of {options.repeats}")
            with scratch(base) as empty:
                yield measure(options, empty, 0, 0)
            progress(f"{options.envelopes:,}, {repeat + 1} of {options.repeats}")
            soon = backlog(options, options.due, (time.time(), time.time()), HOUR / 2)
            fill(shard, soon, options.size)
            yield measure(options, deep, options.envelopes, options.due)


def measure(options: Options, folder: Path, envelopes: int, due: int) -> Depth:
    started = Started(due, options.rest)
    load = relay.Options(
        messages=options.messages, size=options.size, clients=options.clients, repeats=1
    )
    run = relay.numbered(started, load, folder)
    return Depth(
        envelopes=envelopes,
        resident=started.resident,
        anonymous=started.anonymous,
        first=started.first,
        ready=started.ready,
        run=run,
    )


def table(runs: list[Depth]) -> Table:
    """Medians of the runs, the empty queue's first."""
    figures: dict[str, Callable[[Depth], float]] = {
        "resident, MB": lambda one: one.resident / 1e6,
        "  anonymous": lambda one: one.anonymous / 1e6,
        "serve to greeting, s": lambda one: one.ready,
        "serve to first delivery, s": lambda one: one.first,
        "relayed, messages/s": lambda one: one.rate,
        "CPU a message, us": lambda one: one.run.cpu,
        "lost": lambda one: one.run.lost,
        "duplicated": lambda one: one.run.duplicated,
    }
    depths = sorted({one.envelopes for one in runs})
    shown = Table("envelopes that wait", *(f"{depth:,}" for depth in depths))
    for name, of in figures.items():
        medians = [median(of(one) for one in runs if one.envelopes == depth) for depth in depths]
        shown.add_row(name, *(f"{value:,.1f}" for value in medians))
    return shown


@click.command(help=__doc__)
@click.option("--envelopes", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--domains", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--due", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--rest", type=float, default=Options().rest, help="Seconds before memory is looked at."
)
@command.dir_option
@command.json_option
def main(folder: Path, output: Path | None, **options: Any) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    runs: list[Depth] = []
    with command.failures_told(), console.status("") as status:
        for one in run_all(Options(**options), folder.resolve(), status.update):
            runs.append(one)
            console.print(line(one))
    console.print(table(runs))
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(runs)))


def line(one: Depth) -> str:
    """One run, as it ends."""
    return (
        f"{one.envelopes:>10,} waiting: {one.resident / 1e6:.0f} MB resident, "
        f"{one.anonymous / 1e6:.0f} anonymous; first delivery after {one.first:.1f} s; "
        f"{one.rate:,.0f} messages/s"
    )
