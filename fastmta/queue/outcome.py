"""What becomes of an envelope after an attempt: pure, so that a test can print it."""

from typing import NamedTuple

import msgspec

from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.queue import retry


class Outcome(NamedTuple):
    remaining: Envelope | None  # what waits for the next attempt
    failed: list[tuple[Recipient, Disposition]]  # what nobody will try again


def outcome(envelope: Envelope, ends: list[Disposition], policy: retry.Policy) -> Outcome:
    """Sort an envelope's recipients by how the attempt ended for each, `ends` in their order."""
    failed, deferred = [], []
    for recipient, end in zip(envelope.recipients, ends, strict=True):
        if end.kind is Kind.FAILED:
            failed.append((recipient, end))
        elif end.kind is Kind.DEFERRED:
            deferred.append((recipient, end))
    if not deferred:
        return Outcome(None, failed)
    last = deferred[-1][1]
    attempts = envelope.attempts + 1
    due = retry.next_due(policy, envelope.received, attempts, last.time)
    if due is None:
        return Outcome(None, failed + [(recipient, _expired(end)) for recipient, end in deferred])
    recipients = [recipient for recipient, _ in deferred]
    remaining = msgspec.structs.replace(
        envelope, recipients=recipients, attempts=attempts, due=due, last=last
    )
    return Outcome(remaining, failed)


def _expired(end: Disposition) -> Disposition:
    """RFC 3463 section 3.5, X.4.7: what the sender has to know is also why it took so long."""
    text = f"Delivery time expired; the last answer was: {end.reply}"
    reply = Reply(554, "5.4.7", text)
    return Disposition(Kind.FAILED, reply, end.host, end.time)


def expired(envelope: Envelope, now: float) -> Disposition:
    """The end of one that nobody could try again in time; for each of its recipients."""
    if envelope.last is not None:
        return msgspec.structs.replace(_expired(envelope.last), time=now)
    reply = Reply(554, "5.4.7", "Delivery time expired before it could be tried")
    return Disposition(Kind.FAILED, reply, "", now)


def wants_failure(recipient: Recipient) -> bool:
    """Whether the sender wants to hear that this recipient failed (RFC 3461 section 4.1)."""
    return not recipient.notify or "FAILURE" in recipient.notify.split(",")
