"""What has waited too long goes back, in whatever state: held, blocked, or far back in its lane."""

import asyncio
import logging
import time
from collections.abc import Callable

from fastmta import metrics
from fastmta.mail.envelope import Envelope
from fastmta.queue import retry
from fastmta.queue.outcome import expired
from fastmta.queue.ready import Job
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

EXPIRED = metrics.counter("fastmta_expired_total", "Envelopes that expired while they waited")

BATCH = 500  # envelopes that are read at a time
PAUSE = 60.0  # seconds from one sweep to the next, at the least
SHARE = 50  # a sweep pauses so many times as long as it took: 2 per cent of one CPU at the most
POLL = 0.05  # seconds between looks whether a batch is settled


class Expiry:
    """Ends envelopes that are past their expiry, when one is taken and by a slow sweep."""

    def __init__(
        self,
        spool: Spool,
        settlement: Settlement,
        policy_for: Callable[[str], retry.Policy],
        shortest: Callable[[], float],
    ) -> None:
        """`policy_for` gives the policy of a domain; none gives up before `shortest` seconds."""
        self._spool, self._settlement = spool, settlement
        self._policy_for, self._shortest = policy_for, shortest

    def applies(self, envelope: Envelope, now: float) -> bool:
        policy = self._policy_for(envelope.domain)
        return retry.is_expired(policy, envelope.received, envelope.due, now)

    def end(self, envelope: Envelope, now: float) -> None:
        """Fail an envelope that is out."""
        EXPIRED.value += 1
        ends = [expired(envelope, now)] * len(envelope.recipients)
        self._settlement.settle(Job(envelope), envelope.site, "", ends)

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.sweep()
            except Exception:
                log.exception("the queue could not be searched for what has expired")
            await asyncio.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))

    async def sweep(self) -> None:
        """Go through all that is old enough, the oldest first."""
        key: bytes | None = b""
        while key is not None:
            found, key = await self._spool.scan(key, BATCH)
            now = time.time()
            old = [one for one in found if self.applies(one, now) and not self._spool.is_out(one)]
            if old:
                await self._end_all(old, now)
            if found and found[-1].received > now - self._shortest():
                return  # ids are in the order in which they came

    async def _end_all(self, old: list[Envelope], now: float) -> None:
        claimed = await self._spool.claim(old)
        for envelope in claimed:
            self.end(envelope, now)
        # Their reports are made from messages read from the disk: a batch at a time.
        while any(map(self._spool.is_out, claimed)):  # noqa: ASYNC110
            await asyncio.sleep(POLL)
