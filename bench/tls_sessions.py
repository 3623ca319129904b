"""A worker shakes hands quickly, and an idle session under TLS costs it little memory.

\b
handshakes  sessions under implicit TLS up to their greeting, full and resumed, from client
            processes: how many a second, and what CPU of the worker each costs
memory      what an idle session adds to what is resident of the worker: in the clear, behind
            STARTTLS and under implicit TLS, after EHLO; and once each has sent some octets

Clients and worker share the machine, and a handshake costs the client more than the worker: what
a core could do follows from the CPU, not from the rate.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench import certificate, command, processes
from bench.load import Client, Load, Tls, trusting
from bench.peers.fastmta import PROGRAM
from bench.queue_depth import memory
from bench.relay import scratch

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = 1

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"
tls     = "{tls}"

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{clear}"
tls     = "starttls"

[tls]
certificate = "{certificate}"
key         = "{key}"

[smtp]
max_sessions = 100000
"""
MODES: tuple[Tls, ...] = ("none", "starttls", "implicit")
THREADS = 4  # of each client process
WARM_UP = 200  # sessions before a measurement
CHUNK = 100_000  # octets that a session sends in the second measurement


class Handshakes(Struct, frozen=True):
    """What one run came to."""

    rate: float  # sessions a second
    cpu: float  # microseconds of the worker's CPU a session


class Memory(Struct, frozen=True):
    """What idle sessions take, in octets a session."""

    idle: float
    after: float  # once each has sent a chunk, and it was thrown away


@contextmanager
def serving(folder: Path, tls: Tls, kind: certificate.Kind) -> Iterator[tuple[int, int]]:
    """fastmta with one worker; the port and the worker's pid."""
    certificate.of(folder).make(kind)
    port, clear = processes.free_port(), processes.free_port()
    configuration = folder / "fastmta.toml"
    values: dict[str, object] = {"port": port, "clear": clear, "tls": tls}
    values |= certificate.of(folder)._asdict()
    configuration.write_text(CONFIGURATION.format(**values))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(clear, process)
        yield port, processes.tree(process.pid)[-1]


# Handshakes


def handshakes(
    base: Path, count: int, clients: int, resumed: bool, kind: certificate.Kind
) -> Handshakes:
    with scratch(base) as folder, serving(folder, "implicit", kind) as (port, pid):
        _shake_all(port, WARM_UP, clients, resumed)
        before, begun = processes.settled(pid), time.monotonic()
        _shake_all(port, count, clients, resumed)
        seconds = time.monotonic() - begun
        spent = processes.settled(pid).since(before)
    return Handshakes(count / seconds, (spent.user + spent.system) / count * 1e6)


def _shake_all(port: int, count: int, clients: int, resumed: bool) -> None:
    """So many sessions of all client processes together."""
    kind = "resumed" if resumed else "full"
    command = [sys.executable, "-m", "bench.tls_sessions", str(port), str(count // clients), kind]
    started = [subprocess.Popen(command) for _ in range(clients)]
    codes = [process.wait() for process in started]  # of all, whatever one has come to
    if any(codes):
        raise RuntimeError("a client has failed")


def shake(port: int, count: int, kind: str) -> None:
    """What one client process does."""
    with ThreadPoolExecutor(THREADS) as pool:
        shares = [pool.submit(_sessions, port, count // THREADS, kind) for _ in range(THREADS)]
        for share in shares:
            share.result()


def _sessions(port: int, count: int, kind: str) -> None:
    context, session = trusting(), None
    for number in range(count):
        with (
            socket.create_connection(("127.0.0.1", port)) as connection,
            context.wrap_socket(connection, session=session) as under_tls,
        ):
            assert under_tls.recv(100).startswith(b"220")  # its ticket came before that
            assert under_tls.session_reused == (session is not None), number
            session = under_tls.session if kind == "resumed" else None


# Memory


class Idle(Client):
    """A session that says EHLO, and a chunk of a message when it is told to."""

    def send_chunk(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expect(4, lambda _: done.set_result(None))
        envelope = b"MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\n"
        chunk = (b"x" * 70 + b"\r\n") * (CHUNK // 72)
        self._write(envelope + b"BDAT %d\r\n" % len(chunk) + chunk + b"RSET\r\n")
        return done

    def leave(self) -> None:
        self._transport.abort()


async def idle(port: int, tls: Tls, sessions: int, pid: int) -> Memory:
    await _leave(await _open(port, tls, WARM_UP))
    before = memory(pid)[0]
    opened = await _open(port, tls, sessions)
    resident = memory(pid)[0]
    for each in opened:
        await each.send_chunk()
    after = memory(pid)[0]
    await _leave(opened)
    return Memory((resident - before) / sessions, (after - before) / sessions)


async def _open(port: int, tls: Tls, count: int) -> list[Idle]:
    loop, load = asyncio.get_running_loop(), Load(0, 0, tls=tls)
    opened = [Idle(load) for _ in range(count)]
    context = load.context if tls == "implicit" else None
    for it in opened:
        await loop.create_connection(lambda it=it: it, "127.0.0.1", port, ssl=context)
        await it.greeted
    assert not load.result.disconnects
    return opened


async def _leave(opened: list[Idle]) -> None:
    for each in opened:
        each.leave()
    await asyncio.gather(*(each.left for each in opened))


def memories(base: Path, sessions: int, tls: Tls, kind: certificate.Kind) -> Memory:
    with scratch(base) as folder, serving(folder, tls, kind) as (port, pid):
        return uvloop.run(idle(port, tls, sessions, pid))


# The command


@click.command(help=__doc__)
@click.option(
    "--handshakes",
    "count",
    type=click.IntRange(1),
    default=4000,
    show_default=True,
    help="Of each kind.",
)
@click.option(
    "--clients", type=click.IntRange(1), default=2, show_default=True, help="Client processes."
)
@click.option(
    "--sessions", type=click.IntRange(1), default=2000, show_default=True, help="That idle."
)
@click.option(
    "--key", "kind", type=click.Choice(certificate.KINDS), default="p256", show_default=True
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@command.dir_option
@command.json_option
def main(
    count: int,
    clients: int,
    sessions: int,
    kind: certificate.Kind,
    repeats: int,
    folder: Path,
    output: Path | None,
) -> None:
    command.raise_limits()  # fastmta's, too
    base = folder.resolve()
    shaken: dict[str, list[Handshakes]] = {"full": [], "resumed": []}
    idling: dict[Tls, list[Memory]] = {tls: [] for tls in MODES}
    with command.failures_told():
        for _ in range(repeats):
            for name, runs in shaken.items():
                runs.append(handshakes(base, count, clients, name == "resumed", kind))
            for tls, found in idling.items():
                found.append(memories(base, sessions, tls, kind))
    Console().print(_table(shaken, idling))
    if output:
        facts = {"handshakes": shaken, "memory": idling, "key": kind}
        output.write_bytes(msgspec.json.format(msgspec.json.encode(facts)))


def _table(shaken: dict[str, list[Handshakes]], idling: dict[Tls, list[Memory]]) -> Table:
    table = Table("measure", "median", "least to most", title="TLS sessions")

    def row(name: str, values: list[float], form: str) -> None:
        least, most = form.format(min(values)), form.format(max(values))
        table.add_row(name, form.format(median(values)), f"{least} to {most}")

    for name, runs in shaken.items():
        row(f"{name} handshakes a second", [run.rate for run in runs], "{:,.0f}")
        row("  CPU of the worker each, us", [run.cpu for run in runs], "{:,.0f}")
    for tls, found in idling.items():
        row(f"idle session, tls {tls}, KB", [each.idle / 1e3 for each in found], "{:,.1f}")
        row(f"  after {CHUNK:,} octets, KB", [each.after / 1e3 for each in found], "{:,.1f}")
    return table


if __name__ == "__main__":
    shake(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
