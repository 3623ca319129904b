"""Mail for thousands of domains costs one look-up each, and few connections.

bench.load -> fastmta -> bench.sink, pipelined, with an empty DNS cache. The domains share some
sites, each of two MX hosts, as dnsmasq tells. Counted are the DNS queries and connections of the
relay, as its metrics have them, and which of the acknowledged messages arrived.
"""

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench import command, processes, relay, report
from bench.load import Result
from bench.peers.fastmta import PROGRAM, missing, version
from fastmta.sink.tally import parse_ranges

HOSTS = 2  # of a site

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = {workers}

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"

[[listener]]
service = "admin"
bind    = "127.0.0.1:{admin}"

[dns]
nameservers = ["127.0.0.1:{dns}"]

[delivery]
port = {next_hop}
allow_local_addresses = true
"""


class Options(Struct, frozen=True, kw_only=True):
    messages: int = 100_000
    domains: int = 5000
    sites: int = 50
    size: int = 2048
    clients: int = 100
    repeats: int = 1
    workers: int = 1


class Run(Struct, kw_only=True):
    """What one run came to."""

    messages: int = 0
    seconds: float = 0.0  # from the first message in to the last one out
    cpu: float = 0.0  # microseconds a message
    peak_memory: int = 0  # octets
    queries: int = 0  # DNS queries sent
    hits: int = 0  # DNS look-ups answered from the cache
    connections: int = 0  # opened
    deferred: int = 0  # attempts
    refused: int = 0  # messages without a 250
    lost: int = 0
    duplicated: int = 0

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


class Ports(Struct, frozen=True):
    port: int
    admin: int
    dns: int
    next_hop: int


def run(options: Options, base: Path) -> Run:
    """One run in a fresh folder."""
    ports = Ports(*(processes.free_port() for _ in range(4)))
    with relay.scratch(base) as folder:
        log = folder / "sink"
        listen = f"0.0.0.0:{ports.next_hop}"
        with (
            processes.running(relay.sink_command(listen), log) as sink,
            processes.running(_dnsmasq(folder, options, ports), folder / "dnsmasq"),
            serving(folder, options, ports) as root,
        ):
            processes.greets(ports.next_hop, sink)
            before, asked = processes.settled(root), _metrics(ports.admin)
            load = subprocess.run(load_command(options, ports), check=True, stdout=subprocess.PIPE)
            sent = msgspec.json.decode(load.stdout, type=Result)
            acknowledged = parse_ranges(sent.acknowledged)
            relay.arrived(sink, log, acknowledged, relay.STALL)
            spent, counted = processes.settled(root).since(before), _metrics(ports.admin)
            counts = relay.ask(sink, log)
    return Run(
        messages=options.messages,
        seconds=counts.last - sent.started,
        cpu=(spent.user + spent.system) / options.messages * 1e6,
        peak_memory=spent.peak_memory,
        **{name: int(counted[key] - asked[key]) for name, key in _METRICS.items()},
        refused=sent.refused,
        lost=len(acknowledged - parse_ranges(counts.numbers)),
        duplicated=counts.duplicates,
    )


_METRICS = {
    "queries": "fastmta_dns_queries_total",
    "hits": "fastmta_dns_cache_hits_total",
    "connections": "fastmta_delivery_connections_total",
    "deferred": "fastmta_deferred_total",
}


def _metrics(port: int) -> Counter[str]:
    """Values by name; what differs by labels alone is added up."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#")):
        found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
    return found


def _dnsmasq(folder: Path, options: Options, ports: Ports) -> list[str]:
    zone = folder / "zone"
    zone.write_text("\n".join(_zone(options)))
    where = ["--listen-address=127.0.0.1", "--bind-interfaces", f"--port={ports.dns}"]
    where += ["--local-ttl=3600"]  # of 0 there would be a query every few seconds
    alone = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root"]
    return ["dnsmasq", *alone, *where, f"--conf-file={zone}"]


def _zone(options: Options) -> Iterator[str]:
    yield "local=/test/"
    for number in range(options.domains):
        for host in range(HOSTS):
            name = f"mx{host}.site{number % options.sites}.test"
            yield f"mx-host=d{number}.example.test,{name},10"
    for site in range(options.sites):
        for host in range(HOSTS):
            yield f"host-record=mx{host}.site{site}.test,127.{host + 1}.{site >> 8}.{site & 255}"


@contextmanager
def serving(folder: Path, options: Options, ports: Ports) -> Iterator[int]:
    configuration = folder / "fastmta.toml"
    values = msgspec.to_builtins(ports)
    configuration.write_text(CONFIGURATION.format(workers=options.workers, **values))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(ports.port, process)
        yield process.pid


def load_command(options: Options, ports: Ports) -> list[str]:
    command = [sys.executable, "-m", "bench.load", f"127.0.0.1:{ports.port}"]
    for name in ("messages", "size", "clients", "domains"):
        command += [f"--{name}", str(getattr(options, name))]
    return command


def table(runs: list[Run]) -> Table:
    columns = ("messages/s", "CPU us", "memory MB", "DNS queries", "connections", "deferred")
    shown = Table(*columns, "refused", "lost", "twice", title="fanout")
    for each in runs:
        ends = each.deferred, each.refused, each.lost, each.duplicated
        shown.add_row(
            f"{each.rate:,.0f}",
            f"{each.cpu:.0f}",
            f"{each.peak_memory / 1e6:.0f}",
            f"{each.queries:,}",
            f"{each.connections:,}",
            *map(str, ends),
        )
    return shown


@click.command(help=__doc__)
@click.option("--messages", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--domains", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--sites", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--size", type=click.IntRange(600), default=2048, show_default=True, help="Octets.")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
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
        runs = [run(options, folder.resolve()) for _ in range(options.repeats)]
    Console(width=None if sys.stdout.isatty() else 120).print(table(runs))
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode({**facts, "runs": runs})))
    sys.exit(any(each.lost or each.duplicated for each in runs))
