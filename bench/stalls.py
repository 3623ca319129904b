"""A worker's loop does not do one thing for long while it relays as fast as it can.

What is shown is its own metric, `fastmta_loop_lag_seconds`: 100 times a second, how much later
than it was due something was done. Waiting for a core that load or sink has counts as well.
"""

import shlex
import sys
import tomllib
from pathlib import Path

import click
import msgspec
from msgspec import Struct
from rich.table import Table

from bench import command, processes, relay, report
from bench.peers import fastmta
from bench.relay import Options
from bench.scrape import Reader, bound
from fastmta.sink.tally import parse_ranges

CLIENTS = (20, 100, 500, 2000)


class Lag(Struct, frozen=True):
    """What a run showed; times in seconds."""

    clients: int
    looks: int
    half: float  # of all looks were not later than this
    most: float  # 99 of 100
    all: float
    stalls: int  # were 20 ms late or more


def measure(options: Options, base: Path) -> Lag:
    port, next_hop = processes.free_port(), processes.free_port()
    with (
        relay.scratch(base) as folder,
        relay.receiving(next_hop, folder) as sink,
        fastmta.running(folder, port, next_hop, options.workers) as root,
    ):
        relay.warmed_up(root, port, options.clients)
        reader = Reader(admin_port(folder / "fastmta.toml"))
        sent = relay.send(port, options)
        relay.arrived(sink, folder / "sink", parse_ranges(sent.acknowledged), relay.STALL)
        grown = reader.grown()
    name = "fastmta_loop_lag_seconds"
    return Lag(
        clients=options.clients,
        looks=int(grown[f"{name}_count"]),
        half=bound(grown, name, 0.5),
        most=bound(grown, name, 0.99),
        all=bound(grown, name, 1.0),
        stalls=int(grown["fastmta_loop_stalls_total"]),
    )


def admin_port(configuration: Path) -> int:
    listeners = tomllib.loads(configuration.read_text())["listener"]
    [bind] = (each["bind"] for each in listeners if each["service"] == "admin")
    return int(bind.rpartition(":")[2])


def table(lags: list[Lag]) -> Table:
    columns = ("looks", "half below ms", "99 % below ms", "all below ms", "above 20 ms")
    shown = Table("clients", *columns, title="lag of the loop")
    for lag in lags:
        times = (f"{seconds * 1e3:g}" for seconds in (lag.half, lag.most, lag.all))
        shown.add_row(f"{lag.clients:,}", str(lag.looks), *times, str(lag.stalls))
    return shown


@click.command(help=__doc__)
@click.option("--messages", type=click.IntRange(1), default=50_000, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@command.dir_option
@command.json_option
def main(messages: int, workers: int, folder: Path, output: Path | None) -> None:
    command.raise_limits()
    facts = {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "machine": report.machine(folder.resolve()),
        "version": fastmta.version(),
    }
    for name, value in msgspec.to_builtins(facts).items():
        click.echo(f"{name}: {value}")
    lags = []
    with command.failures_told(), command.progress(command.console(), len(CLIENTS)) as advance:
        for clients in CLIENTS:
            advance(f"{clients} clients")
            options = Options(messages=messages, clients=clients, workers=workers)
            lags.append(measure(options, folder.resolve()))
    command.console().print(table(lags))
    command.write(output, {**facts, "lags": lags})
