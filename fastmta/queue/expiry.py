"""What has waited too long goes back, in whatever state: held, blocked, or ready to leave."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from fastmta import metrics
from fastmta.mail.envelope import Envelope
from fastmta.queue import retry
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
        withdraw: Callable[[Callable[[Job], bool]], list[Job]],
    ) -> None:
        """`policy_for` gives the policy of a domain; none gives up before `shortest` seconds.
        `withdraw` takes back what is meant of what waits in ready queues."""
        self._spool, self._settlement = spool, settlement
        self._policy_for, self._shortest = policy_for, shortest
        self._withdraw = withdraw
        self._began = time.time()

    def applies(self, envelope: Envelope, now: float) -> bool:
        policy = self._policy_for(envelope.domain)
        return retry.is_expired(policy, envelope.received, envelope.due, now)

    def end(self, envelope: Envelope) -> None:
        """Fail an envelope that is out."""
        EXPIRED.value += 1
        self._settlement.expire(envelope)

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
        for job in self._withdraw(partial(self._is_late, time.time())):
            EXPIRED.value += 1
            self._settlement.expire(job.envelope, job.parts)
        key: bytes | None = b""
        while key is not None:
            found, key = await self._spool.scan(key, BATCH)
            now = time.time()
            old = [one for one in found if self.applies(one, now) and not self._spool.is_out(one)]
            if old:
                await self._end_all(old)
            if found and found[-1].received > now - self._shortest():
                return  # ids are in the order in which they came

    def _is_late(self, now: float, job: Job) -> bool:
        """Whether it has waited too long for its path.

        What never waited, and is from an earlier process, has its first attempt at any age.
        """
        envelope = job.envelope
        if envelope.received > now - self._shortest():
            return False
        had_time = envelope.due or envelope.received >= self._began
        return bool(had_time) and self.applies(envelope, now)

    async def _end_all(self, old: list[Envelope]) -> None:
        claimed = await self._spool.claim(old)
        for envelope in claimed:
            self.end(envelope)
        # Their reports are made from messages read from the disk: a batch at a time.
        while any(map(self._spool.is_out, claimed)):  # noqa: ASYNC110
            await asyncio.sleep(POLL)
