"""One path as all workers share it: who has what of it, who waits, and who is next."""

from math import inf

from msgspec import Struct

from fastmta import metrics
from fastmta.config_reader import Rate
from fastmta.queue.adapt import Slowed, configured_rate, recover, slow_down, step_time
from fastmta.queue.limits import News, SharedLimits, SlowDown, Used, Word
from fastmta.queue.meter import LIFE, Meter

SLOWED = metrics.gauge("fastmta_paths_slowed", "Paths below their limits, as their hosts asked for")
SLOW_DOWNS = metrics.counter(
    "fastmta_slow_downs_total", "Times that a path was slowed, because its hosts asked for it"
)

TURN = 1.0  # seconds between two calls for a connection, of one path, while others wait
REMEMBER = 3600.0  # seconds for which a slow-down is remembered of a path that nobody uses

Words = list[tuple[int, Word]]  # (worker, what it is told)


class Cause(Struct, frozen=True):
    """The reply that lowered a path's limits."""

    time: float  # seconds since the epoch
    reply: str
    rule: str  # that took it for a wish to slow down


class PathReport(Struct, frozen=True):
    """How a path stands, for people; rates in messages a second, None where there is none.

    Times are in seconds from now; 0: at once.
    """

    path: str
    site: str
    source: str
    open: int  # connections, of all workers
    connections: int  # that may be open now
    configured_connections: int
    rate: float | None
    configured_rate: float | None
    waiting_to_connect: int  # workers
    waiting_to_send: int
    next_connection: float  # when the connection rate lets one be opened
    next_message: float  # when the rate lets a transaction begin
    next_step: float  # when a slowed path may be raised, if it delivers
    slowed: Cause | None  # what set the present values, where they are below the limits


class _Share:
    """What one worker has of the path."""

    __slots__ = ("delivered", "held", "limits", "mode", "recalled", "visit")

    def __init__(self, visit: int, limits: SharedLimits) -> None:
        self.visit = visit
        self.limits = limits
        self.held = 0  # connections that are permitted to it
        self.recalled = 0  # of those, called back and not returned yet
        self.mode: tuple[bool, bool] | None = None  # paced and slowed, as it was last told


class SharedPath:
    """All its connections are permitted here; no more than allowed are ever permitted at once.

    A limit that is lowered, by configuration or because hosts asked for it, holds for all that
    is permitted from then on; connections above it are called back. Where workers know different
    limits, because they have not all read the new configuration, the strictest hold.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.site = self.source = ""
        self.slowed: Slowed | None = None
        self._shares: dict[int, _Share] = {}
        self._connecting: dict[int, None] = {}  # workers that wait, the first longest
        self._sending: dict[int, None] = {}
        self._limits = SharedLimits(0, None, None)
        self._opens: Meter | None = None
        self._sends: Meter | None = None
        self._delivered = 0  # since the allowance last changed
        self._turn = -inf  # when a connection was last called back for others
        self._used = now

    # What workers say.

    def hear(self, worker: int, news: News, now: float) -> None:
        """Take in what a worker says; `serve` says what follows."""
        self._used = now
        if news.site:
            self.site, self.source = news.site, news.source
        self._close(self._opens, worker, news.opened)
        self._close(self._sends, worker, news.begun)
        share = self._share(worker, news)
        share.held -= news.ended
        share.recalled = max(0, share.recalled - news.ended)
        if news.limits is not None:
            share.limits = news.limits
            self._set_limits(now)
        self._delivered += news.delivered
        if news.slow_down is not None:
            self._slow_down(share, news.slow_down, now)
        if news.wants_connection:
            self._connecting[worker] = None
        if news.wants_messages:
            self._sending[worker] = None
        if news.gone:
            self.leave(worker, now)

    def leave(self, worker: int, now: float) -> None:
        """The worker has forgotten the path, or is dead: all that it had is free."""
        for meter in (self._opens, self._sends):
            if meter is not None:
                meter.void(worker)
        self._shares.pop(worker, None)
        self._connecting.pop(worker, None)
        self._sending.pop(worker, None)
        if self._shares:
            self._set_limits(now)

    def _share(self, worker: int, news: News) -> _Share:
        share = self._shares.get(worker)
        if share is None:
            limits = news.limits or self._limits
            share = self._shares[worker] = _Share(news.visit, limits)
        return share

    @staticmethod
    def _close(meter: Meter | None, worker: int, used: Used | None) -> None:
        if meter is not None and used is not None:
            meter.close(worker, used.count, used.last)

    # What is allowed now.

    @property
    def connections(self) -> int:
        most = self._limits.connections
        return min(most, self.slowed.connections) if self.slowed else most

    @property
    def rate(self) -> float | None:
        """Messages a second; None: as many as the connections carry."""
        rates = [configured_rate(self._limits), self.slowed.rate if self.slowed else None]
        return min((rate for rate in rates if rate is not None), default=None)

    def _set_limits(self, now: float) -> None:
        limits = strictest([share.limits for share in self._shares.values()])
        if limits != self._limits:
            self._limits = limits
            self._set_meters(now)

    def _set_meters(self, now: float) -> None:
        limits = self._limits
        opens = limits.connection_rate
        pace = opens.events / opens.seconds if opens else None
        self._opens = _meter(self._opens, opens, pace, now)
        self._sends = _meter(self._sends, limits.message_rate, self.rate, now)

    # Adapting.

    def _slow_down(self, share: _Share, cause: SlowDown, now: float) -> None:
        # Transactions are spread as connections are, so one worker's rate tells that of all.
        measured = cause.rate * max(1.0, self._held() / max(1, share.held))
        before = self.slowed
        self.slowed = slow_down(self._limits, before, cause, measured, now)
        if before is None or self.slowed.changed != before.changed:
            SLOW_DOWNS.value += 1
            self._allowance_changed(before, now)

    def _recover(self, now: float) -> None:
        before = self.slowed
        if before is None:
            return
        self.slowed, changed = recover(self._limits, before, self._delivered, now)
        if changed:
            self._allowance_changed(before, now)

    def _allowance_changed(self, before: Slowed | None, now: float) -> None:
        SLOWED.value += (self.slowed is not None) - (before is not None)
        self._delivered = 0
        self._set_meters(now)

    # Who gets what.

    def serve(self, now: float) -> Words:
        """Give what there is to those who wait; what each worker is to be told."""
        self._recover(now)
        words: Words = []
        self._grant_connections(words, now)
        self._call_back(words, now)
        self._grant_messages(words, now)
        for worker, share in self._shares.items():
            if share.mode not in (None, self._mode()):
                self._tell(words, worker)
        return words

    def _held(self) -> int:
        return sum(share.held for share in self._shares.values())

    def _mode(self) -> tuple[bool, bool]:
        return self._sends is not None, self.slowed is not None

    def _tell(
        self,
        words: Words,
        worker: int,
        *,
        connection: bool = False,
        messages: int = 0,
        until: float = 0.0,
        recall: int = 0,
    ) -> None:
        share = self._shares[worker]
        share.mode = paced, slowed = self._mode()
        word = Word(
            path=self.name,
            visit=share.visit,
            paced=paced,
            slowed=slowed,
            connection=connection,
            messages=messages,
            until=until,
            recall=recall,
        )
        words.append((worker, word))

    def _grant_connections(self, words: Words, now: float) -> None:
        free = self.connections - self._held()
        while self._connecting and free > 0:
            # Who has least, and of those who has waited longest.
            worker = min(self._connecting, key=lambda each: self._shares[each].held)
            if self._opens is not None and not self._opens.take(worker, now):
                return
            del self._connecting[worker]
            self._shares[worker].held += 1
            free -= 1
            self._tell(words, worker, connection=True, until=now + LIFE)

    def _call_back(self, words: Words, now: float) -> None:
        recalled = sum(share.recalled for share in self._shares.values())
        excess = self._held() - recalled - self.connections
        while excess > 0:
            self._recall(words, self._richest())
            excess -= 1
        if now >= self._turn_time():
            self._turn = now
            self._recall(words, self._richest())

    def _recall(self, words: Words, worker: int) -> None:
        self._shares[worker].recalled += 1
        self._tell(words, worker, recall=1)

    def _richest(self) -> int:
        return max(self._shares, key=self._keeps)

    def _keeps(self, worker: int) -> int:
        share = self._shares[worker]
        return share.held - share.recalled

    def _turn_time(self) -> float:
        """When a connection is to be called back for a worker that has fewer; inf: no need."""
        if not self._connecting or self._held() < self.connections:
            return inf
        if sum(share.recalled for share in self._shares.values()) >= len(self._connecting):
            return inf
        most = self._keeps(self._richest())
        least = min(self._shares[worker].held for worker in self._connecting)
        fair = most <= least + 1 and (least > 0 or most == 0)
        return inf if fair else self._turn + TURN

    def _grant_messages(self, words: Words, now: float) -> None:
        while self._sending:
            worker = next(iter(self._sending))
            count = 0
            if self._sends is not None and not (count := self._sends.take(worker, now)):
                return
            del self._sending[worker]
            self._tell(words, worker, messages=count, until=now + LIFE)

    # Time.

    def next_time(self, now: float) -> float:
        """When `serve` may have something to do, if nobody says anything; inf: never."""
        times = [self._turn_time()]
        if self._connecting and self._opens is not None and self._held() < self.connections:
            times.append(self._opens.next_time(now))
        if self._sending and self._sends is not None:
            times.append(self._sends.next_time(now))
        if self.slowed is not None and self._delivered:
            times.append(step_time(self.slowed))
        return min(times)

    def has(self, worker: int) -> bool:
        return worker in self._shares

    def is_unused(self) -> bool:
        return not self._shares

    def is_over(self, now: float) -> bool:
        """Nobody uses it, and nothing of it matters any more."""
        if self._shares or (self.slowed is not None and now < self._used + REMEMBER):
            return False
        return all(meter is None or meter.is_clear(now) for meter in (self._opens, self._sends))

    def weight(self) -> tuple[bool, int, int]:
        """By which paths are sorted for people: the largest tells them most."""
        return self.slowed is not None, self._held(), len(self._sending)

    def end(self) -> None:
        """It is forgotten."""
        SLOWED.value -= self.slowed is not None

    def report(self, now: float) -> PathReport:
        return PathReport(
            path=self.name,
            site=self.site,
            source=self.source,
            open=self._held(),
            connections=self.connections,
            configured_connections=self._limits.connections,
            rate=self.rate,
            configured_rate=configured_rate(self._limits),
            waiting_to_connect=len(self._connecting),
            waiting_to_send=len(self._sending),
            next_connection=_left(self._opens.next_time(now) if self._opens else now, now),
            next_message=_left(self._sends.next_time(now) if self._sends else now, now),
            next_step=_left(step_time(self.slowed) if self.slowed else now, now),
            slowed=_cause(self.slowed.cause) if self.slowed else None,
        )


def strictest(limits: list[SharedLimits]) -> SharedLimits:
    return SharedLimits(
        connections=min(each.connections for each in limits),
        connection_rate=_lowest([each.connection_rate for each in limits]),
        message_rate=_lowest([each.message_rate for each in limits]),
    )


def _cause(said: SlowDown) -> Cause:
    return Cause(said.time, said.reply, said.rule)


def _left(time: float, now: float) -> float:
    return round(max(0.0, time - now), 3)


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
