"""What the commands have in common that run peers side by side."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
from rich.console import Console

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


def peers_option(*among: str) -> Callable[[Any], Any]:
    """Gives `names`."""
    return click.option(
        "--peers",
        "names",
        default=",".join(among),
        show_default=True,
        callback=partial(_chosen, among),
    )


def _chosen(
    among: tuple[str, ...], context: click.Context, parameter: click.Parameter, value: str
) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := set(names) - set(among):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(among)}")
    return names


dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=BASE,
    help="Where mail is kept: on a real disk.  [default: .build/bench]",
)
json_option = click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write all runs here."
)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def begin(under_test: Mapping[str, Named], folder: Path) -> dict[str, Any]:
    """Refuse what would measure nothing; otherwise tell, and give, what the figures hold for."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = report.machine(folder.resolve())
    if machine.filesystem in MEMORY:
        raise click.ClickException(f"{folder} is on {machine.filesystem}, no real disk: use --dir")
    for name, peer in under_test.items():
        if reason := peer.missing():
            raise click.ClickException(f"{name}: {reason} (leave it out with --peers)")
    facts = {
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
    except (RuntimeError, subprocess.SubprocessError) as error:
        notes = getattr(error, "__notes__", [])
        raise click.ClickException("; ".join([str(error), *notes])) from None


def write(output: Path | None, results: object) -> None:
    """As JSON that can be read."""
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
