"""Who stands at a worker's door: the judges of strangers, by the configuration."""

import time
from collections.abc import Callable

from fastmta.config import Config
from fastmta.server.counts import Row
from fastmta.server.judges import Judge, Note
from fastmta.server.limits import Limits

SHARE_INTERVAL = 1.0  # seconds between two messages to the other workers about what was counted


class Door:
    """One for each worker."""

    def __init__(self, config: Config, share: Callable[[list[Row]], None]) -> None:
        """`share` tells the other workers what was counted here."""
        self.limits = Limits(config.limits, share)
        self._shared = time.monotonic()
        self.judges: list[Judge] = [self.limits]

    @property
    def note(self) -> Note | None:
        """Who counts what goes wrong, if anybody does."""
        return self.limits.note if self.limits.notes else None

    def reload(self, config: Config) -> None:
        """Take `judges` and `note` anew then."""
        self.limits.configure(config.limits)

    def look(self) -> None:
        """Call it often."""
        now = time.monotonic()
        if now - self._shared >= SHARE_INTERVAL:
            self._shared = now
            self.limits.flush()

    def close(self) -> None:
        self.limits.flush()
