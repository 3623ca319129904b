"""After an attempt: write down how it ended, and give the envelope back to the spool."""

import asyncio
import logging
import time
from typing import Protocol

from msgspec.structs import replace

from fastmta.config import Reports
from fastmta.log import DispositionLog
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, format_id
from fastmta.queue.outcome import End, Notice, Outcome, expired, notices, outcome
from fastmta.queue.ready import Job
from fastmta.queue.record import Dsns, Record
from fastmta.queue.reporting import Reporter
from fastmta.queue.retry import PolicyFor
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

FINISH_SECONDS = 10.0  # for reports under way at the end; what is not made is made again


class Order(Protocol):
    """What an operator wants of an envelope."""

    def apply(self, remaining: Envelope) -> tuple[Envelope | None, list[End]]:
        """The envelope as it waits from now on, if it does, and whom the operator gave up."""


class Orders(Protocol):
    """What operators want of envelopes that match; `any` is False where there is nothing."""

    @property
    def any(self) -> bool: ...

    def find(self, envelope: Envelope, site: str) -> Order | None: ...


class Settlement:
    """Takes each job's dispositions once, from whoever made the attempt."""

    def __init__(
        self,
        spool: Spool,
        policy_for: PolicyFor,
        wishes: Reports,
        hostname: str,
        journal: DispositionLog,
        *,
        orders: Orders | None = None,
    ) -> None:
        self._spool, self._policy_for = spool, policy_for
        self._orders = orders
        self._record = Record(journal)
        self.configure(wishes, hostname)
        self._reports: set[asyncio.Task[None]] = set()

    def configure(self, wishes: Reports, hostname: str) -> None:
        """What senders are told of all that is settled from now on, and by whom."""
        self._wishes = wishes
        self._reporter = Reporter(self._spool, hostname)

    def settle(self, job: Job, site: str, source: str, ends: list[Disposition]) -> None:
        """`ends` has one disposition for each of the job's recipients, in their order."""
        envelope = job.envelope
        result = outcome(envelope, ends, self._policy_for(envelope.domain), site)
        waiting = result.remaining
        if waiting and self._orders and self._orders.any:
            result = self._ordered(self._orders.find(waiting, site), waiting, result)
        self._end(job, site, source, result, waiting)

    def expire(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        """Its time is over, whatever it waits for: all its recipients fail, and are reported."""
        ends = [expired(envelope, time.time())] * len(envelope.recipients)
        self.settle(Job(envelope, parts), envelope.site, "", ends)

    def _ordered(self, order: Order | None, waiting: Envelope, result: Outcome) -> Outcome:
        """What becomes of the envelope where an operator wants something else of it."""
        if order is None:
            return result
        remaining, given_up = order.apply(waiting)
        return result._replace(remaining=remaining, failed=result.failed + given_up)

    def _end(
        self, job: Job, site: str, source: str, result: Outcome, waiting: Envelope | None
    ) -> None:
        """Write down how it ended, as it was `waiting`, and give the envelope to the spool."""
        envelope = job.envelope
        told = notices(envelope, result, self._policy_for, self._wishes, time.time())
        numbers = [self._spool.new_id() for _ in told]
        dsns = _dsns(told, numbers) if told else {}
        self._record.delivered(envelope, result.delivered, site, source, dsns)
        if waiting:
            self._record.deferred(waiting, result.deferred, site, source, dsns)
        if result.failed:
            self._record.failed(envelope, result.failed, site, source, dsns)
        if not told:
            return self._spool.settle(envelope, result.remaining)
        work = self._reporter.settle(job, _counted(result.remaining, told), told, numbers)
        self._reports.add(task := asyncio.ensure_future(work))
        return task.add_done_callback(self._reported)

    def _reported(self, task: asyncio.Task[None]) -> None:
        self._reports.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The envelope stays out: it is tried again after the next start, and not lost.
            log.error("a report could not be made", exc_info=error)

    async def finish(self) -> None:
        """Return when every report that was begun is with the spool, or cannot be."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=FINISH_SECONDS)


def _dsns(told: list[Notice], numbers: list[int]) -> Dsns:
    return {
        id(recipient): format_id(number)
        for notice, number in zip(told, numbers, strict=True)
        for recipient, _ in notice.ends
    }


def _counted(remaining: Envelope | None, told: list[Notice]) -> Envelope | None:
    """What remains, with the report of its delay counted, where there is one."""
    if remaining is None or all(notice.action is not Action.DELAYED for notice in told):
        return remaining
    return replace(remaining, delays=remaining.delays + 1)
