"""What an order does to one envelope: pure, so that a test can print it."""

from typing import Any, NamedTuple

from msgspec.structs import replace

from fastmta import log as events
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.queue.orders import Action, Order, parse_reply


class Execution(NamedTuple):
    remaining: Envelope | None  # what stays in the queue
    failed: list[tuple[Recipient, Disposition]]  # whom the operator gave up
    events: list[events.Event]  # for the disposition log, but for what it says of `failed`


def execute(order: Order, envelope: Envelope, now: float) -> Execution:
    """An envelope that the order matches and changes (`Order.changes`)."""
    match order.action:
        case Action.HOLD:
            held = replace(envelope, held=order.label(), due=envelope.due or now)
            return Execution(held, [], [events.Held(**_told(order, envelope, now))])
        case Action.RELEASE:
            free = replace(envelope, held="", due=now)
            return Execution(free, [], [events.Released(**_told(order, envelope, now))])
        case Action.RETRY:
            due = replace(envelope, due=now)
            return Execution(due, [], [events.Retried(**_told(order, envelope, now))])
        case Action.REROUTE:
            return _reroute(order, envelope, now)
        case Action.BOUNCE:
            reply = parse_reply(order.argument)
            end = Disposition(Kind.FAILED, reply, "", now, by_operator=True)
            failed = [(_heard(order, each), end) for each in envelope.recipients]
            return Execution(None, failed, [events.Returned(**_told(order, envelope, now))])
        case Action.DELETE:
            return Execution(None, [], [*_deletions(order, envelope, now)])


def _heard(order: Order, recipient: Recipient) -> Recipient:
    """As if the sender had asked for silence, where the operator does (RFC 3461 section 4.1)."""
    return recipient if order.report else replace(recipient, notify="NEVER")


def _reroute(order: Order, envelope: Envelope, now: float) -> Execution:
    """What is held stays held: only a release ends that."""
    moved = replace(envelope, next_hop=order.argument, due=now)
    told = _told(order, envelope, now)
    return Execution(moved, [], [events.Rerouted(**told, next_hop=order.argument)])


def _deletions(order: Order, envelope: Envelope, now: float) -> list[events.Event]:
    told = _told(order, envelope, now)
    del told["recipients"]
    return [events.Deleted(**told, recipient=each.address) for each in envelope.recipients]


def _told(order: Order, envelope: Envelope, now: float) -> dict[str, Any]:
    return {
        "time": now,
        "id": envelope.id,
        "sender": envelope.sender,
        "recipients": [recipient.address for recipient in envelope.recipients],
        "domain": envelope.domain,
        "order": order.number,
        "by": order.by,
        "reason": order.reason,
    }
