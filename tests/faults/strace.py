"""strace: what a process does to its files, and which of these calls fail."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import until

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
CALLS = ("fdatasync", "pwrite64", "writev", "openat", "ftruncate")  # that LMDB writes by


def missing() -> str:
    """Why it cannot be used here, or nothing."""
    return "" if shutil.which("strace") else "strace is not installed"


def strace(output: Path, call: str, inject: str = "") -> list[str]:
    """Run what follows under strace, which stands aside: the process is our child (-D)."""
    traced = f"trace={call}"
    command = ["strace", "-D", "-f", "--seccomp-bpf", "-y", "-o", str(output), "-e", traced]
    return [*command, "-e", f"inject={call}:{inject}"] if inject else command


def launching(output: Path, paths: Iterable[Path], *injections: str) -> list[str]:
    """Run what follows with such an eye on these files as `attached` has."""
    return [*strace(output, ",".join(CALLS)), *_harm(paths, injections)]


def _harm(paths: Iterable[Path], injections: Iterable[str]) -> list[str]:
    harm = [part for one in injections for part in ("-e", f"inject={one}")]
    return [*harm, *(part for path in paths for part in ("-P", str(path)))]


class Trace:
    """The calls that were seen so far."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def lines(self) -> list[str]:
        return self._output.read_text(errors="replace").splitlines()

    def injected(self) -> int:
        """How many calls were made to fail."""
        return self._output.read_bytes().count(b"(INJECTED)")


@asynccontextmanager
async def attached(
    pid: int, output: Path, paths: Iterable[Path], *injections: str
) -> AsyncIterator[Trace]:
    """Look at the CALLS of a process and what it starts to these files, and let some fail.

    An injection is "CALL:error=EIO:when=N": the Nth of each thread, to any of the files.
    """
    async with _running(pid, output, CALLS, *_harm(paths, injections)) as trace:
        yield trace


@asynccontextmanager
async def traced(pid: int, output: Path, calls: Iterable[str], shown: int) -> AsyncIterator[Trace]:
    """Look at these calls of a process, with so many octets of what each writes."""
    async with _running(pid, output, calls, "-s", str(shown)) as trace:
        yield trace


@asynccontextmanager
async def _running(
    pid: int, output: Path, calls: Iterable[str], *more: str
) -> AsyncIterator[Trace]:
    command = ["strace", "-f", "-y", "-o", str(output), "-e", f"trace={','.join(calls)}", *more]
    process = await asyncio.create_subprocess_exec(
        *command, "-p", str(pid), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr
    try:
        said = await process.stderr.readline()
        assert b"attached" in said, said
        yield Trace(output)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # it lets the process go on
        await process.wait()


async def strikes(trace: Trace) -> None:
    """Wait until a call has been made to fail."""
    await until(trace.injected, 0.005)
