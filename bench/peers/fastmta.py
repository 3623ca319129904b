"""fastmta, with the configuration that DESIGN's contract names and nothing tuned."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path

from bench import certificate, processes, signing
from bench.peers import PLAIN, Features

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
TLS = {
    "in": """
[tls]
certificate = "{certificate}"
key         = "{key}"
""",
    "out": """
[shaping]
tls = "required"
""",
}

DKIM = """
[[dkim]]
domain   = "{domain}"
selector = "{selector}"
key      = "{private}"
"""


def missing() -> str:
    return "" if PROGRAM.exists() else f"{PROGRAM} is not there: pip install ."


PROGRAM = Path(sys.executable).with_name("fastmta")


def version() -> str:
    return f"fastmta {installed('fastmta')}"


def can(features: Features) -> bool:
    return True


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """The supervisor and its workers."""
    configuration = folder / "fastmta.toml"
    values: dict[str, object] = {"port": port, "admin": processes.free_port(), "next_hop": next_hop}
    values |= certificate.of(folder)._asdict()
    values |= signing.of(folder)._asdict()
    text = CONFIGURATION + TLS.get(features.tls, "") + (DKIM if features.dkim != "none" else "")
    configuration.write_text(text.format(workers=workers, **values))
    command = [str(PROGRAM), "serve", "-c", str(configuration)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
