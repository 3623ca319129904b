"""Reports to senders: made from what the spool holds, and stored with what they tell of."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from fastmta import metrics
from fastmta.mail.arrival import Arrival
from fastmta.mail.delivery_status import Action
from fastmta.mail.dsn import Report, build_report
from fastmta.mail.envelope import Envelope, Recipient, TlsDemand
from fastmta.mail.reply import Reply
from fastmta.queue.outcome import Notice
from fastmta.queue.ready import Job
from fastmta.store.spool import Spool

log = logging.getLogger(__name__)

REPORTS = metrics.counter("fastmta_reports_total", "Reports sent to senders or the postmaster")

# A longer message comes back as its header section, also where RET=FULL asks for all of it.
MAX_RETURNED = 1 << 20  # octets
# Signs a report if there is a key, and gives what is stored for it: where its recipient forwards
# mail, there may be several.
Finish = Callable[[Arrival], Awaitable[list[Arrival]]]

AT_ONCE = 64  # envelopes whose reports are being made or written


class Reporter:
    """Settles envelopes whose end somebody is told of."""

    def __init__(self, spool: Spool, hostname: str, finish: Finish) -> None:
        self._spool, self._hostname, self._finish = spool, hostname, finish
        self._room = asyncio.Semaphore(AT_ONCE)

    async def settle(
        self, job: Job, remaining: Envelope | None, told: list[Notice], numbers: list[int]
    ) -> None:
        """Store the reports under these ids, in the transaction that ends the attempt."""
        async with self._room:
            original = await self._original(job, any(_is_whole(job.envelope, n) for n in told))
            reports: list[Arrival] = []
            for notice, number in zip(told, numbers, strict=True):
                report = self._make(job.envelope, notice, number, original)
                reports += await self._finish(report)
            safe: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def done(_: Reply | None) -> None:
                if not safe.done():
                    safe.set_result(None)

            self._spool.settle(job.envelope, remaining, *reports, done=done)
            REPORTS.value += len(told)
            await safe

    async def _original(self, job: Job, whole: bool) -> bytes:
        """The message as far as a report needs it; b"" where it cannot be read."""
        if job.parts is not None:
            return b"".join(job.parts if whole else job.parts[:8])
        try:
            return await self._read(job.envelope, whole)
        except Exception:
            # What the sender has to know is that it failed, not what was in it.
            log.exception("%s: reported without its text, which cannot be read", job.envelope.id)
            return b""

    async def _read(self, envelope: Envelope, whole: bool) -> bytes:
        found = await self._spool.read(envelope.message, 0)
        chunks = len(found)
        while whole and sum(map(len, found)) < envelope.size:
            more = await self._spool.read(envelope.message, chunks)
            if not more:
                raise ValueError("the message is not as long as its envelope says")
            found += more
            chunks += len(more)
        return b"".join(found)

    def _make(self, envelope: Envelope, notice: Notice, number: int, original: bytes) -> Arrival:
        now = time.time()
        report = Report(
            number,
            self._hostname,
            now,
            envelope,
            notice.ends,
            original,
            notice.action,
            notice.retry_until,
            whole=bool(original) and _is_whole(envelope, notice),
            postmaster=notice.address if not envelope.sender else "",
        )
        content = build_report(report)
        return Arrival(
            message=number,
            sender="",  # RFC 3461 section 6: nobody is told of a report
            recipients=[Recipient(notice.address)],
            parts=[content],
            size=len(content),
            received=now,
            eight_bit=not content.isascii(),
            utf8=not notice.address.isascii(),
            demand=_protection(envelope),
        )


def _protection(envelope: Envelope) -> TlsDemand:
    """RFC 8689 section 5: a report tells as much as the message, and is protected like it."""
    return TlsDemand.REQUIRED if envelope.tls is TlsDemand.REQUIRED else TlsDemand.NONE


def _is_whole(envelope: Envelope, notice: Notice) -> bool:
    """RFC 3461 section 4.3: RET is for failures, and left out it is for us to choose.

    The postmaster gets what nobody else will see; of what needed REQUIRETLS nobody gets more
    than the header section (RFC 8689 section 5).
    """
    if envelope.tls is TlsDemand.REQUIRED:
        return False
    wanted = envelope.ret == "FULL" or not envelope.sender
    return notice.action is Action.FAILED and wanted and envelope.size <= MAX_RETURNED
