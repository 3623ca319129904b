"""What operators see of a path."""

from typing import Literal

from msgspec import Struct

from fastmta.mail.reply import Reply

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
