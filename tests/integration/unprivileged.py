"""Servers that are started by root and become another user, wherever Python is installed."""

import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
USER, GROUP = "nobody", "daemon"  # on every Debian

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that others may enter: those of pytest are for us alone."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for view in folder.glob("view*"):
            view.rmdir()  # as `reaching` left it: never what may be mounted there
        shutil.rmtree(folder)


def low_port() -> int:
    """A free port that only root may have."""
    for port in range(1023, 500, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port below 1024 is free")


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status (proc(5)); {} for a process that has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def reaching(folder: Path) -> tuple[str, ...]:
    """What to put before a command so that Python and the package can be reached by any user.

    Where they lie below a folder of root's alone, such as /root, the command gets a view of the
    files (mount_namespaces(7)) in which nothing but them is there.
    """
    needed = {Path(sys.base_prefix).resolve(), ROOT, Path(sys.prefix)}
    closed = {top for path in needed if (top := _closed(path))}
    if not closed:
        return ()
    script = ["set -e"]
    for number, top in enumerate(sorted(closed)):
        old = folder / f"view{number}"
        script += [f"mkdir -p {old}", f"mount --rbind {top} {old}"]
        script += [f"mount -t tmpfs -o mode=755 none {top}"]
        for path in sorted(path for path in needed if path.is_relative_to(top)):
            inside = shlex.quote(str(old / path.relative_to(top)))
            target = shlex.quote(str(path))
            script += [f"mkdir -p {target}", f"mount --rbind {inside} {target}"]
    script.append('exec "$@"')
    command = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        "\n".join(script),
        "sh",
    )
    if not _works():
        pytest.skip(f"{sys.base_prefix} is for root alone, and mounting is not allowed here")
    return command


def _closed(path: Path) -> Path | None:
    """The first folder on the way that others may not enter."""
    ways = [
        each for each in reversed([path, *path.parents]) if not each.stat().st_mode & stat.S_IXOTH
    ]
    return ways[0] if ways else None


@cache
def _works() -> bool:
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
