"""From the spool to the ready queues: what is due finds its site, or its reason why not."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from fastmta import metrics
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue.ready import Job
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool

Site = TypeVar("Site")  # whatever `resolve` gives and `submit` takes

log = logging.getLogger(__name__)

POSTPONED = metrics.counter(
    "fastmta_postponed_total", "Envelopes put back because their ready queue was full"
)

UNREADABLE = 1.0  # seconds until a queue that could not be read is looked at again
POSTPONE = 2.0  # seconds until an envelope that found its ready queue full is looked at again
FAILED = Reply(451, "4.3.0", "Internal error while the destination was looked up")


class Scheduler(Generic[Site]):
    """Takes each envelope that the spool hands over to the queue of its site."""

    def __init__(
        self,
        spool: Spool,
        settlement: Settlement,
        cached: Callable[[str], Site | None],
        resolve: Callable[[str], Awaitable[Site | Reply]],
        submit: Callable[[Site, Job], bool],
    ) -> None:
        """`cached` answers at once or not at all; `resolve` gives the site or says why none;
        `submit` is False where the site's ready queue is full."""
        self._spool, self._settlement = spool, settlement
        self._cached, self._resolve, self._submit = cached, resolve, submit
        self._waiting: dict[str, list[Job]] = {}  # by domain, while it is being looked up
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, envelope: Envelope, parts: list[bytes] | None) -> None:
        """Take an envelope that is to go out now."""
        job = Job(envelope, parts)
        domain = envelope.domain
        site = self._cached(domain)
        if site is not None:
            self._enqueue(site, job)
        elif domain in self._waiting:
            self._waiting[domain].append(job)
        else:
            self._waiting[domain] = [job]
            self._tasks.add(task := asyncio.ensure_future(self._look_up(domain)))
            task.add_done_callback(self._tasks.discard)

    def _enqueue(self, site: Site, job: Job) -> None:
        if not self._submit(site, job):
            POSTPONED.value += 1
            due = time.time() + POSTPONE
            self._spool.settle(job.envelope, msgspec.structs.replace(job.envelope, due=due))

    async def _look_up(self, domain: str) -> None:
        try:
            found = await self._resolve(domain)
        except Exception:
            log.exception("no site for %s", domain)
            found = FAILED
        jobs = self._waiting.pop(domain)
        if not isinstance(found, Reply):
            for job in jobs:
                self._enqueue(found, job)
            return
        end = Disposition.of_reply(found, "", time.time())
        for job in jobs:
            self._settlement.settle(job, "", "", [end] * len(job.envelope.recipients))

    async def run(self) -> None:
        """Take what falls due, until cancelled."""
        while True:
            await self._spool.wait_due()
            try:
                await self._spool.lease()
            except Exception:
                log.exception("the queue could not be read")
                await asyncio.sleep(UNREADABLE)

    async def stop(self) -> None:
        """Let go of look-ups; what waited for them is safe in the spool."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
