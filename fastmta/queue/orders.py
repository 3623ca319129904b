"""What an operator wants done with mail, and which of it is in force now.

A hold stands until it is released; the others hold while their command runs, so that nothing
slips past it from one place in memory to another.
"""

from enum import StrEnum

from msgspec import Struct

from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue.selector import Selector

MAX_HOLDS = 1000  # that stand at a time

EVERY_WORKER = -1
# What a bounce says where the operator does not.
RETURNED = "550 5.7.1 returned by the operator"


class Action(StrEnum):
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    DELETE = "delete"
    BOUNCE = "bounce"
    REROUTE = "reroute"


class Order(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One command. Times are seconds since the epoch."""

    action: Action
    selector: Selector
    number: int = 0  # the supervisor gives it
    argument: str = ""  # reroute: next hop, "" is MX again; bounce: the reply
    reason: str = ""  # for the log and for other operators
    report: bool = True  # bounce: tell the sender
    until: float = 0.0  # hold: 0 is until it is released
    by: str = ""  # who gave it
    time: float = 0.0  # when
    worker: int = EVERY_WORKER
    hold: int = 0  # release: what this one keeps, and nothing else
    ends: tuple[int, ...] = ()  # release: the holds that it ends

    def concerns(self, worker: int) -> bool:
        return self.worker in (EVERY_WORKER, worker)

    def label(self) -> str:
        """What a held envelope says of why it waits."""
        return f"{self.number}: {self.reason}" if self.reason else str(self.number)

    @property
    def stops(self) -> bool:
        """Whether it is also for mail that is about to leave."""
        return self.action not in (Action.RELEASE, Action.RETRY)

    def changes(self, envelope: Envelope) -> bool:
        """Whether there is something to do; never True for what this order itself has made."""
        match self.action:
            case Action.HOLD | Action.RETRY:
                return not envelope.held
            case Action.RELEASE:
                return bool(envelope.held)
            case Action.REROUTE:
                return envelope.next_hop != self.argument
        return True


def held_by(envelope: Envelope) -> int:
    """The number of the hold that keeps an envelope; 0 where none does."""
    number = envelope.held.partition(":")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


class Tally(Struct):
    """How much an order has moved."""

    envelopes: int = 0
    recipients: int = 0


class Orders:
    """What is in force in one worker. `any` is all that mail costs while nothing is."""

    __slots__ = ("_holds", "_running", "_tallies", "any")

    def __init__(self) -> None:
        self._holds: dict[int, Order] = {}
        self._running: dict[int, Order] = {}
        self._tallies: dict[int, Tally] = {}
        self.any = False

    def stand(self, holds: list[Order]) -> None:
        """These holds, and no others, stand from now on."""
        self._holds = {hold.number: hold for hold in holds}
        self._refresh()

    def begin(self, order: Order) -> Tally:
        """A command begins: what moves meanwhile is caught, and counted."""
        # A hold is among those that stand. Release and retry are for what does not move.
        if order.action in (Action.DELETE, Action.BOUNCE, Action.REROUTE):
            self._running[order.number] = order
        self._refresh()
        return self._tallies.setdefault(order.number, Tally())

    def end(self, order: Order) -> None:
        self._running.pop(order.number, None)
        self._tallies.pop(order.number, None)
        self._refresh()

    def count(self, order: Order, envelope: Envelope) -> None:
        """The order was carried out on an envelope."""
        if tally := self._tallies.get(order.number):
            tally.envelopes += 1
            tally.recipients += len(envelope.recipients)

    def _refresh(self) -> None:
        self.any = bool(self._holds or self._running)

    def holds(self) -> list[Order]:
        return list(self._holds.values())

    def is_over(self, order: Order) -> bool:
        """Whether it is a hold that was released, maybe while it was still carried out."""
        return order.action is Action.HOLD and order.number not in self._holds

    def find(self, envelope: Envelope, site: str) -> Order | None:
        """What is to be done with an envelope instead of what was about to be done."""
        return self._match(self._running, envelope, site) or self.hold_for(envelope, site)

    def hold_for(self, envelope: Envelope, site: str) -> Order | None:
        """The oldest hold that stands for an envelope, if it is not held already."""
        return self._match(self._holds, envelope, site)

    def _match(self, among: dict[int, Order], envelope: Envelope, site: str) -> Order | None:
        for order in among.values():
            if order.changes(envelope) and order.selector.matches(envelope, site):
                return order
        return None


def released(order: Order, holds: list[Order]) -> list[Order]:
    """The holds that a release ends: the one it names, else those that its selector covers."""
    if order.hold:
        return [hold for hold in holds if hold.number == order.hold]
    return [
        hold
        for hold in holds
        if order.selector.covers(hold.selector) and order.worker in (EVERY_WORKER, hold.worker)
    ]


def expired(holds: list[Order], now: float) -> list[Order]:
    """The holds whose time is over."""
    return [hold for hold in holds if hold.until and hold.until <= now]


def parse_reply(text: str) -> Reply:
    """A reply for mail that is returned: "550 5.7.1 text", or the text alone; ValueError where it
    would not end the mail (RFC 5321 section 4.2.1), or is not one line that can be shown."""
    if not text.isprintable():
        raise ValueError("a reply is one line without control characters")
    first, _, rest = text.strip().partition(" ")
    if not (first.isascii() and first.isdigit() and len(first) == 3):
        return Reply(550, "5.7.1", text.strip() or RETURNED[10:])
    if first[0] != "5":
        raise ValueError(f"mail is returned with a reply of 500 to 599, not {first}")
    enhanced, _, words = rest.strip().partition(" ")
    if _is_enhanced(enhanced):
        return Reply(int(first), enhanced, words.strip() or RETURNED[10:])
    return Reply(int(first), "5.0.0", rest.strip() or RETURNED[10:])


def _is_enhanced(word: str) -> bool:
    """RFC 3463 section 2, of a permanent failure."""
    parts = word.split(".")
    return (
        len(parts) == 3
        and parts[0] == "5"
        and all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts)
    )
