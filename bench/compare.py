"""What changed between two results of `bench`, A and then B; exit code 1 for a regression.

A change is of medians. It is a regression if it is for the worse by more than the threshold and no
run of B was as good as the worst of A. Messages that were lost, doubled or spoilt always are one.
Only the peer that is named is judged; the others, where both have them, tell what the machine did.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
import msgspec
from rich.table import Table

from bench import command
from bench.relay import Run
from bench.report import Results

HIGHER = {"rate": True, "cpu": False, "resident": False, "accept_p50": False, "accept_p99": False}
HIGHER |= {"deliver_p99": False, "calls": False, "flushes": False, "session": False}
NEVER = ("lost", "duplicated", "corrupt", "failures")
Place = tuple[str, str, str, str]  # claim, point, load, peer


class Change(NamedTuple):
    place: Place
    measure: str
    before: float
    after: float
    worse: bool  # by more than the threshold

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("inf")


def changes(a: Iterable[Run], b: Iterable[Run], threshold: float) -> list[Change]:
    """Of all that both have."""
    first, second = _placed(a), _placed(b)
    found = []
    for place in first.keys() & second.keys():
        for name, higher in HIGHER.items():
            pair = _values(first[place], name), _values(second[place], name)
            if all(pair):
                found.append(_change(place, name, *pair, higher=higher, threshold=threshold))
        for name in NEVER:
            before, after = (sum(_values(runs[place], name)) for runs in (first, second))
            if before or after:
                found.append(Change(place, name, before, after, after > before))
    return sorted(found)


def _placed(runs: Iterable[Run]) -> dict[Place, list[Run]]:
    placed: dict[Place, list[Run]] = {}
    for run in runs:
        point = " ".join(f"{name}={value}" for name, value in sorted(run.point.items()))
        placed.setdefault((run.claim, point, run.load, run.peer), []).append(run)
    return placed


def _values(runs: list[Run], name: str) -> list[float]:
    """Zero was not measured."""
    if name == "failures":
        return [float(bool(run.failed)) for run in runs]
    return [float(getattr(run, name)) for run in runs if getattr(run, name)]


def _change(
    place: Place, name: str, a: list[float], b: list[float], *, higher: bool, threshold: float
) -> Change:
    before, after = median(a), median(b)
    if higher:
        worse = after < before * (1 - threshold) and max(b) < min(a)
    else:
        worse = after > before * (1 + threshold) and min(b) > max(a)
    return Change(place, name, before, after, worse)


def table(found: list[Change], threshold: float) -> Table:
    """What moved by more than the threshold, in either direction."""
    shown = Table("claim", "point", "peer", "measure", "A", "B", "B / A", "")
    for each in found:
        if abs(each.ratio - 1) > threshold or each.worse:
            claim, point, _, peer = each.place
            figures = f"{each.before:,.4g}", f"{each.after:,.4g}", f"{each.ratio:.2f}"
            shown.add_row(claim, point, peer, each.measure, *figures, "WORSE" if each.worse else "")
    return shown


def _read(path: Path) -> Results:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{path} holds no results: {error}") from None


@click.command(help=__doc__)
@click.argument("a", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("b", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold", default=0.15, show_default=True, help="0.15 is 15 per cent.")
@click.option("--peer", default="fastmta", show_default=True, help="Whose regressions count.")
def main(a: Path, b: Path, threshold: float, peer: str) -> None:
    first, second = _read(a), _read(b)
    for path, results in ((a, first), (b, second)):
        if peer not in {run.peer.split(",")[0] for run in results.runs}:
            raise click.ClickException(f"{path} has no run of {peer}")
    if first.machine.cpu != second.machine.cpu or first.machine.cpus != second.machine.cpus:
        click.echo("the machines differ: only ratios to a peer of the same run mean something")
    for name in sorted(first.options.keys() & second.options.keys()):
        if first.options[name] != second.options[name]:
            click.echo(f"{name} differs: {first.options[name]} and {second.options[name]}")
    found = changes(first.runs, second.runs, threshold)
    command.console().print(table(found, threshold))
    regressions = [each for each in found if each.worse and each.place[3].split(",")[0] == peer]
    click.echo(f"{len(found)} figures in both, {len(regressions)} regressions of {peer}")
    sys.exit(bool(regressions))
