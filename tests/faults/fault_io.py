"""Writes fail, each in turn: EIO and ENOSPC at every call that a commit or a start makes."""

import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastmta.sink import Behaviour
from tests.faults import strace
from tests.faults.frame import Fault, Run
from tests.faults.reader import DOMAINS, add_accounts, reader
from tests.faults.strace import Trace, attached, launching, strikes
from tests.integration.ledger import Node, ending, load, node, sink
from tests.support import until

ERRORS = ("EIO", "ENOSPC")
WRITES = ("fdatasync", "pwrite64", "writev")
_CALL = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed)")


def _positions(trace: Trace) -> list[tuple[str, int]]:
    """Each call that there was, and which of its kind it was within its thread."""
    seen: Counter[tuple[str, str]] = Counter()
    for line in trace.lines():
        if (match := _CALL.match(line)) and "resumed" not in line:
            seen[match[1], match[2]] += 1
    most: dict[str, int] = {}
    for (_, call), count in seen.items():
        most[call] = max(most.get(call, 0), count)
    return [(call, n) for call, count in sorted(most.items()) for n in range(1, count + 1)]


def _plan(trace: Trace) -> list[tuple[str, ...]]:
    """Each call fails once, by each error; and all of a kind fail for a while."""
    positions = _positions(trace)
    plan: list[tuple[str, ...]] = [
        (f"{call}:error={error}:when={n}",) for call, n in positions for error in ERRORS
    ]
    plan += [(f"{call}:error={error}:when=1+",) for call in WRITES for error in ERRORS]
    # Where that was the meta page LMDB has to be opened anew, and that fails as well.
    meta = [f"pwrite64:error=EIO:when={n}" for call, n in positions if call == "pwrite64"]
    return plan + [(each, "openat:error=EIO:when=1") for each in meta]


@asynccontextmanager
async def _served(run: Run) -> AsyncIterator[Node]:
    """A node with mailboxes under load; at the end all is there."""
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1], DOMAINS) as one,
    ):
        add_accounts(one.data)
        async with reader(ledger, one.data, run.dice) as somebody:
            async with load(ledger, one.port):
                await ledger.acknowledges(100)
                yield one
            await run.settled(one)
            assert await one.stop() == 0
            await somebody.read()
            assert "Traceback" not in one.stderr.read_text()


async def _commits(run: Run) -> None:
    """The worker lives on: 4xx to the sender, and the next transaction is a new try."""
    async with _served(run) as one:
        _, worker = one.pids()
        files = [one.data / "spool/0/data.mdb", one.data / "mail/0/data.mdb"]
        output = run.folder / "trace"
        async with attached(worker, output, files) as trace:
            await run.ledger.acknowledges(100)
        plan = _plan(trace)
        run.dice.shuffle(plan)
        for number in run.each():
            injections = plan[number % len(plan)]
            with run.recovering():
                async with attached(worker, output, files, *injections) as trace:
                    await strikes(trace)
                    if not injections[0].endswith("+"):
                        await run.ledger.acknowledges(10)
                await run.ledger.acknowledges(10)
            assert one.pids()[1:] == [worker]
        assert set(run.ledger.replies) <= {250, 451, 452}


async def _starts(run: Run) -> None:
    """A worker that cannot open its files ends, and is started again until it can."""
    async with _served(run) as one:
        supervisor, worker = one.pids()
        folders = (one.data / "spool/0", one.data / "mail/0", one.data / "accounts")
        files = [path / name for path in folders for name in ("data.mdb", "lock.mdb", "owner.lock")]
        output = run.folder / "trace"
        async with attached(supervisor, output, files) as trace:
            await _start_again(run, one, worker)
        plan = [
            f"{call}:error={error}:when={n}" for call, n in _positions(trace) for error in ERRORS
        ]
        run.dice.shuffle(plan)
        for number in run.each():
            supervisor, worker = one.pids()
            with run.striking():
                async with attached(supervisor, output, files, plan[number % len(plan)]) as trace:
                    os.kill(worker, signal.SIGKILL)
                    await strikes(trace)
                await run.ledger.acknowledges(10)
            assert await one.stop() == 0  # or the pauses between starts grow to 10 s
            await one.start()


async def _first_starts(run: Run) -> None:
    """A server that cannot make its files says so and ends, and the next start makes them."""
    ledger = run.ledger
    async with sink(ledger) as destination:
        plan: list[str] = []
        for number in run.each():
            folder = run.folder / str(number)
            folder.mkdir()
            async with ending(Node(folder, destination.endpoint[1])) as one:
                trace = await _first_start(one, *plan[number % len(plan) :][:1] if plan else ())
                if not plan:
                    plan = [
                        f"{call}:error={e}:when={n}"
                        for call, n in _positions(trace)
                        for e in ERRORS
                    ]
                    run.dice.shuffle(plan)
                with run.recovering():
                    if one.process.returncode is not None:
                        assert one.process.returncode == 1
                        await one.start()
                    async with load(ledger, one.port, clients=2):
                        await ledger.acknowledges(5)
                await run.settled(one)
                assert await one.stop() == 0
                assert "Traceback" not in one.stderr.read_text()


async def _first_start(one: Node, *injections: str) -> Trace:
    """Until it is ready, or has ended."""
    shard = one.data / "spool/0"
    files = [shard / name for name in ("data.mdb", "lock.mdb", "owner.lock")]
    await one.launch(*launching(one.folder / "trace", files, *injections))
    await until(lambda: one.process.returncode is not None or "ready:" in one.output(), 0.02)
    return Trace(one.folder / "trace")


async def _start_again(run: Run, one: Node, worker: int) -> None:
    with run.striking():
        os.kill(worker, signal.SIGKILL)
        await until(lambda: len(pids := one.pids()) == 2 and worker not in pids, 0.02)
        await run.ledger.acknowledges(1)


FAULTS = [
    Fault(
        name="io-commits",
        about="each write and flush of a commit fails in turn, with EIO and ENOSPC, or all do",
        run=_commits,
        short=30,
        long=400,
        missing=strace.missing,
    ),
    Fault(
        name="io-starts",
        about="a worker is killed, and each call that opens its files again fails in turn",
        run=_starts,
        short=2,
        long=40,
        missing=strace.missing,
    ),
    Fault(
        name="io-first",
        about="a server starts for the first time; each call that makes its spool fails in turn",
        run=_first_starts,
        short=2,
        long=55,
        missing=strace.missing,
    ),
]
