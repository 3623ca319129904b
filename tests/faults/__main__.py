"""Strike the server with every fault, and show what was lost (docs/reliability.md).

Prints one table; exit code 1 where anything was lost, altered or duplicated without being in
flight, 2 for wrong usage.
"""

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import command
from tests.faults.frame import Fault, Row, faults, perform

FOLDER = Path(__file__).parents[2] / ".build" / "faults"  # on a real disk
COLUMNS = ("fault", "cycles", "acknowledged", "lost", "altered", "duplicated", "in flight")


def table(rows: list[Row]) -> Table:
    shown = Table(title="Faults")
    for name in (*COLUMNS, "recovered (s)", "seconds"):
        shown.add_column(name, justify="left" if name == "fault" else "right")
    for row in rows:
        figures = [getattr(row, name.replace(" ", "_")) for name in COLUMNS[1:]]
        times = (f"{row.recovered:.2f}", f"{row.seconds:.0f}")
        shown.add_row(row.fault, *(f"{each:,}" for each in figures), *times)
    return shown


def _chosen(context: click.Context, parameter: click.Parameter, names: str) -> list[Fault]:
    known = {fault.name: fault for fault in faults()}
    wanted = names.split(",") if names else list(known)
    if unknown := set(wanted) - set(known):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return [known[name] for name in wanted]


def _perform_all(chosen: list[Fault], short: bool, share: float, seed: int) -> list[Row]:
    rows = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        for fault in chosen:
            cycles = fault.short if short else max(1, round(fault.long * share))
            task = bar.add_task(fault.name, total=cycles)
            if reason := fault.missing():
                bar.update(task, description=f"{fault.name}: NOT RUN: {reason}")
                continue
            rows.append(_perform_in_folder(fault, cycles, seed, partial(bar.advance, task)))
    return rows


def _perform_in_folder(fault: Fault, cycles: int, seed: int, advance: Callable[[], None]) -> Row:
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{fault.name}-", dir=FOLDER))
    with redirect_stdout(StringIO()):  # what the servers wrote is in the folder
        row = perform(fault, folder, cycles, seed, advance)
    if not row.complaints():  # else it is looked into
        shutil.rmtree(folder)
    return row


@click.command(help=__doc__)
@click.option("--only", "chosen", default="", callback=_chosen, help="Names, with commas between.")
@click.option("--short", is_flag=True, help="As few cycles as `make test` runs.")
@click.option("--share", default=1.0, show_default=True, help="Of the cycles of the long form.")
@click.option("--seed", default=1, show_default=True)
@command.json_option
def main(chosen: list[Fault], short: bool, share: float, seed: int, output: Path | None) -> None:
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # what was started or mounted goes too
    rows = _perform_all(chosen, short, share, seed)
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows))
    command.write(output, rows)
    complaints = {row.fault: row.complaints() for row in rows}
    for name, found in complaints.items():
        for each in found:
            click.echo(f"{name}: {each}", err=True)
    sys.exit(any(complaints.values()))


if __name__ == "__main__":
    main()
