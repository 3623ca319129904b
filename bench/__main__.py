"""`python -m bench CLAIM`: each claim is one module, whose docstring says what it proves."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import bench.codec
import bench.compare
import bench.delivery_local
import bench.fanout
import bench.handshake
import bench.head_of_line
import bench.parse
import bench.pop3
import bench.queue_depth
import bench.relay
import bench.scrape
import bench.stalls
import bench.suite
import bench.tls_sessions
from bench import command, peers, report, signing
from bench.peers import Features, Peer
from bench.relay import Options, Run


@click.group(help=__doc__)
def main() -> None:
    # However the run ends, what it has started goes with it.
    # SIGINT too: who is started in the background of a script inherits that it is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Debian keeps servers and their tools where the path of a user does not lead.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


main.add_command(bench.suite.main, "all")
main.add_command(bench.compare.main, "compare")
main.add_command(bench.codec.main, "codec")
main.add_command(bench.delivery_local.main, "delivery-local")
main.add_command(bench.handshake.main, "handshake")
main.add_command(bench.head_of_line.main, "head-of-line")
main.add_command(bench.fanout.main, "fanout")
main.add_command(bench.parse.main, "parse")
main.add_command(bench.pop3.main, "pop3")
main.add_command(bench.queue_depth.main, "queue-depth")
main.add_command(bench.scrape.main, "scrape")
main.add_command(bench.stalls.main, "stalls")
main.add_command(bench.tls_sessions.main, "tls-sessions")


@main.command(help=bench.relay.__doc__)
@click.option("--messages", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--size", type=click.IntRange(600), default=2048, show_default=True, help="Octets.")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Where any.")
@click.option("--domains", type=click.IntRange(0), default=0, help="Of the numbered recipients.")
@command.peers_option(*peers.NAMES)
@click.option(
    "--tls", type=click.Choice(peers.TLS), default="none", show_default=True, help="Beside plain."
)
@click.option(
    "--dkim", type=click.Choice(peers.DKIM), default="none", show_default=True, help="Beside plain."
)
@command.dir_option
@command.json_option
def relay(
    names: list[str],
    tls: peers.Tls,
    dkim: peers.Dkim,
    folder: Path,
    output: Path | None,
    **options: Any,
) -> None:
    under_test, absent = command.present({name: peers.load(name) for name in names})
    if tls == "none" and not (shutil.which("smtp-source") and shutil.which("smtp-sink")):
        raise click.ClickException("no smtp-source and smtp-sink: install Debian's postfix")
    facts = {**command.begin(under_test, folder), "absent": absent}
    console = command.console()
    features = Features(tls=tls, dkim=dkim)
    best = signing.speed(dkim) if dkim != "none" else 0.0
    runs = _run_all(console, under_test, Options(features=features, **options), folder.resolve())
    console.print(report.table(runs, list(bench.relay.contenders(under_test, features))))
    if best:
        click.echo(f"openssl speed {dkim}: {best:,.0f} signatures a second on a core")
        for name, share in report.signing_shares(runs, str(features), best).items():
            click.echo(f"{name}: {share:.2f} of what that allows on the cores that are left")
    results = {"options": options, "runs": runs, "ratios": report.ratios(runs)}
    command.write(output, {**facts, **results})
    sys.exit(any(run.lost or run.duplicated or run.corrupt for run in runs))


def _run_all(
    console: Console, under_test: dict[str, Peer], options: Options, folder: Path
) -> list[Run]:
    runs = []
    steps = bench.relay.steps(under_test, options)
    with command.failures_told(), command.progress(console, steps) as advance:
        for run in bench.relay.run_all(under_test, options, folder, advance):
            console.print(report.line(run))
            runs.append(run)
    return runs


if __name__ == "__main__":
    main()
