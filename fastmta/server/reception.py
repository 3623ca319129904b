"""Recipients that no mail is queued for: suppressed ones, and addresses that reports come to."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fastmta import log as events
from fastmta import metrics
from fastmta.config import Bounces
from fastmta.mail.arrival import Arrival
from fastmta.mail.bounce import BounceReport, read_bounce
from fastmta.mail.complaint import Complaint, read_complaint
from fastmta.mail.envelope import Recipient, format_id
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply
from fastmta.protocol import smtp_replies
from fastmta.queue.suppressor import Suppressor
from fastmta.server.backend import Backend
from fastmta.server.residents import Residents
from fastmta.store.suppression import Entry

log = logging.getLogger(__name__)

REPORTS = metrics.counters(
    "fastmta_reports_received_total",
    "Messages to the addresses of [bounces], by what was found in them",
    "kind",
    ("bounce", "complaint", "unknown"),
)
SUPPRESSED = metrics.counters(
    "fastmta_suppressed_total", "Recipients that were suppressed", "action", ("reject", "drop")
)

# Octets of a report that are read: what counts stands before the message that came back.
_MOST_READ = 1 << 20
_MOST_ADDRESSES = 10  # of [bounces] that one message is read for
_NOT_SAFE = Reply(451, "4.3.0", "The report could not be written, try again later")

Done = Callable[[Reply | None], None]


class Addresses:
    """The addresses of one list of [bounces]; "*" stands for any local part."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._exact = frozenset(one.lower() for one in patterns if not one.startswith("*@"))
        self._domains = frozenset(one[2:].lower() for one in patterns if one.startswith("*@"))

    def __contains__(self, address: str) -> bool:
        lower = address.lower()
        return lower in self._exact or lower.rpartition("@")[2] in self._domains


class Sorted(NamedTuple):
    """The recipients of one message."""

    kept: list[Recipient]  # who get it
    reports: list[str]  # addresses of [bounces]
    dropped: list[tuple[Recipient, Entry]]


class Findings(NamedTuple):
    """What one message to one address of [bounces] says."""

    recipient: str
    bounce: BounceReport | None
    complaint: Complaint | None


class Reception:
    """Stands before the backend that queues mail, where [suppression] or [bounces] is set."""

    def __init__(
        self,
        intake: Backend,
        journal: events.DispositionLog,
        suppressor: Suppressor | None,
        drops: bool,
        bounces: Bounces | None,
        feeds: bool,
    ) -> None:
        """`drops`: suppressed recipients are left out in silence; `feeds`: reports suppress."""
        self._intake, self._journal = intake, journal
        self._suppressor, self._drops, self._feeds = suppressor, drops, feeds
        self._bounces = Addresses(bounces.addresses if bounces else ())
        self._complaints = Addresses(bounces.complaints if bounces else ())
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="report-reader")
        self.residents: Residents | None = None  # where [domains] is set
        self.new_id = intake.new_id
        self.refusal = intake.refusal

    def vet(self, address: str, may_relay: bool, arrival: Arrival) -> bytes:
        """Why an address is refused at RCPT, or nothing."""
        if self._is_for_reports(address):
            return b""
        if self.residents is not None:
            verdict = self.residents.verdict(address, arrival)
            if verdict is not None:
                return verdict
        if not may_relay:  # before anything is told of the list
            return smtp_replies.RELAY_DENIED
        if self._suppressor is None or self._drops:
            return b""
        entry = self._suppressor.find(address)
        if entry is None:
            return b""
        SUPPRESSED.count("reject")
        return bytes(Reply(550, "5.1.1", f"<{address}> suppressed: {_explain(entry)}"))

    def _is_for_reports(self, address: str) -> bool:
        return address in self._bounces or address in self._complaints

    def accept(self, arrival: Arrival, done: Done) -> None:
        """Reports are made safe first, then the rest is queued; `done` hears of both at once."""
        kept, reports, dropped = self._sort(arrival.recipients)
        arrival.recipients = kept

        def queue(refusal: Reply | None) -> None:
            if refusal is None and kept:
                self._intake.accept(arrival, finish)
            else:
                finish(refusal)

        def finish(refusal: Reply | None) -> None:
            if refusal is None:
                self._note(arrival, dropped)
            done(refusal)

        if reports:
            self._take_in(arrival, reports, queue)
        else:
            queue(None)

    def _sort(self, recipients: list[Recipient]) -> Sorted:
        found = Sorted([], [], [])
        for recipient in recipients:
            if self._is_for_reports(recipient.address):
                found.reports.append(recipient.address)
            elif self._drops and (entry := self._find(recipient.address)):
                found.dropped.append((recipient, entry))
            else:
                found.kept.append(recipient)
        return found

    def _find(self, address: str) -> Entry | None:
        """Who has a mailbox here is never suppressed."""
        if self.residents is not None and self.residents.is_local(address):
            return None
        return self._suppressor.find(address) if self._suppressor else None

    def _note(self, arrival: Arrival, dropped: list[tuple[Recipient, Entry]]) -> None:
        for recipient, entry in dropped:
            SUPPRESSED.count("drop")
            self._journal.write(
                events.Suppressed(
                    time=arrival.received,
                    id=format_id(arrival.message),
                    sender=arrival.sender,
                    recipient=recipient.address,
                    reason=entry.reason,
                    category=entry.category,
                    added=entry.added,
                    source=entry.source,
                )
            )

    # Reports.

    def _take_in(self, arrival: Arrival, recipients: list[str], done: Done) -> None:
        """Read it off the loop; what it says is on the list before `done` hears of it."""
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._reader, self._read, arrival.parts, recipients)

        def has_read(future: "asyncio.Future[list[Findings]]") -> None:
            try:
                found = future.result()
            except Exception:  # a reader that fails must not lose the report
                log.exception("the report %s cannot be read", format_id(arrival.message))
                done(_NOT_SAFE)
                return
            self._keep(arrival, found, done)

        reading.add_done_callback(has_read)

    def _read(self, parts: list[bytes], recipients: list[str]) -> list[Findings]:
        root = parse(b"".join(parts)[:_MOST_READ])
        return [
            Findings(
                one,
                read_bounce(root) if one in self._bounces else None,
                read_complaint(root) if one in self._complaints else None,
            )
            for one in recipients[:_MOST_ADDRESSES]
        ]

    def _keep(self, arrival: Arrival, found: list[Findings], done: Done) -> None:
        def kept(is_safe: bool) -> None:
            if is_safe:
                self._tell(arrival, found)
            done(None if is_safe else _NOT_SAFE)

        if self._suppressor and self._feeds:
            self._suppressor.learn(self._entries(arrival, found), kept)
        else:
            kept(True)

    def _entries(self, arrival: Arrival, found: list[Findings]) -> list[Entry]:
        assert self._suppressor is not None
        source = format_id(arrival.message)
        entries: list[Entry] = []
        for one in found:
            if one.bounce:
                entries += self._suppressor.of_bounces(one.bounce.bounces, source)
            if one.complaint:
                entries += self._suppressor.of_complaint(one.complaint, source)
        return entries

    def _tell(self, arrival: Arrival, found: list[Findings]) -> None:
        for one in found:
            about: dict[str, Any] = {
                "time": arrival.received,
                "id": format_id(arrival.message),
                "sender": arrival.sender,
                "recipient": one.recipient,
            }
            if one.complaint:
                REPORTS.count("complaint")
                self._tell_complaint(about, one.complaint)
            if one.bounce and one.bounce.bounces:
                REPORTS.count("bounce")
                self._tell_bounce(about, one.bounce)
            elif not one.complaint:
                REPORTS.count("unknown")
                self._journal.write(events.ReportUnknown(**about, size=arrival.size))

    def _tell_complaint(self, about: dict[str, Any], complaint: Complaint) -> None:
        for address in complaint.recipients or [""]:
            self._journal.write(
                events.ComplaintReceived(
                    **about,
                    address=address,
                    kind=complaint.kind,
                    reporter=complaint.reporter,
                    client=complaint.source,
                    original=complaint.original,
                )
            )

    def _tell_bounce(self, about: dict[str, Any], report: BounceReport) -> None:
        for one in report.bounces:
            self._journal.write(
                events.BounceReceived(
                    **about,
                    address=one.address,
                    permanent=one.permanent,
                    category=one.category,
                    code=one.reply.code,
                    enhanced=one.reply.enhanced,
                    reply=one.reply.text,
                    reporter=report.reporter,
                    original=report.original,
                )
            )

    def close(self) -> None:
        self._reader.shutdown()


def _explain(entry: Entry) -> str:
    """What the sender may know: why, and since when."""
    why = f"{entry.reason} ({entry.category})" if entry.category else entry.reason
    since = datetime.fromtimestamp(entry.added, UTC).strftime("%Y-%m-%d")
    whole = ", the whole domain" if entry.address.startswith("@") else ""
    return f"{why} on {since}{whole}"
