"""Processes are killed; what was acknowledged arrives."""

import os
import signal
from pathlib import Path

from fastmta.sink import Behaviour
from tests.integration.ledger import Ledger, is_alive, load, node, sink
from tests.support import run, until

# Deliveries of one worker that may be under way or not written down yet: what its connections
# carry while a transaction is being flushed.
IN_FLIGHT = 256


def test_all_processes_are_killed_ten_times_under_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(tempfail=0.2)) as destination,
            node(tmp_path, destination.endpoint[1]) as one,
        ):
            async with load(ledger, one.port):
                for _ in range(10):
                    await ledger.acknowledges(100)
                    await one.kill()
                    before = ledger.repeated()
                    await one.start()
                    assert ledger.repeated() - before <= IN_FLIGHT
            await ledger.complete()
            assert await one.stop() == 0
            assert ledger.repeated() <= 10 * IN_FLIGHT

    run(scenario())


def test_a_killed_worker_is_started_again_and_its_queue_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(tempfail=0.5)) as destination,
            node(tmp_path, destination.endpoint[1], workers=2) as one,
        ):
            async with load(ledger, one.port):
                await ledger.acknowledges(100)
                supervisor, first, second = one.pids()
                os.kill(first, signal.SIGKILL)
                await until(lambda: len(one.pids()) == 3 and first not in one.pids(), 0.02)
                await ledger.acknowledges(100)
            await ledger.complete()
            assert is_alive(supervisor)
            assert is_alive(second)
            assert "ended with -9, starts again" in one.output()
            assert await one.stop() == 0

    run(scenario())


def test_of_four_workers_one_is_killed_and_the_others_are_not_disturbed(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(delay=0.01)) as destination,
            node(tmp_path, destination.endpoint[1], workers=4) as one,
        ):
            async with load(ledger, one.port, clients=40):
                await until(lambda: ledger.connections == 40)
                supervisor, *workers = one.pids()
                victim, *others = workers
                before = {pid: connections_of(pid, one.port) for pid in others}
                assert sum(map(len, before.values())) > 0
                os.kill(victim, signal.SIGKILL)
                await until(lambda: len(one.pids()) == 5 and victim not in one.pids(), 0.02)
                await ledger.acknowledges(100)
                for pid, connections in before.items():
                    assert connections <= connections_of(pid, one.port)
            await ledger.complete()
            assert set(others) < set(one.pids())
            assert is_alive(supervisor)
            assert await one.stop() == 0
            assert ledger.repeated() <= IN_FLIGHT
            assert not one.rows().total()

    run(scenario())


def connections_of(pid: int, port: int) -> set[str]:
    """The sockets of a process that are connections to this local port, by proc(5)."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    ours = {str(each.readlink()) for each in descriptors}
    established, local = "01", f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        row[9]
        for row in rows
        if f"socket:[{row[9]}]" in ours and row[1].endswith(local) and row[3] == established
    }


def test_workers_drain_when_their_supervisor_is_killed_and_a_new_one_starts_at_once(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(delay=0.02)) as destination,
            node(tmp_path, destination.endpoint[1], workers=2) as one,
        ):
            async with load(ledger, one.port):
                await ledger.acknowledges(100)
                supervisor, *orphans = one.pids()
                os.kill(supervisor, signal.SIGKILL)
                await one.process.wait()
                await one.start()
                assert not any(map(is_alive, orphans))
                assert one.stderr.read_text().count("INFO worker-0 fastmta.worker_main: ended") == 1
                await ledger.acknowledges(100)
            await ledger.complete()
            assert await one.stop() == 0
            assert not ledger.repeated()  # all has ended in good order

    run(scenario())
