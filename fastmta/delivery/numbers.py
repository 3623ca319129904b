"""What operators see of a path."""

from msgspec import Struct

from fastmta.mail.reply import Reply


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
    waits_for: str  # one of WAITS
    until: float  # seconds since the epoch; 0 where that is not known


WAITS = (
    "ready",
    "connection limit",
    "connection rate",
    "message rate",
    "host paused",
    "no slots",
)
