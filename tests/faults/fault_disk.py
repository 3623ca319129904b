"""The disk is slow, or full and emptied again: mail waits or is refused, and then flows."""

import asyncio
import shutil
import subprocess
from pathlib import Path

from fastmta.sink import Behaviour
from tests.faults import strace
from tests.faults.frame import Fault, Run
from tests.faults.strace import attached
from tests.integration.ledger import Node, ending, load, node, sink
from tests.support import until

FLUSH = 200_000  # microseconds
SIZE = 128 << 20  # of the small disk
FLOOR = 48 << 20  # that has to be free


async def _slow(run: Run) -> None:
    """The 250 waits for the flush, and nothing else does."""
    ledger = run.ledger
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        node(run.folder, destination.endpoint[1]) as one,
    ):
        async with load(ledger, one.port):
            await ledger.acknowledges(20)
            delay = f"fdatasync:delay_enter={FLUSH}"
            files = [one.data / "spool/0/data.mdb"]
            async with attached(one.pids()[1], run.folder / "trace", files, delay):
                await _ask(run, one.port)
        await run.settled(one)
        assert await one.stop() == 0
        assert set(ledger.replies) == {250}


async def _ask(run: Run, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    for _ in run.each():
        with run.recovering():
            await run.ledger.acknowledges(20)
        writer.write(b"NOOP\r\n")
        before = len(run.ledger.acknowledged)
        assert (await reader.readline()).startswith(b"250")
        assert len(run.ledger.acknowledged) <= before + 20  # within one flush
    writer.close()


def _on_small_disk(data: Path) -> list[str]:
    """Run what follows with SIZE for its data; the mount goes with the process."""
    script = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, str(data)]


def _cannot_mount() -> str:
    if not shutil.which("unshare"):
        return "unshare is not installed"
    done = subprocess.run([*_on_small_disk(Path("/tmp")), "true"], capture_output=True, text=True)
    return done.stderr


async def _full(run: Run) -> None:
    ledger = run.ledger
    floor = f"[spool]\nmin_free_space = {FLOOR}"
    async with (
        sink(ledger, Behaviour(tempfail=0.2)) as destination,
        ending(Node(run.folder, destination.endpoint[1], floor)) as one,
    ):
        one.data.mkdir()
        await one.start(*_on_small_disk(one.data))
        # The disk is in the processes' own name space.
        filler = Path(f"/proc/{one.process.pid}/root{one.data}/filler")
        async with load(ledger, one.port, clients=5):
            await ledger.acknowledges(50)
            for _ in run.each():
                for size in (SIZE - FLOOR + (10 << 20), SIZE):  # below the floor, then all
                    refused = ledger.replies[452]
                    _fill(filler, size)
                    await until(lambda refused=refused: ledger.replies[452] > refused + 50, 0.02)
                with run.recovering():
                    filler.unlink()  # noqa: ASYNC240
                    await ledger.acknowledges(50)
        await ledger.complete()
        assert set(ledger.replies) == {250, 452}
        assert await one.stop() == 0


def _fill(path: Path, size: int) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(size >> 16):
                file.write(bytes(1 << 16))
    except OSError:
        pass  # full


FAULTS = [
    Fault(
        name="disk-slow",
        about="each flush takes 200 ms: the 250 waits for it, and nothing else does",
        run=_slow,
        short=5,
        long=100,
        missing=strace.missing,
    ),
    Fault(
        name="disk-full",
        about="the disk is filled below the floor, then to the last octet, and emptied",
        run=_full,
        short=1,
        long=20,
        missing=_cannot_mount,
    ),
]
