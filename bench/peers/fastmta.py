"""fastmta, with the configuration that DESIGN's contract names and nothing tuned."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastmta
from bench import processes

CONFIGURATION = """
hostname = "fastmta.example.test"
data_dir = "data"
workers  = {workers}

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"

[[listener]]
service = "admin"
bind    = "127.0.0.1:{admin}"

[[route]]
domain   = "*"
next_hop = ["127.0.0.1:{next_hop}"]
"""


def missing() -> str:
    return "" if PROGRAM.exists() else f"{PROGRAM} is not there: pip install ."


PROGRAM = Path(sys.executable).with_name("fastmta")


def version() -> str:
    return f"fastmta {fastmta.__version__}"


@contextmanager
def running(folder: Path, port: int, next_hop: int, workers: int) -> Iterator[int]:
    """The supervisor and its workers."""
    configuration = folder / "fastmta.toml"
    values = {"port": port, "admin": processes.free_port(), "next_hop": next_hop}
    configuration.write_text(CONFIGURATION.format(workers=workers, **values))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
