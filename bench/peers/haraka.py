"""Haraka from npm, with its outbound queue, which fsyncs each file before the 250.

Only the plugin that a relay needs: it says that clients of this machine may relay, and where mail
goes. Of the plugins that `haraka -i` puts into a new configuration none runs here: what they check
(the sender's domain in the DNS) no other peer checks.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec

from bench import certificate, processes
from bench.peers import FETCHED, PLAIN, Features

PACKAGE = FETCHED / "haraka" / "node_modules" / "Haraka"

# docs/plugins: hook_connect_init and hook_rcpt; docs/Outbound.md: get_mx
RELAY = """
exports.hook_connect_init = function (next, connection) {{
    connection.relaying = true
    next()
}}
exports.hook_rcpt = (next) => next(OK)
exports.hook_get_mx = (next) => next(OK, {{ priority: 0, exchange: '127.0.0.1', port: {next_hop} }})
"""
# A `nodes` of 0, the default, is one process without a cluster.
SMTP = "listen=127.0.0.1:{port}\nnodes={nodes}\n"
# The sink would be no next hop on loopback
# without local_mx_ok.
OUTBOUND = """
concurrency_max={concurrency}
local_mx_ok=true
enable_tls={tls}
inet_prefer=v4
"""
CONCURRENCY = 100  # as config/outbound.ini names it; each delivery is a connection of its own
FILES = {
    "log.ini": "[main]\nlevel=notice\n",
    "plugins": "relay\n",
    "me": "haraka.example.test\n",
}
TLS_IN = "[main]\nkey=key.pem\ncert=certificate.pem\n"


def missing() -> str:
    if not shutil.which("node"):
        return "no node on the path: install Debian's nodejs"
    return "" if PACKAGE.exists() else "not fetched: make bench, or python tools/bench_peers.py"


def version() -> str:
    try:
        package = msgspec.json.decode((PACKAGE / "package.json").read_bytes())
    except OSError:
        raise PackageNotFoundError("Haraka") from None
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return f"Haraka {package['version']}, Node {node.stdout.strip()}"


def can(features: Features) -> bool:
    """Its DKIM plugin is a package of its own, which is not fetched."""
    return features.dkim == "none"


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    config, plugins = folder / "config", folder / "plugins"
    for each in (config, plugins, folder / "queue"):
        each.mkdir()
    nodes = workers if workers > 1 else 0
    values: dict[str, object] = {"tls": str(features.tls == "out").lower()}
    (plugins / "relay.js").write_text(RELAY.format(next_hop=next_hop))
    texts = {"smtp.ini": SMTP.format(port=port, nodes=nodes)}
    texts["outbound.ini"] = OUTBOUND.format(concurrency=CONCURRENCY, **values)
    for name, text in (FILES | texts).items():
        (config / name).write_text(text)
    shutil.copy(PACKAGE / "config" / "connection.ini", config)  # it does not run without
    if features.tls == "in":
        _offer_tls(folder, config)
    command = ["node", str(PACKAGE / "bin" / "haraka"), "-c", str(folder)]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid


def _offer_tls(folder: Path, config: Path) -> None:
    (config / "plugins").write_text("tls\nrelay\n")
    (config / "tls.ini").write_text(TLS_IN)
    for path in certificate.of(folder):
        shutil.copy(path, config / path.name)
