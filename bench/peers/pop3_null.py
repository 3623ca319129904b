"""The null POP3 server, as a process: what the load could fetch from a server without work."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path

from bench import processes
from bench.pop3_load import Maildrops


def missing() -> str:
    return ""


def version() -> str:
    return f"Python {platform.python_version()}, uvloop {version_of('uvloop')}"


def fill(folder: Path, maildrops: Maildrops) -> None:
    """It makes them as it serves them."""


@contextmanager
def running(folder: Path, maildrops: Maildrops, port: int, workers: int) -> Iterator[int]:
    """`workers` has no meaning here: the limit is what one process can do."""
    sizes = [str(port), str(maildrops.messages), str(maildrops.size)]
    command = [sys.executable, "-m", "bench.null_pop3", *sizes]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process, b"+OK")
        yield process.pid
