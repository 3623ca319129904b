"""What may be had of one key: its limits as configured, and as hosts have lowered them."""

from fastmta import metrics
from fastmta.config_reader import Rate
from fastmta.queue.adapt import Slowed, configured_rate, recover, slow_down, step_time
from fastmta.queue.limits import SharedLimits, SlowDown
from fastmta.queue.meter import Meter

SLOWED = metrics.gauge("fastmta_paths_slowed", "Paths below their limits, as their hosts asked for")
SLOW_DOWNS = metrics.counter(
    "fastmta_slow_downs_total", "Times that a path was slowed, because its hosts asked for it"
)


class Budget:
    """Of a path, or of a group of paths; who has what of it is not known here."""

    def __init__(self) -> None:
        self.limits = SharedLimits(0, None, None)
        self.slowed: Slowed | None = None
        self.opens: Meter | None = None  # of connections
        self.sends: Meter | None = None  # of transactions
        self.delivered = 0  # since the allowance last changed

    @property
    def connections(self) -> int:
        most = self.limits.connections
        return min(most, self.slowed.connections) if self.slowed else most

    @property
    def rate(self) -> float | None:
        """Messages a second; None: as many as the connections carry."""
        rates = [configured_rate(self.limits), self.slowed.rate if self.slowed else None]
        return min((rate for rate in rates if rate is not None), default=None)

    def set_limits(self, limits: SharedLimits, now: float) -> None:
        if limits != self.limits:
            self.limits = limits
            self._set_meters(now)

    def _set_meters(self, now: float) -> None:
        limits = self.limits
        opens = limits.connection_rate
        pace = opens.events / opens.seconds if opens else None
        self.opens = _meter(self.opens, opens, pace, now)
        self.sends = _meter(self.sends, limits.message_rate, self.rate, now)

    def slow_down(self, cause: SlowDown, measured: float, now: float) -> None:
        before = self.slowed
        self.slowed = slow_down(self.limits, before, cause, measured, now)
        if before is None or self.slowed.changed != before.changed:
            SLOW_DOWNS.value += 1
            self._allowance_changed(before, now)

    def recover(self, now: float) -> None:
        before = self.slowed
        if before is None:
            return
        self.slowed, changed = recover(self.limits, before, self.delivered, now)
        if changed:
            self._allowance_changed(before, now)

    def _allowance_changed(self, before: Slowed | None, now: float) -> None:
        SLOWED.value += (self.slowed is not None) - (before is not None)
        self.delivered = 0
        self._set_meters(now)

    def recovers_at(self) -> float | None:
        """When `recover` has something to do; None: that is not known yet."""
        return step_time(self.slowed) if self.slowed is not None and self.delivered else None

    def is_clear(self, now: float) -> bool:
        """Whether nothing is remembered that its rates count."""
        return all(meter is None or meter.is_clear(now) for meter in (self.opens, self.sends))

    def end(self) -> None:
        """It is forgotten."""
        SLOWED.value -= self.slowed is not None


def strictest(limits: list[SharedLimits]) -> SharedLimits:
    return SharedLimits(
        connections=min(each.connections for each in limits),
        connection_rate=_lowest([each.connection_rate for each in limits]),
        message_rate=_lowest([each.message_rate for each in limits]),
    )


def _lowest(rates: list[Rate | None]) -> Rate | None:
    known = [rate for rate in rates if rate is not None]
    return min(known, key=lambda rate: rate.events / rate.seconds, default=None)


def _meter(meter: Meter | None, rate: Rate | None, pace: float | None, now: float) -> Meter | None:
    """The meter for a rate, with what the old one remembers; None where nothing is metered."""
    if pace is None:
        return None
    if meter is None:
        return Meter(rate, pace, now)
    meter.set(rate, pace, now)
    return meter
