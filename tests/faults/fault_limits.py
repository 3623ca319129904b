"""Descriptors and memory run out: 421 and 452, nobody dies, and who is there is served."""

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from fastmta.sink import Behaviour
from tests.faults.frame import Fault, Run
from tests.integration.ledger import Node, load, node, read_reply, sink

MORE_DESCRIPTORS = 100  # than are open when the limit is set
CROWD = 200  # connections at a time
MORE_MEMORY = 40 << 20  # octets
LARGE = 24 << 20  # octets of each message
SENDERS = 10  # of these, at a time


@asynccontextmanager
async def _limited(worker: int, which: int, limit: int) -> AsyncIterator[None]:
    """The soft limit of a process is this for a while."""
    before = resource.prlimit(worker, which)
    resource.prlimit(worker, which, (limit, before[1]))
    try:
        await asyncio.sleep(1.5)  # it looks once a second
        yield
    finally:
        resource.prlimit(worker, which, before)


async def _greeting(port: int, stack: AsyncExitStack) -> int:
    """The code that a connection is greeted with, which stays open; 0 where there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    line = await reader.readline()
    return int(line[:3] or 0)


def _descriptors_of(worker: int) -> int:
    return sum(1 for _ in Path(f"/proc/{worker}/fd").iterdir())


async def _crowd(port: int) -> Counter[int]:
    async with AsyncExitStack() as stack:
        return Counter([await _greeting(port, stack) for _ in range(CROWD)])


async def _large(port: int) -> int:
    """The last reply to a message that is more than there is room for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await read_reply(reader)
    writer.write(b"EHLO client.example.test\r\n")
    await read_reply(reader)
    writer.write(b"MAIL FROM:<a@client.example.test>\r\nRCPT TO:<b@one.test>\r\nDATA\r\n")
    codes = [await read_reply(reader) for _ in range(3)]
    line = b"x" * 76 + b"\r\n"
    if codes[-1] == 354:
        for _ in range(LARGE // len(line) // 1000):
            writer.write(line * 1000)
            await writer.drain()
        writer.write(b".\r\n")
        codes.append(await read_reply(reader))
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return codes[-1]


@asynccontextmanager
async def _served(run: Run) -> AsyncIterator[tuple[Node, int]]:
    """A node under load, and its worker, which lives to the end."""
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1]) as one,
    ):
        pids = one.pids()
        async with load(ledger, one.port, clients=5):
            await ledger.acknowledges(50)
            yield one, pids[1]
        await run.settled(one)
        assert one.pids() == pids
        assert await one.stop() == 0


async def _descriptors(run: Run) -> None:
    async with _served(run) as (one, worker):
        for _ in run.each():
            opened = _descriptors_of(worker)
            async with _limited(worker, resource.RLIMIT_NOFILE, opened + MORE_DESCRIPTORS):
                greetings = await _crowd(one.port)
                assert set(greetings) == {220, 421}, greetings
                await run.ledger.acknowledges(20)
            with run.recovering():
                await _settle_down(one.port)
        assert set(run.ledger.replies) == {250}


async def _settle_down(port: int) -> None:
    """Until a new session is let in."""
    code = 0
    while code != 220:
        async with AsyncExitStack() as stack:
            code = await _greeting(port, stack)


async def _memory(run: Run) -> None:
    async with _served(run) as (one, worker):
        for _ in run.each():
            pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])  # noqa: ASYNC240
            limit = pages * resource.getpagesize() + MORE_MEMORY
            async with _limited(worker, resource.RLIMIT_AS, limit):
                codes = Counter(await asyncio.gather(*(_large(one.port) for _ in range(SENDERS))))
                assert set(codes) <= {250, 452}, codes
                assert codes[452], codes
                await run.ledger.acknowledges(20)
            with run.recovering():
                await run.ledger.acknowledges(20)
        assert set(run.ledger.replies) <= {250, 452}


FAULTS = [
    Fault(
        name="limit-descriptors",
        about="RLIMIT_NOFILE is reached: 421 to new sessions, and the others go on",
        run=_descriptors,
        short=1,
        long=10,
    ),
    Fault(
        name="limit-memory",
        about="RLIMIT_AS is reached: 452 to what there is no room for, and nobody dies",
        run=_memory,
        short=1,
        long=10,
    ),
]
