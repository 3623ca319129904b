"""kill -9 while mail goes into mailboxes, and somebody takes it out: each is there once."""

from fastmta.sink import Behaviour
from tests.faults.fault_crash import WORKERS, kill_all, kill_worker
from tests.faults.frame import Fault, Run
from tests.faults.reader import DOMAINS, add_accounts, reader
from tests.integration.ledger import load, node, sink


async def _run(run: Run) -> None:
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1], DOMAINS, workers=WORKERS) as one,
    ):
        add_accounts(one.data)
        async with reader(ledger, one.data, run.dice) as somebody:
            async with load(ledger, one.port, clients=5):
                for _ in run.each():
                    await ledger.acknowledges(run.dice.randrange(1, 100))
                    with run.striking():
                        await run.dice.choice((kill_worker, kill_all))(run, one)
                        await ledger.acknowledges(1)
                    await somebody.read(share=run.dice.choice((0.5, 0.9, 1.0)))
            await run.settled(one)
            assert await one.stop() == 0
            await somebody.read()


FAULTS = [
    Fault(
        name="mailboxes",
        about="kill -9 while mail goes into mailboxes and is taken out: each once, no uid again",
        run=_run,
        short=3,
        long=100,
    )
]
