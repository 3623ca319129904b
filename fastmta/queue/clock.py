"""The clock was set back: what was to wait for a moment is not to wait until that time comes again.

When an envelope is tried next is stored as a time of day, so that it outlives the process. While
the clock runs right, none is due later than its longest pause from now on; one that is was put
there by a clock that was ahead, and is due at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from math import inf

import msgspec

from fastmta.queue.retry import JITTER
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

BACK = 60.0  # seconds that a clock goes back by slewing, and nobody need care
LOOK = 5.0  # seconds between looks at the clock
BATCH = 500  # envelopes that are brought back at a time


class ClockWatch:
    """Brings back what waits for too late a time: at the start, and when the clock was set back."""

    def __init__(self, spool: Spool, longest: Callable[[], float]) -> None:
        """`longest` gives the longest pause between attempts, in seconds."""
        self._spool, self._longest = spool, longest
        self._most = 0.0  # the longest since the start: a reload makes no mail due

    async def run(self) -> None:
        """Until cancelled."""
        known = inf  # nothing waits longer, as far as the last search could tell
        while True:
            # By what waits, and not by the clock: that may be ahead between two looks alone.
            if max(known, self._spool.latest_due) > self._latest() + BACK:
                try:
                    known = await self.bring_back()
                except Exception:
                    known = inf  # which is tried again
                    log.exception("the queue could not be searched for what waits too long")
            await asyncio.sleep(LOOK)

    async def bring_back(self) -> float:
        """Make due what is due later than any pause from now on; gives when that is."""
        latest = self._latest()
        self._spool.latest_due = 0.0
        key: bytes | None = b""
        brought = 0
        while key is not None:
            found, key = await self._spool.scan_ahead(key, latest, BATCH)
            claimed = await self._spool.claim(found)
            for envelope in claimed:
                self._spool.settle(envelope, msgspec.structs.replace(envelope, due=time.time()))
            brought += len(claimed)
            # Whether they are out says nothing: they may be in a ready queue already, for hours.
            await self._spool.written()
        if brought:
            log.warning("the clock was ahead: %d envelopes that waited for it are due", brought)
        return latest

    def _latest(self) -> float:
        self._most = max(self._most, self._longest())
        return time.time() + self._most * (1 + JITTER) + BACK
