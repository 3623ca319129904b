"""What an order does to an envelope."""

import pytest

from fastmta import log
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.queue.execution import execute
from fastmta.queue.orders import RETURNED, Action, Order, held_by, parse_reply
from fastmta.queue.selector import Selector
from tests.queue.mail import envelope

NOW = 2000.0
TWO = envelope(
    1, recipients=[Recipient("a@a.test"), Recipient("b@a.test")], attempts=3, next_hop="old:25"
)


def order(action: Action, **fields: object) -> Order:
    standard = {"number": 7, "by": "eve", "reason": "complaints"}
    return Order(action=action, selector=Selector(), **standard | fields)  # type: ignore[arg-type]


def test_hold() -> None:
    done = execute(order(Action.HOLD), TWO, NOW)
    assert done.remaining is not None
    assert (done.remaining.held, done.remaining.due) == ("7: complaints", 5000.0)
    assert held_by(done.remaining) == 7
    assert not done.failed
    (event,) = done.events
    assert isinstance(event, log.Held)
    assert (event.order, event.by, event.reason) == (7, "eve", "complaints")
    assert event.recipients == ["a@a.test", "b@a.test"]


def test_hold_of_what_was_never_deferred_makes_it_wait() -> None:
    done = execute(order(Action.HOLD, reason=""), envelope(1, due=0.0), NOW)
    assert done.remaining is not None
    assert (done.remaining.held, done.remaining.due) == ("7", NOW)
    assert held_by(done.remaining) == 7


@pytest.mark.parametrize("action", [Action.RELEASE, Action.RETRY, Action.REROUTE])
def test_it_is_due_now_with_its_history(action: Action) -> None:
    done = execute(order(action, argument="192.0.2.1:25"), TWO, NOW)
    assert done.remaining is not None
    assert (done.remaining.due, done.remaining.attempts) == (NOW, 3)
    assert done.remaining.received == TWO.received  # expiry counts from there
    assert [type(event).__name__ for event in done.events] == [
        {"release": "Released", "retry": "Retried", "reroute": "Rerouted"}[action]
    ]


def test_only_a_release_ends_a_hold() -> None:
    held = envelope(1, held="3: why")
    release = execute(order(Action.RELEASE), held, NOW).remaining
    reroute = execute(order(Action.REROUTE, argument="192.0.2.1:25"), held, NOW).remaining
    assert release is not None and release.held == ""
    assert reroute is not None
    assert (reroute.held, reroute.next_hop) == ("3: why", "192.0.2.1:25")


def test_reroute_to_mx() -> None:
    done = execute(order(Action.REROUTE), TWO, NOW)
    assert done.remaining is not None and done.remaining.next_hop == ""


def test_delete_says_so_for_each_recipient() -> None:
    done = execute(order(Action.DELETE), TWO, NOW)
    assert (done.remaining, done.failed) == (None, [])
    assert [event.recipient for event in done.events if isinstance(event, log.Deleted)] == [
        "a@a.test",
        "b@a.test",
    ]


def test_bounce() -> None:
    done = execute(order(Action.BOUNCE, argument="551 5.7.9 go away"), TWO, NOW)
    assert done.remaining is None
    assert [type(event) for event in done.events] == [log.Returned]
    assert [recipient.address for recipient, _ in done.failed] == ["a@a.test", "b@a.test"]
    assert {str(end.reply) for _, end in done.failed} == {"551 5.7.9 go away"}


def test_bounce_without_report_is_what_a_sender_may_ask_for_too() -> None:
    done = execute(order(Action.BOUNCE, argument=RETURNED, report=False), TWO, NOW)
    assert {recipient.notify for recipient, _ in done.failed} == {"NEVER"}


@pytest.mark.parametrize(
    ("action", "fields", "changes"),
    [
        (Action.HOLD, {}, True),
        (Action.HOLD, {"held": "3"}, False),
        (Action.RELEASE, {}, False),
        (Action.RELEASE, {"held": "3"}, True),
        (Action.RETRY, {}, True),
        (Action.RETRY, {"held": "3"}, False),
        (Action.REROUTE, {}, True),
        (Action.REROUTE, {"next_hop": "new:25"}, False),
        (Action.DELETE, {"held": "3"}, True),
        (Action.BOUNCE, {"held": "3"}, True),
    ],
)
def test_what_there_is_to_do(action: Action, fields: dict[str, str], changes: bool) -> None:
    assert order(action, argument="new:25").changes(envelope(1, **fields)) is changes


@pytest.mark.parametrize("action", [Action.HOLD, Action.RELEASE, Action.REROUTE])
def test_nothing_is_left_to_do_after_it(action: Action) -> None:
    """Else an order in force would take what it made for new, again and again."""
    one = order(action, argument="new:25")
    before: Envelope | None = envelope(1, held="3" if action is Action.RELEASE else "")
    assert before is not None
    after = execute(one, before, NOW).remaining
    assert after is not None
    assert not one.changes(after)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("550 5.7.1 returned by the operator", Reply(550, "5.7.1", "returned by the operator")),
        ("554 sorry", Reply(554, "5.0.0", "sorry")),
        ("554", Reply(554, "5.0.0", "returned by the operator")),
        ("554 5.7.1", Reply(554, "5.7.1", "returned by the operator")),
        ("554 4.7.1 odd", Reply(554, "5.0.0", "4.7.1 odd")),
        ("sent by mistake", Reply(550, "5.7.1", "sent by mistake")),
        ("", Reply(550, "5.7.1", "returned by the operator")),
    ],
)
def test_a_reply_as_an_operator_writes_it(text: str, reply: Reply) -> None:
    assert parse_reply(text) == reply


def test_mail_is_not_returned_with_a_reply_that_means_wait() -> None:
    with pytest.raises(ValueError, match="500 to 599, not 450"):
        parse_reply("450 4.2.0 later")


@pytest.mark.parametrize("text", ["550 5.1.1 a\r\nb", "a\x1b[2Jb", "a\u202eb"])
def test_a_reply_that_is_returned_can_be_shown(text: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        parse_reply(text)
