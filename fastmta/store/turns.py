"""Whose turn it is: three priorities by weight, and within each the tenants one after the other."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

WEIGHTS = (16, 4, 1)  # turns of urgent, normal and bulk, where all of them have something


def alike(tenant: Hashable) -> int:
    """Each tenant has one turn in a round."""
    return 1


class Line(deque[T]):
    """What is of one tenant."""

    weight = 0  # as it was when its last turns began


class Round(Generic[T]):
    """What is of one priority: each tenant in its turn, first in, first out within one."""

    __slots__ = ("_left", "_queues", "_weight_of", "length", "weight")

    def __init__(self, weight_of: Callable[[Hashable], int]) -> None:
        self._queues: OrderedDict[Hashable, Line[T]] = OrderedDict()  # in the order of turns
        self._left = 0  # turns in a row that it still has; 0: they have not begun
        self._weight_of = weight_of
        self.length = 0
        self.weight = 0  # of all tenants together

    def put(self, tenant: Hashable, item: T) -> None:
        self.length += 1
        self._line(tenant).append(item)

    def put_first(self, tenant: Hashable, item: T) -> None:
        """Give back what was taken: it is the next of its tenant, and this the next tenant."""
        self.length += 1
        self._line(tenant).appendleft(item)
        self._queues.move_to_end(tenant, last=False)
        self._left = 0

    def take(self) -> T:
        """The next; there has to be one."""
        self.length -= 1
        tenant, queue = next(iter(self._queues.items()))
        item = queue.popleft()
        if not queue:
            del self._queues[tenant]
            self.weight -= queue.weight
            self._left = 0
        elif len(self._queues) > 1:
            self._left = (self._left or self._weigh(tenant, queue)) - 1
            if not self._left:
                self._queues.move_to_end(tenant)
        return item

    def waiting(self, tenant: Hashable) -> int:
        """How many are of this tenant."""
        return len(self._queues.get(tenant, ()))

    def share(self, tenant: Hashable, total: int, least: int) -> int | None:
        """What this tenant's weight gives it of `total`, beside those who wait already.

        At least `least`; None where there are too many tenants for each to have that.
        """
        is_new = tenant not in self._queues
        if (len(self._queues) + is_new) * least > total:
            return None
        weight = self._weight_of(tenant)
        return max(least, total * weight // (self.weight + weight * is_new))

    def _line(self, tenant: Hashable) -> Line[T]:
        line = self._queues.get(tenant)
        if line is None:
            line = self._queues[tenant] = Line()
            self._weigh(tenant, line)
        return line

    def _weigh(self, tenant: Hashable, line: Line[T]) -> int:
        """Weights may change while something waits."""
        weight = self._weight_of(tenant)
        self.weight += weight - line.weight
        line.weight = weight
        return weight

    def __iter__(self) -> Iterator[tuple[Hashable, T]]:
        return ((tenant, item) for tenant, queue in self._queues.items() for item in queue)


class Turns(Generic[T]):
    """Items that wait for their turn. A cycle is 16 urgent ones, 4 normal ones and 1 bulk one."""

    __slots__ = ("_credit", "_length", "_rounds")

    def __init__(self, weight_of: Callable[[Hashable], int] = alike) -> None:
        self._rounds: tuple[Round[T], ...] = tuple(Round(weight_of) for _ in WEIGHTS)
        self._credit = list(WEIGHTS)  # turns that each priority still has in this cycle
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def of(self, priority: int) -> int:
        """How many are of this priority."""
        return self._rounds[priority].length

    def waiting(self, priority: int, tenant: Hashable) -> int:
        return self._rounds[priority].waiting(tenant)

    def share(self, priority: int, tenant: Hashable, total: int, least: int) -> int | None:
        return self._rounds[priority].share(tenant, total, least)

    def put(self, priority: int, tenant: Hashable, item: T) -> None:
        self._length += 1
        self._rounds[priority].put(tenant, item)

    def put_first(self, priority: int, tenant: Hashable, item: T) -> None:
        """Give back what was taken, as the next of its priority."""
        self._length += 1
        self._rounds[priority].put_first(tenant, item)

    def take(self, last: int = len(WEIGHTS) - 1) -> T | None:
        """The next one of a priority not after `last`; None where there is none."""
        for _ in range(2):
            for priority in range(last + 1):
                of_it = self._rounds[priority]
                if of_it.length and self._credit[priority] > 0:
                    # Alone it uses up no turns of its own: those who come later would wait.
                    self._credit[priority] -= of_it.length != self._length
                    self._length -= 1
                    return of_it.take()
            self._credit = list(WEIGHTS)
        return None

    def __iter__(self) -> Iterator[tuple[int, Hashable, T]]:
        """Everything with its priority and tenant, as it stands; no turn is used."""
        for priority, of_it in enumerate(self._rounds):
            for tenant, item in of_it:
                yield priority, tenant, item
