"""The supervisor's part in an operator's orders: it numbers them, and keeps the holds that stand.

A hold is on disk before any worker hears of it. A release ends holds on disk only after every
worker has carried it out: one that is cut short is none, and may be given again.
"""

import asyncio
import logging
import time
from pathlib import Path

import msgspec
from msgspec import Raw

from fastmta import control
from fastmta.queue.orders import Action, Order
from fastmta.queue.requests import Carry, Give, Given, Holds, Stand
from fastmta.queue.selector import Selector
from fastmta.queue.standing import CannotStand, Standing
from fastmta.worker_process import CommandMessage, WorkerProcess

logger = logging.getLogger(__name__)

AGAIN = 10.0  # seconds until a hold whose time is over, and could not be ended, is tried again
LONGEST = 3600.0  # seconds; the clock may be set forward meanwhile

_decoder = msgspec.msgpack.Decoder(Give | Holds)


class Refused(Exception):
    """The text says why nothing is done."""


class Case:
    """One request: what the operator hears at once, and what the workers are asked."""

    def __init__(self, desk: "OrderDesk", order: Order | None, first: Raw, request: Raw) -> None:
        self.first, self.request = first, request
        self._desk, self._order = desk, order

    def close(self, is_done: bool) -> None:
        """All workers have answered; `is_done` where each carried it out."""
        if self._order is not None:
            self._desk.close(self._order, is_done)


class OrderDesk:
    """Owns the file of holds; on one loop."""

    def __init__(self, data_dir: Path, workers: list[WorkerProcess]) -> None:
        """CannotStand where the file cannot be read."""
        self._standing = Standing(data_dir)
        self._workers = workers
        self._ending: set[int] = set()  # holds that a release is about to end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> list[Order]:
        """What is in force."""
        return [each for each in self._standing.holds if each.number not in self._ending]

    def start(self) -> None:
        """From now on, holds end when their time is over."""
        self._look_at_the_clock()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def open(self, payload: Raw) -> Case | None:
        """A request that concerns orders, None for any other; Refused where it cannot be met."""
        try:
            request = _decoder.decode(payload)
        except msgspec.ValidationError:
            return None
        if isinstance(request, Holds):
            listed = control.pack(self._standing.holds)
            return Case(self, None, listed, payload)
        try:
            order = self._standing.given(request.order)
        except (CannotStand, OSError) as error:
            raise Refused(str(error)) from None
        self._ending.update(order.ends)
        if order.action is Action.HOLD:
            self._look_at_the_clock()
        carry = Carry(order=order, holds=self.holds)
        return Case(self, order, control.pack(Given(order)), control.pack(carry))

    def close(self, order: Order, is_done: bool) -> None:
        """The workers are done with it, or have given up."""
        self._ending.difference_update(order.ends)
        if is_done:
            try:
                self._standing.end(order.ends)
            except OSError as error:
                logger.error("holds that were released cannot be forgotten: %s", error)
        for worker in self._workers if order.ends else ():
            self.tell(worker, None)

    def tell(self, worker: WorkerProcess, known: list[Order] | None) -> None:
        """Let a worker know what stands, if that is not what it knows."""
        if known != self.holds:
            worker.command(control.pack(Stand(self.holds)), _go_on)

    # Holds for a time

    def _look_at_the_clock(self) -> None:
        """Release what has been held for its time, and look again when the next one ends."""
        self.stop()
        for hold in self._standing.expired():
            if hold.number not in self._ending:
                self._release(hold)
        end = self._standing.next_end()
        if end is not None:
            wait = end - time.time() if end > time.time() else AGAIN
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(wait, LONGEST), self._look_at_the_clock)

    def _release(self, hold: Order) -> None:
        release = Order(
            action=Action.RELEASE,
            selector=Selector(),
            hold=hold.number,
            reason="its time is over",
            by="fastmta",
            worker=hold.worker,
        )
        case = self.open(control.pack(Give(release)))
        assert case is not None
        _Unattended(case, [one for one in self._workers if hold.concerns(one.index)])


class _Unattended:
    """A case that no operator waits for."""

    def __init__(self, case: Case, workers: list[WorkerProcess]) -> None:
        self._case = case
        self._left, self._is_done = len(workers), True
        for worker in workers:
            worker.command(case.request, self._receive)

    def _receive(self, worker: WorkerProcess, message: CommandMessage) -> None:
        if not isinstance(message, control.Ended):
            return worker.more(message.number)
        self._left -= 1
        self._is_done &= not message.error
        if not self._left:
            self._case.close(self._is_done)
        return None


def _go_on(worker: WorkerProcess, message: CommandMessage) -> None:
    """Nobody wants to hear it."""
    if not isinstance(message, control.Ended):
        worker.more(message.number)
