"""Where a benchmark ran, and its runs as a table."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from msgspec import Struct
from rich.table import Table

from bench.relay import Run


class Machine(Struct):
    """What the figures hold for."""

    cpus: int
    cpu: str
    kernel: str
    python: str
    filesystem: str
    fdatasyncs: int  # a second, of 4 KiB appended
    load: float  # average of the last minute, before the run


class Results(Struct, kw_only=True):
    """What a command has written as JSON."""

    date: str = ""
    command: str
    machine: Machine
    versions: dict[str, str]
    absent: dict[str, str] = {}  # peer -> why it was not measured
    options: dict[str, Any] = {}
    runs: list[Run]


def machine(folder: Path) -> Machine:
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        cpu=_cpu(),
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=filesystem(folder),
        fdatasyncs=_fdatasyncs(folder),
        load=os.getloadavg()[0],
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def filesystem(folder: Path) -> str:
    """The type of the file system that holds a folder, as statfs(2) names it."""
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "ext2, ext3 or ext4" if name == "ext2/ext3" else name  # they share one number


def _fdatasyncs(folder: Path, seconds: float = 0.3) -> int:
    path, count, begun = folder / f"probe-{os.getpid()}", 0, time.monotonic()
    with path.open("wb", buffering=0) as file:
        while time.monotonic() - begun < seconds:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            count += 1
    path.unlink()
    return int(count / seconds)


class Measure(NamedTuple):
    """One row: what is shown of a run, of whatever benchmark."""

    name: str
    value: Callable[[Any], float]
    form: str = "{:,.0f}"
    total: bool = False  # summed over the repeats, where a median would hide one


ALWAYS = [
    Measure("messages a second", lambda run: run.rate),
    Measure("CPU a message, us", lambda run: run.cpu),
    Measure("  user", lambda run: run.user),
    Measure("  system", lambda run: run.system),
    Measure("peak memory, MiB", lambda run: run.peak_memory / 2**20),
]
ACCEPTED = [
    Measure("end of data to 250, p50, ms", lambda run: run.accept_p50 * 1e3, "{:,.1f}"),
    Measure("  p99", lambda run: run.accept_p99 * 1e3, "{:,.1f}"),
    Measure("  p99.9", lambda run: run.accept_p999 * 1e3, "{:,.1f}"),
]
ARRIVED = [
    Measure("sent to arrived, p50, ms", lambda run: run.deliver_p50 * 1e3, "{:,.1f}"),
    Measure("  p99", lambda run: run.deliver_p99 * 1e3, "{:,.1f}"),
    Measure("  p99.9", lambda run: run.deliver_p999 * 1e3, "{:,.1f}"),
]
ENDS = [
    Measure("lost", lambda run: run.lost, total=True),
    Measure("duplicated", lambda run: run.duplicated, total=True),
    Measure("corrupt", lambda run: run.corrupt, total=True),
    Measure("refused", lambda run: run.refused, total=True),
]
RESIDENT = [Measure("resident memory, MiB", lambda run: run.resident / 2**20)]
MEASURES = {"outside": ALWAYS, "numbered": ALWAYS + RESIDENT + ACCEPTED + ARRIVED + ENDS}


def ratios(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Load -> ratio -> column -> value, of medians; of those that took part."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for load in MEASURES:
        mine = [run for run in runs if run.load == load]
        if not mine:
            continue
        rate = _medians(mine, lambda run: run.rate)
        cpu = _medians(mine, lambda run: run.cpu)
        result[load] = {
            "messages/s, times Postfix": _over(rate, "postfix"),
            "messages/s, share of null": _over(rate, "null"),
            "CPU, times null": _over(cpu, "null"),
            "messages/s, share of plain": _over_plain(rate),
            "CPU, times plain": _over_plain(cpu),
        }
    return result


def signing_shares(runs: Sequence[Run], features: str, best: float) -> dict[str, float]:
    """Peer -> of the cores that nothing else used, the share that signatures took.

    `best` is how many a core could make in a second: then it takes 1 / best of it each.
    """
    mine = [r for r in runs if r.load == "outside" and r.peer.endswith(f", {features}")]
    return _medians(mine, lambda run: run.rate / best / (run.rate / best + run.idle))


def times(runs: Sequence[Any], base: str) -> dict[str, float]:
    """Peer -> its rate as times that of another, of medians; {} where that took no part."""
    return _over(_medians(runs, lambda run: run.rate), base)


def _medians(runs: Sequence[Any], value: Callable[[Any], float]) -> dict[str, float]:
    names = {run.peer for run in runs}
    return {name: median(value(run) for run in runs if run.peer == name) for name in names}


def _over(values: dict[str, float], base: str) -> dict[str, float]:
    """Over another peer with the same features."""
    bases = {name: base + name.removeprefix(name.split(",")[0]) for name in values}
    return {name: values[name] / values[bases[name]] for name in values if values.get(bases[name])}


def _over_plain(values: dict[str, float]) -> dict[str, float]:
    """Those with features, over the same peer without."""
    plain = {name: name.split(",")[0] for name in values if "," in name}
    return {name: values[name] / values[base] for name, base in plain.items() if values.get(base)}


def line(run: Run) -> str:
    """One run, as soon as it is over."""
    troubles = {"LOST": run.lost, "TWICE": run.duplicated, "CORRUPT": run.corrupt}
    wrong = (f"{count} {name}" for name, count in troubles.items() if count)
    figures = [f"{run.rate:,.0f} messages/s", f"{run.cpu:,.0f} us of CPU each", *wrong]
    return f"{run.peer}, {run.load}: {', '.join(figures)}"


def told(run: Run) -> str:
    """The figures of a run that matter to its claim."""
    if run.failed:
        return f"FAILED: {run.failed}"
    if run.claim == "idle":
        return f"{run.session / 1e3:,.1f} KB a session"
    if run.claim == "syscalls":
        return f"{run.calls:,.1f} system calls a message, {run.flushes:.2f} flushes"
    if run.claim == "latency":
        return f"p50 {run.accept_p50 * 1e3:.1f} ms, p99 {run.accept_p99 * 1e3:.1f} ms"
    return line(run).partition(": ")[2]


def table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Medians over the repeats, with the least and the most in brackets."""
    result = Table("measure", title="relay: medians (least to most)")
    for name in names:
        result.add_column(name, justify="right")
    for load, shares in ratios(runs).items():
        result.add_row(f"[bold]{load}")
        for measure in MEASURES[load]:
            cells = (
                cell(measure, [r for r in runs if (r.peer, r.load) == (n, load)]) for n in names
            )
            result.add_row(measure.name, *cells)
        for label, share in shares.items():
            if share:
                shown = (f"{share[name]:.2f}" if name in share else "" for name in names)
                result.add_row(label, *shown)
        result.add_section()
    return result


def cell(measure: Measure, runs: Sequence[Any]) -> str:
    """The median, with the least and the most in brackets."""
    values, form = [measure.value(run) for run in runs], measure.form.format
    if not values:
        return ""
    if measure.total:
        return form(sum(values))
    return f"{form(median(values))} ({form(min(values))} to {form(max(values))})"
