"""`python -m bench CLAIM`: each claim is one module, whose docstring says what it proves."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

import bench.codec
import bench.fanout
import bench.handshake
import bench.head_of_line
import bench.parse
import bench.queue_depth
import bench.relay
import bench.tls_sessions
from bench import peers, report, signing
from bench.peers import Features, Peer
from bench.relay import Options, Run

MEMORY = ("tmpfs", "ramfs")  # where an fsync costs nothing
BASE = Path(__file__).parent.parent / ".build" / "bench"


def _peers(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := set(names) - set(peers.NAMES):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(peers.NAMES)}")
    return names


@click.group(help=__doc__)
def main() -> None:
    # However the run ends, what it has started goes with it.
    # SIGINT too: who is started in the background of a script inherits that it is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


main.add_command(bench.codec.main, "codec")
main.add_command(bench.handshake.main, "handshake")
main.add_command(bench.head_of_line.main, "head-of-line")
main.add_command(bench.fanout.main, "fanout")
main.add_command(bench.parse.main, "parse")
main.add_command(bench.queue_depth.main, "queue-depth")
main.add_command(bench.tls_sessions.main, "tls-sessions")


@main.command(help=bench.relay.__doc__)
@click.option("--messages", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--size", type=click.IntRange(600), default=2048, show_default=True, help="Octets.")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Of fastmta.")
@click.option("--peers", "names", default=",".join(peers.NAMES), show_default=True, callback=_peers)
@click.option(
    "--tls", type=click.Choice(peers.TLS), default="none", show_default=True, help="Beside plain."
)
@click.option(
    "--dkim", type=click.Choice(peers.DKIM), default="none", show_default=True, help="Beside plain."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=BASE,
    help="Where queues are kept: on a real disk.  [default: .build/bench]",
)
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write all runs here."
)
def relay(
    names: list[str],
    tls: peers.Tls,
    dkim: peers.Dkim,
    folder: Path,
    output: Path | None,
    **options: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    machine = report.machine(folder.resolve())
    if machine.filesystem in MEMORY:
        raise click.ClickException(f"{folder} is on {machine.filesystem}, no real disk: use --dir")
    under_test = {name: peers.load(name) for name in names}
    for name, peer in under_test.items():
        if reason := peer.missing():
            raise click.ClickException(f"{name}: {reason} (leave it out with --peers)")
    facts = {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "machine": machine,
        "versions": {name: peer.version() for name, peer in under_test.items()},
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name, value in msgspec.to_builtins(facts).items():
        click.echo(f"{name}: {value}")
    features = Features(tls=tls, dkim=dkim)
    best = signing.speed(dkim) if dkim != "none" else 0.0
    runs = _run_all(console, under_test, Options(features=features, **options), folder.resolve())
    console.print(report.table(runs, list(bench.relay.contenders(under_test, features))))
    if best:
        click.echo(f"openssl speed {dkim}: {best:,.0f} signatures a second on a core")
        for name, share in report.signing_shares(runs, str(features), best).items():
            click.echo(f"{name}: {share:.2f} of what that allows on the cores that are left")
    if output:
        results = {"options": options, "runs": runs, "ratios": report.ratios(runs)}
        output.write_bytes(msgspec.json.format(msgspec.json.encode({**facts, **results})))
    sys.exit(any(run.lost or run.duplicated or run.corrupt for run in runs))


def _run_all(
    console: Console, under_test: dict[str, Peer], options: Options, folder: Path
) -> list[Run]:
    runs = []
    try:
        with console.status("") as status:
            for run in bench.relay.run_all(under_test, options, folder, status.update):
                console.print(report.line(run))
                runs.append(run)
    except (RuntimeError, subprocess.SubprocessError) as error:
        raise click.ClickException("; ".join([str(error), *error.__notes__])) from None
    return runs


if __name__ == "__main__":
    main()
