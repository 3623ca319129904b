"""A worker's side of the limits that it shares: what it was granted, and what it asks for."""

import time
from collections.abc import Callable
from typing import Protocol

from fastmta.mail.reply import Reply
from fastmta.queue.adapt import SlowDownRules
from fastmta.queue.arbiter import Answers, Arbiter
from fastmta.queue.limits import (
    Answer,
    Holder,
    News,
    Request,
    Shape,
    SharedLimits,
    SlowDown,
    Used,
    Word,
)
from fastmta.queue.requests import Allowance, Allowances

SWEEP = 1.0  # seconds
MARKS = 10  # sweeps between two marks of what was delivered
_SHOWN = 300  # characters of a reply that people are shown


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """What is needed of an event loop."""

    def call_soon(self, callback: Callable[[], None], /) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class _Held:
    """One path of this worker: what it has, what it waits for, and what is not told yet."""

    __slots__ = (
        "asks_to_connect",
        "asks_to_send",
        "begun",
        "delivered",
        "ended",
        "holder",
        "known",
        "last",
        "limits",
        "marks",
        "offer",
        "opened",
        "paced",
        "shape",
        "slow_down",
        "slowed",
        "tokens",
        "told",
        "until",
        "visit",
        "waits_to_connect",
        "waits_to_send",
    )

    def __init__(self, shape: Shape, holder: Holder, visit: int, now: float) -> None:
        self.shape = shape
        self.holder = holder
        self.visit = visit
        self.known = False  # whether the arbiter was told of it
        self.limits: SharedLimits | None = shape.limits.shared  # not told yet
        self.paced = shape.is_paced
        self.slowed = False
        # What is waited for is asked once: each asking is answered by one grant.
        # Connections: an offer is a connection that may be opened until then.
        self.waits_to_connect = self.asks_to_connect = False
        self.offer = 0.0
        self.opened: Used | None = None
        self.ended = 0
        # Transactions: so many tokens until then; of that grant, so many begun, the last when.
        self.waits_to_send = self.asks_to_send = False
        self.tokens = 0
        self.until = 0.0
        self.begun = 0
        self.last = 0.0
        # Deliveries, counted from the first; how many at a time, and how many were told.
        self.delivered = 0
        self.told = 0
        self.marks = (0, now), (0, now)
        self.slow_down: SlowDown | None = None

    def rate(self, now: float) -> float:
        """Messages a second delivered lately: in the last 10 to 20 seconds."""
        count, since = self.marks[0]
        return (self.delivered - count) / max(1.0, now - since)

    def news(self) -> News:
        """All that is not told yet; then it is."""
        news = News(
            path=self.shape.path,
            visit=self.visit,
            site="" if self.known else self.shape.site,
            source="" if self.known else self.shape.source,
            limits=self.limits,
            group=self.shape.group if self.limits is not None else None,
            wants_connection=self.asks_to_connect,
            opened=self.opened,
            ended=self.ended,
            wants_messages=self.asks_to_send,
            begun=self._begun(),
            delivered=self.delivered - self.told if self.slowed else 0,
            slow_down=self.slow_down,
        )
        self.known = True
        self.limits = self.opened = self.slow_down = None
        self.asks_to_connect = self.asks_to_send = False
        self.ended = 0
        self.told = self.delivered
        return news

    def _begun(self) -> Used | None:
        """The grant of transactions is over when nothing is left of it."""
        if self.tokens or not self.until:
            return None
        used = Used(self.begun, self.last)
        self.until, self.begun = 0.0, 0
        return used


class SharedPermits:
    """The `Permits` of one worker; asks through `send`, at most once an iteration of the loop."""

    def __init__(
        self,
        send: Callable[[Request], None],
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
        rules: SlowDownRules | None = None,
    ) -> None:
        self.rules = rules or SlowDownRules([])  # a reload may put others here
        self._send = send
        self._timers = timers
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._changed: dict[_Held, None] = {}  # with something to tell
        self._gone: list[News] = []
        self._visits = 0
        self._flushing = False
        self._sweeping = False
        self._sweeps = 0

    # What paths ask.

    def connect(self, shape: Shape, holder: Holder) -> bool:
        held = self._of(shape, holder)
        if held.offer:
            held.waits_to_connect = False
            if self._take_offer(held, self._clock()):
                return True
        if not held.waits_to_connect:
            held.waits_to_connect = held.asks_to_connect = True
            self._tell(held)
        return False

    def disconnect(self, shape: Shape, holder: Holder) -> None:
        held = self._held.get(shape.path)
        if held is not None:
            held.ended += 1
            self._tell(held)

    def send(self, shape: Shape, holder: Holder) -> bool:
        held = self._held.get(shape.path)
        if held is not None and held.shape is shape and not held.paced:
            return True
        return self._send_paced(shape, holder)

    def heard(self, shape: Shape, reply: Reply) -> None:
        held = self._held.get(shape.path)
        if held is not None:
            if reply.code < 400:
                held.delivered += 1
            elif rule := self.rules.match(reply, shape.provider):
                rate = held.rate(self._clock())
                held.slow_down = SlowDown(time.time(), str(reply)[:_SHOWN], rule, rate)
                self._tell(held)

    def forget(self, shape: Shape, holder: Holder) -> None:
        held = self._held.pop(shape.path, None)
        if held is None:
            return
        if held.offer:
            self._refuse_offer(held)
        self._changed.pop(held, None)
        if held.known:
            held.tokens = 0
            news = held.news()
            news.gone = True
            self._gone.append(news)
            self._flush_soon()

    def _send_paced(self, shape: Shape, holder: Holder) -> bool:
        held = self._of(shape, holder)
        if not held.paced:
            return True
        now = self._clock()
        if held.tokens and now < held.until:
            held.tokens -= 1
            held.begun += 1
            held.last = now
            return True
        held.tokens = 0
        if not held.waits_to_send:
            held.waits_to_send = held.asks_to_send = True
            self._tell(held)
        return False

    def _of(self, shape: Shape, holder: Holder) -> _Held:
        held = self._held.get(shape.path)
        if held is None:
            self._visits += 1
            held = _Held(shape, holder, self._visits, self._clock())
            self._held[shape.path] = held
            self._sweep_later()
        elif held.shape is not shape:
            self._reshape(held, shape)
        return held

    def _reshape(self, held: _Held, shape: Shape) -> None:
        """The configuration was read anew, or the shape only made anew."""
        if (shape.limits.shared, shape.group) != (held.shape.limits.shared, held.shape.group):
            held.limits = shape.limits.shared
            held.paced = held.paced or shape.is_paced
            self._tell(held)
        held.shape = shape

    def _take_offer(self, held: _Held, now: float) -> bool:
        """Open the connection that was offered, or give it back where that came too late."""
        in_time = now < held.offer
        held.opened = Used(int(in_time), now)
        held.ended += not in_time
        held.offer = 0.0
        self._tell(held)
        return in_time

    # What the arbiter answers.

    def receive(self, answer: Answer) -> None:
        for word in answer.words:
            held = self._held.get(word.path)
            if held is not None and held.visit == word.visit:
                self._take(held, word)

    def _take(self, held: _Held, word: Word) -> None:
        if word.slowed and not held.slowed:
            held.told = held.delivered
        # What was said before the arbiter knew of a new rate does not lift it.
        held.paced = word.paced or held.shape.is_paced
        held.slowed = word.slowed
        if word.connection:
            held.offer = word.until
        if word.messages:
            held.tokens, held.until, held.begun = word.messages, word.until, 0
        for _ in range(word.recall):
            self._recall(held)
        may_send = held.waits_to_send and (held.tokens or not held.paced)
        if may_send:
            held.waits_to_send = False
        if held.offer or may_send:
            held.holder.wake()

    def _recall(self, held: _Held) -> None:
        if held.offer:
            self._refuse_offer(held)
        else:
            held.holder.recall()

    def _refuse_offer(self, held: _Held) -> None:
        held.waits_to_connect = False
        self._take_offer(held, held.offer)

    # Telling, and time.

    def _tell(self, held: _Held) -> None:
        self._changed[held] = None
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._timers.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        news, self._gone = self._gone, []
        news += [held.news() for held in self._changed]
        self._changed.clear()
        if news:
            self._send(Request(news))

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._timers.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Once a second: what was not used goes back, and what helps slowed paths is told."""
        self._sweeping = False
        now = self._clock()
        self._sweeps += 1
        for held in self._held.values():
            if held.offer and held.offer <= now:
                self._refuse_offer(held)
            if held.until and held.until <= now:
                held.tokens = 0
                self._tell(held)
            if held.slowed and held.delivered > held.told:
                self._tell(held)
            if self._sweeps % MARKS == 0:
                held.marks = held.marks[1], (held.delivered, now)
        if self._held:
            self._sweep_later()


class ArbiterLoop:
    """The arbiter on an event loop: it takes requests, delivers answers and keeps the time."""

    def __init__(
        self, arbiter: Arbiter, deliver: Callable[[int, Answer], None], timers: Timers
    ) -> None:
        self.arbiter = arbiter
        self._deliver = deliver
        self._timers = timers
        self._timer: Timer | None = None
        self._time: float | None = None

    def handle(self, worker: int, request: Request) -> None:
        self._answer(self.arbiter.handle(worker, request))

    def gone(self, worker: int) -> None:
        """The worker is dead: all that it had is free."""
        self._answer(self.arbiter.gone(worker))

    def allow(self, asked: Allowance) -> Allowances:
        """What paths may do now, for people."""
        groups = self.arbiter.groups()
        if asked.paths or asked.sites:
            return Allowances(self.arbiter.report_of(set(asked.paths), set(asked.sites)), groups)
        return Allowances(self.arbiter.report(), groups)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = self._time = None
        self._answer(self.arbiter.tick())

    def _answer(self, answers: Answers) -> None:
        for worker, answer in answers:
            self._deliver(worker, answer)
        self._keep_time()

    def _keep_time(self) -> None:
        time = self.arbiter.next_time()
        if time == self._time:
            return
        self.close()
        self._time = time
        if time is not None:
            delay = max(0.0, time - self.arbiter.now())
            self._timer = self._timers.call_later(delay, self._tick)


def local_permits(
    timers: Timers,
    clock: Callable[[], float] = time.monotonic,
    rules: SlowDownRules | None = None,
) -> SharedPermits:
    """Permits with an arbiter of their own, where no supervisor is: in tests and the bench."""
    loop = ArbiterLoop(Arbiter(clock), lambda _, answer: permits.receive(answer), timers)
    permits = SharedPermits(lambda request: loop.handle(0, request), timers, clock, rules)
    return permits
