"""Many cheap inputs for each reader, against its twin: `python -m tests.fuzz.mass [TARGET ...]`.

What differs is written to corpus/TARGET, so that `test_what_was_found_once` fails until it is
right, and stays there. A hang ends a process with its traceback; the block that it was in is told:

    python -m tests.fuzz.mass base64 --seed 1 --first 4210000 --inputs 10000
"""

import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import click
from msgspec import Struct, convert, to_builtins
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz.fuzzing import HERE, targets
from tests.fuzz.inputs import BLOCK, block

HANG = 600  # seconds in which a block is done, however much else the machine has to do
MOST_KEPT = 5  # differences of one block; they are mostly one


class Run(Struct):
    """What was tried of one reader so far."""

    target: str
    seed: int
    first: int = 0
    inputs: int = 0
    seconds: float = 0.0
    differences: int = 0


class Ended(Struct):
    """One block."""

    seconds: float
    differences: list[tuple[int, str]]  # number of the input, and the traceback


def try_block(name: str, seed: int, number: int) -> Ended:
    target, found = targets()[name], []
    faulthandler.dump_traceback_later(HANG, exit=True)
    began = time.process_time()
    for at, data in enumerate(block(name, seed, number)):
        try:
            target(data)
        except Exception:
            found.append((number * BLOCK + at, traceback.format_exc(limit=-3)))
            keep(name, data)
            if len(found) == MOST_KEPT:
                break
    faulthandler.cancel_dump_traceback_later()
    return Ended(time.process_time() - began, found)


def keep(name: str, data: bytes) -> None:
    (HERE / "corpus" / name / sha256(data).hexdigest()[:12]).write_bytes(data)


def waiting(runs: list[Run], inputs: int) -> Iterator[tuple[Run, int]]:
    """Blocks that are still to be tried; of all readers in turn, who has fewest first."""
    number = {run.target: (run.first + run.inputs) // BLOCK for run in runs}
    while left := [run for run in runs if number[run.target] * BLOCK < run.first + inputs]:
        run = min(left, key=lambda each: number[each.target] * BLOCK - each.first)
        yield run, number[run.target]
        number[run.target] += 1


def try_all(runs: list[Run], inputs: int, jobs: int, seconds: float, bar: Progress) -> bool:
    """Whether every block came to its end; what did is in the runs."""
    blocks, until = waiting(runs, inputs), time.monotonic() + seconds
    under_way: dict[Future[Ended], tuple[Run, int]] = {}
    task = bar.add_task("", total=inputs * len(runs), completed=sum(run.inputs for run in runs))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        while True:
            while (
                len(under_way) < jobs and time.monotonic() < until and (new := next(blocks, None))
            ):
                run, number = new
                under_way[pool.submit(try_block, run.target, run.seed, number)] = new
            if not under_way:
                return True
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                if isinstance(done.exception(), BrokenProcessPool):
                    told = ", ".join(f"{r.target} from {n * BLOCK}" for r, n in under_way.values())
                    click.echo(f"a process died in one of these blocks: {told}", err=True)
                    return False
                run, number = under_way.pop(done)
                count(run, done.result())
                bar.update(task, advance=BLOCK, description=run.target)


def count(run: Run, ended: Ended) -> None:
    run.inputs += BLOCK
    run.seconds += ended.seconds
    run.differences += len(ended.differences)
    for number, told in ended.differences:
        click.echo(f"{run.target}: input {number} of seed {run.seed}\n{told}", err=True)


def read_record(path: Path | None, names: list[str], seed: int, first: int) -> list[Run]:
    known: dict[str, Run] = {}
    if path is not None and path.exists():
        told = convert(json.loads(path.read_text()), list[Run])
        known = {run.target: run for run in told if (run.seed, run.first) == (seed, first)}
    return [known.get(name) or Run(name, seed, first) for name in names]


def table_of(runs: list[Run]) -> Table:
    table = Table("parser", "inputs", "seconds", "a second", "seed", "differences")
    for run in runs:
        rate = f"{run.inputs / run.seconds:,.0f}" if run.seconds else ""
        row = f"{run.inputs:,}", f"{run.seconds:,.0f}", rate, str(run.seed), str(run.differences)
        table.add_row(run.target, *row)
    return table


@click.command(help=__doc__)
@click.argument("names", metavar="[TARGET ...]", nargs=-1)
@click.option("--inputs", default=10_000_000, help="Of each reader, in all.", show_default=True)
@click.option("--first", default=0, help="Number of the first input.")
@click.option("--seed", default=1, show_default=True)
@click.option("--jobs", default=1, help="Processes.", show_default=True)
@click.option("--seconds", default=float("inf"), help="Begin no new block after so long.")
@click.option("--record", type=click.Path(path_type=Path), help="Go on from here, and write it.")
@click.option("--json", "as_json", is_flag=True)
def main(
    names: tuple[str, ...],
    inputs: int,
    first: int,
    seed: int,
    jobs: int,
    seconds: float,
    record: Path | None,
    as_json: bool,
) -> None:
    known = targets()
    if unknown := set(names) - set(known):
        raise click.UsageError(f"{', '.join(unknown)}: there are {', '.join(known)}")
    runs = read_record(record, list(names) or list(known), seed, first)
    columns = TextColumn("{task.description:16}"), BarColumn(), "{task.percentage:.1f}%"
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        whole = try_all(runs, inputs, jobs, seconds, bar)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(to_builtins(runs), indent=1))
    if as_json:
        click.echo(json.dumps(to_builtins(runs), indent=1))
    else:
        Console().print(table_of(runs))
    sys.exit(not whole or any(run.differences for run in runs))


if __name__ == "__main__":
    main()
