"""kill -9 under load, at moments that the dice choose: a worker, all processes, the supervisor."""

import asyncio
import os
import signal

from fastmta.sink import Behaviour
from tests.faults.frame import Fault, Run
from tests.integration.ledger import Node, load, node, sink
from tests.support import until

WORKERS = 2
IN_START = 0.25  # share of the kills of all that are followed by one while they start again
START = 1.5  # seconds that a start takes, about


async def kill_worker(run: Run, one: Node) -> None:
    victim = run.dice.choice(one.pids()[1:])
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(pids := one.pids()) == 1 + WORKERS and victim not in pids, 0.02)


async def kill_all(run: Run, one: Node) -> None:
    await one.kill()
    if run.dice.random() < IN_START:
        await one.launch()
        await asyncio.sleep(run.dice.random() * START)
        await one.kill()
    await one.start()


async def _kill_supervisor(run: Run, one: Node) -> None:
    """Its workers drain; a new one waits for them."""
    os.kill(one.process.pid, signal.SIGKILL)
    await one.process.wait()
    await one.start()


async def _run(run: Run) -> None:
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1], workers=WORKERS) as one,
    ):
        async with load(ledger, one.port):
            for _ in run.each():
                await ledger.acknowledges(run.dice.randrange(1, 400))
                await asyncio.sleep(run.dice.random() * 0.05)
                with run.striking():
                    await run.dice.choice((kill_worker, kill_all, _kill_supervisor))(run, one)
                    await ledger.acknowledges(1)
        await run.settled(one)
        assert await one.stop() == 0


FAULTS = [
    Fault(
        name="crash",
        about="kill -9 of a worker, of all processes or of the supervisor, also while they start",
        run=_run,
        short=6,
        long=1000,
    )
]
