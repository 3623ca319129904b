"""strace: what a process does to its files, and which of these calls fail."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support import until

CALLS = ("fdatasync", "pwrite64", "writev", "openat", "ftruncate")  # that LMDB writes by


def missing() -> str:
    """Why it cannot be used here, or nothing."""
    return "" if shutil.which("strace") else "strace is not installed"


def arguments(output: Path, calls: Iterable[str], injections: Iterable[str] = ()) -> list[str]:
    """strace of these calls of all threads and children, each with the path that it is about."""
    traced = ["-f", "-y", "-o", str(output), "-e", f"trace={','.join(calls)}"]
    return ["strace", *traced, *(part for one in injections for part in ("-e", f"inject={one}"))]


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
    files = [part for path in paths for part in ("-P", str(path))]
    command = [*arguments(output, CALLS, injections), *files, "-p", str(pid)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
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
