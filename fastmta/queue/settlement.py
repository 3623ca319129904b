"""After an attempt: write down how it ended, and give the envelope back to the spool."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from fastmta.config import Reports
from fastmta.log import DispositionLog, Event
from fastmta.mail.arrival import Arrival
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, format_id
from fastmta.queue.execution import Execution, execute
from fastmta.queue.orders import Order, Orders
from fastmta.queue.outcome import Notice, Outcome, expired, notices, outcome
from fastmta.queue.ready import Job
from fastmta.queue.record import Dsns, Record
from fastmta.queue.reporting import Finish, Reporter
from fastmta.queue.retry import PolicyFor
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

FINISH_SECONDS = 10.0  # for reports under way at the end; what is not made is made again


class Settlement:
    """Takes each job's dispositions once, from whoever made the attempt."""

    def __init__(
        self,
        spool: Spool,
        policy_for: PolicyFor,
        wishes: Reports,
        hostname: str,
        journal: DispositionLog,
        orders: Orders,
        finish: Finish | None = None,
    ) -> None:
        self._finish = finish or _as_it_is
        self._spool, self._policy_for = spool, policy_for
        self._orders = orders
        self._journal, self._record = journal, Record(journal)
        self.configure(wishes, hostname)
        self._reports: set[asyncio.Task[None]] = set()

    def configure(self, wishes: Reports, hostname: str) -> None:
        """What senders are told of all that is settled from now on, and by whom."""
        self._wishes = wishes
        self._reporter = Reporter(self._spool, hostname, self._finish)

    def settle(self, job: Job, site: str, source: str, ends: list[Disposition]) -> None:
        """`ends` has one disposition for each of the job's recipients, in their order."""
        envelope = job.envelope
        if len(ends) == 1 and ends[0].kind is Kind.DELIVERED:
            [recipient] = envelope.recipients
            if not recipient.notify:  # nobody asked, so there is no report: mostly
                self._record.delivered(envelope, [(recipient, ends[0])], site, source, {})
                return self._spool.settle(envelope, None)
        result = outcome(envelope, ends, self._policy_for, site)
        waiting = result.remaining
        if waiting and self._orders.any and (order := self._orders.find(waiting, waiting.site)):
            done = self._carry_out(order, waiting)
            left = result._replace(remaining=done.remaining, failed=result.failed + done.failed)
            return self._end(job, site, source, left, waiting, done.events)
        return self._end(job, site, source, result, waiting)

    def expire(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        """Its time is over, whatever it waits for: all its recipients fail, and are reported."""
        ends = [expired(envelope, time.time())] * len(envelope.recipients)
        self.settle(Job(envelope, parts), envelope.site, "", ends)

    def obey(self, order: Order, job: Job, site: str) -> None:
        """Do with an envelope that is out, or was claimed, what the order says."""
        done = self._carry_out(order, job.envelope)
        self._end(job, site, "", Outcome(done.remaining, done.failed, [], []), None, done.events)

    def _carry_out(self, order: Order, envelope: Envelope) -> Execution:
        done = execute(order, envelope, time.time())
        self._orders.count(order, envelope)
        return done

    def _end(
        self,
        job: Job,
        site: str,
        source: str,
        result: Outcome,
        waiting: Envelope | None,
        ordered: Sequence[Event] = (),
    ) -> None:
        """Write down how it ended, as it was `waiting`, and then what was `ordered`; and give the
        envelope to the spool."""
        envelope = job.envelope
        told = notices(envelope, result, self._policy_for, self._wishes, time.time())
        numbers = [self._spool.new_id() for _ in told]
        dsns = _dsns(told, numbers) if told else {}
        self._record.delivered(envelope, result.delivered, site, source, dsns)
        if waiting:
            self._record.deferred(waiting, result.deferred, site, source, dsns)
        for event in ordered:
            self._journal.write(event)
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

    async def begun(self) -> None:
        """Return when every report that has begun by now is with the spool."""
        if self._reports:
            await asyncio.wait(set(self._reports))

    async def finish(self) -> bool:
        """Return when every report is with the spool, also those that begin meanwhile.

        False: that takes too long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                while self._reports:
                    await asyncio.wait(self._reports)
        return not self._reports


async def _as_it_is(report: Arrival) -> list[Arrival]:
    return [report]


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
