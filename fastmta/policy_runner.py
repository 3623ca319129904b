"""Calls an operator's hooks, each within a time limit, and none in the way of the others.

An `async` hook runs on the loop. A plain one runs in one of a few threads; a thread cannot be
ended, so one that hangs is lost until it returns, and when all are, plain hooks fail at once.
"""

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Final

from fastmta import metrics
from fastmta.policy import HOOKS

THREADS: Final = 8
MOST_WAITING: Final = 1000  # calls that are under way or wait for a thread
QUIET: Final = 10.0  # seconds between two tracebacks of one hook

FAILURES = metrics.counters(
    "fastmta_policy_failures_total",
    "Calls of hooks that raised, took too long or found no thread",
    "hook",
    tuple(HOOKS),
)
logger = logging.getLogger(__name__)

Hook = Callable[..., Any]


class HookFailed(Exception):
    """The hook gave no answer; this has been logged and counted."""


class Runner:
    """Belongs to one loop. `limit` is how long a hook may take, in seconds."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._threads = Threads()
        self._calls: set[asyncio.Future[Any]] = set()
        self._told: dict[str, tuple[float, int]] = {}  # hook -> last traceback, and silent ones

    async def call(self, name: str, hook: Hook, *arguments: Any) -> Any:
        """What the hook returns; HookFailed."""
        if len(self._calls) >= MOST_WAITING:
            raise self._failure(name, f"{MOST_WAITING} calls are under way")
        if not inspect.iscoroutinefunction(hook) and self._threads.are_stuck:
            raise self._failure(name, f"all {THREADS} threads are held by calls that do not end")
        call = self._begin(hook, arguments)
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            done, _ = await asyncio.wait({call}, timeout=self.limit)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not done:
            call.cancel()
            raise self._failure(name, f"took longer than {self.limit:g} s")
        if call.cancelled():
            raise self._failure(name, "cancelled itself")
        if error := call.exception():
            raise self._failure(name, "raised", error)
        return call.result()

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # nobody may be there to hear of it

    def fail(self, name: str, error: Exception) -> None:
        """What a hook returned could not be used."""
        self._failure(name, "gave what makes no sense", error)

    def _begin(self, hook: Hook, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        if inspect.iscoroutinefunction(hook):
            coroutine: Coroutine[Any, Any, Any] = hook(*arguments)
            return asyncio.ensure_future(coroutine)
        return self._threads.run(hook, arguments)

    def _failure(self, name: str, what: str, error: BaseException | None = None) -> HookFailed:
        """Count it, and log it with its traceback, but not each time."""
        FAILURES.count(name)
        now = self._clock()
        last, silent = self._told.get(name, (-QUIET, 0))
        if now - last < QUIET:
            self._told[name] = last, silent + 1
        else:
            self._told[name] = now, 0
            others = f" ({silent} more since the last time)" if silent else ""
            logger.error("%s %s%s", name, what, others, exc_info=error)
        return HookFailed(name, what)


class Call(asyncio.Future[Any]):
    """A plain hook in a thread; cancelled, it may still run."""


class Threads:
    """A few threads that do not keep the process from ending; they start when they are needed."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Call, Hook, tuple[Any, ...]]] = SimpleQueue()
        self._count = self._calls = 0  # threads, and calls that are not over
        self._running: set[Call] = set()  # of which some are cancelled and go on

    @property
    def are_stuck(self) -> bool:
        return sum(call.cancelled() for call in self._running) >= THREADS

    def run(self, hook: Hook, arguments: tuple[Any, ...]) -> Call:
        call = Call()
        self._queue.put((call, hook, arguments))
        self._calls += 1
        if self._count < min(THREADS, self._calls):
            self._count += 1
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._work, args=(loop,), daemon=True, name="policy").start()
        return call

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while True:
                call, hook, arguments = self._queue.get()
                result, error = None, None
                loop.call_soon_threadsafe(self._running.add, call)
                try:
                    if not call.cancelled():  # somebody still waits for it
                        result = hook(*arguments)
                except BaseException as raised:  # SystemExit must not end the thread
                    error = raised
                loop.call_soon_threadsafe(self._ended, call, result, error)
                del call, hook, arguments, result, error
        except RuntimeError:
            return  # the loop has ended

    def _ended(self, call: Call, result: Any, error: BaseException | None) -> None:
        self._running.discard(call)
        self._calls -= 1
        if call.done():
            return
        if error is None:
            call.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            call.set_exception(error)
        else:
            wrapped = RuntimeError(f"{type(error).__name__}: {error}")
            call.set_exception(wrapped.with_traceback(error.__traceback__))
