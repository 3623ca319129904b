"""Mail comes in as fast as it leaves, where it leaves fast.

A worker that is busy takes in hundreds of messages while it sends dozens, for there are more
clients than connections out. What then waits in memory overflows into the spool and is written
twice, at the cost of those that leave. So a client whose message is safe, and acknowledged, is not
read for a moment while a path is crowded that is quick. Nobody waits for a slow one: its queue
would not have become shorter.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable

from fastmta import metrics

PAUSES = metrics.counter(
    "fastmta_smtp_in_pauses_total", "Times that a client was not read until other mail had left"
)

PATIENCE = 0.1  # seconds that nobody is held up for longer
AT_ONCE = 32  # clients that go on in one turn of the loop


class Flow:
    """Who pauses, and for what; of one worker, on its loop."""

    __slots__ = ("_crowded", "_paused", "_timer", "is_crowded")

    def __init__(self) -> None:
        self.is_crowded = False
        self._crowded: set[Hashable] = set()
        self._paused: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def pause(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` when nothing is crowded any more, or soon."""
        PAUSES.value += 1
        self._paused.append(go_on)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._go_on)

    def crowd(self, path: Hashable) -> None:
        self._crowded.add(path)
        self.is_crowded = True

    def ease(self, path: Hashable) -> None:
        self._crowded.discard(path)
        self.is_crowded = bool(self._crowded)
        if self._timer is not None and not self.is_crowded:
            self._timer.cancel()
            self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        paused, self._paused = self._paused, []
        self._let_go(deque(paused))

    def _let_go(self, paused: deque[Callable[[], None]]) -> None:
        """Some in each turn of the loop: every one may have a message to be taken in at once."""
        for _ in range(min(AT_ONCE, len(paused))):
            paused.popleft()()
        if paused:
            asyncio.get_running_loop().call_soon(self._let_go, paused)
