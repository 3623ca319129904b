"""The power fails: what had not reached the disk is gone, in whatever order it was written back."""

import asyncio
from pathlib import Path

from lmdb.verify import verify

from fastmta.sink import Behaviour
from tests.faults import disk
from tests.faults.disk import Disk, mounted
from tests.faults.frame import Fault, Run
from tests.integration.ledger import Node, ending, load, sink

WORKERS = 2


def _files(one: Node) -> list[Path]:
    return sorted(one.data.glob("**/data.mdb"))


async def _cut(run: Run, one: Node, disk: Disk) -> None:
    for path in _files(one):
        disk.write_back(path, run.dice)
    disk.cut()
    await one.kill()
    disk.unmount()
    disk.mount()
    for path in _files(one):
        assert not (errors := verify(str(path), subdir=False)), f"{path}: {errors}"
    await one.start()


async def _run(run: Run) -> None:
    ledger = run.ledger
    one_disk = Disk(run.folder / "image", run.folder / "data")
    with mounted(one_disk):
        async with (
            sink(ledger, Behaviour(tempfail=0.2)) as destination,
            ending(Node(run.folder, destination.endpoint[1], workers=WORKERS)) as one,
        ):
            await one.start()
            async with load(ledger, one.port):
                for _ in run.each():
                    await ledger.acknowledges(run.dice.randrange(1, 200))
                    await asyncio.sleep(run.dice.random() * 0.05)
                    with run.striking():
                        await _cut(run, one, one_disk)
                        await ledger.acknowledges(1)
            await run.settled(one)
            assert await one.stop() == 0


FAULTS = [
    Fault(
        name="power",
        about="the disk is cut off with part of its pages written back, and mounted again",
        run=_run,
        short=3,
        long=200,
        missing=disk.missing,
    )
]
