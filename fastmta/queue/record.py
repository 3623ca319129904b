"""The record of attempts: metrics, and a line of the disposition log for each recipient."""

from typing import Any

from fastmta import log as events
from fastmta import metrics
from fastmta.mail.classification import CATEGORIES, Category, classify
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.queue.outcome import End

DELIVERED = metrics.counter("fastmta_delivered_total", "Recipients that were delivered")
DEFERRED = metrics.counters(
    "fastmta_deferred_total",
    "Attempts for a recipient that were deferred",
    "category",
    CATEGORIES,
)
BOUNCED = metrics.counters(
    "fastmta_bounced_total", "Recipients that failed for good", "category", CATEGORIES
)
BLOCKED = metrics.ranked(
    "fastmta_source_blocked_total",
    "Attempts for a recipient that were refused because a list has the address they came from",
    "source",
    ("deferred", "failed"),
)
DOUBLE = metrics.counter(
    "fastmta_double_bounces_total", "Recipients of mail without a sender that failed for good"
)
DELIVERY_SECONDS = metrics.histogram(
    "fastmta_delivery_seconds", "Time from receipt to delivery, for each recipient"
)

SYSTEM = "system"  # what metrics call the source where none is configured

# Identity of a recipient -> id of the report that tells of it.
Dsns = dict[int, str]


class Record:
    """Writes into one disposition log."""

    def __init__(self, journal: events.DispositionLog) -> None:
        self._journal = journal

    def delivered(
        self, envelope: Envelope, ends: list[End], site: str, source: str, dsns: Dsns
    ) -> None:
        for recipient, end in ends:
            DELIVERED.value += 1
            DELIVERY_SECONDS.observe(end.time - envelope.received)
            dsn = dsns.get(id(recipient), "") if dsns else ""
            self._journal.write(_delivered(envelope, recipient, end, site, source, dsn))

    def deferred(
        self, waiting: Envelope, ends: list[End], site: str, source: str, dsns: Dsns
    ) -> None:
        """`waiting` is the envelope as this attempt leaves it."""
        for recipient, end in ends:
            event = _failure(waiting, recipient, end, site, source, dsns)
            DEFERRED.count(event["category"])
            if event["category"] == Category.BLOCKLIST:
                BLOCKED.add(source or SYSTEM, (1, 0))
            self._journal.write(events.Deferred(**event, due=waiting.due))

    def failed(
        self, envelope: Envelope, ends: list[End], site: str, source: str, dsns: Dsns
    ) -> None:
        for recipient, end in ends:
            DOUBLE.value += not envelope.sender
            event = _failure(envelope, recipient, end, site, source, dsns)
            BOUNCED.count(event["category"])
            if event["category"] == Category.BLOCKLIST:
                BLOCKED.add(source or SYSTEM, (0, 1))
            self._journal.write(events.Bounced(**event))


def _delivered(
    envelope: Envelope, recipient: Recipient, end: Disposition, site: str, source: str, dsn: str
) -> events.Delivered:
    """As `_attempt`, without a dictionary: this is what nearly all attempts end in."""
    reply = end.reply
    return events.Delivered(
        time=end.time,
        id=envelope.id,
        sender=envelope.sender,
        recipient=recipient.address,
        domain=envelope.domain,
        site=site,
        source=source,
        host=end.host,
        tls=end.tls,
        code=reply.code,
        enhanced=reply.enhanced,
        reply=reply.text,
        attempts=envelope.attempts,
        received=envelope.received,
        dsn=dsn,
    )


def _failure(
    envelope: Envelope,
    recipient: Recipient,
    end: Disposition,
    site: str,
    source: str,
    dsns: Dsns,
) -> dict[str, Any]:
    event = _attempt(envelope, recipient, end, site, source)
    event["category"] = Category.OPERATOR if end.by_operator else classify(end.reply)
    event["dsn"] = dsns.get(id(recipient), "")
    return event


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
        "tls": end.tls,
        "code": end.reply.code,
        "enhanced": end.reply.enhanced,
        "reply": end.reply.text,
        "attempts": envelope.attempts,
        "received": envelope.received,
    }
