"""What is in the way at the start is one clear line, exit code 1, and nothing is left behind."""

import os
import signal
import socket
from pathlib import Path

from bench.processes import free_port
from tests.integration.ledger import Ledger, Node, load, node, sink
from tests.support import run, until


async def refusal(one: Node) -> str:
    """What a node says that cannot start."""
    await one.launch()
    assert await one.process.wait() == 1
    assert "Traceback" not in one.output()
    return one.output()


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Node(tmp_path, free_port())
        with socket.create_server(("127.0.0.1", one.port), reuse_port=True):
            said = await refusal(one)
        assert said == f"fastmta: cannot listen on 127.0.0.1:{one.port}: Address already in use\n"

    run(scenario())


def test_a_data_directory_that_is_half_restored(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Node(tmp_path, free_port())
        (one.data / "restoring").mkdir(parents=True)
        said = await refusal(one)
        wanted = f"{one.data} is half restored: give fastmta restore again"
        assert said == f"fastmta: {wanted}\n"

    run(scenario())


def test_a_data_directory_that_another_instance_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, free_port()) as one:
            other = Node(tmp_path, free_port())
            said = await refusal(other)
            assert said == f"fastmta: another fastmta is running with data_dir {one.data}\n"
            assert await one.stop() == 0

    run(scenario())


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Node(tmp_path, free_port())
        text = one.configuration.read_text()
        one.configuration.write_text(text.replace('"data"', '"/proc/none/data"'))
        said = await refusal(one)
        assert said.count("\n") == 1
        assert "/proc/none" in said

    run(scenario())


def test_a_spool_that_cannot_be_opened(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Node(tmp_path, free_port())
        one.configure(workers=2)
        folder = one.data / "spool" / "1"
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(b"no LMDB" * 2000)
        said = await refusal(one)
        assert "ERROR worker-1 fastmta.worker_main: cannot start: " in said
        assert said.endswith("fastmta: worker 1 ended with 1 at its start\n")
        assert "INFO worker-0 fastmta.worker_main: ended" in said

    run(scenario())


def test_a_worker_that_is_started_again_gets_the_configuration_that_its_siblings_have(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, node(tmp_path, destination.endpoint[1]) as one:
            text = one.configuration.read_text()
            one.configuration.write_text(text.replace("hostname", "hostnam"))
            worker = one.pids()[1]
            os.kill(worker, signal.SIGKILL)
            await until(lambda: len(one.pids()) == 2 and worker not in one.pids(), 0.02)
            async with load(ledger, one.port):
                await ledger.acknowledges(10)
            await ledger.complete()
            assert await one.stop() == 0
            assert "Traceback" not in one.output()
            assert "hostnam:" not in one.output()

    run(scenario())
