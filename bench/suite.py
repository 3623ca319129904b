"""All claims about relaying in one run of a quarter of an hour: `make bench`.

Written into a folder: results.json, results.md, and plots as PNG and SVG. Each claim takes the
peers in turns. A run that fails, and a peer that is not there, is told in each of them.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
from msgspec import Struct, structs
from rich.console import Console

from bench import (
    accept,
    ceiling,
    command,
    idle,
    markdown,
    peers,
    plots,
    queue_depth,
    relay,
    report,
    syscalls,
)
from bench import sweep as sweeps
from bench.peers import Peer
from bench.relay import Options, Run
from bench.sweep import Pace, Step

CLAIMS = ("relay", "accept", "latency", "syscalls", "idle", *sweeps.SWEEPS, "queue-depth")
DEPTHS = (0, 10_000, 100_000, 300_000)  # envelopes that wait
TRACED = 300  # messages of a run under strace


class Plan(Struct, frozen=True, kw_only=True):
    claims: tuple[str, ...] = CLAIMS
    repeats: int = 3  # of the claim `relay`
    seconds: float = 2.0  # of a run, roughly
    sessions: int = 2000  # idle ones
    base: Path = command.BASE


class Suite:
    """Does the steps of a plan, and knows how each kind is done."""

    def __init__(self, plan: Plan, under_test: dict[str, Peer]) -> None:
        self._plan, self._peers, self._pace = plan, under_test, Pace(plan.seconds)
        self._ways: dict[str, Callable[[Step], Run]] = {
            "accept": self._accept,
            "latency": self._latency,
            "syscalls": self._syscalls,
            "idle": self._idle,
            "queue-depth": self._queue_depth,
        }

    def steps(self) -> list[Step]:
        return [step for claim in self._plan.claims for step in self._steps(claim)]

    def _steps(self, claim: str) -> Iterator[Step]:
        if claim in sweeps.SWEEPS:
            yield from sweeps.steps(claim, self._peers)
        elif claim == "queue-depth":
            mine = ((name, it) for name, it in self._peers.items() if name == "fastmta")
            yield from (Step(*each, claim, {"envelopes": n}) for each in mine for n in DEPTHS)
        else:
            point: dict[str, int | str] = {"load": "half"} if claim == "latency" else {}
            for _ in range(self._plan.repeats if claim == "relay" else 1):
                yield from (Step(name, it, claim, point) for name, it in self._peers.items())

    def run(self, step: Step) -> Run:
        way = self._ways.get(step.claim, self._relay)
        try:
            return sweeps.named(way(step), step)
        except (RuntimeError, OSError, TimeoutError, subprocess.SubprocessError) as error:
            return sweeps.named(sweeps.failure(error), step)

    def _relay(self, step: Step) -> Run:
        return sweeps.measure(step, Options(), self._pace, self._plan.base)

    def _accept(self, step: Step) -> Run:
        options = Options(messages=self._pace.messages(step.name, Options()))
        with relay.scratch(self._plan.base) as folder:
            return accept.measure(step.peer, options, folder)

    def _latency(self, step: Step) -> Run:
        """At half of what it did before, sent at even times."""
        rate = self._pace.rate(step.name) / 2
        messages = int(max(rate * self._plan.seconds, sweeps.FEWEST))
        return sweeps.attempt(step, Options(messages=messages, rate=rate), self._plan.base)

    def _syscalls(self, step: Step) -> Run:
        with relay.scratch(self._plan.base) as folder:
            return syscalls.measure(step.peer, Options(messages=TRACED), folder)

    def _idle(self, step: Step) -> Run:
        return idle.measure(step.peer, self._plan.sessions, self._plan.base)

    def _queue_depth(self, step: Step) -> Run:
        waiting, now = int(step.point["envelopes"]), time.time()
        messages = self._pace.messages(step.name, Options())
        options = queue_depth.Options(envelopes=waiting, messages=messages, rest=0.0)
        later = (now + queue_depth.LATER[0], now + queue_depth.LATER[1])
        with relay.scratch(self._plan.base) as folder:
            backlog = queue_depth.backlog(options, waiting, later, 24 * queue_depth.HOUR)
            queue_depth.fill(folder / "data" / "spool" / "0", backlog, options.size)
            return queue_depth.measure(options, folder, waiting, 0).run


def fastest(runs: list[Run]) -> float:
    """Messages a second of the fastest server, by medians; the null relay is none."""
    rates: dict[str, list[float]] = {}
    for run in runs:
        if run.claim == "relay" and run.peer != "null" and not run.failed:
            rates.setdefault(run.peer, []).append(run.rate)
    return max(map(median, rates.values()), default=0.0)


def show(console: Console, suite: Suite, steps: list[Step], runs: list[Run]) -> None:
    """Append each run to `runs` as it ends."""
    with command.progress(console, len(steps)) as advance:
        for step in steps:
            advance(str(step))
            runs.append(suite.run(step))
            console.print(f"{step}: {report.told(runs[-1])}", highlight=False)


def write(folder: Path, results: dict[str, Any]) -> None:
    """results.json, results.md and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    command.write(folder / "results.json", results)
    again = msgspec.json.decode((folder / "results.json").read_bytes(), type=report.Results)
    (folder / "results.md").write_text(markdown.of(again))
    plots.draw(again.runs, folder)


def _chosen(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(command.among(CLAIMS, value))


@click.command(help=__doc__)
@click.option("--claims", default=",".join(CLAIMS), show_default=True, callback=_chosen)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of relay.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Of each run, about.",
)
@click.option("--sessions", type=click.IntRange(1), default=2000, show_default=True, help="Idle.")
@command.peers_option(*peers.NAMES)
@command.dir_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=command.BASE.parent / "results",
    callback=command.made,
    help="[default: .build/results]",
)
def main(names: list[str], folder: Path, out: Path, **values: Any) -> None:
    plan = Plan(base=folder.resolve(), **values)
    under_test, absent = command.present({name: peers.load(name) for name in names})
    facts = {**command.begin(under_test, folder), "absent": absent}
    command.raise_limits()
    console, suite = command.console(), Suite(plan, under_test)
    with command.failures_told():
        runs = [ceiling.measure(Options(messages=100_000), plan.base)]
    try:
        show(console, suite, suite.steps(), runs)
    finally:  # what there is, where somebody loses patience
        console.print(ceiling.verdict(runs[0].rate, fastest(runs)))
        write(out, {**facts, "options": structs.asdict(plan) | {"base": ""}, "runs": runs})
    console.print(f"results.md, results.json and plots are in {out}")
    sys.exit(any(run.lost or run.duplicated or run.corrupt for run in runs if our(run)))


def our(run: Run) -> bool:
    return run.peer == "fastmta"
