"""Who brings mail pauses while what is quick is crowded, and never for long."""

import asyncio

import pytest

from fastmta.queue import flow as flows
from fastmta.queue.flow import Flow
from tests.support import run, until


def test_they_go_on_when_nothing_is_crowded_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "PATIENCE", 1e6)

    async def scenario() -> None:
        flow, gone_on = Flow(), list[int]()
        flow.crowd("a")
        flow.crowd("b")
        flow.pause(lambda: gone_on.append(1))
        flow.pause(lambda: gone_on.append(2))
        flow.ease("b")
        assert flow.is_crowded
        assert not gone_on
        flow.ease("a")
        assert not flow.is_crowded
        assert gone_on == [1, 2]
        flow.ease("a")
        assert gone_on == [1, 2]

    run(scenario())


def test_not_all_go_on_in_the_same_turn_of_the_loop() -> None:
    async def scenario() -> None:
        flow, gone_on = Flow(), list[int]()
        flow.crowd("a")
        for number in range(flows.AT_ONCE + 1):
            flow.pause(lambda number=number: gone_on.append(number))  # type: ignore[misc]
        flow.ease("a")
        assert gone_on == [*range(flows.AT_ONCE)]
        await asyncio.sleep(0)  # a turn
        assert gone_on == [*range(flows.AT_ONCE + 1)]

    run(scenario())


def test_nobody_waits_for_long() -> None:
    async def scenario() -> None:
        flow, gone_on = Flow(), list[float]()
        loop = asyncio.get_running_loop()
        for _ in range(2):  # the second time too
            flow.crowd("a")
            began = loop.time()
            flow.pause(lambda: gone_on.append(loop.time()))
            await until(lambda: gone_on)
            assert flow.is_crowded
            assert gone_on.pop() - began >= flows.PATIENCE * 0.9

    run(scenario())
