"""SIGHUP: what changes, what stays, and that nobody notices who was connected."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from bench.processes import free_port
from fastmta.sink import Behaviour
from tests.integration.ledger import Ledger, Node, ending, load, node, sink
from tests.support import run, until


async def reload(one: Node, old: str = "", new: str = "", say: str = "reloaded: ") -> str:
    """Change the configuration, SIGHUP, and what it says of that."""
    text = one.configuration.read_text()
    assert old in text
    one.configuration.write_text(text.replace(old, new))
    before = len(one.output())
    one.process.send_signal(signal.SIGHUP)
    await until(lambda: say in one.output()[before:], 0.005)
    return one.output()[before:]


async def dialogue(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *commands: str
) -> str:
    """The last line of the reply to the last of these commands."""
    line = b""
    for command in commands:
        writer.write(command.encode() + b"\r\n")
        while (line := await reader.readline())[3:4] == b"-":
            pass
    return line.decode()


def test_twenty_reloads_under_load_lose_nothing_and_no_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger, Behaviour(tempfail=0.1, delay=0.005)) as destination,
            node(tmp_path, destination.endpoint[1], workers=2) as one,
        ):
            async with load(ledger, one.port):
                await ledger.acknowledges(40)
                hostname = "relay"
                for number in range(20):
                    said = await reload(one, f'"{hostname}.exa', f'"relay{number}.exa')
                    assert said.endswith("reloaded: hostname\n")
                    hostname = f"relay{number}"
                    await ledger.acknowledges(20)
            await ledger.complete()
            assert ledger.connections == 20  # one for each client
            assert set(ledger.replies) == {250}
            assert await one.stop() == 0
            assert not ledger.repeated()
            assert not one.rows().total()
            assert "Traceback" not in one.output()

    run(scenario())


def test_a_session_in_the_middle_of_a_message_goes_on_when_its_listener_goes(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        number, [first, *_], content = ledger.next()
        async with sink(ledger) as destination, node(tmp_path, destination.endpoint[1]) as one:
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            assert (await reader.readline()).startswith(b"220 relay.")
            await dialogue(reader, writer, "EHLO a", "MAIL FROM:<a@b.test>", f"RCPT TO:<{first}>")
            assert (await dialogue(reader, writer, "DATA")).startswith("354")
            port = free_port()
            said = await reload(one, f"127.0.0.1:{one.port}", f"127.0.0.1:{port}")
            assert said.endswith("reloaded: listener\n")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(content)
            assert (await dialogue(reader, writer, ".")).startswith("250")
            await until(lambda: ledger.arrived[number, first])
            writer.close()
            async with load(ledger, port, clients=2):
                await ledger.acknowledges(5)
            await ledger.complete()
            assert await one.stop() == 0

    run(scenario())


def test_the_admin_listener_moves(tmp_path: Path) -> None:
    async def healthy(port: int) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return False
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        said = await reader.read()
        writer.close()
        return b'"status":"ok"' in said

    async def scenario() -> None:
        first, second = free_port(), free_port()
        admin = f'[[listener]]\nservice = "admin"\nbind = "127.0.0.1:{first}"\n'
        async with node(tmp_path, free_port(), admin) as one:
            assert await healthy(first)
            await reload(one, f"127.0.0.1:{first}", f"127.0.0.1:{second}")
            assert await healthy(second)
            assert not await healthy(first)
            await reload(one, f"127.0.0.1:{second}", f"127.0.0.1:{first}")
            assert await healthy(first)
            assert await one.stop() == 0

    run(scenario())


def test_a_route_that_changes_and_where_the_log_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        before, after = Ledger(), Ledger()
        async with (
            sink(before) as first,
            sink(after) as second,
            node(tmp_path, first.endpoint[1], '[log]\ndispositions = "one.jsonl"') as one,
        ):
            async with load(before, one.port, clients=2):
                await before.acknowledges(5)
            await before.complete()
            await reload(one, f":{first.endpoint[1]}", f":{second.endpoint[1]}")
            said = await reload(one, "one.jsonl", "two.jsonl")
            assert said.endswith("reloaded: log\n")
            async with load(after, one.port, clients=2):
                await after.acknowledges(5)
            await after.complete()
            assert await one.stop() == 0
            logs = [(one.data / name).read_bytes() for name in ("one.jsonl", "two.jsonl")]
            assert [log.count(b'"event":"received"') for log in logs] == [
                len(ledger.acknowledged) for ledger in (before, after)
            ]

    run(scenario())


def test_a_configuration_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, node(tmp_path, destination.endpoint[1]) as one:
            said = await reload(one, "max_errors = 1000", "max_errors = 0\nfoo = 1", "in force")
            assert "max_errors: 0 is too small" in said
            assert "smtp.foo: unknown key" in said
            async with load(ledger, one.port, clients=2):
                await ledger.acknowledges(5)
            await ledger.complete()
            await reload(one, "max_errors = 0\nfoo = 1", "max_errors = 1000")
            assert one.output().endswith("reloaded: nothing has changed\n")
            assert await one.stop() == 0

    run(scenario())


def test_a_new_listener_on_a_port_that_another_program_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, node(tmp_path, destination.endpoint[1]) as one:
            taken = destination.endpoint[1]
            old = '[[listener]]\nservice = "smtp"'
            new = f'[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:{taken}"\n{old}'
            said = await reload(one, old, new, "in force")
            assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in said
            async with load(ledger, one.port, clients=2):
                await ledger.acknowledges(5)
            await ledger.complete()
            assert await one.stop() == 0

    run(scenario())


def test_what_needs_a_restart_stays_also_for_a_worker_that_is_started_again(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with (
            sink(ledger) as destination,
            ending(Node(tmp_path, destination.endpoint[1], workers=1)) as one,
        ):
            await one.start()
            await reload(one, "workers  = 1", "workers  = 2")
            said = await reload(one, '"data"', '"elsewhere"')
            assert f"data_dir stays {one.data}: it changes with a restart only" in said
            assert "workers stays 1: it changes with a restart only" in said
            [_, worker] = one.pids()
            os.kill(worker, signal.SIGKILL)
            await until(lambda: len(one.pids()) == 2 and worker not in one.pids(), 0.02)
            async with load(ledger, one.port, clients=2):
                await ledger.acknowledges(5)
            await ledger.complete()
            assert await one.stop() == 0
            assert not (tmp_path / "elsewhere").exists()

    run(scenario())
