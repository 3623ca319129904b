"""From the spool to the ready queues: what is due finds its site, or its reason why not."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from fastmta import metrics
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue.expiry import Expiry
from fastmta.queue.orders import Orders
from fastmta.queue.ready import Job
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool


class Named(Protocol):
    """What the scheduler has to know of a site."""

    @property
    def name(self) -> str: ...


Site = TypeVar("Site", bound=Named)  # what `resolve` gives and `submit` takes

log = logging.getLogger(__name__)

POSTPONED = metrics.counter(
    "fastmta_postponed_total", "Envelopes put back because their path had no room"
)

UNREADABLE = 1.0  # seconds until a queue that could not be read is looked at again
LOOK_UPS = 200  # domains that are looked up, and choices that are made, at a time
FAILED = Reply(451, "4.3.0", "Internal error while the destination was looked up")


class Scheduler(Generic[Site]):
    """Takes each envelope that the spool hands over to the queue of its site."""

    def __init__(
        self,
        spool: Spool,
        settlement: Settlement,
        cached: Callable[[str], Site | None],
        resolve: Callable[[str], Awaitable[Site | Reply]],
        submit: Callable[[Site, Job], str],
        expiry: Expiry,
        orders: Orders,
    ) -> None:
        """`cached` answers at once or not at all; `resolve` gives the site or says why none,
        both of a domain or of the next hop that an operator chose;
        `submit`, which may be changed, takes the job and says "", or names the path that has no
        room for it."""
        self._spool, self._settlement = spool, settlement
        self._cached, self._resolve, self.submit = cached, resolve, submit
        self._expiry, self._orders = expiry, orders
        # Where an envelope goes, "" by its domain, or why it does not; None: nobody is asked.
        self.choose: Callable[[Envelope], Awaitable[str | Reply]] | None = None
        self._undecided: dict[int, Job] = {}  # by identity, until somebody has chosen
        self._choices: deque[Job] = deque()  # of these, for whom nobody was asked yet
        self._waiting: dict[str, list[Job]] = {}  # by domain, until it is looked up
        self._unknown: deque[str] = deque()  # of these, whose look-up has not begun
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, envelope: Envelope, parts: list[bytes] | None) -> None:
        """Take an envelope that is to go out now."""
        # What never waited goes out at its age, whatever it is: it is from an earlier process.
        if envelope.due and self._expiry.applies(envelope, time.time()):
            return self._expiry.end(envelope)
        job = Job(envelope, parts)
        if self.choose is not None and not envelope.next_hop:
            self._undecided[id(job)] = job
            self._choices.append(job)
            return self._look_up_more()
        return self._find(envelope.next_hop or envelope.domain, job)

    def _find(self, domain: str, job: Job) -> None:
        envelope = job.envelope
        site = self._cached(domain)
        if site is not None:
            self._enqueue(site, job)
        elif self._orders.any and (order := self._orders.find(envelope, envelope.site)):
            # Not after the look-up: the command may have ended by then.
            self._settlement.obey(order, job, envelope.site)
        elif domain in self._waiting:
            self._waiting[domain].append(job)
        else:
            self._waiting[domain] = [job]
            self._unknown.append(domain)
            self._look_up_more()

    def _look_up_more(self) -> None:
        if len(self._tasks) < LOOK_UPS:
            self._tasks.add(task := asyncio.ensure_future(self._look_up_all()))
            task.add_done_callback(self._tasks.discard)

    async def _choose(self, job: Job) -> None:
        try:
            chosen = await self.choose(job.envelope) if self.choose is not None else ""
        except Exception:
            log.exception("no route for %s", job.envelope.id)
            chosen = FAILED
        if self._undecided.pop(id(job), None) is None:
            return  # it was withdrawn meanwhile
        if isinstance(chosen, Reply):
            self._refuse(job, chosen)
        else:
            self._find(chosen or job.envelope.domain, job)

    def _refuse(self, job: Job, why: Reply) -> None:
        end = Disposition.of_reply(why, "", time.time())
        self._settlement.settle(job, "", "", [end] * len(job.envelope.recipients))

    def _enqueue(self, site: Site, job: Job) -> None:
        orders = self._orders
        if orders.any and (order := orders.find(job.envelope, site.name)):
            return self._settlement.obey(order, job, site.name)
        if path := self.submit(site, job):
            POSTPONED.value += 1
            self._spool.put_back(job.envelope, path)
        return None

    def withdraw(self, meant: Callable[[Job, str], bool]) -> list[Job]:
        """Take back what waits for a choice or for DNS; `meant` gets a job and the site of its
        last attempt."""
        found = [job for job in self._undecided.values() if meant(job, job.envelope.site)]
        for job in found:
            del self._undecided[id(job)]
        for domain, jobs in self._waiting.items():
            chosen = [job for job in jobs if meant(job, job.envelope.site)]
            self._waiting[domain] = [job for job in jobs if job not in chosen]
            found += chosen
        return found

    async def _look_up_all(self) -> None:
        while self._unknown or self._choices:
            if self._choices:
                await self._choose(self._choices.popleft())
            else:
                await self._look_up(self._unknown.popleft())

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
        for job in jobs:
            self._refuse(job, found)

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
