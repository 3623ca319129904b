"""The disk fails, is slow or is full: 4xx to the sender, nothing lost, and no person is needed."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from fastmta.sink import Behaviour
from tests.integration.ledger import Ledger, Node, ending, load, node, sink
from tests.support import run, until

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


def strace(output: Path, call: str, inject: str = "") -> list[str]:
    """Run what follows under strace, which stands aside: the process is our child (-D)."""
    command = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-o",
        str(output),
        "-e",
        f"trace={call}",
    ]
    return [*command, "-e", f"inject={call}:{inject}"] if inject else command


@needs_strace
@pytest.mark.parametrize(("call", "which"), [("fdatasync", "3+7"), ("pwrite64", "5+31")])
def test_write_errors_are_answered_4xx_and_pass_by_themselves(
    tmp_path: Path, call: str, which: str
) -> None:
    """For pwrite64 they meet the meta page as well, after which LMDB refuses everything.

    A transaction needs some ten of these, so one in seven would fail all that are not small.
    """

    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(tempfail=0.2)) as destination,
            node(tmp_path, destination.endpoint[1]) as one,
        ):
            assert await one.stop() == 0  # the files are there
            await one.start(*strace(tmp_path / "trace", call, f"error=EIO:when={which}"))
            async with load(ledger, one.port):
                await until(lambda: ledger.replies[451] >= 20)
                await ledger.acknowledges(200)
                if call == "pwrite64":
                    await until(one.said("reopened"))
            await ledger.complete()
            assert await one.stop() == 0
            assert set(ledger.replies) == {250, 451}
            assert "Traceback" not in one.output()
            await one.start()
            await ledger.complete()
            assert await one.stop() == 0
            assert not ledger.repeated()
            assert not one.rows().total()

    run(scenario())


@needs_strace
def test_a_slow_disk_delays_the_250_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger) as destination,
            node(tmp_path, destination.endpoint[1]) as one,
        ):
            assert await one.stop() == 0
            await one.start(*strace(tmp_path / "trace", "fdatasync", "delay_enter=200000"))
            async with load(ledger, one.port):
                reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
                await reader.readline()
                for _ in range(5):
                    await ledger.acknowledges(20)
                    writer.write(b"NOOP\r\n")
                    before = len(ledger.acknowledged)
                    assert (await reader.readline()).startswith(b"250")
                    assert len(ledger.acknowledged) <= before + 20  # within one flush
                writer.close()
            await ledger.complete()
            assert await one.stop() == 0
            assert set(ledger.replies) == {250}
            assert not ledger.repeated()

    run(scenario())


def on_small_disk(data: Path) -> list[str]:
    """Run what follows with 128 MiB for its data; the mount goes with the process."""
    script = 'mount -t tmpfs -o size=128m tmpfs "$0" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", script, str(data)]


def may_mount(folder: Path) -> bool:
    return not run(_status(*on_small_disk(folder), "true"))


async def _status(*command: str) -> int:
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()


def test_a_full_disk_is_answered_452_and_mail_flows_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    if not shutil.which("unshare") or not may_mount(tmp_path):
        pytest.skip("a tmpfs cannot be mounted here")

    async def scenario() -> None:
        ledger = Ledger()
        floor = f"[spool]\nmin_free_space = {48 << 20}"
        async with (
            sink(ledger, Behaviour(tempfail=0.2)) as destination,
            ending(Node(tmp_path, destination.endpoint[1], floor)) as one,
        ):
            one.data.mkdir()
            await one.start(*on_small_disk(one.data))
            filler = Path(f"/proc/{one.process.pid}/root{one.data}/filler")
            async with load(ledger, one.port, clients=5):
                await ledger.acknowledges(100)
                for size in (90 << 20, 128 << 20):  # below the floor, then nothing is free
                    refused = ledger.replies[452]
                    fill(filler, size)
                    await until(lambda refused=refused: ledger.replies[452] > refused + 100)
                filler.unlink()  # noqa: ASYNC240
                await ledger.acknowledges(100)
            await ledger.complete()
            assert set(ledger.replies) == {250, 452}
            assert await one.stop() == 0
            assert not ledger.repeated()

    run(scenario())


def fill(path: Path, size: int) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(size >> 16):
                file.write(bytes(1 << 16))
    except OSError:
        pass  # full


QUEUED = re.compile(r'write\w*\(\d+<[^>]*>, .*"250 2\.0\.0 Ok: queued as (\w+)')


@needs_strace
def test_no_250_leaves_before_the_flush_of_the_commit_that_holds_its_message(
    tmp_path: Path,
) -> None:
    """The system calls of the worker: message, fdatasync, meta page, and only then the reply."""

    async def scenario() -> None:
        ledger = Ledger()
        trace = tmp_path / "trace"
        async with (
            sink(ledger) as destination,
            ending(Node(tmp_path, destination.endpoint[1])) as one,
        ):
            calls = "fdatasync,pwrite64,pwritev,writev,write,sendto,sendmsg"
            await one.start(*strace(trace, calls), "-s", "1000000")
            async with load(ledger, one.port, clients=4):
                await ledger.acknowledges(40)
            await ledger.complete()
            assert await one.stop() == 0
        assert check_order(trace.read_text(errors="replace").splitlines()) >= 40

    run(scenario())


def check_order(trace: list[str]) -> int:
    """How many 250s there are; each comes after its message, a flush and a meta page, in turn."""
    begun: dict[str, str] = {}  # a thread -> its call that has not returned yet
    written: dict[str, int] = {}  # id -> when its message was written
    flushes: list[tuple[int, int]] = []  # begin and end
    metas: list[tuple[int, int]] = []
    starts: dict[str, int] = {}
    replies = 0
    for at, line in enumerate(trace):
        thread, _, call = line.partition(" ")
        call = call.strip()
        if not call.startswith("<... "):
            starts[thread] = at
            for number in QUEUED.findall(call):
                replies += 1
                assert number in written, f"{number}: not even written"
                flush = next((e for b, e in flushes if b > written[number]), None)
                assert flush is not None, f"{number}: no flush"
                assert any(b > flush for b, _ in metas), f"{number}: no meta page"
        if call.endswith("<unfinished ...>"):
            begun[thread] = call
            continue
        if call.startswith("<... "):
            call = begun.pop(thread) + call
        if "/data.mdb>" not in call.partition(",")[0]:
            continue
        if call.startswith("fdatasync"):
            flushes.append((starts[thread], at))
        elif re.search(r", \d+, (\d{1,3}|4\d{3})\)? *(<.*)?= \d+$", call):
            metas.append((starts[thread], at))  # its offset lies in the first two pages
        else:
            for number in re.findall(r" id (\w{13})", call):
                written.setdefault(number, at)
    return replies
