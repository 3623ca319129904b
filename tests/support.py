"""What tests of all parts share."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop that the product runs on, and not for ever."""
    return uvloop.run(asyncio.wait_for(scenario, 60))
