"""What the commands have in common that run peers side by side."""

import itertools
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from bench import report

MEMORY = ("tmpfs", "ramfs")  # where an fsync costs nothing
BASE = Path(__file__).parent.parent / ".build" / "bench"


class Named(Protocol):
    """What every peer can say of itself."""

    @property
    def missing(self) -> Callable[[], str]:
        """Why it cannot run here, or nothing."""

    @property
    def version(self) -> Callable[[], str]:
        """What is measured, in a few words."""


def peers_option(*known: str) -> Callable[[Any], Any]:
    """Gives `names`."""
    return click.option(
        "--peers",
        "names",
        default=",".join(known),
        show_default=True,
        callback=partial(_chosen, known),
    )


def _chosen(
    known: tuple[str, ...], context: click.Context, parameter: click.Parameter, value: str
) -> list[str]:
    return among(known, value)


def among(known: tuple[str, ...], value: str) -> list[str]:
    """Those of the known ones that are named, with commas between them."""
    names = [name for name in value.split(",") if name]
    if unknown := set(names) - set(known):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(known)}")
    if not names:
        raise click.BadParameter(f"name one or more of {', '.join(known)}")
    return names


def made(context: click.Context, parameter: click.Parameter, folder: Path) -> Path:
    """A folder that can be written in; no run of an hour ends in finding out that it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{folder} cannot be made: {error.strerror}") from None
    _writable(folder)
    return folder


def _beside_others(
    context: click.Context, parameter: click.Parameter, output: Path | None
) -> Path | None:
    if output:
        _writable(output.parent)
    return output


def _writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise click.BadParameter(f"{folder} is no folder that can be written in")


dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=BASE,
    callback=made,
    help="Where mail is kept: on a real disk.  [default: .build/bench]",
)
json_option = click.option(
    "--json",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_beside_others,
    help="Write all runs here.",
)


@contextmanager
def progress(where: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of so many steps; what it gives is told the name of each that begins."""
    columns = SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.description}"), console=where) as bar:
        task, begun = bar.add_task("", total=total), itertools.count()

        def advance(name: str) -> None:
            bar.update(task, description=name, completed=next(begun))

        yield advance
        bar.update(task, description="", completed=total)


def raise_limits() -> None:
    """As many open files as may be, here and in all that is started."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


P = TypeVar("P", bound=Named)


def present(wanted: Mapping[str, P]) -> tuple[dict[str, P], dict[str, str]]:
    """Those that can run here, and of the others why not, which is told too."""
    absent = {name: reason for name, peer in wanted.items() if (reason := peer.missing())}
    for name, reason in absent.items():
        click.echo(f"NOT MEASURED: {name}: {reason}")
    if len(absent) == len(wanted):
        raise click.ClickException("no peer can run here")
    return {name: peer for name, peer in wanted.items() if name not in absent}, absent


def begin(under_test: Mapping[str, Named], folder: Path) -> dict[str, Any]:
    """Refuse what would measure nothing; otherwise tell, and give, what the figures hold for."""
    machine = report.machine(folder.resolve())
    if machine.filesystem in MEMORY:
        raise click.ClickException(f"{folder} is on {machine.filesystem}, no real disk: use --dir")
    for name, peer in under_test.items():
        if reason := peer.missing():
            raise click.ClickException(f"{name}: {reason} (leave it out with --peers)")
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "machine": machine,
        "versions": {name: peer.version() for name, peer in under_test.items()},
    }
    for name, value in msgspec.to_builtins(facts).items():
        click.echo(f"{name}: {value}")
    return facts


@contextmanager
def failures_told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        notes = getattr(error, "__notes__", [])
        raise click.ClickException("; ".join([str(error), *notes])) from None


def write(output: Path | None, results: object) -> None:
    """As JSON that can be read."""
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
