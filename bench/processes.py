"""Processes of a benchmark: started, measured as a whole tree, and gone at the end."""

import ctypes
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msgspec import Struct

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
START_LIMIT = 30.0  # seconds until a server must greet
STOP_LIMIT = 10.0  # seconds from SIGTERM to SIGKILL
# Below those that the kernel gives to sockets without a port, so that no connection has one when a
# server comes to bind it. Each process of ours begins elsewhere.
_PORTS = range(10_000, 32_000)
_next_port = itertools.count(os.getpid() * 1_000)


class Usage(Struct, frozen=True):
    """What a tree of processes has used so far."""

    user: float  # seconds of CPU
    system: float
    peak_memory: int  # octets: the sum of VmHWM over the processes that live

    def since(self, earlier: "Usage") -> "Usage":
        user, system = self.user - earlier.user, self.system - earlier.system
        return Usage(user, system, self.peak_memory)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def usage(root: int) -> Usage:
    """CPU of the tree, with children that have ended and were waited for."""
    user = system = 0
    pids = tree(root)
    for pid in pids:
        if fields := _stat(pid):
            own_user, own_system, ended_user, ended_system = map(int, fields[11:15])
            user += own_user + ended_user
            system += own_system + ended_system
    return Usage(user * TICK, system * TICK, sum(map(_peak, pids)))


def idle() -> float:
    """Seconds that the cores of the machine have had nothing to do, since it was started."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(fields[4]) + int(fields[5])) * TICK


def settled(root: int, limit: float = 5.0) -> Usage:
    """Usage once the tree is at rest: what it does after the last message is its cost too."""
    before, deadline = usage(root), time.monotonic() + limit
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = usage(root)
        if now.user + now.system - before.user - before.system <= TICK:
            return now
        before = now
    return before


def divide_cores() -> set[int]:
    """This process and its clients go to the last core; the others are for `on`, for servers."""
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {last})
    return set(others or [last])


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores alone, and so do its children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    yield
    os.sched_setaffinity(0, before)


def free_port(*hosts: str) -> int:
    """A port number that was free on all of these addresses a moment ago; a new one each time."""
    for _ in _PORTS:
        port = _PORTS[next(_next_port) % len(_PORTS)]
        with ExitStack() as stack, suppress(OSError):  # somebody has it
            for host in hosts or ("127.0.0.1",):
                stack.enter_context(socket.socket()).bind((host, port))
            return port
    raise OSError(f"no port is free on all of {hosts}")


def greets(port: int, process: "subprocess.Popen[bytes]", greeting: bytes = b"220") -> None:
    """Wait until a server greets on this port; RuntimeError if it ends or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
            if sock.recv(100).startswith(greeting):
                sock.sendall(b"QUIT\r\n")
                return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not greet on port {port}")


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own; at the end the whole tree is stopped."""
    _adopt()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # An impatient second Ctrl-C waits until the first has done its work.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        _stop(process)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _adopt() -> None:
    """Become the parent of orphaned descendants, so that `_stop` can wait for them (prctl(2))."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the first, then SIGKILL to all that it left behind."""
    born = {pid: _born(pid) for pid in tree(process.pid)}
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT)
    for pid, time_of_birth in born.items():
        if time_of_birth and _born(pid) == time_of_birth:  # not a newcomer with an old number
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    for pid in born:  # those whose parents have gone are ours by `_adopt`
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _born(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""
