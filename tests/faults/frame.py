"""What the faults have in common: how one is run, and the row that comes of it.

A fault is a coroutine that takes a `Run`: it goes through `run.each()`, does its harm once in
each turn, and sees that the mail of `run.ledger` flows again. The frame makes the row.
"""

import asyncio
import importlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from msgspec import Struct

from tests.integration.ledger import Ledger, Node
from tests.support import until

HERE = Path(__file__).parent
STUCK = 90.0  # seconds that one cycle may take; what is waited for comes much sooner


class Row(Struct, frozen=True, kw_only=True):
    """What one fault did."""

    fault: str
    cycles: int
    acknowledged: int  # messages that got their 250
    lost: int  # deliveries of those that never came
    altered: int  # messages that came with other octets
    duplicated: int  # deliveries that were one too many
    in_flight: int  # deliveries that were in flight when the fault struck: these may come again
    unexcused: int  # of those duplicated, which were not
    recovered: float  # seconds until mail flowed again, the longest of all cycles
    seconds: float
    problem: str = ""  # what else was not as it has to be

    def complaints(self) -> list[str]:
        """Why this is no pass; empty where it is one."""
        found = [self.problem] if self.problem else []
        if self.lost or self.altered:
            found.append(f"{self.lost} lost, {self.altered} altered")
        if self.unexcused:
            found.append(f"{self.unexcused} duplicated that were not in flight")
        return found


class Run:
    """One fault under way."""

    def __init__(self, folder: Path, cycles: int, seed: int, advance: Callable[[], None]) -> None:
        self.folder, self.cycles = folder, cycles
        self.dice = random.Random(seed)
        self.ledger = Ledger()
        self.done = 0
        self.recovered = 0.0
        self._advance = advance
        self._limit = asyncio.timeout(STUCK)

    async def go(self, fault: "Fault") -> None:
        async with self._limit:
            await fault.run(self)

    def each(self) -> Iterator[int]:
        """The cycles; each may take STUCK seconds, and so may what comes after the last."""
        for number in range(self.cycles):
            yield number
            self.done += 1
            self._limit.reschedule(asyncio.get_running_loop().time() + STUCK)
            self._advance()

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """From right before the harm until mail flows again; nothing may be delivered twice."""
        began = time.monotonic()
        yield
        self.recovered = max(self.recovered, time.monotonic() - began)

    @contextmanager
    def striking(self) -> Iterator[None]:
        """The same where processes die: what is in flight then may be delivered once more."""
        with self.ledger.struck(), self.recovering():
            yield

    async def settled(self, node: Node) -> None:
        """The queue is empty: what has not arrived is lost.

        What nobody heard a 250 for may be the last in it.
        """
        await until(lambda: not node.has_mail(), 0.05)

    def row(self, fault: "Fault", seconds: float, problem: str) -> Row:
        ledger = self.ledger
        return Row(
            fault=fault.name,
            cycles=self.done,
            acknowledged=len(ledger.acknowledged),
            lost=len(ledger.missing()),
            altered=len(ledger.corrupt),
            duplicated=ledger.repeated(),
            in_flight=ledger.in_flight,
            unexcused=ledger.unexcused,
            recovered=round(self.recovered, 3),
            seconds=round(seconds, 1),
            problem=problem,
        )


class Fault(Struct, frozen=True, kw_only=True):
    """A fault, and how often it strikes."""

    name: str
    about: str  # what it does, in a few words
    run: Callable[[Run], Awaitable[None]]
    short: int  # cycles in `make test`: a few seconds of all its three minutes
    long: int  # cycles in `make faults`
    missing: Callable[[], str] = lambda: ""  # why it cannot be run here, or nothing


def faults() -> list[Fault]:
    """Those of every module fault_*.py beside this one."""
    names = sorted(path.stem for path in HERE.glob("fault_*.py"))
    modules = [importlib.import_module(f"tests.faults.{name}") for name in names]
    return [fault for module in modules for fault in module.FAULTS]


def perform(
    fault: Fault, folder: Path, cycles: int, seed: int, advance: Callable[[], None] = lambda: None
) -> Row:
    """Run a fault; whatever goes wrong stands in its row."""
    return uvloop.run(_perform(fault, folder, cycles, seed, advance))


async def _perform(
    fault: Fault, folder: Path, cycles: int, seed: int, advance: Callable[[], None]
) -> Row:
    run = Run(folder, cycles, seed, advance)
    began, problem = time.monotonic(), ""
    try:
        await run.go(fault)
    except TimeoutError:
        problem = f"cycle {run.done + 1} took more than {STUCK:g} s"
    except Exception as error:
        problem = f"cycle {run.done + 1}: {type(error).__name__}: {error}"[:500]
    return run.row(fault, time.monotonic() - began, problem)
