"""Mail for mailboxes of this machine is stored five times as fast as Postfix's, as safely.

bench.load sends numbered messages over SMTP, pipelined, to a thousand users in turns; what counts
is the time from the first until the last is in its mailbox, as the server's log says it, in both
with an fsync before the 250 and one before "delivered". Afterwards all mailboxes are read: which of
the acknowledged messages are there, how often, in the right one, and whether whole. Peers run in
turns, each on fresh mailboxes and after a short warm-up.

The servers share all cores but the last, the load has that one. CPU is that of all processes of the
peer until they are at rest; memory is the sum of their peaks, shared pages counted for each.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Protocol, cast

import click
import msgspec
from rich.table import Table

from bench import command, processes, report
from bench.command import Named
from bench.load import RECIPIENTS, Result
from bench.relay import STALL, Run, scratch, warmed_up
from bench.report import Measure
from fastmta.sink.tally import NUMBER, Tally, parse_ranges

PEERS = ("fastmta", "postfix")
AIM = 5.0  # times Postfix's deliveries a second
PAUSE = 0.01  # seconds between two looks at a log
_NUMBER = re.compile(rb"\r\n%b: (\d+)\r\n" % NUMBER)


class Peer(Named, Protocol):
    """What each of bench.peers.local_* is."""

    LOG: str  # a file below the folder
    DELIVERED: bytes  # what it says of each delivery, after the fsync

    @property
    def running(self) -> Callable[[Path, list[str], int, int], AbstractContextManager[int]]:
        """Run it for a while: folder, users of example.test, port, workers. Gives the root pid."""

    @property
    def mailboxes(self) -> Callable[[Path], Iterable[tuple[str, bytes]]]:
        """Whose each message is, and its octets, once it runs no more."""


class Deliveries:
    """How many a log tells of; only what was added is read."""

    def __init__(self, log: Path, mark: bytes) -> None:
        self._log, self._mark = log, mark
        self._read = self.count = 0

    def look(self) -> int:
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole + newline)
        self.count += whole.count(self._mark)
        return self.count


def load(name: str) -> Peer:
    return cast(Peer, import_module(f"bench.peers.local_{name}"))


def users(messages: int) -> list[str]:
    """Those that the load writes to, and that of the warm-up."""
    return [*(f"user{number}" for number in range(min(RECIPIENTS, messages + 1))), "user"]


def measure(name: str, sizes: dict[str, int], cores: set[int], base: Path) -> Run:
    peer, port, names = load(name), processes.free_port(), users(sizes["messages"])
    with scratch(base) as folder:
        with ExitStack() as stack:
            with processes.on(cores):
                root = stack.enter_context(peer.running(folder, names, port, len(cores)))
            before = warmed_up(root, port, sizes["clients"])
            log = Deliveries(folder / peer.LOG, peer.DELIVERED)
            sent, last = _send(port, sizes, log)
            spent = processes.settled(root).since(before)
        run = _run(name, sizes["messages"], last - sent.started, spent)
        return judge(run, sent, peer.mailboxes(folder))


def _send(port: int, sizes: dict[str, int], log: Deliveries) -> tuple[Result, float]:
    """What the load saw, and when the last delivery was logged (`time.monotonic`)."""
    options = [f"--{name}={value}" for name, value in sizes.items()]
    client = [sys.executable, "-m", "bench.load", f"127.0.0.1:{port}", *options]
    first, moved = log.look(), time.monotonic()
    with subprocess.Popen(client, stdout=subprocess.PIPE) as process:
        assert process.stdout
        seen = first
        while process.poll() is None or (
            seen - first < sizes["messages"] and time.monotonic() - moved < STALL
        ):
            time.sleep(PAUSE)
            if (now := log.look()) != seen:
                seen, moved = now, time.monotonic()
        return msgspec.json.decode(process.stdout.read(), type=Result), moved


def _run(name: str, messages: int, seconds: float, spent: processes.Usage) -> Run:
    return Run(
        peer=name,
        load="numbered",
        messages=messages,
        seconds=seconds,
        user=spent.user / messages * 1e6,
        system=spent.system / messages * 1e6,
        peak_memory=spent.peak_memory,
    )


def judge(run: Run, sent: Result, mailboxes: Iterable[tuple[str, bytes]]) -> Run:
    """Compare what was acknowledged with what lies in the mailboxes."""
    tally, misplaced = Tally(), 0
    for user, content in mailboxes:
        if found := _NUMBER.search(content):
            misplaced += user != f"user{int(found[1]) % RECIPIENTS}"
        tally.add(bytearray(b"\r\n" + content), [""])
    run.lost = len(parse_ranges(sent.acknowledged) - tally.numbers)
    run.duplicated, run.corrupt = tally.duplicates, tally.corrupt + misplaced
    run.refused = sent.refused
    run.accept_p50, run.accept_p99 = sent.accept_p50, sent.accept_p99
    return run


# The report.


MEASURES = [
    Measure("deliveries a second", lambda run: run.rate),
    *report.ALWAYS[1:],
    *report.ACCEPTED,
    *report.ENDS,
]


def table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Medians over the repeats, with the least and the most in brackets."""
    result = Table("measure", title="delivery-local: medians (least to most)")
    for name in names:
        result.add_column(name, justify="right")
    columns = [[run for run in runs if run.peer == name] for name in names]
    for measure in MEASURES:
        result.add_row(measure.name, *(report.cell(measure, column) for column in columns))
    over = report.times(runs, "postfix")
    shown = (f"{over[name]:.2f}" if name in over else "" for name in names)
    result.add_row(f"times Postfix's deliveries, aim {AIM:.0f}", *shown)
    return result


@click.command(help=__doc__)
@click.option("--messages", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--size", type=click.IntRange(600), default=2048, show_default=True, help="Octets.")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@command.peers_option(*PEERS)
@command.dir_option
@command.json_option
def main(names: list[str], repeats: int, folder: Path, output: Path | None, **sizes: int) -> None:
    facts = command.begin({name: load(name) for name in names}, folder)
    console, cores = command.console(), processes.divide_cores()
    runs: list[Run] = []
    with command.failures_told(), console.status("") as status:
        for repeat, name in product(range(repeats), names):
            status.update(f"{name}, {repeat + 1} of {repeats}")
            runs.append(measure(name, sizes, cores, folder.resolve()))
            console.print(report.line(runs[-1]))
    console.print(table(runs, names))
    ratios = report.times(runs, "postfix")
    command.write(output, {**facts, "options": sizes, "runs": runs, "times_postfix": ratios})
    sys.exit(any(run.lost or run.duplicated or run.corrupt for run in runs))
