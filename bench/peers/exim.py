"""Exim from Debian (exim4-daemon-light), in a root folder of its own (`bench.enclosure`).

It fsyncs data and envelope before the 250, as ever. A message is delivered at once by a process of
its own, which is Exim's default and its fastest way to an idle next hop. What is not said below is
left at its default.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import certificate, enclosure, processes, signing
from bench.peers import FETCHED, PLAIN, Features

PROGRAMS = FETCHED / "exim"
USER = "Debian-exim"

# Options as Exim's specification names them.
CONFIGURATION = """
primary_hostname = exim.example.test
exim_path = /opt/peer/usr/sbin/exim4
spool_directory = /var/spool/exim
log_file_path = /var/log/exim/%slog
pid_file_path = /run/exim.pid
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
acl_smtp_rcpt = accept

# For queues of many files, as the specification advises.
split_spool_directory
# 20 connections, and after 10 messages on one the rest is left to the queue runner: the load
# would hit both. 0 is no limit.
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
smtp_accept_max_per_connection = 0
smtp_connect_backlog = 1024
# Nothing else bounds how many deliver at once: 10,000 messages from 100 clients made a thousand
# processes that ran. Above this load messages wait for those that look at the queue (-q10s).
queue_only_load = 30
queue_run_max = 10
# No look-ups of who connects.
host_lookup =
rfc1413_query_timeout = 0s
{features}
begin acl

begin routers
next_hop:
  driver = manualroute
  transport = smtp
  route_list = * 127.0.0.1
  self = send

begin transports
smtp:
  driver = smtp
  port = {next_hop}
  allow_localhost
  hosts_try_dane =
  {transport}

begin retry
* * F,2h,1m; F,4d,1h
"""
TLS_IN = """
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
"""
NO_TLS_IN = "tls_advertise_hosts =\n"
TLS_OUT = "hosts_require_tls = *\n  tls_verify_certificates =\n  tls_try_verify_hosts =\n"
NO_TLS_OUT = "hosts_avoid_tls = *\n"
DKIM = """
  dkim_domain = {domain}
  dkim_selector = {selector}
  dkim_private_key = {private}
  dkim_canon = relaxed
  dkim_sign_headers = From:To:Subject:Date:Message-ID
"""


def missing() -> str:
    if not _program().exists():
        return "not fetched: make bench, or python tools/bench_peers.py"
    return "" if os.geteuid() == 0 else "its root folder must be made by root"


def _program() -> Path:
    return PROGRAMS / "usr" / "sbin" / "exim4"


def version() -> str:
    """From the program itself: outside its root folder, without its user, it does not tell."""
    found = re.search(rb"\0(4\.\d\d)\0", _program().read_bytes())
    return f"Exim {found[1].decode() if found else '(version unknown)'}"


def can(features: Features) -> bool:
    return True


@contextmanager
def running(
    folder: Path, port: int, next_hop: int, workers: int, features: Features = PLAIN
) -> Iterator[int]:
    """`workers` has no meaning here: Exim is a process for each client and each message."""
    root = folder / "root"
    enclosure.prepare(root, PROGRAMS, [USER])
    for name in ("var/spool/exim", "var/log/exim"):
        enclosure.own(root / name, 0, 0o750)
    (root / "etc/exim4").mkdir()
    text = _configuration(folder, features, port, next_hop)
    (root / "etc/exim4/exim4.conf").write_text(text)
    reaper = [sys.executable, "-m", "bench.reaper"]
    exim = enclosure.command(root, "/opt/peer/usr/sbin/exim4", "-bdf", "-q10s")
    with processes.running([*reaper, *exim], folder / "output") as process:
        processes.greets(port, process)
        yield process.pid


def _configuration(folder: Path, features: Features, port: int, next_hop: int) -> str:
    values: dict[str, object] = {"port": port, "next_hop": next_hop}
    transport = TLS_OUT if features.tls == "out" else NO_TLS_OUT
    if features.dkim != "none":
        values |= {**signing.of(folder)._asdict(), "private": _inside(signing.of(folder).private)}
        transport += DKIM.format(**values)
    main = NO_TLS_IN
    if features.tls == "in":
        files = {name: _inside(it) for name, it in certificate.of(folder)._asdict().items()}
        main = TLS_IN.format(**files)
    return CONFIGURATION.format(features=main, transport=transport, **values)


def _inside(path: Path) -> str:
    """A file as Exim sees it, copied to where it may read it."""
    copy = path.parent / "root" / "etc" / path.name
    shutil.copy(path, copy)
    copy.chmod(0o644)
    return f"/etc/{path.name}"
