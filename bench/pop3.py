"""A POP3 session on a large mailbox costs less than it costs Dovecot, and loses nothing.

Each of 50 clients at once logs in, lists, fetches all messages of its mailbox, deletes a third and
quits; each session has a mailbox of its own, of 1,000 messages. Every message is compared with what
was put there, and afterwards what is left. Peers run in turns, each on fresh mailboxes, once with
commands pipelined, where CAPA offers it, and once one by one.

Before the measurement each mailbox was opened once: passwords are known to be right without argon2,
indexes and caches are there. The servers share all cores but the last, the clients have that one.
The null server has all in memory and does nothing else: it is what the clients can do at the most.

CPU is that of all processes of the peer until they are at rest.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Protocol, cast

import click
import msgspec
from msgspec import Struct, structs
from rich.table import Table

from bench import command, processes, report
from bench.command import Named
from bench.pop3_load import Maildrops, Mode, Result
from bench.relay import scratch
from bench.report import Measure

PEERS = ("fastmta", "dovecot", "dovecot-maildir", "null")
AIM = 2.0  # times Dovecot's sessions a second
WAYS = {True: "pipelined", False: "one by one"}
WARMING = 8  # clients that log in for the first time: argon2 answers no more at once


class Peer(Named, Protocol):
    """What each of bench.peers.pop3_* is."""

    @property
    def fill(self) -> Callable[[Path, Maildrops], None]:
        """Make accounts and mailboxes, before it runs."""

    @property
    def running(self) -> Callable[[Path, Maildrops, int, int], AbstractContextManager[int]]:
        """Run it for a while: folder, mailboxes, port, workers. Gives the root pid."""


class Run(Struct, kw_only=True):
    """What one run of one peer came to."""

    peer: str
    way: str
    sessions: int
    seconds: float
    user: float  # milliseconds of CPU a session
    system: float
    client: float  # of the clients
    peak_memory: int  # octets
    session_p50: float  # seconds
    session_p99: float
    lost: int
    duplicated: int
    corrupt: int

    @property
    def rate(self) -> float:
        return self.sessions / self.seconds

    @property
    def wrong(self) -> int:
        return self.lost + self.duplicated + self.corrupt


def load(name: str) -> Peer:
    return cast(Peer, import_module(f"bench.peers.pop3_{name.replace('-', '_')}"))


def measure(
    name: str, maildrops: Maildrops, cores: set[int], base: Path, *, pipelined: bool
) -> Run:
    """One run; RuntimeError where a session does not end as it should."""
    peer, port = load(name), processes.free_port()
    client = [sys.executable, "-m", "bench.pop3_load", f"127.0.0.1:{port}"]
    client.append("--pipelined" if pipelined else "--one-by-one")
    with scratch(base) as folder, ExitStack() as stack:
        peer.fill(folder, maildrops)
        with processes.on(cores):
            root = stack.enter_context(peer.running(folder, maildrops, port, len(cores)))
        _fetch(client, structs.replace(maildrops, clients=WARMING), "look")
        before = processes.settled(root)
        work = _fetch(client, maildrops, "work")
        spent = processes.settled(root).since(before)
        rest = _fetch(client, maildrops, "rest")
    return _run(name, work, rest, spent)


def _fetch(client: list[str], maildrops: Maildrops, mode: Mode) -> Result:
    sizes = [f"--{name}={value}" for name, value in structs.asdict(maildrops).items()]
    done = subprocess.run([*client, *sizes, f"--mode={mode}"], check=True, stdout=subprocess.PIPE)
    result = msgspec.json.decode(done.stdout, type=Result)
    if result.failed:
        raise RuntimeError(f"{result.failed} sessions failed, the first: {result.why}")
    return result


def _run(name: str, work: Result, rest: Result, spent: processes.Usage) -> Run:
    return Run(
        peer=name,
        way=WAYS[work.pipelined],
        sessions=work.sessions,
        seconds=work.seconds,
        user=spent.user / work.sessions * 1e3,
        system=spent.system / work.sessions * 1e3,
        client=work.cpu / work.sessions * 1e3,
        peak_memory=spent.peak_memory,
        session_p50=work.session_p50,
        session_p99=work.session_p99,
        lost=work.lost + rest.lost,
        duplicated=work.duplicated + rest.duplicated,
        corrupt=work.corrupt + rest.corrupt,
    )


# The report.


MEASURES = [
    Measure("sessions a second", lambda run: run.rate, "{:,.1f}"),
    Measure("CPU a session, ms", lambda run: run.user + run.system, "{:,.1f}"),
    Measure("  user", lambda run: run.user, "{:,.1f}"),
    Measure("  system", lambda run: run.system, "{:,.1f}"),
    Measure("a session took, p50, s", lambda run: run.session_p50, "{:,.2f}"),
    Measure("  p99", lambda run: run.session_p99, "{:,.2f}"),
    Measure("peak memory, MiB", lambda run: run.peak_memory / 2**20),
    Measure("CPU of the clients a session, ms", lambda run: run.client, "{:,.1f}"),
    Measure("lost, duplicated, corrupt", lambda run: run.wrong, total=True),
]


def table(runs: Sequence[Run]) -> Table:
    """Medians over the repeats, with the least and the most in brackets."""
    names = list(dict.fromkeys(run.peer for run in runs))
    result = Table("measure", title="pop3: medians (least to most)")
    for name in names:
        result.add_column(name, justify="right")
    for way in WAYS.values():
        columns = [[run for run in runs if (run.peer, run.way) == (name, way)] for name in names]
        result.add_row(f"[bold]{way}")
        for measure in MEASURES:
            result.add_row(measure.name, *(report.cell(measure, column) for column in columns))
        over = times_dovecot(runs, way)
        shown = (f"{over[name]:.2f}" if name in over else "" for name in names)
        result.add_row(f"times Dovecot's sessions, aim {AIM:.0f}", *shown)
        result.add_section()
    return result


def times_dovecot(runs: Sequence[Run], way: str) -> dict[str, float]:
    return report.times([run for run in runs if run.way == way], "dovecot")


def line(run: Run) -> str:
    """One run, as soon as it is over."""
    wrong = f", {run.wrong} MESSAGES WRONG" if run.wrong else ""
    cpu = run.user + run.system
    return f"{run.peer}, {run.way}: {run.rate:,.1f} sessions/s, {cpu:,.1f} ms of CPU each{wrong}"


@click.command(help=__doc__)
@click.option("--sessions", type=click.IntRange(1), default=50, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=50, show_default=True, help="At once.")
@click.option(
    "--messages", type=click.IntRange(3), default=1000, show_default=True, help="In each."
)
@click.option("--size", type=click.IntRange(300), default=2048, show_default=True, help="Octets.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@command.peers_option(*PEERS)
@command.dir_option
@command.json_option
def main(names: list[str], repeats: int, folder: Path, output: Path | None, **sizes: int) -> None:
    facts = command.begin({name: load(name) for name in names}, folder)
    maildrops, console = Maildrops(**sizes), command.console()
    cores = processes.divide_cores()
    runs: list[Run] = []
    with command.failures_told(), console.status("") as status:
        for repeat in range(repeats):
            for name, pipelined in product(names, WAYS):
                status.update(f"{name}, {WAYS[pipelined]}, {repeat + 1} of {repeats}")
                runs.append(measure(name, maildrops, cores, folder.resolve(), pipelined=pipelined))
                console.print(line(runs[-1]))
    console.print(table(runs))
    ratios = {way: times_dovecot(runs, way) for way in WAYS.values()}
    command.write(output, {**facts, "options": sizes, "runs": runs, "times_dovecot": ratios})
    sys.exit(any(run.wrong for run in runs))
