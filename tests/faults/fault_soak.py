"""Deep queues again and again, large messages, many destinations: memory, file and descriptors."""

import re
from pathlib import Path
from typing import NamedTuple

import aiohttp

from bench.processes import free_port
from fastmta.sink import Behaviour
from tests.faults.fault_peers import open_files
from tests.faults.frame import Fault, Run
from tests.integration.ledger import load, node, sink
from tests.support import until

DESTINATIONS = [f"d{number}.test" for number in range(500)]
SIZES = (1_000, 2_000, 4_000, 40_000, 400_000, 2_000_000)  # octets of a body
DEPTH = {False: 40, True: 400}  # messages that wait in the queue at its deepest, by form
LONG = 20  # cycles from which it is the long form

# What a process may hold more than it did, and a file more than twice its peak: what is small
# besides is the allocator's and LMDB's affair.
SLACK = 32 << 20  # octets
FEW = 8  # descriptors


class Sample(NamedTuple):
    """At the end of a cycle, when the queue is empty."""

    resident: int  # octets
    files: int  # descriptors that are open


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


async def live_octets(admin: int) -> int:
    """Pages of the spool's file that hold something."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{admin}/metrics") as answer,
    ):
        text = await answer.text()
    figures = dict(re.findall(r"(?m)^fastmta_spool_(file|free)_bytes ([\d.e+]+)$", text))
    return int(float(figures["file"]) - float(figures["free"]))


async def _run(run: Run) -> None:
    ledger = run.ledger
    ledger.domains, ledger.sizes = DESTINATIONS, SIZES
    depth = DEPTH[run.cycles >= LONG]
    admin = free_port()
    listener = f'[[listener]]\nservice = "admin"\nbind = "127.0.0.1:{admin}"'
    samples: list[Sample] = []
    peak = 0
    async with (
        sink(ledger) as destination,
        node(run.folder, destination.endpoint[1], listener) as one,
    ):
        worker = one.pids()[1]
        for _ in run.each():
            destination.behaviour = Behaviour(tempfail=1.0)
            for each in list(destination.sessions):
                each.close()
            async with load(ledger, one.port):
                await ledger.acknowledges(depth)
            peak = max(peak, await live_octets(admin))
            destination.behaviour = Behaviour(tempfail=0.1)
            for each in list(destination.sessions):
                each.close()
            with run.recovering():
                await until(lambda: not ledger.missing(), 0.02)
            await until(lambda: not one.has_mail(), 0.05)
            samples.append(Sample(resident(worker), open_files(worker) - len(destination.sessions)))
        file = (one.data / "spool/0/data.mdb").stat().st_size
        assert one.pids()[1] == worker
        assert await one.stop() == 0
    _level(samples)
    assert file <= 2 * peak + SLACK, f"a file of {file:,} octets for {peak:,} at the most"


def _level(samples: list[Sample]) -> None:
    """Of what was there after a third of the cycles, hardly more was there after all of them."""
    early = samples[: len(samples) // 3 + 1]
    for name, slack in (("resident", SLACK), ("files", FEW)):
        before = max(getattr(each, name) for each in early)
        after = max(getattr(each, name) for each in samples)
        assert after <= before + slack, f"{name} grew from {before:,} to {after:,}: {samples}"


FAULTS = [
    Fault(
        name="soak",
        about="deep queues of large messages to 500 domains come and go: memory, file, descriptors",
        run=_run,
        short=3,
        long=60,
    )
]
