"""How many system calls and flushes a message takes, counted by strace(1) apart from timed runs.

A flush is fsync and its like. What is written through a descriptor opened with O_DSYNC flushes too
and is not told apart here: LMDB does so once for each of its fdatasync calls.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from msgspec import structs

from bench import processes, relay
from bench.peers import Features, Peer
from bench.relay import Options, Run

FLUSHES = {"fsync", "fdatasync", "msync", "sync", "syncfs", "sync_file_range"}
ATTACHED = 30.0  # seconds until strace has to be there


class Traced:
    """A peer of bench.relay, with strace on all its processes once it has started."""

    __name__ = "traced"

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.missing, self.version, self.can = peer.missing, peer.version, peer.can
        self.calls: dict[str, int] = {}

    @contextmanager
    def running(
        self, folder: Path, port: int, next_hop: int, workers: int, features: Features
    ) -> Iterator[int]:
        with (
            self._peer.running(folder, port, next_hop, workers, features) as root,
            self._tracing(root, folder / "strace"),
        ):
            yield root
        self.calls = parse((folder / "strace").read_text())

    @contextmanager
    def _tracing(self, root: int, output: Path) -> Iterator[None]:
        pids = [f"--attach={pid}" for pid in processes.members(root)]
        command = ["strace", "-c", "-f", "-qq", "-o", str(output), *pids]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            try:
                _wait_for(root, tracer.pid)
                yield
            finally:
                tracer.send_signal(signal.SIGINT)  # it tells its counts and lets go
                tracer.wait()


def _wait_for(root: int, tracer: int) -> None:
    for _ in processes.tries(ATTACHED):
        if all(_tracer_of(pid) == tracer for pid in processes.members(root)):
            return
    raise RuntimeError("strace does not attach")


def _tracer_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return -1
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


def parse(table: str) -> dict[str, int]:
    """Calls by name, from the table of `strace -c`."""
    rows = [line.split() for line in table.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit()}


def measure(peer: Peer, options: Options, folder: Path) -> Run:
    """A run of few messages; its times mean nothing and are left out."""
    traced = Traced(peer)
    found = relay.numbered(traced, options, folder)
    sent = options.messages + relay.WARM_UP * min(options.clients, relay.WARMING)
    calls = {name: count for name, count in traced.calls.items() if name != "total"}
    total, flushes = sum(calls.values()), sum(calls.get(name, 0) for name in FLUSHES)
    ends = {name: getattr(found, name) for name in ("lost", "duplicated", "corrupt", "refused")}
    run = Run(claim="syscalls", load="traced", messages=options.messages)
    return structs.replace(run, calls=total / sent, flushes=flushes / sent, **ends)


def missing() -> str:
    if not which("strace"):
        return "no strace on the path"
    return "" if sys.platform == "linux" else "strace is of Linux"
