"""What becomes of an envelope, for every mixture of ends."""

from itertools import product

from fastmta.config import Retry
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.queue.outcome import outcome, wants_failure

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
        result = outcome(before, ends(kinds), Retry())
        waiting = [r.address for r in result.remaining.recipients] if result.remaining else []
        failed = [recipient.address for recipient, _ in result.failed]
        assert waiting == [f"u{n}@to.test" for n in range(4) if kinds[n] is Kind.DEFERRED]
        assert failed == [f"u{n}@to.test" for n in range(4) if kinds[n] is Kind.FAILED]
        assert len(before.recipients) == 4 and before.attempts == 0


def test_a_deferral_counts_the_attempt_and_keeps_the_answer() -> None:
    result = outcome(envelope(1, attempts=2), ends((Kind.DEFERRED,)), Retry())
    assert result.remaining is not None
    assert result.remaining.attempts == 3
    assert result.remaining.due == 2000.0 + 1200.0
    assert result.remaining.last == ends((Kind.DEFERRED,))[0]


def test_after_the_last_attempt_a_deferral_is_a_failure_that_tells_the_last_answer() -> None:
    late = 1000.0 + Retry().give_up_after
    result = outcome(envelope(2), ends((Kind.DEFERRED, Kind.DELIVERED), late), Retry())
    assert result.remaining is None
    [(recipient, end)] = result.failed
    assert recipient.address == "u0@to.test"
    assert (end.kind, end.reply.code, end.reply.enhanced) == (Kind.FAILED, 554, "5.4.7")
    assert "450 4.2.0 busy" in end.reply.text


def test_notify_says_who_hears_of_a_failure() -> None:
    wanted = ["", "FAILURE", "SUCCESS,FAILURE", "FAILURE,DELAY"]
    unwanted = ["NEVER", "SUCCESS", "DELAY", "SUCCESS,DELAY"]
    assert all(wants_failure(Recipient("b@to.test", notify)) for notify in wanted)
    assert not any(wants_failure(Recipient("b@to.test", notify)) for notify in unwanted)
