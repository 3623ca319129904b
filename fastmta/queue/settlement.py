"""After an attempt: write down how it ended, and give the envelope back to the spool."""

import asyncio
import logging
import time
from typing import Any

from fastmta import log as events
from fastmta import metrics
from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.dsn import Report, build_report
from fastmta.mail.envelope import Envelope, Recipient, format_id
from fastmta.queue import retry
from fastmta.queue.execution import Execution, execute
from fastmta.queue.orders import Order, Orders
from fastmta.queue.outcome import outcome, wants_failure
from fastmta.queue.ready import Job
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

DELIVERED = metrics.counter("fastmta_delivered_total", "Recipients that were delivered")
DEFERRED = metrics.counter("fastmta_deferred_total", "Attempts for a recipient that were deferred")
BOUNCED = metrics.counter("fastmta_bounced_total", "Recipients that failed for good")
REPORTS = metrics.counter("fastmta_reports_total", "Failure reports sent to senders")
DELIVERY_SECONDS = metrics.histogram(
    "fastmta_delivery_seconds", "Time from receipt to delivery, for each recipient"
)


class Settlement:
    """Takes each job's dispositions once, from whoever made the attempt."""

    def __init__(
        self,
        spool: Spool,
        policy: retry.Policy,
        hostname: str,
        journal: events.DispositionLog,
        orders: Orders,
    ) -> None:
        self._spool, self._policy, self._hostname = spool, policy, hostname
        self._journal, self._orders = journal, orders
        self._reports: set[asyncio.Task[None]] = set()

    def configure(self, policy: retry.Policy, hostname: str) -> None:
        """What counts for all that is settled from now on."""
        self._policy, self._hostname = policy, hostname

    def settle(self, job: Job, site: str, source: str, ends: list[Disposition]) -> None:
        """`ends` has one disposition for each of the job's recipients, in their order."""
        envelope = job.envelope
        result = outcome(envelope, ends, self._policy)
        if result.remaining is not None and site:
            result.remaining.site = site
        for recipient, end in zip(envelope.recipients, ends, strict=True):
            if end.kind is Kind.DELIVERED:
                self._delivered(envelope, recipient, end, site, source)
            elif end.kind is Kind.DEFERRED and result.remaining is not None:
                self._deferred(result.remaining, recipient, end, site, source)
        remaining, failed = result
        if remaining is not None and self._orders.any:
            order = self._orders.find(remaining, remaining.site)
            if order is not None:
                done = self._carry_out(order, remaining)
                remaining, failed = done.remaining, failed + done.failed
        self._end(job, site, source, remaining, failed)

    def obey(self, order: Order, job: Job, site: str) -> None:
        """Do with an envelope that is out, or was claimed, what the order says."""
        done = self._carry_out(order, job.envelope)
        self._end(job, site, "", done.remaining, done.failed)

    def _carry_out(self, order: Order, envelope: Envelope) -> Execution:
        done = execute(order, envelope, time.time())
        self._orders.count(order, envelope)
        for event in done.events:
            self._journal.write(event)
        return done

    def _end(
        self,
        job: Job,
        site: str,
        source: str,
        remaining: Envelope | None,
        failed: list[tuple[Recipient, Disposition]],
    ) -> None:
        """Give the envelope back to the spool; whoever failed, the sender is told."""
        if failed:
            report = self._fail(job, site, source, remaining, failed)
            self._reports.add(task := asyncio.ensure_future(report))
            task.add_done_callback(self._reported)
        else:
            self._spool.settle(job.envelope, remaining)

    def _delivered(
        self, envelope: Envelope, recipient: Recipient, end: Disposition, site: str, source: str
    ) -> None:
        DELIVERED.value += 1
        DELIVERY_SECONDS.observe(end.time - envelope.received)
        self._journal.write(events.Delivered(**_attempt(envelope, recipient, end, site, source)))

    def _deferred(
        self, remaining: Envelope, recipient: Recipient, end: Disposition, site: str, source: str
    ) -> None:
        DEFERRED.value += 1
        event = _attempt(remaining, recipient, end, site, source)
        self._journal.write(events.Deferred(**event, due=remaining.due))

    async def _fail(
        self,
        job: Job,
        site: str,
        source: str,
        remaining: Envelope | None,
        failed: list[tuple[Recipient, Disposition]],
    ) -> None:
        report = await self._report(job, failed)
        self._bounced(job.envelope, site, source, failed, report)
        self._spool.settle(job.envelope, remaining, report)

    def _bounced(
        self,
        envelope: Envelope,
        site: str,
        source: str,
        failed: list[tuple[Recipient, Disposition]],
        report: Arrival | None,
    ) -> None:
        dsn = format_id(report.message) if report else ""
        for recipient, end in failed:
            BOUNCED.value += 1
            told = dsn if wants_failure(recipient) else ""
            event = _attempt(envelope, recipient, end, site, source)
            self._journal.write(events.Bounced(**event, dsn=told))

    async def _report(
        self, job: Job, failed: list[tuple[Recipient, Disposition]]
    ) -> Arrival | None:
        """The message that tells the sender, where one has to be told."""
        envelope, now = job.envelope, time.time()
        # A message from the null reverse-path never makes another (RFC 5321 section 4.5.5).
        wanted = [one for one in failed if envelope.sender and wants_failure(one[0])]
        if not wanted:
            return None
        original = job.parts or await self._spool.read(envelope.message, 0)
        number = self._spool.new_id()
        content = build_report(
            Report(number, self._hostname, now, envelope, wanted, b"".join(original[:8]))
        )
        REPORTS.value += 1
        return Arrival(
            message=number,
            sender="",
            recipients=[Recipient(envelope.sender)],
            parts=[content],
            size=len(content),
            received=now,
            eight_bit=not content.isascii(),
            utf8=not envelope.sender.isascii(),
        )

    def _reported(self, task: asyncio.Task[None]) -> None:
        self._reports.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The envelope stays out: it is tried again after the next start, and not lost.
            log.error("a failure report could not be made", exc_info=error)

    async def begun(self) -> None:
        """Return when every report that has begun by now is with the spool."""
        if self._reports:
            await asyncio.wait(set(self._reports))

    async def finish(self) -> None:
        """Return when every report is with the spool, also those that begin meanwhile."""
        while self._reports:
            await asyncio.wait(self._reports)


def _attempt(
    envelope: Envelope, recipient: Recipient, end: Disposition, site: str, source: str
) -> dict[str, Any]:
    return {
        "time": end.time,
        "id": envelope.id,
        "sender": envelope.sender,
        "recipient": recipient.address,
        "domain": envelope.domain,
        "site": site,
        "source": source,
        "host": end.host,
        "code": end.reply.code,
        "enhanced": end.reply.enhanced,
        "reply": end.reply.text,
        "attempts": envelope.attempts,
        "received": envelope.received,
    }
