"""How a process is: its CPU, its memory, and how late its loop is."""

import asyncio
import os
import time
from importlib.metadata import version

from fastmta import metrics

CPU = metrics.counter("fastmta_cpu_seconds_total", "CPU that the processes have used")
MEMORY = metrics.gauge("fastmta_resident_memory_bytes", "Memory of the processes that is resident")
LAG = metrics.histogram(
    "fastmta_loop_lag_seconds",
    "How much later than it was due a worker's loop did something, looked at 100 times a second",
    (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
STALLS = metrics.counter(
    "fastmta_loop_stalls_total", "Times that a worker's loop did nothing else for 20 ms or more"
)
INFO = metrics.gauges(
    "fastmta_build_info", "1, with the version that runs", ("version",), combine="max"
)

TICK = 0.01  # seconds: of a stall, all but so much is seen
STALL = 0.02  # seconds
_PAGE = os.sysconf("SC_PAGE_SIZE")
_VERSION = version("fastmta")
# Open for good: what tells how a process is must not fail where it has no descriptors left.
_STATM = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def show() -> None:
    """Let this process tell of itself."""
    CPU.read, MEMORY.read = time.process_time, resident
    INFO.read = lambda: [((_VERSION,), 1.0)]


def address_space() -> int:
    """Octets that this process has mapped."""
    return _statm()[0]


def resident() -> int:
    """Octets that it has in memory."""
    return _statm()[1]


def _statm() -> list[int]:
    return [int(pages) * _PAGE for pages in os.pread(_STATM, 200, 0).split()]  # proc(5)


class LagMeter:
    """Looks again and again how late the running loop is."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set()

    def _set(self) -> None:
        # Not the loop's time, which stands still within a turn.
        self._due = time.perf_counter() + TICK
        self._timer = self._loop.call_later(TICK, self._look)

    def _look(self) -> None:
        lag = max(0.0, time.perf_counter() - self._due)
        LAG.observe(lag)
        STALLS.value += lag >= STALL
        self._set()

    def stop(self) -> None:
        self._timer.cancel()
