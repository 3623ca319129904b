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
    """As many processes as fastmta has workers; next hop 0 throws everything away."""
    command = [sys.executable, "-m", "bench.null_relay", *map(str, (port, next_hop, workers))]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
