"""OpenSMTPD from Debian, in a root folder of its own (`bench.enclosure`).

It writes message and envelope to files before the 250, but was not seen to fsync them (strace).

By default it opens a further connection to a next hop every five seconds: then 300 messages take
20 s. Its grammar has a setting for that, and for the limits of connections (`mta limit`), though
smtpd.conf(5) does not tell of it: used here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import enclosure, processes
from bench.peers import FETCHED, PLAIN, Features

PROGRAMS = FETCHED / "opensmtpd"
USERS = ["opensmtpd", "opensmtpq"]

# smtpd.conf(5). After 100 messages on one connection it says 452: the load sends more.
CONFIGURATION = """
smtp limit max-mails 10000000
smtp max-message-size 60M
{limits}
listen on 127.0.0.1 port {port} hostname opensmtpd.example.test
action "relay" relay host {scheme}://127.0.0.1:{next_hop} {relay}
match from any for any action "relay"
"""
CONNECTIONS = 50  # to the next hop: the null relay's
LIMITS = [
    *(f"conn-delay-{of} 0" for of in ("host", "route", "source", "connector", "relay", "domain")),
    "reconn-delay-route 0",
    *(
        f"max-conn-per-{of} {CONNECTIONS}"
        for of in ("host", "route", "source", "connector", "relay", "domain")
    ),
]


def missing() -> str:
    if not _program().exists():
        return "not fetched: make bench, or python tools/bench_peers.py"
    return "" if os.geteuid() == 0 else "its root folder must be made by root"


def _program() -> Path:
    return PROGRAMS / "usr" / "sbin" / "smtpd"


def version() -> str:
    told = subprocess.run([_program(), "-h"], capture_output=True, text=True)
    found = re.search(r"OpenSMTPD (\S+)", told.stdout + told.stderr)
    return f"OpenSMTPD {found[1] if found else '(version unknown)'}"


def can(features: Features) -> bool:
    """It signs through filters alone, which are packages of their own.

    Debian 12's offers no TLS that works: its process that holds the keys and OpenSSL 3 do not
    understand each other ("SSL routines::EVP lib").
    """
    return features.dkim == "none" and features.tls != "in"


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """`workers` has no meaning here: OpenSMTPD is seven processes, one for each role."""
    root = folder / "root"
    enclosure.prepare(root, PROGRAMS, USERS)
    _make_spool(root)
    values: dict[str, object] = {"port": port, "next_hop": next_hop, **_TLS[features.tls]}
    values["limits"] = "\n".join(f"mta limit {limit}" for limit in LIMITS)
    text = CONFIGURATION.format(**values)
    (root / "etc/smtpd.conf").write_text(text)
    command = enclosure.command(root, "/opt/peer/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf")
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid


_TLS = {
    "none": {"scheme": "smtp", "relay": ""},
    "out": {"scheme": "smtp+tls", "relay": "tls no-verify"},
}


def _make_spool(root: Path) -> None:
    """With the owners and modes that smtpd insists on."""
    (root / "var/lib/opensmtpd/empty").mkdir(parents=True)
    (root / "var/run").rmdir()
    (root / "var/run").symlink_to("/run")
    spool = root / "var/spool/smtpd"
    spool.mkdir()
    spool.chmod(0o711)
    for name in ("queue", "corrupt", "incoming"):
        enclosure.own(spool / name, 1, 0o700)
    for name, mode in (("offline", 0o770), ("purge", 0o700), ("temporary", 0o700)):
        enclosure.own(spool / name, 1, mode)
    shutil.chown(spool / "offline", 0, enclosure.FIRST_ID + 1)
