"""The clock was set back: what was to wait for a moment is not to wait until that time comes again.

When an envelope is tried next is stored as a time of day, so that it outlives the process. While
the clock runs right, none is due later than its longest pause from now on; one that is was put
there by a clock that was ahead, and is due at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from fastmta.mail.envelope import Envelope
from fastmta.queue.retry import JITTER
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

BACK = 60.0  # seconds that a clock goes back by slewing, and nobody need care
LOOK = 5.0  # seconds between looks at the clock
BATCH = 500  # envelopes that are brought back at a time
POLL = 0.05  # seconds between looks whether a batch is settled


class ClockWatch:
    """Brings back what waits for too late a time: at the start, and when the clock was set back."""

    def __init__(self, spool: Spool, longest: Callable[[], float]) -> None:
        """`longest` gives the longest pause between attempts, in seconds."""
        self._spool, self._longest = spool, longest

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            ahead = _ahead()
            try:
                await self.bring_back()
            except Exception:
                log.exception("the queue could not be searched for what waits too long")
            while _ahead() > ahead - BACK:
                ahead = max(ahead, _ahead())
                await asyncio.sleep(LOOK)

    async def bring_back(self) -> None:
        """Make due what is due later than any pause from now on."""
        latest = time.time() + self._longest() * (1 + JITTER) + BACK
        key: bytes | None = b""
        brought = 0
        while key is not None:
            found, key = await self._spool.scan_ahead(key, latest, BATCH)
            claimed = await self._spool.claim(found)
            for envelope in claimed:
                self._spool.settle(envelope, msgspec.structs.replace(envelope, due=time.time()))
            brought += len(claimed)
            await self._until_settled(claimed)
        if brought:
            log.warning("the clock was ahead: %d envelopes that waited for it are due", brought)

    async def _until_settled(self, claimed: list[Envelope]) -> None:
        while any(map(self._spool.is_out, claimed)):  # noqa: ASYNC110
            await asyncio.sleep(POLL)


def _ahead() -> float:
    """How far the time of day is ahead of a clock that nobody sets."""
    return time.time() - time.monotonic()
