"""Pictures of results, as PNG and SVG; matplotlib is imported only here, and late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.relay import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of Okabe and Ito, which colour-blind readers tell apart; ours stands out.
COLOURS = {
    "fastmta": "#D55E00",
    "null": "#999999",
    "postfix": "#0072B2",
    "exim": "#009E73",
    "opensmtpd": "#CC79A7",
    "haraka": "#56B4E9",
    "aiosmtpd": "#8C6D1F",
}
NAMES = {"null": "null relay", "postfix": "Postfix", "exim": "Exim", "opensmtpd": "OpenSMTPD"}
NAMES |= {"haraka": "Haraka"}
WIDTH, HEIGHT = 7.2, 4.2  # inches
Medians = dict[str, dict[float, float]]  # peer -> what was varied -> figure


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Each picture that the runs allow; gives the PNG files."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install -e '.[bench]'")
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fastmta"  # the same picture is the same file
    good = [run for run in runs if not run.failed]
    pictures: dict[str, Callable[[Axes, list[Run]], bool]] = {
        "throughput": _throughput,
        "cpu": _cpu,
        "latency": _latency,
        "queue-depth": _queue_depth,
    }
    drawn = (_picture(name, paint, good, folder) for name, paint in pictures.items())
    return [path for path in drawn if path]


def _picture(
    name: str, paint: Callable[[Axes, list[Run]], bool], runs: list[Run], folder: Path
) -> Path | None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = paint(axes, runs)
    path = folder / f"{name}.png"
    if drawn:
        figure.savefig(path, dpi=160)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot.close(figure)
    return path if drawn else None


def _medians(runs: Iterable[Run], claim: str, value: Callable[[Run], float]) -> Medians:
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        if run.claim == claim:
            varied = float(next(iter(run.point.values()), 0)) if _numeric(run) else 0.0
            found.setdefault(run.peer, {}).setdefault(varied, []).append(value(run))
    return {peer: {x: median(ys) for x, ys in points.items()} for peer, points in found.items()}


def _numeric(run: Run) -> bool:
    return all(isinstance(value, int) for value in run.point.values())


def _throughput(axes: Axes, runs: list[Run]) -> bool:
    found = _medians(runs, "clients", lambda run: run.rate)
    for peer, points in found.items():
        xs = sorted(points)
        axes.plot(xs, [points[x] for x in xs], color=_colour(peer), marker="o", **_style(peer))
    axes.set(xscale="log", yscale="log", xlabel="clients at once")
    _title(axes, "Messages relayed a second, by clients", "2 KB, end to end; both axes logarithmic")
    axes.set_xticks(sorted({x for points in found.values() for x in points}))
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    _at_the_ends(axes, found)
    axes.grid(axis="y", color="#e5e5e5")
    return bool(found)


def _style(peer: str) -> dict[str, Any]:
    if peer == "fastmta":
        return {"linewidth": 2.6, "markersize": 5, "zorder": 3}
    # The null relay is no server: it stores nothing.
    return {"linewidth": 1.5, "markersize": 4, "linestyle": "--" if peer == "null" else "-"}


def _at_the_ends(axes: Axes, found: Medians) -> None:
    """Names beside the last points, moved apart where they would cover each other."""
    from math import log10

    ends = sorted((log10(points[max(points)]), peer) for peer, points in found.items())
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = (log10(high) - log10(low)) / 18
    taken: dict[float, float] = {}  # x -> the highest label there
    for y, peer in ends:
        x = max(found[peer])
        last = taken[x] = max(y, taken.get(x, -float("inf")) + gap)
        weight = "bold" if peer == "fastmta" else "normal"
        axes.annotate(
            NAMES.get(peer, peer),
            (x, 10**last),
            xytext=(8, 0),
            textcoords="offset points",
            color=_colour(peer),
            va="center",
            weight=weight,
            annotation_clip=False,
        )


def _cpu(axes: Axes, runs: list[Run]) -> bool:
    found = _medians(runs, "relay", lambda run: run.cpu)
    ordered = sorted(((points[0.0], peer) for peer, points in found.items()), reverse=True)
    values, peers = [value for value, _ in ordered], [peer for _, peer in ordered]
    bars = axes.barh(
        [NAMES.get(peer, peer) for peer in peers], values, color=[_colour(it) for it in peers]
    )
    axes.bar_label(bars, [f" {value:,.0f}" for value in values])
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _title(axes, "CPU a relayed message, in microseconds", "100 clients, 2 KB, all processes")
    return bool(found)


def _latency(axes: Axes, runs: list[Run]) -> bool:
    marks: dict[str, tuple[Callable[[Run], float], str]] = {
        "p50": (lambda run: run.accept_p50 * 1e3, "o"),
        "p99": (lambda run: run.accept_p99 * 1e3, "D"),
        "p99.9": (lambda run: run.accept_p999 * 1e3, "|"),
    }
    found = {name: _medians(runs, "latency", value) for name, (value, _) in marks.items()}
    peers = sorted(found["p50"], key=lambda peer: -found["p99"][peer][0.0])
    for row, peer in enumerate(peers):
        xs = [found[name][peer][0.0] for name in marks]
        axes.plot(xs, [row] * len(xs), color=_colour(peer), linewidth=1.5, alpha=0.5)
        for x, (name, (_, mark)) in zip(xs, marks.items(), strict=True):
            axes.plot(x, row, mark, color=_colour(peer), markersize=11 if mark == "|" else 7)
            if row == len(peers) - 1:
                axes.annotate(
                    name, (x, row), xytext=(0, 10), textcoords="offset points", ha="center"
                )
    axes.set(xscale="log", xlabel="milliseconds, logarithmic")
    axes.set_yticks(range(len(peers)), [NAMES.get(peer, peer) for peer in peers])
    axes.set_ylim(-0.5, len(peers) - 0.2)
    axes.grid(axis="x", color="#e5e5e5")
    _plain(axes.xaxis)
    _title(axes, "End of data to 250, at half of each server's own load", "p50, p99, p99.9")
    return bool(peers)


def _queue_depth(axes: Axes, runs: list[Run]) -> bool:
    found = _medians(runs, "queue-depth", lambda run: run.rate)
    for peer, points in found.items():
        xs = sorted(points)
        ys = [points[x] for x in xs]
        axes.plot(range(len(xs)), ys, color=_colour(peer), marker="o", linewidth=2.6)
        axes.set_xticks(range(len(xs)), [f"{int(x):,}" for x in xs])
        axes.set_ylim(0, max(ys) * 1.15)
    axes.set_xlabel("deferred messages that wait in the queue")
    axes.grid(axis="y", color="#e5e5e5")
    _thousands(axes.yaxis)
    _title(axes, "New mail relayed a second beside a deep queue", "fastmta, 100 clients, 2 KB")
    return bool(found)


def _title(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", weight="bold", pad=22)
    axes.text(0, 1.03, below, transform=axes.transAxes, color="#666666")


def _plain(axis: Any) -> None:
    """1, 10, 1,000 in place of powers of ten."""
    from matplotlib.ticker import NullFormatter

    _thousands(axis)
    axis.set_minor_formatter(NullFormatter())


def _thousands(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _colour(peer: str) -> str:
    return COLOURS.get(peer, "#444444")
