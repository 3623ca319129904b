"""SIGTERM: exit code 0, nothing lost, nothing twice, and never without end."""

import asyncio
import time
from pathlib import Path

import pytest

from bench.processes import free_port
from fastmta.config import load as read_configuration
from fastmta.sink import Behaviour
from fastmta.worker import Worker
from tests.integration.ledger import Ledger, Node, load, node, sink
from tests.support import run, until


@pytest.mark.parametrize(
    "behaviour", [Behaviour(tempfail=0.2), Behaviour(delay=0.05)], ids=["tempfail", "delay"]
)
def test_a_clean_stop_under_load_neither_loses_nor_repeats(
    tmp_path: Path, behaviour: Behaviour
) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, behaviour) as destination,
            node(tmp_path, destination.endpoint[1], workers=2) as one,
        ):
            async with load(ledger, one.port):
                for _ in range(3):
                    await ledger.acknowledges(150)
                    assert await one.stop() == 0
                    await one.start()
            await ledger.complete()
            assert await one.stop() == 0
            assert not ledger.repeated()
            assert not one.rows().total()

    run(scenario())


def test_mail_of_more_workers_is_delivered_by_fewer(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        port = free_port()  # nobody listens there yet
        async with node(tmp_path, port, workers=3) as one:
            async with load(ledger, one.port):
                await until(lambda: all(_has_mail(one, shard) for shard in range(3)))
            assert await one.stop() == 0
            one.configure(workers=1)
            await one.start()
            async with sink(ledger, port=port):
                await ledger.complete()
                assert await one.stop() == 0
            assert not one.rows().total()
            assert not ledger.repeated()

    run(scenario())


def _has_mail(one: Node, shard: int) -> bool:
    log = one.data / "dispositions.jsonl"
    # The last octet of an id is its shard: the last digit but one holds the upper three bits.
    ids = [line.partition(b'"id":"')[2][:13] for line in log.read_bytes().splitlines()]
    return any(number[-2:].endswith(b"%d" % shard) for number in ids if number)


async def started(one: Node) -> Worker:
    """A worker in this process, whose `drain` can be given little time."""
    one.data.mkdir()
    worker = Worker(read_configuration(one.configuration), 0)
    await worker.start()
    return worker


def test_a_destination_that_hangs_cannot_hold_up_the_end(tmp_path: Path) -> None:
    """What it may have taken is tried again; nothing else is."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """It greets, and then never says anything again."""
        writer.write(b"220 hanging.example.test\r\n")
        await reader.read()
        writer.close()

    async def scenario() -> None:
        ledger = Ledger()
        server = await asyncio.start_server(hang, "127.0.0.1")
        one = Node(tmp_path, server.sockets[0].getsockname()[1])
        async with server:
            worker = await started(one)
            async with load(ledger, one.port, clients=3):
                await ledger.acknowledges(30)
                began = time.monotonic()
                await worker.drain(0.2)
            assert time.monotonic() - began < 15
        rows = one.rows()
        stored = rows["fresh"] + rows["envelopes"]
        assert stored >= len(ledger.acknowledged) >= 30
        assert rows["waiting"] == rows["envelopes"]
        async with sink(ledger, port=one.next_hop):
            await one.start()
            await ledger.complete()
            assert await one.stop() == 0
        assert not ledger.repeated()

    run(scenario())


def test_a_client_that_stalls_cannot_hold_up_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination:
            one = Node(tmp_path, destination.endpoint[1])
            worker = await started(one)
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            await reader.readline()
            for command, answer in (
                (b"EHLO client.example.test", b"\r\n250 "),
                (b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA", b"\r\n354 "),
            ):
                writer.write(command + b"\r\n")
                await reader.readuntil(answer)
            writer.write(b"Subj")
            await worker.drain(0.2)
            with pytest.raises(OSError):
                while await reader.readline():
                    pass
                raise ConnectionResetError  # closed in order is as well
            writer.close()

    run(scenario())
