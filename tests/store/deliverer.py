"""A process of its own that delivers into mailboxes, and says what it was told is durable.

    python -m tests.store.deliverer FOLDER SHARD FIRST COUNT

That of shard 3 takes out what it finds at first, in one expunge, and says so too.
"""

import asyncio
import sys
from functools import partial
from pathlib import Path

import uvloop

from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Outcome, Post, Stored

ACCOUNTS = ("a@x.test", "b@x.test", "c@x.test")


def post(shard: int, number: int) -> Post:
    """The same each time that it is made."""
    body = b"%d.%d\r\n" % (shard, number) * (1 + number % 7 * 900)
    receipt = bytes([shard]) + number.to_bytes(10)
    drops = [Drop(ACCOUNTS[number % 3]), Drop(ACCOUNTS[(number + 1) % 3])]
    return Post(receipt, [body], len(body), 1.0, drops[: 1 + number % 2])


def told(number: int, result: list[Outcome] | Exception) -> None:
    assert isinstance(result, list) and all(isinstance(each, Stored) for each in result)
    print("stored", number, flush=True)


async def main(folder: Path, shard: int, first: int, count: int) -> None:
    boxes = Mailboxes(folder, lambda account: 0)
    boxes.receipts(shard)
    print("open", flush=True)
    snapshot = await boxes.open(ACCOUNTS[shard % 3])
    for number in range(first, first + count):
        boxes.deliver(post(shard, number), partial(told, number))
        if number % 20 == 0:
            await asyncio.sleep(0)
        if shard == 3 and number == first + count // 2:
            print("expunging", *snapshot.uids, flush=True)
            await boxes.expunge(snapshot.mailbox, snapshot.uids)
            print("expunged", flush=True)
    await boxes.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
