"""How fast mail leaves by one path: counted for each attempt, summed up once a second."""

FEW = 4  # deliveries that say nothing of a pace yet
SWEEPS = 10  # seconds over which rates are averaged
QUICK = 1000.0  # deliveries a second that keep a worker busy
CROWD = 0.05  # seconds of such deliveries that may wait: see `Flow`


class Pace:
    """Attempts since the last sweep, and what they were before; rates are a second's."""

    def __init__(self, now: float) -> None:
        """Times are the loop's, in seconds."""
        self.delivered = self.deferred = self.failed = 0  # since the last sweep
        self.lately = 0  # delivered between the last two sweeps
        self.usual = 0.0  # the same, falling slowly
        self.delivered_rate = self.deferred_rate = 0.0  # the second counts failures too
        self._swept = now

    def now(self, now: float) -> float:
        """Deliveries a second since the last sweep: it does not wait for the second to end."""
        if self.delivered < FEW:
            return self.delivered
        return max(self.delivered, self.delivered / max(0.01, now - self._swept))

    def crowd(self, now: float) -> int:
        """So many that wait are too many, as mail leaves fast; 0: it does not."""
        pace = max(self.lately, self.now(now))
        return int(pace * CROWD) if pace >= QUICK else 0

    def sweep(self, now: float) -> None:
        """Once a second, before `take`."""
        self.lately, self._swept = self.delivered, now
        self.usual = max(self.delivered, (self.usual + self.delivered) / 2)
        self.delivered_rate += (self.delivered - self.delivered_rate) / SWEEPS
        self.deferred_rate += (self.deferred + self.failed - self.deferred_rate) / SWEEPS

    def take(self) -> tuple[int, int, int]:
        """Delivered, deferred and failed since this was last asked for."""
        ends = self.delivered, self.deferred, self.failed
        self.delivered = self.deferred = self.failed = 0
        return ends
