"""Processes are killed while mail goes into mailboxes: nothing is lost, nothing is there twice."""

import os
import signal
from collections import Counter
from pathlib import Path

import uvloop

from fastmta.sink import Behaviour
from fastmta.store.mailboxes import Mailboxes
from tests.integration.ledger import Ledger, Node, load, node, sink
from tests.integration.mailboxes import add_account, messages
from tests.support import until

# FASTMTA_CRASH_ROUNDS=100 is what a release wants.
ROUNDS = int(os.environ.get("FASTMTA_CRASH_ROUNDS", "4"))

LOCAL = ("one.test", "two.test")  # the third of the ledger's domains is elsewhere
DOMAINS = "\n".join(f'[domains."{name}"]\ncatch_all = "all@{name}"' for name in LOCAL)


async def copies(ledger: Ledger, data: Path) -> Counter[tuple[int, str]]:
    """How often each message is in the mailbox of each domain; the ledger hears of all."""
    found: Counter[tuple[int, str]] = Counter()
    mailboxes = Mailboxes(data / "mail" / "0", lambda _: 0)
    try:
        for domain in LOCAL:
            async for content in messages(mailboxes, f"all@{domain}"):
                number = ledger.check(content)
                found[number, domain] += 1
                ledger.arrives(number, ledger.recipients(number, domain))
    finally:
        await mailboxes.close()
    return found


async def kill_one(one: Node) -> None:
    """A worker, which the supervisor starts again."""
    _, *workers = one.pids()
    os.kill(workers[0], signal.SIGKILL)
    await until(lambda: len(one.pids()) == 3 and workers[0] not in one.pids(), 0.02)


async def kill_all(one: Node) -> None:
    await one.kill()
    await one.start()


def test_processes_are_killed_while_mail_goes_into_mailboxes(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(tempfail=0.2)) as destination,
            node(tmp_path, destination.endpoint[1], DOMAINS, workers=2) as one,
        ):
            for domain in LOCAL:
                add_account(one.data, f"all@{domain}")
            async with load(ledger, one.port):
                for turn in range(ROUNDS):
                    await ledger.acknowledges(50)
                    await (kill_one if turn % 2 else kill_all)(one)
            await until(lambda: not one.has_mail(), 0.05)
            assert await one.stop() == 0
            found = await copies(ledger, one.data)
            assert not [each for each, count in found.items() if count > 1]
            await ledger.complete()
            assert len(found) > 25 * ROUNDS
            print(f"{ROUNDS} rounds: {len(found)} in mailboxes; replies {ledger.replies}")

    uvloop.run(scenario())
