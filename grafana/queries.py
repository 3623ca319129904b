"""Expressions of PromQL, over the instances that are chosen on the dashboard."""

from collections.abc import Sequence
from typing import NamedTuple


class Query(NamedTuple):
    expression: str
    legend: str = ""


def select(metric: str, *where: str) -> str:
    labels = ",".join(['instance=~"$instance"', *where])
    return f"{metric}{{{labels}}}"


def now(metric: str, legend: str = "", by: str = "", of: str = "sum") -> Query:
    """A gauge; `of` says what several instances make together."""
    grouped = f" by ({by})" if by else ""
    return Query(f"{of}{grouped} ({select(metric)})", legend or _braces(by))


def rate(counter: str, legend: str = "", by: str = "", where: Sequence[str] = ()) -> Query:
    """How much a counter grows, a second."""
    grouped = f" by ({by})" if by else ""
    window = f"{select(counter, *where)}[$__rate_interval]"
    return Query(f"sum{grouped} (rate({window}))", legend or _braces(by))


def top(query: Query, count: int = 10) -> Query:
    """The largest of them."""
    return Query(f"topk({count}, {query.expression})", query.legend)


def share(part: Query, whole: Query, legend: str = "") -> Query:
    """From 0 to 1; nothing where there is no whole."""
    text = f"{part.expression} / ({whole.expression} > 0)"
    return Query(text, legend or part.legend)


def quantiles(histogram: str, *parts: float) -> list[Query]:
    return [
        Query(
            f"histogram_quantile({part}, {rate(f'{histogram}_bucket', by='le').expression})",
            f"{part * 100:g} %",
        )
        for part in parts
    ]


def average(histogram: str, legend: str) -> Query:
    total, count = rate(f"{histogram}_sum"), rate(f"{histogram}_count")
    return share(total, count, legend)


def _braces(by: str) -> str:
    return " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label.strip())
