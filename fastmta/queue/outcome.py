"""What becomes of an envelope after an attempt, and who is told: pure, so that a test can print it.

What a sender hears of (RFC 3461 section 5.2), by what NOTIFY says of a recipient:

    NOTIFY    failed  delayed            relayed or delivered
    left out  yes     `unasked_delays`   no
    NEVER     no      no                 no
    a list    FAILURE DELAY              SUCCESS

A message from the null reverse-path never makes a report to anybody but the postmaster.
"""

from typing import NamedTuple

from msgspec.structs import replace

from fastmta.config import Reports
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.queue import retry

End = tuple[Recipient, Disposition]


class Notice(NamedTuple):
    """One report that is to be made: what happened to which recipients, and who hears of it."""

    action: Action
    ends: list[End]
    address: str
    retry_until: float = 0.0  # seconds since the epoch, of mail that is delayed


class Outcome(NamedTuple):
    remaining: Envelope | None  # what waits for the next attempt
    failed: list[End]  # what nobody will try again
    deferred: list[End]
    delivered: list[End]


def outcome(
    envelope: Envelope, ends: list[Disposition], policy_for: retry.PolicyFor, site: str = ""
) -> Outcome:
    """Sort an envelope's recipients by how the attempt ended for each, `ends` in their order."""
    failed: list[End] = []
    deferred: list[End] = []
    delivered: list[End] = []
    for recipient, end in zip(envelope.recipients, ends, strict=True):
        if end.kind is Kind.DELIVERED:
            delivered.append((recipient, end))
        elif end.kind is Kind.FAILED:
            failed.append((recipient, end))
        else:
            deferred.append((recipient, end))
    if not deferred:
        return Outcome(None, failed, deferred, delivered)
    last = deferred[-1][1]
    attempts = envelope.attempts + 1
    policy = policy_for(envelope.domain)
    due = retry.next_due(policy, envelope.message, envelope.received, attempts, last.time)
    if due is None:
        failed += [(recipient, _expired(end)) for recipient, end in deferred]
        return Outcome(None, failed, [], delivered)
    recipients = [recipient for recipient, _ in deferred]
    remaining = replace(
        envelope,
        recipients=recipients,
        attempts=attempts,
        due=due,
        last=last,
        site=site or envelope.site,
    )
    return Outcome(remaining, failed, deferred, delivered)


def _expired(end: Disposition) -> Disposition:
    """RFC 3463 section 3.5, X.4.7: what the sender has to know is also why it took so long."""
    text = f"Delivery time expired; the last answer was: {end.reply}"
    reply = Reply(554, "5.4.7", text)
    return Disposition(Kind.FAILED, reply, end.host, end.time)


def expired(envelope: Envelope, now: float) -> Disposition:
    """The end of one that nobody could try again in time; for each of its recipients."""
    if envelope.last is not None:
        return replace(_expired(envelope.last), time=now)
    reply = Reply(554, "5.4.7", "Delivery time expired before it could be tried")
    return Disposition(Kind.FAILED, reply, "", now)


def notices(
    envelope: Envelope, result: Outcome, policy_for: retry.PolicyFor, reports: Reports, now: float
) -> list[Notice]:
    """The reports that an outcome makes, at most one of each action."""
    if not envelope.sender:
        return _to_postmaster(envelope, result.failed, reports.postmaster)
    found = []
    if result.failed and (
        failed := [one for one in result.failed if _wants(one[0], "FAILURE", unasked=True)]
    ):
        found.append(Notice(Action.FAILED, failed, envelope.sender))
    if result.remaining and (delayed := _delayed(envelope, result, reports, now)):
        until = envelope.received + policy_for(envelope.domain).give_up_after
        found.append(Notice(Action.DELAYED, delayed, envelope.sender, until))
    if asked := [one for one in result.delivered if one[0].notify and one[1].success]:
        found += _succeeded(asked, envelope.sender)
    return found


def _succeeded(delivered: list[End], sender: str) -> list[Notice]:
    """Where a host offers DSN, the report is its own; then a delivery has no `success`."""
    asked = [one for one in delivered if _wants(one[0], "SUCCESS", unasked=False)]
    told = {action: [one for one in asked if one[1].success is action] for action in Action}
    return [Notice(action, ends, sender) for action, ends in told.items() if ends]


def _delayed(envelope: Envelope, result: Outcome, reports: Reports, now: float) -> list[End]:
    """Whose delay is reported: once, at the first deferral beyond the age."""
    if envelope.delays or now - envelope.received < reports.delay_after:
        return []
    return [one for one in result.deferred if _wants(one[0], "DELAY", reports.unasked_delays)]


def _to_postmaster(envelope: Envelope, failed: list[End], postmaster: str) -> list[Notice]:
    """A report that cannot be delivered ends here, at most with the postmaster.

    One that was to the postmaster ends without that.
    """
    told = [one for one in failed if one[0].address.lower() != postmaster.lower()]
    return [Notice(Action.FAILED, told, postmaster)] if postmaster and told else []


def _wants(recipient: Recipient, what: str, unasked: bool) -> bool:
    """Whether the sender wants to hear that of this recipient (RFC 3461 section 4.1)."""
    return what in recipient.notify.split(",") if recipient.notify else unasked
