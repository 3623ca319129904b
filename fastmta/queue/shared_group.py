"""Limits that many paths share beside their own: those of one provider's sites together."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from math import inf
from typing import Generic, Protocol, TypeVar

from fastmta.queue.budget import Budget, strictest
from fastmta.queue.limits import SharedLimits, Word

TURN = 1.0  # seconds between two calls for a connection, of one key, while others wait
REMEMBER = 3600.0  # seconds for which a slow-down is remembered of what nobody uses

Words = list[tuple[int, Word]]  # (worker, what it is told)


class Member(Protocol):
    """A path, as its group sees it."""

    held: int  # connections

    def most(self) -> int:
        """How many connections the worker keeps that has most of it."""

    def least(self) -> int:
        """How many the worker has that waits for one and has least."""

    def call_back_one(self, words: Words) -> None:
        """From the worker that has most."""

    def tell_modes(self, words: Words) -> None:
        """Tell the workers that do not know it whether the path is paced, and slowed."""


M = TypeVar("M", bound=Member)


class SharedGroup(Generic[M]):
    """A grant to a path is taken from its group too, or is none.

    Paths that were refused here wait in lines, apart from those that their own limits hold up;
    the arbiter serves the first of a line as long as there is room.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.budget = Budget()
        self.held = self.recalled = 0  # connections of all members
        self.members: dict[M, None] = {}
        self.holders: dict[M, None] = {}  # with connections
        self.connecting: dict[M, None] = {}  # lines; the first has waited longest
        self.sending: dict[M, None] = {}
        self._limits: dict[int, SharedLimits] = {}  # as each worker knows them
        self._uses = Counter[int]()
        self._turn = -inf
        self._used = now
        self._mode = self.mode

    @property
    def mode(self) -> tuple[bool, bool]:
        """Paced, and slowed."""
        return self.budget.sends is not None, self.budget.slowed is not None

    def enter(self, worker: int, now: float) -> None:
        """The worker uses one more path of the group."""
        self._used = now
        self._uses[worker] += 1

    def leave(self, worker: int, now: float) -> None:
        """The worker uses one path less; at the last one, what limits it knows does not count."""
        self._used = now
        self._uses[worker] -= 1
        if not self._uses[worker]:
            del self._uses[worker]
            self._limits.pop(worker, None)
            self._set_limits(now)

    def know(self, worker: int, limits: SharedLimits, now: float) -> None:
        self._limits[worker] = limits
        self._set_limits(now)

    def _set_limits(self, now: float) -> None:
        if self._limits:
            self.budget.set_limits(strictest(list(self._limits.values())), now)

    def remove(self, member: M) -> None:
        """It has nothing of the group any more."""
        for each in (self.members, self.holders, self.connecting, self.sending):
            each.pop(member, None)

    def count(self, member: M, held: int, recalled: int) -> None:
        """By how much a member has more, or less."""
        self.held += held
        self.recalled += recalled
        if held and member.held:
            self.holders[member] = None
        elif held:
            self.holders.pop(member, None)

    def void(self, key: Hashable) -> None:
        """What was granted under this name may all have been used."""
        for meter in (self.budget.opens, self.budget.sends):
            if meter is not None:
                meter.void(key)

    # The lines.

    def may_connect(self, member: M) -> bool:
        """Whether there is room, and nobody has waited longer; else it waits in line."""
        if self.held < self.budget.connections and _is_first(self.connecting, member):
            return True
        self.connecting[member] = None
        return False

    def may_send(self, member: M) -> bool:
        if _is_first(self.sending, member):
            return True
        self.sending[member] = None
        return False

    @staticmethod
    def refused(member: M, line: dict[M, None], is_ours: bool) -> None:
        """By the group, or by the member's own limits: then it holds up nobody."""
        if is_ours:
            line[member] = None
        else:
            line.pop(member, None)

    def waits(self, member: M) -> tuple[bool, bool]:
        """Whether it is in line for a connection, and for transactions."""
        return member in self.connecting, member in self.sending

    def next_times(self, member: M, now: float) -> Iterator[float]:
        """When the first of a line may get something."""
        opens, sends = self.budget.opens, self.budget.sends
        if member in self.connecting and _is_first(self.connecting, member):
            yield self.turn_time()
            if opens is not None and self.held < self.budget.connections:
                yield opens.next_time(now)
        if member in self.sending and _is_first(self.sending, member) and sends is not None:
            yield sends.next_time(now)

    def serve(self, now: float) -> Words:
        """Call back what is too much, and tell what has changed for all."""
        self.budget.recover(now)
        words: Words = []
        for _ in range(self.held - self.recalled - self.budget.connections):
            self._richest().call_back_one(words)
        if now >= self.turn_time():
            self._turn = now
            self._richest().call_back_one(words)
        if self._mode != self.mode:
            self._mode = self.mode
            for member in self.members:
                member.tell_modes(words)
        return words

    def turn_time(self) -> float:
        """When a connection is to be called back for a path that has fewer; inf: no need."""
        if not self.connecting or self.held < self.budget.connections:
            return inf
        if self.recalled >= len(self.connecting) or not self.holders:
            return inf
        most, least = self._richest().most(), next(iter(self.connecting)).least()
        return inf if is_fair(most, least) else self._turn + TURN

    def _richest(self) -> M:
        return max(self.holders, key=lambda member: member.most())

    def is_over(self, now: float) -> bool:
        """Nobody uses it, and nothing of it matters any more."""
        if self.members or (self.budget.slowed is not None and now < self._used + REMEMBER):
            return False
        return self.budget.is_clear(now)


def is_fair(most: int, least: int) -> bool:
    """Whether who has most connections may keep them while who has least waits for one."""
    return most <= least + 1 and (least > 0 or most == 0)


def _is_first(line: Iterable[M], member: M) -> bool:
    """Whether nobody else has waited longer."""
    return next(iter(line), member) is member
