"""A control group for each server under test: the kernel adds up what all its processes use.

A walk over the process tree loses those whose parents have ended without waiting for them.
Version 1 has CPU in a hierarchy of its own, version 2 in every group (cgroups(7)). Making one
takes root; without it there are none.
"""

import itertools
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_VERSION_1 = Path("/sys/fs/cgroup/cpuacct")
_VERSION_2 = Path("/sys/fs/cgroup")
_PATIENCE = 5.0  # seconds until the last process has to be gone
_numbers = itertools.count()


class Group(NamedTuple):
    folder: Path

    @property
    def door(self) -> Path:
        """A process that writes its id here is in the group, and so are its descendants."""
        return self.folder / "cgroup.procs"

    def members(self) -> list[int]:
        return [int(pid) for pid in self.door.read_text().split()]

    def spent(self) -> tuple[float, float]:
        """Seconds of CPU in user mode and in the kernel."""
        old = self.folder / "cpuacct.usage_user"
        if old.exists():
            system = (self.folder / "cpuacct.usage_sys").read_text()
            return int(old.read_text()) / 1e9, int(system) / 1e9
        lines = (self.folder / "cpu.stat").read_text().splitlines()
        values = dict(line.split() for line in lines)
        return int(values["user_usec"]) / 1e6, int(values["system_usec"]) / 1e6

    def remove(self) -> None:
        """Kill who is left."""
        deadline = time.monotonic() + _PATIENCE
        while self.folder.exists() and time.monotonic() < deadline:
            for pid in self.members():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            with suppress(OSError):  # a process that was killed is still on its way out
                self.folder.rmdir()
                return
            time.sleep(0.01)


def create() -> Group | None:
    base = _VERSION_1 if _VERSION_1.is_dir() else _VERSION_2
    group = Group(base / f"fastmta-bench-{os.getpid()}-{next(_numbers)}")
    with suppress(OSError):
        group.folder.mkdir()
        if group.door.exists() and os.access(group.door, os.W_OK):
            group.spent()
            return group
        group.folder.rmdir()
    return None
