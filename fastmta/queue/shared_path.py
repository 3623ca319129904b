"""One path as all workers share it: who has what of it, who waits, and who is next."""

from math import inf

from msgspec import Struct, structs

from fastmta.queue.adapt import configured_rate, step_time
from fastmta.queue.budget import Budget, strictest
from fastmta.queue.limits import News, SharedLimits, SlowDown, Used, Word
from fastmta.queue.meter import LIFE, Meter
from fastmta.queue.shared_group import REMEMBER, TURN, SharedGroup, Words, is_fair


class Cause(Struct, frozen=True):
    """The reply that lowered a path's limits."""

    time: float  # seconds since the epoch
    reply: str
    rule: str  # that took it for a wish to slow down


class PathReport(Struct, frozen=True, kw_only=True):
    """How a path stands, for people; rates in messages a second, None where there is none.

    Times are in seconds from now; 0: at once.
    """

    path: str  # or the name of a group
    site: str = ""
    source: str = ""
    group: str = ""  # whose limits hold too
    refused_by_group: bool = False  # what it waits for, its own limits would allow
    open: int  # connections, of all workers
    connections: int  # that may be open now
    configured_connections: int
    rate: float | None
    configured_rate: float | None
    waiting_to_connect: int = 0  # workers
    waiting_to_send: int = 0
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
        self.budget = Budget()
        self.group: PathGroup | None = None
        self.held = self.recalled = 0  # connections, of all workers
        self._shares: dict[int, _Share] = {}
        self._connecting: dict[int, None] = {}  # workers that wait, the first longest
        self._sending: dict[int, None] = {}
        self._turn = -inf  # when a connection was last called back for others
        self._used = now

    # What workers say.

    def hear(self, worker: int, news: News, group: "PathGroup | None", now: float) -> None:
        """Take in what a worker says; `serve` says what follows.

        `group` is the one that the news names.
        """
        self._used = now
        if news.site:
            self.site, self.source = news.site, news.source
        self._close(self._opens(), worker, news.opened)
        self._close(self._sends(), worker, news.begun)
        share = self._share(worker, news)
        self._count(share, held=-news.ended, recalled=-min(news.ended, share.recalled))
        if news.limits is not None:
            self._configure(worker, news, group, now)
        self._hear_hosts(share, news, now)
        if news.wants_connection:
            self._connecting[worker] = None
        if news.wants_messages:
            self._sending[worker] = None
        if news.gone:
            self.leave(worker, now)

    def _hear_hosts(self, share: _Share, news: News, now: float) -> None:
        cause, group = news.slow_down, self.group
        self.budget.delivered += news.delivered
        # Transactions are spread as connections are, so one worker's rate tells that of all.
        if cause is not None:
            measured = cause.rate * max(1.0, self.held / max(1, share.held))
            self.budget.slow_down(cause, measured, now)
        if group is not None:
            group.budget.delivered += news.delivered
            if cause is not None:
                measured = cause.rate * max(1.0, group.held / max(1, share.held))
                group.budget.slow_down(cause, measured, now)

    def leave(self, worker: int, now: float) -> None:
        """The worker has forgotten the path, or is dead: all that it had is free."""
        for meter in self._opens() + self._sends():
            meter.void(self._key(worker))
        share = self._shares.pop(worker, None)
        if share is not None:
            self._count(share, held=-share.held, recalled=-share.recalled)
            if self.group is not None:
                self.group.leave(worker, now)
        self._connecting.pop(worker, None)
        self._sending.pop(worker, None)
        if self._shares:
            self._set_limits(now)
        elif self.group is not None:
            self.group.remove(self)

    def _share(self, worker: int, news: News) -> _Share:
        share = self._shares.get(worker)
        if share is None:
            limits = news.limits or self.budget.limits
            share = self._shares[worker] = _Share(news.visit, limits)
            if self.group is not None:
                self.group.members[self] = None
                self.group.enter(worker, self._used)
        return share

    def _count(self, share: _Share, held: int = 0, recalled: int = 0) -> None:
        share.held += held
        share.recalled += recalled
        self.held += held
        self.recalled += recalled
        if self.group is not None:
            self.group.count(self, held, recalled)

    def _configure(self, worker: int, news: News, group: "PathGroup | None", now: float) -> None:
        assert news.limits is not None
        self._shares[worker].limits = news.limits
        self._set_limits(now)
        if group is not self.group:
            self._join(group, now)
        if group is not None and news.group is not None:
            group.know(worker, news.group.limits, now)

    def _join(self, group: "PathGroup | None", now: float) -> None:
        """What it has is of another group from now on: the configuration was read anew."""
        if self.group is not None:
            self.group.count(self, -self.held, -self.recalled)
            for worker in self._shares:
                self.group.void(self._key(worker))
                self.group.leave(worker, now)
            self.group.remove(self)
        self.group = group
        if group is not None:
            group.members[self] = None
            for worker in self._shares:
                group.enter(worker, now)
            group.count(self, self.held, self.recalled)

    def _set_limits(self, now: float) -> None:
        limits = strictest([share.limits for share in self._shares.values()])
        self.budget.set_limits(limits, now)

    # The meters that count, our own first, and by which name they know a worker of ours.

    def _opens(self) -> list[Meter]:
        return [each.opens for each in self._budgets() if each.opens is not None]

    def _sends(self) -> list[Meter]:
        return [each.sends for each in self._budgets() if each.sends is not None]

    def _budgets(self) -> list[Budget]:
        return [self.budget] if self.group is None else [self.budget, self.group.budget]

    def _key(self, worker: int) -> tuple[int, str]:
        return worker, self.name

    def _close(self, meters: list[Meter], worker: int, used: Used | None) -> None:
        if used is not None:
            for meter in meters:
                meter.close(self._key(worker), used.count, used.last)

    def _take(self, meters: list[Meter], worker: int, now: float) -> tuple[int, Meter | None]:
        """How much all of them grant (0 where there is none), or else the one that refuses."""
        key = self._key(worker)
        granted: list[int] = []
        for meter in meters:
            count = meter.take(key, now)
            if not count:
                for other in meters[: len(granted)]:
                    other.close(key, 0, now)
                return 0, meter
            granted.append(count)
        for meter in meters:
            meter.keep(key, min(granted))
        return min(granted, default=0), None

    # Who gets what.

    def serve(self, now: float) -> Words:
        """Give what there is to those who wait; what each worker is to be told."""
        self.budget.recover(now)
        words: Words = []
        self._grant_connections(words, now)
        self._call_back(words, now)
        self._grant_messages(words, now)
        self.tell_modes(words)
        return words

    def tell_modes(self, words: Words) -> None:
        mode = self._mode()
        for worker, share in self._shares.items():
            if share.mode not in (None, mode):
                self._tell(words, worker)

    def _mode(self) -> tuple[bool, bool]:
        budgets = self._budgets()
        return bool(self._sends()), any(each.slowed is not None for each in budgets)

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
        group = self.group
        while self._connecting and self.held < self.budget.connections:
            if group is not None and not group.may_connect(self):
                return
            # Who has least, and of those who has waited longest.
            worker = min(self._connecting, key=lambda each: self._shares[each].held)
            _, refuser = self._take(self._opens(), worker, now)
            if refuser is not None:
                if group is not None:
                    group.refused(self, group.connecting, refuser is group.budget.opens)
                return
            del self._connecting[worker]
            self._count(self._shares[worker], held=1)
            self._tell(words, worker, connection=True, until=now + LIFE)
            if group is not None:  # others first, if there are any
                group.connecting.pop(self, None)
        if group is not None:
            group.connecting.pop(self, None)

    def _call_back(self, words: Words, now: float) -> None:
        for _ in range(self.held - self.recalled - self.budget.connections):
            self.call_back_one(words)
        if now >= self._turn_time():
            self._turn = now
            self.call_back_one(words)

    def call_back_one(self, words: Words) -> None:
        worker = self._richest()
        self._count(self._shares[worker], recalled=1)
        self._tell(words, worker, recall=1)

    def _richest(self) -> int:
        return max(self._shares, key=self._keeps)

    def _keeps(self, worker: int) -> int:
        share = self._shares[worker]
        return share.held - share.recalled

    def most(self) -> int:
        return self._keeps(self._richest())

    def least(self) -> int:
        return min(self._shares[worker].held for worker in self._connecting)

    def _turn_time(self) -> float:
        """When a connection is to be called back for a worker that has fewer; inf: no need."""
        if not self._connecting or self.held < self.budget.connections:
            return inf
        if self.recalled >= len(self._connecting):
            return inf
        return inf if is_fair(self.most(), self.least()) else self._turn + TURN

    def _grant_messages(self, words: Words, now: float) -> None:
        group = self.group
        while self._sending:
            if group is not None and not group.may_send(self):
                return
            worker = next(iter(self._sending))
            count, refuser = self._take(self._sends(), worker, now)
            if refuser is not None:
                if group is not None:
                    group.refused(self, group.sending, refuser is group.budget.sends)
                return
            del self._sending[worker]
            self._tell(words, worker, messages=count, until=now + LIFE)
            if group is not None:  # as above
                group.sending.pop(self, None)
        if group is not None:
            group.sending.pop(self, None)

    # Time.

    def next_time(self, now: float) -> float:
        """When `serve` may have something to do, if nobody says anything; inf: never."""
        times = [self._turn_time()]
        opens, sends = self.budget.opens, self.budget.sends
        waits = self.group.waits(self) if self.group is not None else (False, False)
        if self._connecting and not waits[0] and opens and self.held < self.budget.connections:
            times.append(opens.next_time(now))
        if self._sending and not waits[1] and sends:
            times.append(sends.next_time(now))
        if self.group is not None:
            times += self.group.next_times(self, now)
        times += [time for each in self._budgets() if (time := each.recovers_at()) is not None]
        return min(times)

    def has(self, worker: int) -> bool:
        return worker in self._shares

    def is_unused(self) -> bool:
        return not self._shares

    def is_over(self, now: float) -> bool:
        """Nobody uses it, and nothing of it matters any more."""
        slowed = self.budget.slowed is not None
        if self._shares or (slowed and now < self._used + REMEMBER):
            return False
        return self.budget.is_clear(now)

    def counts(self) -> bool:
        """Whether people are to be told of it unasked."""
        return self.budget.slowed is not None or not self.is_unused()

    def weight(self) -> tuple[bool, int, int]:
        """By which paths are sorted for people: the largest tells them most."""
        return self.budget.slowed is not None, self.held, len(self._sending)

    def report(self, now: float) -> PathReport:
        report = report_of(self.budget, self.name, self.held, now)
        waits = self.group.waits(self) if self.group is not None else (False, False)
        return structs.replace(
            report,
            site=self.site,
            source=self.source,
            group=self.group.name if self.group is not None else "",
            refused_by_group=any(waits),
            waiting_to_connect=len(self._connecting),
            waiting_to_send=len(self._sending),
        )


PathGroup = SharedGroup[SharedPath]


def report_of(budget: Budget, name: str, held: int, now: float) -> PathReport:
    """What is to be said of a path and of a group alike."""
    slowed = budget.slowed
    return PathReport(
        path=name,
        open=held,
        connections=budget.connections,
        configured_connections=budget.limits.connections,
        rate=budget.rate,
        configured_rate=configured_rate(budget.limits),
        next_connection=_left(budget.opens.next_time(now) if budget.opens else now, now),
        next_message=_left(budget.sends.next_time(now) if budget.sends else now, now),
        next_step=_left(step_time(slowed) if slowed else now, now),
        slowed=_cause(slowed.cause) if slowed else None,
    )


def _cause(said: SlowDown) -> Cause:
    return Cause(said.time, said.reply, said.rule)


def _left(time: float, now: float) -> float:
    return round(max(0.0, time - now), 3)
