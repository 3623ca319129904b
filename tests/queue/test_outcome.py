"""What becomes of an envelope, for every mixture of ends."""

from itertools import product
from typing import Any

from msgspec.structs import replace

from fastmta.config import Duration, Reports, Retry
from fastmta.mail.delivery_status import Action
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.queue.outcome import Notice, expired, notices, outcome
from fastmta.queue.retry import policies, spread

ENDS = {
    Kind.DELIVERED: Reply(250, "2.0.0", "queued as 1"),
    Kind.DEFERRED: Reply(450, "4.2.0", "busy"),
    Kind.FAILED: Reply(550, "5.1.1", "no such user"),
}


def envelope(count: int, received: float = 1000.0, **changes: object) -> Envelope:
    recipients = [Recipient(f"u{n}@to.test") for n in range(count)]
    return Envelope(1 << 20, 0, "a@from.test", "to.test", recipients, received, 10, **changes)


def ends(kinds: tuple[Kind, ...], time: float = 2000.0) -> list[Disposition]:
    return [Disposition.of_reply(ENDS[kind], "mx.to.test [192.0.2.1]", time) for kind in kinds]


def test_every_recipient_goes_where_its_own_end_says() -> None:
    for kinds in product(Kind, repeat=4):
        before = envelope(4)
        result = outcome(before, ends(kinds), lambda _: Retry())
        waiting = [r.address for r in result.remaining.recipients] if result.remaining else []
        failed = [recipient.address for recipient, _ in result.failed]
        assert waiting == [f"u{n}@to.test" for n in range(4) if kinds[n] is Kind.DEFERRED]
        assert failed == [f"u{n}@to.test" for n in range(4) if kinds[n] is Kind.FAILED]
        assert len(before.recipients) == 4 and before.attempts == 0


def test_a_deferral_counts_the_attempt_and_keeps_the_answer() -> None:
    result = outcome(envelope(1, attempts=2), ends((Kind.DEFERRED,)), lambda _: Retry())
    assert result.remaining is not None
    assert result.remaining.attempts == 3
    assert result.remaining.due == 2000.0 + 1200.0 * spread(1 << 20, 3)
    assert result.remaining.last == ends((Kind.DEFERRED,))[0]


def test_after_the_last_attempt_a_deferral_is_a_failure_that_tells_the_last_answer() -> None:
    late = 1000.0 + Retry().give_up_after
    result = outcome(envelope(2), ends((Kind.DEFERRED, Kind.DELIVERED), late), lambda _: Retry())
    assert result.remaining is None
    [(recipient, end)] = result.failed
    assert recipient.address == "u0@to.test"
    assert (end.kind, end.reply.code, end.reply.enhanced) == (Kind.FAILED, 554, "5.4.7")
    assert "450 4.2.0 busy" in end.reply.text


RELAYED = Action.RELAYED
POLICY = policies(Retry())
NOTIFY = ["", "NEVER", "SUCCESS", "FAILURE", "DELAY", "SUCCESS,FAILURE,DELAY"]
HOUR = 3600.0


def told(
    kind: Kind, notify: str, *, age: float = 5 * HOUR, sender: str = "a@from.test", **reports: Any
) -> list[Notice]:
    """The reports about one recipient whose attempt ended so, at this age."""
    before = envelope(1)
    before.sender, before.recipients[0].notify = sender, notify
    now = before.received + age
    end = Disposition.of_reply(
        ENDS[kind], "mx.to.test [192.0.2.1]", now, reports.pop("success", RELAYED)
    )
    result = outcome(before, [end], lambda _: Retry())
    return notices(before, result, POLICY, Reports(**reports), now)


def actions(kind: Kind, **changes: Any) -> dict[str, str]:
    """What NOTIFY asks for -> what is reported."""
    return {notify: " ".join(n.action for n in told(kind, notify, **changes)) for notify in NOTIFY}


def table(default: str, word: str, action: str) -> dict[str, str]:
    """The action for each of NOTIFY: without it, then by the word that asks for it."""
    return {n: default if not n else action if word in n else "" for n in NOTIFY}


def test_notify_says_who_hears_of_what() -> None:
    assert actions(Kind.FAILED) == table("failed", "FAILURE", "failed")
    assert actions(Kind.DEFERRED) == table("", "DELAY", "delayed")
    assert actions(Kind.DEFERRED, unasked_delays=True) == table("delayed", "DELAY", "delayed")
    assert actions(Kind.DELIVERED) == table("", "SUCCESS", "relayed")
    assert actions(Kind.DELIVERED, success=Action.DELIVERED) == table("", "SUCCESS", "delivered")
    # The host was asked to report it (RFC 3461 section 5.2.1).
    assert actions(Kind.DELIVERED, success=None) == table("", "SUCCESS", "")


def test_a_message_without_a_sender_makes_no_report() -> None:
    for kind in Kind:
        assert set(actions(kind, sender="").values()) == {""}


def test_what_has_no_sender_and_fails_is_told_to_the_postmaster_but_not_what_was_for_him() -> None:
    [notice] = told(Kind.FAILED, "", sender="", postmaster="post@our.test")
    assert (notice.action, notice.address) == (Action.FAILED, "post@our.test")
    assert told(Kind.FAILED, "", sender="", postmaster="U0@To.test") == []
    assert told(Kind.DEFERRED, "DELAY", sender="", postmaster="post@our.test") == []
    [notice] = told(Kind.FAILED, "", postmaster="post@our.test")
    assert notice.address == "a@from.test"


def test_a_delay_is_told_once_and_from_an_age_on() -> None:
    assert told(Kind.DEFERRED, "DELAY", age=4 * HOUR - 1) == []
    [notice] = told(Kind.DEFERRED, "DELAY", age=4 * HOUR)
    assert notice.retry_until == 1000.0 + Retry().give_up_after
    assert told(Kind.DEFERRED, "DELAY", age=60, delay_after=Duration(60))
    before = envelope(1, delays=1)
    before.recipients[0].notify = "DELAY"
    result = outcome(before, ends((Kind.DEFERRED,), 1000 + 5 * HOUR), lambda _: Retry())
    assert notices(before, result, POLICY, Reports(), 1000 + 5 * HOUR) == []


def test_one_report_of_each_action_names_all_whom_it_concerns() -> None:
    before = envelope(6)
    for recipient in before.recipients:
        recipient.notify = "SUCCESS,FAILURE,DELAY"
    now = 1000 + 5 * HOUR
    both = [*ends(tuple(Kind), now), *ends(tuple(Kind), now)]
    both = [replace(end, success=RELAYED) for end in both]
    result = outcome(before, both, lambda _: Retry())
    found = notices(before, result, POLICY, Reports(), now)
    assert {n.action: [r.address for r, _ in n.ends] for n in found} == {
        "failed": ["u2@to.test", "u5@to.test"],
        "delayed": ["u1@to.test", "u4@to.test"],
        "relayed": ["u0@to.test", "u3@to.test"],
    }


def test_expired_mail_that_was_never_tried_says_so() -> None:
    end = expired(envelope(1), 1.0)
    assert (end.reply.enhanced, end.time) == ("5.4.7", 1.0)
    assert "before it could be tried" in end.reply.text
