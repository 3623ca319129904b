"""The null relay, as a process."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path

from bench import processes
from bench.peers import PLAIN, Features


def missing() -> str:
    return ""


def version() -> str:
    return f"Python {platform.python_version()}, uvloop {version_of('uvloop')}"


def can(features: Features) -> bool:
    return features == PLAIN


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """`workers` has no meaning here: the limit is what one process can do."""
    command = [sys.executable, "-m", "bench.null_relay", str(port), str(next_hop)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
