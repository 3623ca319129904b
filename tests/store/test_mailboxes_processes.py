"""Mailboxes that several processes have open, some of which are killed."""

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fastmta.store.mailboxes import Mailboxes
from tests.store.deliverer import ACCOUNTS, post
from tests.store.whole import problems
from tests.support import run, until

ROOT = Path(__file__).parent.parent.parent


async def deliverer(folder: Path, *numbers: int) -> asyncio.subprocess.Process:
    words = [sys.executable, "-m", "tests.store.deliverer", str(folder), *map(str, numbers)]
    return await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )


async def contents(boxes: Mailboxes, account: str) -> dict[int, bytes]:
    """The first line of each message, which says whose it is, by uid."""
    snapshot = await boxes.open(account)
    return {
        uid: (await boxes.read(snapshot.mailbox, uid))[1].split(b"\r\n")[0] for uid in snapshot.uids
    }


def expected(shard: int, numbers: range, account: str) -> Counter[bytes]:
    return Counter(
        b"%d.%d" % (shard, number)
        for number in numbers
        if any(drop.account == account for drop in post(shard, number).to)
    )


def test_two_processes_deliver_into_the_same_mailboxes(tmp_path: Path) -> None:
    async def scenario() -> None:
        boxes = Mailboxes(tmp_path / "mail", lambda account: 0)
        mailbox = (await boxes.open(ACCOUNTS[0])).mailbox
        heard: list[float] = []
        boxes.follow(mailbox, lambda: heard.append(time.monotonic()))
        others = [await deliverer(tmp_path / "mail", shard, 0, 400) for shard in (1, 2)]
        await until(lambda: heard)  # while they deliver, or soon after
        for other in others:
            await other.communicate()
            assert other.returncode == 0
        now = len(heard)
        await until(lambda: len(heard) >= now)
        told = await boxes.changes(mailbox, 1)
        for account in ACCOUNTS:
            found = await contents(boxes, account)
            wanted = expected(1, range(400), account) + expected(2, range(400), account)
            assert Counter(found.values()) == wanted
            assert list(found) == list(range(1, len(found) + 1))
            if account == ACCOUNTS[0]:
                assert told.changes and told.uidnext == len(found) + 1
        await boxes.close()

    run(scenario())


@pytest.mark.parametrize("after", [0, 40, 120])
def test_a_process_that_is_killed_loses_nothing_and_doubles_nothing(
    tmp_path: Path, after: int
) -> None:
    async def scenario() -> None:
        folder = tmp_path / "mail"
        whole = await deliverer(folder, 0, 0, 60)  # what the next one takes out
        await whole.communicate()
        killed = await deliverer(folder, 3, 1000, 300)
        lines = await read_and_kill(killed, after)
        acknowledged = [int(line.split()[1]) for line in lines if line.startswith(b"stored")]
        boxes = Mailboxes(folder, lambda account: 0)
        boxes.receipts(3)
        await check_expunge(boxes, lines)
        before = {account: await contents(boxes, account) for account in ACCOUNTS}
        for account in ACCOUNTS:
            there = Counter(before[account].values())
            for number in acknowledged:
                assert there >= expected(3, range(number, number + 1), account), "lost"
        # What the spool of the dead one still has is delivered again.
        for number in range(1000, 1300):
            await boxes.append(post(3, number))
        for account in ACCOUNTS:
            found = await contents(boxes, account)
            own = Counter(each for each in found.values() if each.startswith(b"3."))
            assert own == expected(3, range(1000, 1300), account)
            assert before[account].items() <= found.items()
        for number in range(1000, 1300):
            boxes.forget(post(3, number).receipt)
        await boxes.close()
        assert problems(folder) == []

    run(scenario())


async def read_and_kill(process: asyncio.subprocess.Process, after: int) -> list[bytes]:
    """Kill it after so many lines; all that it said."""
    assert process.stdout is not None
    lines = [await process.stdout.readline()]
    while len(lines) < after and (line := await process.stdout.readline()):
        lines.append(line)
    process.kill()
    rest = await process.stdout.read()
    await process.wait()
    return lines + rest.split(b"\n")[:-1]  # the last one may be cut off


async def check_expunge(boxes: Mailboxes, lines: list[bytes]) -> None:
    """All that was there is gone, or nothing of it; all if it was said to be done."""
    left = set(await contents(boxes, ACCOUNTS[0]))
    for line in lines:
        if line.startswith(b"expunging"):
            gone = set(map(int, line.split()[1:]))
            assert not gone & left or gone <= left, "half of them are gone"
            assert not gone & left or b"expunged" not in [each.strip() for each in lines]
