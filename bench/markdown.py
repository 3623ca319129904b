"""Results as Markdown that stands in a README as it is."""

from collections.abc import Iterable, Sequence

from bench import report
from bench.relay import Run
from bench.report import Measure, Results

MILLISECONDS = "{:,.1f}"
TABLES: dict[str, tuple[str, list[Measure]]] = {
    "relay": (
        "Relaying, 100 clients, 2 KB",
        [
            Measure("messages a second", lambda run: run.rate),
            Measure("CPU a message, µs", lambda run: run.cpu),
            Measure("resident memory, MiB", lambda run: run.resident / 2**20),
            Measure("end of data to 250, p50, ms", lambda run: run.accept_p50 * 1e3, MILLISECONDS),
            Measure("p99, ms", lambda run: run.accept_p99 * 1e3, MILLISECONDS),
            Measure("p99.9, ms", lambda run: run.accept_p999 * 1e3, MILLISECONDS),
            Measure("sent to arrived, p50, ms", lambda run: run.deliver_p50 * 1e3, MILLISECONDS),
            Measure("p99, ms", lambda run: run.deliver_p99 * 1e3, MILLISECONDS),
            *report.ENDS,
        ],
    ),
    "accept": (
        "Taking mail in while none can leave",
        [
            Measure("messages a second", lambda run: run.rate),
            Measure("CPU a message, µs", lambda run: run.cpu),
            Measure("end of data to 250, p50, ms", lambda run: run.accept_p50 * 1e3, MILLISECONDS),
            Measure("p99, ms", lambda run: run.accept_p99 * 1e3, MILLISECONDS),
        ],
    ),
    "latency": (
        "End of data to 250 at half of that load",
        [
            Measure("p50, ms", lambda run: run.accept_p50 * 1e3, MILLISECONDS),
            Measure("p99, ms", lambda run: run.accept_p99 * 1e3, MILLISECONDS),
            Measure("p99.9, ms", lambda run: run.accept_p999 * 1e3, MILLISECONDS),
        ],
    ),
    "syscalls": (
        "System calls, apart from timed runs",
        [
            Measure("system calls a message", lambda run: run.calls, "{:,.1f}"),
            Measure("fsync and its like a message", lambda run: run.flushes, "{:,.2f}"),
        ],
    ),
    "idle": (
        "Idle sessions",
        [Measure("memory a session, KB", lambda run: run.session / 1e3, "{:,.1f}")],
    ),
}
SWEPT = [
    Measure("messages a second", lambda run: run.rate),
    Measure("CPU a message, µs", lambda run: run.cpu),
]


def of(results: Results) -> str:
    machine = results.machine
    parts = [
        f"{results.date}; {machine.cpus} cores ({machine.cpu}), Linux {machine.kernel}, "
        f"{machine.filesystem}, {machine.fdatasyncs:,} fdatasync a second, load before the run "
        f"{machine.load:.1f}; {', '.join(results.versions.values())}; medians (least to most):",
        f"```\n{results.command}\n```",
        *_tables(results.runs),
        *_notes(results),
    ]
    return "\n\n".join(parts) + "\n"


def _tables(runs: Sequence[Run]) -> Iterable[str]:
    for claim in dict.fromkeys(run.claim for run in runs):
        mine = [run for run in runs if run.claim == claim]
        if claim in TABLES:
            title, measures = TABLES[claim]
            yield f"**{title}**\n\n{_table(mine, measures)}"
        elif claim != "ceiling":
            yield f"**By {claim}**\n\n{_swept(mine)}"


def _table(runs: Sequence[Run], measures: Sequence[Measure]) -> str:
    names = list(dict.fromkeys(run.peer for run in runs))
    rows = [["", *names]]
    for measure in measures:
        rows.append([measure.name, *(_cell(measure, runs, name) for name in names)])
    return _lines(rows)


def _swept(runs: Sequence[Run]) -> str:
    """A row for each point and measure."""
    names = list(dict.fromkeys(run.peer for run in runs))
    rows = [["", "", *names]]
    for measure in SWEPT:
        for point in dict.fromkeys(str(value) for run in runs for value in run.point.values()):
            there = [run for run in runs if point in map(str, run.point.values())]
            cells = (_cell(measure, there, name) for name in names)
            rows.append([measure.name, _grouped(point), *cells])
    return _lines(rows)


def _grouped(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text


def _cell(measure: Measure, runs: Sequence[Run], name: str) -> str:
    mine = [run for run in runs if run.peer == name]
    good = [run for run in mine if not run.failed]
    if mine and not good:
        return "failed"
    if len(good) == 1:
        return measure.form.format(measure.value(good[0]))
    return report.cell(measure, good)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rest))


def _notes(results: Results) -> Iterable[str]:
    """What is not in the tables, and why."""
    notes = [f"- {name} was not measured: {reason}" for name, reason in results.absent.items()]
    for run in results.runs:
        varied = ", ".join(_grouped(str(value)) for value in run.point.values())
        what = f"- {run.peer}, {run.claim} {varied}".rstrip()
        if run.failed:
            notes.append(f"{what} failed: {run.failed}")
        ends = {"lost": run.lost, "duplicated": run.duplicated, "corrupt": run.corrupt}
        if wrong := [f"{count:,} {end}" for end, count in ends.items() if count]:
            notes.append(f"{what}: {', '.join(wrong)} of {run.messages:,} messages")
    notes += [
        f"- Ceiling of load and sink, with no server between: {run.rate:,.0f} messages a second."
        for run in results.runs
        if run.claim == "ceiling"
    ]
    if notes:
        yield "\n".join(notes)
