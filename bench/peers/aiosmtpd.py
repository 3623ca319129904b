"""A small relay made of aiosmtpd, which is a receiving library alone: `bench.aiosmtpd_relay`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

from bench import processes
from bench.peers import PLAIN, Features

PACKAGES = ("aiosmtpd", "aiosmtplib")


def missing() -> str:
    absent = [name for name in PACKAGES if not find_spec(name)]
    return f"no {' and no '.join(absent)}: pip install -e '.[bench]'" if absent else ""


def version() -> str:
    return ", ".join(f"{name} {version_of(name)}" for name in (*PACKAGES, "uvloop"))


def can(features: Features) -> bool:
    return features == PLAIN


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """`workers` has no meaning here: one process is what the library offers."""
    (folder / "spool").mkdir()
    ports = [str(port), str(next_hop)]
    command = [sys.executable, "-m", "bench.aiosmtpd_relay", str(folder / "spool"), *ports]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
