"""What tests of all parts share."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop that the product runs on, and not for ever."""
    return uvloop.run(asyncio.wait_for(scenario, 60))


async def until(true: Callable[[], object], pause: float = 0.001) -> None:
    """Return when a condition holds that nothing announces; `run` bounds how long that may be."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(pause)
