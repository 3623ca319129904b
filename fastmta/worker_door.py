"""Who stands at a worker's door: the judges of strangers, by the configuration.

Wires what `server` asks the DNS to `delivery`, which answers.
"""

import asyncio
import time
from collections.abc import Callable

from fastmta.config import Config
from fastmta.delivery.dns import Resolver
from fastmta.server.checks import Checks
from fastmta.server.counts import Row
from fastmta.server.judges import Judge, Note
from fastmta.server.limits import Limits

SHARE_INTERVAL = 1.0  # seconds between two messages to the other workers about what was counted
_LONGEST = 65.0  # seconds that a check may take: the most that can be set, and a little more


class Door:
    """One for each worker."""

    def __init__(self, config: Config, share: Callable[[list[Row]], None]) -> None:
        """`share` tells the other workers what was counted here."""
        self.limits = Limits(config.limits, share)
        self._shared = time.monotonic()
        self._resolver: Resolver | None = None
        self.judges = self._judges(config)

    @property
    def note(self) -> Note | None:
        """Who counts what goes wrong, if anybody does."""
        return self.limits.note if self.limits.notes else None

    def reload(self, config: Config) -> None:
        """Take `judges` and `note` anew then; what was asked already is still answered."""
        self.limits.configure(config.limits)
        before, self._resolver = self._resolver, None
        if before is not None:
            asyncio.get_running_loop().call_later(_LONGEST, before.close)
        self.judges = self._judges(config)

    def look(self) -> None:
        """Call it often."""
        now = time.monotonic()
        if now - self._shared >= SHARE_INTERVAL:
            self._shared = now
            self.limits.flush()

    def close(self) -> None:
        self.limits.flush()
        if self._resolver is not None:
            self._resolver.close()

    def _judges(self, config: Config) -> list[Judge]:
        """What costs nothing is asked first."""
        judges: list[Judge] = [self.limits]
        if config.checks.asks_dns or config.checks.greeting_delay:
            self._resolver = Resolver(config.dns)  # its cache is not that of the mail going out
            judges.append(Checks(config.checks, self._resolver.records))
        return judges
