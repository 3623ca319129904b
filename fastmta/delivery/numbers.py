"""What operators see of a path, and what is counted of them."""

from typing import Literal

from msgspec import Struct

from fastmta import metrics
from fastmta.mail.reply import Reply
from fastmta.queue.record import SYSTEM

ENDS = ("delivered", "deferred", "failed")
BY_SITE = metrics.ranked(
    "fastmta_site_transactions_total", "Mail transactions by site and end", "site", ENDS
)
BY_PROVIDER = metrics.ranked(
    "fastmta_provider_transactions_total", "Mail transactions by provider and end", "provider", ENDS
)
BY_SOURCE = metrics.ranked(
    "fastmta_source_transactions_total", "Mail transactions by source and end", "source", ENDS
)


def count(site: str, provider: str, source: str, ends: tuple[int, int, int]) -> None:
    """So many transactions of a path have ended, as in ENDS."""
    BY_SITE.add(site, ends)
    BY_PROVIDER.add(provider or metrics.OTHER, ends)
    BY_SOURCE.add(source or SYSTEM, ends)


# What keeps the jobs of a path from going out now.
Wait = Literal[
    "ready",  # nothing: they wait for their turn
    "connection limit",
    "connection rate",
    "message rate",
    "host paused",
    "no slots",  # all connections of the worker are in use
]


class PathNumbers(Struct, frozen=True):
    """How one path stands now."""

    name: str
    site: str
    source: str  # "" is the system's choice
    waiting: int  # jobs
    busy: int  # connections
    idle: int
    opening: int
    capacity: int  # jobs that may wait
    delivered: float  # transactions a second, over about ten seconds
    deferred: float
    last: Reply | None
    last_time: float  # seconds since the epoch
    waits_for: Wait
    until: float  # seconds since the epoch; 0 where that is not known
