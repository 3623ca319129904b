"""No 250 before its commit: shown from the system calls, in the order in which they were made."""

import asyncio
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults import strace
from tests.faults.frame import Fault, Run
from tests.faults.strace import traced
from tests.integration.ledger import Ledger, load, node, read_reply, sink

CALLS = ("fdatasync", "pwrite64", "pwritev", "writev", "write", "sendto", "sendmsg")
WHOLE = 1_000_000  # octets of each call that are shown: all that is written
CLIENTS = 4
AT_ONCE = 5  # messages that one write brings

_QUEUED = re.compile(r"250 2\.0\.0 Ok: queued as (\w{13})")
_ID = re.compile(r" id (\w{13})")
_META = re.compile(r", \d+, (\d{1,3}|4\d{3})\)? *(<.*)?= \d+$")  # offset within the first two pages


class Call(NamedTuple):
    """A system call: `began` and `ended` are lines of the trace."""

    text: str
    began: int
    ended: int


def calls(trace: list[str]) -> Iterator[Call]:
    """Calls in the order in which they ended; those that threads made meanwhile cut them in two."""
    begun: dict[str, tuple[str, int]] = {}
    for at, line in enumerate(trace):
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call, at
        elif call.startswith("<... "):
            first, began = begun.pop(thread)
            yield Call(first + call, began, at)
        else:
            yield Call(call, at, at)


def check(trace: list[str]) -> int:
    """How many 250s there are; each began after its message was written, then a flush, then a meta
    page, each of which had returned."""
    every = list(calls(trace))
    files = [one for one in every if _is_on_file(one)]
    flushes = [one for one in files if one.text.startswith("fdatasync")]
    metas = [one for one in files if _META.search(one.text)]
    written: dict[str, int] = {}
    for one in files:
        for number in _ID.findall(one.text):
            written.setdefault(number, one.ended)
    replies = [(number, one) for one in every for number in _QUEUED.findall(one.text)]
    for number, one in replies:
        assert number in written, f"{number} is acknowledged and was not even written"
        flush = _next(flushes, written[number])
        assert flush and flush.ended < one.began, f"{number} is acknowledged before a flush"
        meta = _next(metas, flush.ended)
        assert meta and meta.ended < one.began, f"{number} is acknowledged before its meta page"
    return len(replies)


def _is_on_file(one: Call) -> bool:
    return "/data.mdb>" in one.text.partition(",")[0]


def _next(among: list[Call], at: int) -> Call | None:
    """The first that began after this line."""
    after = bisect_right(among, at, key=lambda one: one.began)
    return among[after] if after < len(among) else None


async def _burst(ledger: Ledger, port: int) -> None:
    """Several messages in one write: nothing of BDAT waits for a reply (RFC 3030 section 4.2)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await read_reply(reader)
    writer.write(b"EHLO client.example.test\r\n")
    await read_reply(reader)
    sent = [ledger.next() for _ in range(AT_ONCE)]
    writer.write(b"".join(_transaction(recipients, content) for _, recipients, content in sent))
    for number, recipients, _ in sent:
        codes = [await read_reply(reader) for _ in range(len(recipients) + 2)]
        ledger.answered(number, codes[-1])
    writer.close()
    await writer.wait_closed()


def _transaction(recipients: list[str], content: bytes) -> bytes:
    rcpts = b"".join(b"RCPT TO:<%b>\r\n" % each.encode() for each in recipients)
    size = len(content)
    return b"MAIL FROM:<load@client.example.test>\r\n%bBDAT %d LAST\r\n%b" % (rcpts, size, content)


async def _run(run: Run) -> None:
    ledger = run.ledger
    async with (
        sink(ledger) as destination,
        node(run.folder, destination.endpoint[1]) as one,
    ):
        for _ in run.each():
            before = len(ledger.acknowledged)
            async with traced(one.pids()[1], run.folder / "trace", CALLS, WHOLE) as trace:
                async with load(ledger, one.port, CLIENTS):
                    await asyncio.gather(*(_burst(ledger, one.port) for _ in range(CLIENTS)))
                    await ledger.acknowledges(20)
                await ledger.complete()
            assert check(trace.lines()) == len(ledger.acknowledged) - before
        assert await one.stop() == 0


FAULTS = [
    Fault(
        name="order",
        about="none: the system calls show that each 250 comes after the flushes of its commit",
        run=_run,
        short=3,
        long=30,
        missing=strace.missing,
    )
]
