"""`fastmta queue top`: the busiest sites, drawn anew each second."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from fastmta.cli.client import ControlClient
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json
from fastmta.cli.queue.orders import answers
from fastmta.cli.queue.paths import allowances, together
from fastmta.cli.words import many, pace
from fastmta.queue import requests
from fastmta.queue.requests import Allowance, Allowances, PathNow, Top
from fastmta.queue.shared_path import PathReport

if TYPE_CHECKING:
    from rich.console import RenderableType


COLUMNS = (
    "site", "source", "waiting", "busy", "idle", "deliv/s", "defer/s", "limit", "slowed by",
    "last reply",
)  # fmt: skip
TEXTS = (0, 1, 8, 9)
MAY_BE_EMPTY = (1, 7, 8)


class Line(Struct, frozen=True):
    """One path, of all workers."""

    path: str  # "site", "source>site", "source>site#domain"
    site: str
    source: str
    waiting: int
    busy: int
    idle: int
    delivered: float  # transactions a second
    deferred: float
    limit: str  # of connections: "32", or "4/32" where it is lowered for now
    slowed_by: str
    last: str


class Picture(Struct, frozen=True):
    """All of it at one moment."""

    envelopes: int
    held: int
    out: int  # ready to leave or being sent
    delivered: float
    deferred: float
    paths: list[Line]


KEYS: dict[str, Callable[[Line], Any]] = {
    "busy": lambda line: (-line.busy, -line.waiting),
    "waiting": lambda line: -line.waiting,
    "delivered": lambda line: -line.delivered,
    "deferred": lambda line: -line.deferred,
    "site": lambda line: 0,
}


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Print it once and end.")
@click.option(
    "--sort", type=click.Choice(list(KEYS)), default="busy", show_default=True, help="First line."
)
@click.option("--interval", type=click.FloatRange(0.2, 60), default=1.0, help="Seconds.")
@json_option
def top(path: Path, once: bool, sort: str, interval: float, as_json: bool) -> None:
    """Show the busiest sites, drawn anew until Ctrl-C.

    Where the output is no terminal, or with --once, it is one table; with --json one object.

    \b
    fastmta queue top -c FILE --sort deferred
    """
    with ControlClient(load_or_refuse(path).data_dir) as client:
        if as_json:
            print_json(look(client, sort))
        elif once or not sys.stdout.isatty():
            _print(look(client, sort))
        else:
            _watch(client, sort, interval)


def look(client: ControlClient, sort: str) -> Picture:
    workers = list(answers(client, Top(), requests.Paths))
    return picture(workers, allowances(client, Allowance()), sort)


def picture(workers: list[requests.Paths], allowed: Allowances, sort: str) -> Picture:
    """What the workers say, and what they share, as one."""
    paths = together([path for worker in workers for path in worker.paths], allowed)
    lines = [_line(path) for path in paths]
    lines.sort(key=lambda line: (KEYS[sort](line), line.site, line.source))
    return Picture(
        envelopes=sum(worker.envelopes for worker in workers),
        held=sum(worker.held for worker in workers),
        out=sum(worker.out for worker in workers),
        delivered=sum(line.delivered for line in lines),
        deferred=sum(line.deferred for line in lines),
        paths=lines,
    )


def _line(path: PathNow) -> Line:
    return Line(
        path=path.name,
        site=path.site,
        source=path.source,
        waiting=path.waiting,
        busy=path.busy,
        idle=path.idle,
        delivered=round(path.delivered, 1),
        deferred=round(path.deferred, 1),
        limit=_connections(path),
        slowed_by=", ".join(filter(None, (_obstacle(path), _slowed_by(path)))),
        last=path.last,
    )


def _connections(path: PathNow) -> str:
    """How many may be open, and of how many where that is fewer."""
    shared = path.shared
    if shared is None:
        return path.limits.get("connections", "")
    whole = shared.configured_connections
    return str(whole) if shared.connections == whole else f"{shared.connections}/{whole}"


def _obstacle(path: PathNow) -> str:
    if path.waits_for == "ready":
        return ""
    if path.group is not None and path.shared is not None and path.shared.refused_by_group:
        return f"{path.waits_for} of {path.group.path}"
    limit = path.limits.get(path.waits_for.replace(" ", "_"), "")
    return f"{path.waits_for} {limit}".rstrip()


def _slowed_by(path: PathNow) -> str:
    """The code is what fits; `queue why` has the whole reply."""
    slowed = [each for each in (path.shared, path.group) if each is not None and each.slowed]
    return ", ".join(dict.fromkeys(map(_code, slowed)))


def _code(report: PathReport) -> str:
    assert report.slowed is not None
    codes = report.slowed.reply.split()[:2]
    code = " ".join(codes if codes[1:] and codes[1][:2] in ("4.", "5.") else codes[:1])
    return f"{code}: {pace(report.rate)}" if report.rate else code


def _print(now: Picture) -> None:
    from rich.console import Console

    # A pipe has no width: as wide as it takes.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(_drawn(now, len(now.paths)))


def _watch(client: ControlClient, sort: str, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                rows = max(1, console.height - 5)
                live.update(_drawn(look(client, sort), rows), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        pass


def _drawn(now: Picture, most: int) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(
        f"{many(now.envelopes, 'envelope')} in the queue, {now.held:,} held, "
        f"{now.out:,} on the way; {now.delivered:,.1f}/s delivered, {now.deferred:,.1f}/s deferred"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows_of = [_cells(line) for line in now.paths[:most]]
    # What nobody has a word in would only take room, which a narrow terminal has none to spare.
    shown = [i for i in range(len(COLUMNS)) if i not in MAY_BE_EMPTY or any(r[i] for r in rows_of)]
    for i in shown:
        widest = max(len(COLUMNS[i]), *(len(row[i]) for row in rows_of), 0)
        is_text = i in TEXTS
        table.add_column(
            COLUMNS[i],
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=min(widest, 16) if is_text else widest,
            ratio=1 if i == len(COLUMNS) - 1 else None,
        )
    for row in rows_of:
        table.add_row(*(Text(row[i]) for i in shown))
    return Group(head, Text(), table)


def _cells(line: Line) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    return (
        line.path.removeprefix(f"{line.source}>"),
        line.source,
        f"{line.waiting:,}",
        str(line.busy),
        str(line.idle),
        f"{line.delivered:,.1f}",
        f"{line.deferred:,.1f}",
        line.limit,
        line.slowed_by,
        line.last,
    )
