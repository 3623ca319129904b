"""Hooks that raise, hang and swarm: each fails within its limit, and the others go on."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fastmta.policy_runner import QUIET, THREADS, HookFailed, Runner
from tests.support import run, until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_and_async_hooks_answer() -> None:
    async def scenario() -> None:
        runner = Runner(30.0)
        names = []

        def plain(a: int, b: int) -> int:
            names.append(threading.current_thread().name)
            return a + b

        async def slow(a: int, b: int) -> int:
            names.append(threading.current_thread().name)
            return a + b

        assert await runner.call("on_mail", plain, 1, 2) == 3
        assert await runner.call("on_mail", slow, 1, 2) == 3
        assert names == ["policy", "MainThread"]

    run(scenario())


def test_many_plain_calls_share_the_threads() -> None:
    async def scenario() -> None:
        runner = Runner(30.0)
        seen = set()

        def plain(number: int) -> int:
            seen.add(threading.get_ident())
            return number

        calls = [runner.call("on_mail", plain, number) for number in range(200)]
        assert await asyncio.gather(*calls) == list(range(200))
        assert len(seen) <= THREADS

    run(scenario())


def boom(*_: Any) -> None:
    raise RuntimeError("planted")


async def boom_later(*_: Any) -> None:
    raise RuntimeError("planted")


def leave(*_: Any) -> None:
    raise SystemExit(1)


@pytest.mark.parametrize("hook", [boom, boom_later, leave])
def test_one_that_raises_is_logged_with_its_traceback(
    hook: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock = Clock()
        runner = Runner(30.0, clock)

        async def call() -> None:
            with pytest.raises(HookFailed):
                await runner.call("on_mail", hook)

        for _ in range(5):
            await call()
        assert len(caplog.records) == 1
        assert "Traceback" in caplog.text
        assert f"in {hook.__name__}" in caplog.text
        clock.now += QUIET
        await call()
        assert caplog.records[-1].getMessage() == "on_mail raised (4 more since the last time)"

    with caplog.at_level(logging.ERROR):
        run(scenario())


def test_an_async_one_that_hangs_is_ended_even_if_it_does_not_want_to() -> None:
    async def scenario() -> None:
        runner = Runner(0.01)
        ended = []

        async def hang() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(1)
                await asyncio.Event().wait()

        with pytest.raises(HookFailed):
            await runner.call("on_mail", hang)
        await until(lambda: ended)
        for call in runner._calls:
            call.cancel()

    run(scenario())


def test_when_all_threads_hang_others_fail_at_once_and_later_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        runner = Runner(0.05)
        gate = threading.Event()

        def hang() -> None:
            gate.wait(60)

        failed = await asyncio.gather(
            *(runner.call("on_mail", hang) for _ in range(THREADS)), return_exceptions=True
        )
        assert {type(one) for one in failed} == {HookFailed}
        assert "took longer than 0.05 s" in caplog.text
        runner.limit = 60.0  # so that waiting would be noticed
        with pytest.raises(HookFailed, match="held by calls that do not end"):
            await runner.call("on_rcpt", hang)

        async def quick() -> int:
            return 1

        assert await runner.call("on_mail", quick) == 1
        gate.set()
        await until(lambda: not runner._threads.are_stuck)
        assert await runner.call("on_rcpt", lambda: 2) == 2

    run(scenario())


def test_calls_that_nobody_waits_for_are_not_begun() -> None:
    async def scenario() -> None:
        runner = Runner(60.0)
        gate, begun = threading.Event(), []

        def hang() -> None:
            gate.wait(60)

        held = [asyncio.ensure_future(runner.call("on_mail", hang)) for _ in range(THREADS)]
        await until(lambda: len(runner._threads._running) == THREADS)
        late = asyncio.ensure_future(runner.call("on_mail", begun.append, 1))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait({late})
        gate.set()
        await asyncio.gather(*held)
        assert await runner.call("on_mail", lambda: 3) == 3
        assert begun == []

    run(scenario())
