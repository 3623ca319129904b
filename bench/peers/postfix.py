"""Postfix from Debian, in a folder and on a port of its own.

Everything is left at its default but for what is said below: the relay host, local-only
listening, the number of smtpd processes, and where logs go. Its queue files are fsynced before
the 250, as ever. An instance of the system is not touched: queue, data and configuration are in
the scratch folder.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import certificate, processes, signing
from bench.peers import PLAIN, Features

PROGRAM = shutil.which("postfix", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.example.test

# Relay for loopback; no mail is for users of the system.
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
# Both look for files of the system that this host need not have.
alias_maps =
alias_database =

# A container has no syslog. postlogd writes the lines; its CPU is counted, as fastmta's log is.
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
"""
# To one next hop.
RELAY = """
relayhost = [127.0.0.1]:{next_hop}

# Left alone, though one could take them for limits: default_destination_concurrency_limit = 20,
# initial_destination_concurrency = 5, in_flow_delay = 1s, qmgr_message_active_limit = 20000.
# With 50 connections out, or without the delay, the rate moved within the noise.
"""

TLS = {
    "in": """
smtpd_tls_security_level = may
smtpd_tls_cert_file = {certificate}
smtpd_tls_key_file = {key}
""",
    "out": """
smtp_tls_security_level = encrypt
""",
}

MILTER = """
smtpd_milters = inet:127.0.0.1:{milter}
milter_default_action = tempfail
"""
ALGORITHMS = {"rsa2048": "rsa-sha256", "ed25519": "ed25519-sha256"}
# opendkim from Debian; what it signs, and how, is what fastmta does.
OPENDKIM = """
Mode s
Socket inet:{milter}@127.0.0.1
Syslog no
Domain {domain}
Selector {selector}
KeyFile {private}
RequireSafeKeys no
SignatureAlgorithm {algorithm}
Canonicalization relaxed/relaxed
OversignHeaders From,To,Subject,Date,Message-ID
"""

# Debian's master.cf without chroot (nothing to copy into the folder) and without what a relay
# never starts. 1000 smtpd in place of 100: the one limit that the load would hit, and with it the
# stress mode of smtpd. service, type, private, unprivileged, chroot, wakeup, maxproc, command
MASTER = """
127.0.0.1:{port} inet n - n - 1000 smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
"""


def missing() -> str:
    if not PROGRAM:
        return "no postfix on the path: install Debian's package"
    return "" if os.geteuid() == 0 else "Postfix's master must be started by root"


def version() -> str:
    text = subprocess.run(["/usr/sbin/postconf", "-d", "-h", "mail_version"], capture_output=True)
    return f"Postfix {text.stdout.decode().strip()}"


def can(features: Features) -> bool:
    return True


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """`workers` has no meaning here: Postfix is one process for each client and each role."""
    values: dict[str, object] = {"next_hop": next_hop, **certificate.of(folder)._asdict()}
    text, wrapper = RELAY + TLS.get(features.tls, ""), []
    if features.dkim != "none":
        text += MILTER
        values |= {"milter": processes.free_port(), **signing.of(folder)._asdict()}
        values |= {"algorithm": ALGORITHMS[features.dkim]}
        (folder / "opendkim.conf").write_text(OPENDKIM.format(**values))
        # One tree, whose CPU is counted: the milter is a child of what becomes Postfix's master.
        wrapper = ["sh", "-c", f'opendkim -f -x {folder}/opendkim.conf & exec "$@"', "sh"]
    with started(folder, port, text.format(**values), wrapper=wrapper) as root:
        yield root


@contextmanager
def started(
    folder: Path, port: int, main: str, services: str = "", wrapper: Sequence[str] = ()
) -> Iterator[int]:
    """An instance with these settings and services besides, once it greets; gives the root pid."""
    assert PROGRAM
    (folder / "main.cf").write_text(MAIN.format(folder=folder) + main)
    (folder / "master.cf").write_text(MASTER.format(port=port) + services)
    (folder / "queue").mkdir()
    (folder / "data").mkdir()
    shutil.chown(folder / "data", "postfix", "postfix")
    command = [*wrapper, PROGRAM, "-c", str(folder), "start-fg"]
    with processes.running(command, folder / "output") as process:
        processes.greets(port, process)
        yield process.pid
