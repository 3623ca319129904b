"""`grafana/try`: Prometheus and Grafana over the demo with load on it, and where to look.

Nothing leaves this machine. Prometheus is Debian's; Grafana is started where it is installed, and
otherwise panels.html shows what each panel would, in Prometheus's own pages.
"""

import os
import shutil
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from bench.processes import START_LIMIT, free_port, running
from grafana.__main__ import BOARDS
from grafana.layout import Board
from grafana.watching import FOLDER, Fetch, Load, Prometheus, concrete, prometheus

BASE = FOLDER.parent / ".build" / "try"
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/share/grafana/bin"])
HOME = Path("/usr/share/grafana")  # where Grafana's package is
WINDOW = "30s"
SETTLE = 20  # seconds until panels have something to show
RECIPIENTS = [
    *("bob@demo.test", "alice@demo.test", "a@one.test", "b@two.test", "c@three.test"),
    *("permfail@one.test", "tempfail@two.test", "slow@three.test"),
]
NO_GRAFANA = """\
Grafana is not installed; Debian has none. To see the dashboards, either
- install it (https://grafana.com/docs/grafana/latest/setup-grafana/installation/debian/) and run
  grafana/try again: it starts Grafana with the dashboards in it; or
- in a Grafana that you have: add Prometheus at {url} as a data source,
  then Dashboards, New, Import: {folder}/*.json"""


@click.command(help=__doc__)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=BASE,
    help="Where everything is kept.  [default: .build/try]",
)
@click.option("--seconds", type=click.IntRange(1), help="End after so long.  [default: at Ctrl-C]")
def main(folder: Path, seconds: int | None) -> None:
    program = shutil.which("prometheus", path=SEARCH)
    if not program:
        raise click.ClickException("there is no prometheus: apt-get install prometheus")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        ports = stack.enter_context(_demo(folder / "demo"))
        stack.enter_context(Load(ports["smtp"], "friend@example.test", RECIPIENTS))
        stack.enter_context(Fetch(ports["pop3"], "bob@demo.test", "hungry"))
        port = _port(9090)
        server = stack.enter_context(
            prometheus(folder / "prometheus", program, port, ports["admin"])
        )
        grafana = stack.enter_context(_grafana(folder / "grafana", server))
        _tell(folder, server, grafana)
        _wait(server, seconds)


@contextmanager
def _demo(folder: Path) -> Iterator[dict[str, int]]:
    """The ports of its services."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "fastmta", "demo", "--dir", str(folder)]
    with running(command, folder / "output") as process:
        deadline = time.monotonic() + START_LIMIT
        while "Ctrl-C" not in (folder / "output").read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"the demo does not start: see {folder}/output")
            time.sleep(0.1)
        listeners = tomllib.loads((folder / "fastmta.toml").read_text())["listener"]
        yield {
            one["service"]: int(one["bind"].rpartition(":")[2])
            for one in listeners
            if one.get("tls") != "implicit"
        }


@contextmanager
def _grafana(folder: Path, server: Prometheus) -> Iterator[int]:
    """Its port; 0 where it is not installed."""
    program = shutil.which("grafana", path=SEARCH) or shutil.which("grafana-server", path=SEARCH)
    if not program:
        yield 0
        return
    shutil.copytree(FOLDER / "provisioning", folder / "provisioning", dirs_exist_ok=True)
    for file, old, new in (
        ("datasources", "http://127.0.0.1:9090", server.url),
        ("datasources", "timeInterval: 10s", "timeInterval: 1s"),
        ("dashboards", "/var/lib/grafana/dashboards/fastmta", str(FOLDER / "dashboards")),
    ):
        path = folder / "provisioning" / file / "fastmta.yml"
        path.write_text(path.read_text().replace(old, new))
    port = _port(3000)
    os.environ |= {
        "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
        "GF_PATHS_DATA": str(folder / "data"),
        "GF_PATHS_LOGS": str(folder / "logs"),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    words = ["server"] if Path(program).name == "grafana" else []
    with running([program, *words, "--homepath", str(HOME)], folder / "log"):
        yield port


def _port(preferred: int) -> int:
    with socket.socket() as probe:
        return free_port() if probe.connect_ex(("127.0.0.1", preferred)) == 0 else preferred


def _tell(folder: Path, server: Prometheus, grafana: int) -> None:
    click.echo(f"Prometheus   {server.url}, alerts at {server.url}/alerts")
    if grafana:
        for board in BOARDS:
            click.echo(f"Grafana      http://127.0.0.1:{grafana}/d/{board.uid}")
    else:
        page = folder / "panels.html"
        page.write_text(_page(server))
        click.echo(f"every panel  file://{page}")
        click.echo(NO_GRAFANA.format(url=server.url, folder=FOLDER / "dashboards"))
    click.echo(f"the demo     {folder / 'demo' / 'output'} shows its mail; Ctrl-C ends all")


def _page(server: Prometheus) -> str:
    """Links to Prometheus's graphs, a row of panels each."""
    lines = ["<!doctype html><meta charset=utf-8><title>fastmta</title>"]
    for board in BOARDS:
        lines.append(f"<h1>{escape(board.title)}</h1><p>{escape(board.about)}</p>")
        for title, about, expressions in _panels(board):
            graphs: dict[str, Any] = {}
            for number, expression in enumerate(expressions):
                graphs[f"g{number}.expr"] = expression
                graphs[f"g{number}.tab"] = 0
                graphs[f"g{number}.range_input"] = "15m"
            link = escape(f"{server.url}/graph?{urlencode(graphs)}")
            lines.append(f'<p><a href="{link}">{escape(title)}</a> {escape(about)}</p>')
    return "\n".join(lines)


def _panels(board: Board) -> Iterator[tuple[str, str, list[str]]]:
    for row in board.rows:
        for panel in row.panels:
            queries = getattr(panel, "queries", None) or [panel.query]  # type: ignore[union-attr]
            asked = [concrete(query.expression, WINDOW) for query in queries]
            yield panel.title, panel.about, asked


def _wait(server: Prometheus, seconds: int | None) -> None:
    """Say once what the panels have to show, and stay."""
    try:
        time.sleep(min(SETTLE, seconds or SETTLE))
        _count(server)
        time.sleep(max(0, seconds - SETTLE) if seconds else 1 << 30)
    except KeyboardInterrupt:
        pass
    click.echo("ending ...")


def _count(server: Prometheus) -> None:
    found = [
        (f"{board.title}: {title}", all(map(server.has_data, expressions)))
        for board in BOARDS
        for title, _, expressions in _panels(board)
    ]
    empty = [title for title, has_data in found if not has_data]
    click.echo(f"{len(found) - len(empty)} of {len(found)} panels have data now")
    for title in empty:
        click.echo(f"  not yet: {title}")


if __name__ == "__main__":
    main()
