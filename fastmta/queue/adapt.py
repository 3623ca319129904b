"""How a path slows down when its hosts ask for it, and recovers: pure functions of what was heard.

A slow-down halves connections and rate, at most once in HOLD seconds, because the replies to
what was under way say the same thing again. Then each STEP seconds without another, and with
deliveries, give back a tenth of the limit, until it is whole.
"""

from collections.abc import Iterable

from msgspec import Struct, structs

from fastmta.config_shaping import SlowDownRule, compile_pattern, together
from fastmta.mail.reply import Reply
from fastmta.queue.limits import SharedLimits, SlowDown

HOLD = 30.0  # seconds after a slow-down in which another changes nothing
STEP = 60.0
STEPS = 10  # from nothing to the whole limit
LEAST = 1 / 60  # messages a second: a path is slowed to this, but never stopped
_NEARLY = 1 - 1e-6  # of a rate: what rounding may cost it
_LONGEST = 1000  # characters of a reply that the patterns see


class Slowed(Struct, frozen=True):
    """A path's present allowance, below the configured one; times of the arbiter's clock."""

    connections: int
    rate: float | None  # messages a second; None: only connections are fewer
    whole: float | None  # the rate that it is to recover to; None: not known
    changed: float
    heard: float  # the last slow-down, also one that changed nothing
    cause: SlowDown  # what set the present values


def configured_rate(limits: SharedLimits) -> float | None:
    rate = limits.message_rate
    return rate.events / rate.seconds if rate else None


def slow_down(
    limits: SharedLimits, present: Slowed | None, cause: SlowDown, measured: float, now: float
) -> Slowed:
    """After a reply that asks for less; `measured` is the path's rate lately."""
    if present is None:
        present = Slowed(limits.connections, None, None, now, now, cause)
    elif now < present.changed + HOLD:
        return structs.replace(present, heard=now)
    whole = configured_rate(limits) or present.whole or measured or None
    return Slowed(
        connections=max(1, min(present.connections, limits.connections) // 2),
        rate=None if whole is None else _halved(present.rate or whole, whole),
        whole=whole,
        changed=now,
        heard=now,
        cause=cause,
    )


def _halved(rate: float, whole: float) -> float:
    return max(min(rate, whole) / 2, min(LEAST, whole))


def recover(
    limits: SharedLimits, present: Slowed, delivered: int, now: float
) -> tuple[Slowed | None, bool]:
    """The allowance as time goes by, None when it is whole again; and whether it has changed."""
    if now < step_time(present) or not delivered:
        return present, False
    whole = configured_rate(limits) or present.whole
    connections = present.connections + max(1, limits.connections // STEPS)
    rate = None if present.rate is None or whole is None else present.rate + whole / STEPS
    rate_is_whole = rate is None or whole is None or rate >= whole * _NEARLY
    if connections >= limits.connections and rate_is_whole:
        return None, True
    return structs.replace(
        present,
        connections=min(connections, limits.connections),
        rate=rate if whole is None or rate is None else min(rate, whole),
        whole=whole,
        changed=now,
    ), True


def step_time(present: Slowed) -> float:
    """When the next step up may come."""
    return max(present.changed, present.heard) + STEP


class SlowDownRules:
    """Which replies mean "slow down"."""

    def __init__(self, rules: Iterable[SlowDownRule]) -> None:
        self._rules = list(rules)
        self._of_provider: dict[str, _Rules] = {}

    def match(self, reply: Reply, provider: str) -> str | None:
        """The first rule that takes a reply for a slow-down, as people may read it."""
        rules = self._of_provider.get(provider)
        if rules is None:
            own = [rule for rule in self._rules if rule.provider in ("", provider)]
            rules = self._of_provider[provider] = _Rules(own)
        return rules.match(reply)


class _Rules:
    """Those of one provider. Most replies fit none: one search in the words says so of all."""

    __slots__ = ("_any", "_rules")

    def __init__(self, rules: list[SlowDownRule]) -> None:
        self._rules = [(each, compile_pattern(each.pattern).search) for each in rules]
        self._any = together(rules).search

    def match(self, reply: Reply) -> str | None:
        text = str(reply)[:_LONGEST].lower().encode("utf-8", "replace")
        fits = self._any(text) is not None
        for rule, search in self._rules:
            if rule.enhanced in ("", reply.enhanced) and (
                not rule.pattern or (fits and search(text) is not None)
            ):
                return str(rule)
        return None
