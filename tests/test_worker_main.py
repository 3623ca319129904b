"""A worker's process as its supervisor sees it, around a worker that only plays one."""

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw, Struct, msgpack

from fastmta import control, vitals
from fastmta.config import Config, Source
from fastmta.control import Answer, Command, Ended, More, Permit, Progress, pack
from fastmta.queue.orders import Order
from fastmta.server.counts import Row
from fastmta.worker_main import GARBAGE, WorkerMain
from tests.support import run, until
from tests.test_control import End, listening

TEXT = """
hostname = "{name}.example.test"
data_dir = "data"
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
"""


class Count(Struct, tag="count"):
    pages: int


class Fail(Struct, tag="fail"):
    pass


class Player:
    """Does nothing, and writes down what is asked of it."""

    def __init__(
        self,
        config: Config,
        index: int,
        ask: Callable[[Raw], None],
        share: Callable[[list[Row]], None],
    ) -> None:
        self.configs, self.index, self.ask, self.share = [config], index, ask, share
        self.rows: list[Row] = []
        self.lifted: set[str] = set()
        self.given = 0
        self.was_closed = False
        self.permits: list[Any] = []
        self.drained: float | None = None
        self.wait = asyncio.Event()
        self.wait.set()

    def stand(self, holds: list[Order]) -> None:
        self.holds = holds

    async def start(self, sockets: dict[str, int]) -> None:
        pass

    async def reload(self, config: Config) -> list[str]:
        await self.wait.wait()
        self.configs.append(config)
        if config.hostname.startswith("bad"):
            raise RuntimeError("no")
        return ["tls: one problem"] if config.hostname.startswith("half") else []

    def permit(self, payload: Raw) -> None:
        self.permits.append(msgpack.decode(payload))

    def counted(self, rows: list[Row]) -> None:
        self.rows += rows

    def lift(self, subjects: set[str]) -> None:
        self.lifted |= subjects

    async def command(self, request: Raw) -> AsyncIterator[Any]:
        match msgpack.decode(request, type=Count | Fail):
            case Fail():
                raise RuntimeError("planted")
            case Count(pages):
                try:
                    yield Progress(0, 0, pages)
                    for page in range(pages):
                        self.given += 1
                        yield page
                finally:
                    self.was_closed = True

    async def drain(self, seconds: float) -> None:
        self.drained = seconds


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[tuple[Player, End]]:
    """It and the supervisor's end, after Ready; it is gone at the end."""
    players: list[Player] = []

    def make(*arguments: Any) -> Player:
        players.append(Player(*arguments))
        return players[0]

    ours, theirs = socket.socketpair()
    ending = asyncio.ensure_future(WorkerMain(make).run(theirs.detach()))
    async with listening(ours, control.ToSupervisor) as end:
        end.channel.send(control.Start(Source(TEXT.format(name="first"), str(folder)), 3, []))
        await until(lambda: end.received)
        assert end.received.pop(0) == control.Ready()
        yield players[0], end
    await ending
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


@pytest.fixture(autouse=True)
def _collector_of_the_tests() -> Iterator[None]:
    """It is this process's own, too."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_the_garbage_collector_leaves_alone_what_was_there_at_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path):
            assert gc.get_freeze_count() > 10_000
            assert gc.get_threshold() == GARBAGE

    run(scenario())


def test_it_drains_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, _):
            assert player.index == 3
            assert player.configs[0].data_dir == tmp_path / "data"
        assert player.drained == 3.0

    run(scenario())


def test_pages_wait_until_they_are_wanted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            end.channel.send(Command(7, pack(Count(5))))
            await until(lambda: len(end.received) == control.WINDOW)
            end.channel.send(control.Ask())
            await until(lambda: isinstance(end.received[-1], control.Snapshot))
            assert player.given == control.WINDOW  # one of them waits
            assert end.received[:2] == [Progress(7, 0, 5), Answer(7, pack(0))]
            for _ in range(5):
                end.channel.send(More(7))
            await until(lambda: end.received[-1] == Ended(7))
            assert end.received[3:-1] == [Answer(7, pack(n)) for n in range(1, 5)]

    run(scenario())


def test_a_figure_that_cannot_be_had_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> float:
        raise OSError("planted")

    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            with monkeypatch.context() as patched:
                patched.setattr(vitals.MEMORY, "read", broken)
                end.channel.send(control.Ask())
                await until(lambda: end.received)
                assert end.received.pop() == control.Snapshot([])
            end.channel.send(control.Ask())
            await until(lambda: end.received)
            assert end.received[0].samples
            assert player.drained is None

    run(scenario())


def test_a_command_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            end.channel.send(Command(1, pack(Count(1000))))
            await until(lambda: player.given)
            end.channel.send(control.Cancel(1))
            await until(lambda: player.was_closed)
            assert player.given <= control.WINDOW
            end.channel.send(Command(2, pack(Count(0))))
            await until(lambda: end.received[-1] == Ended(2))

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "error"),
    [(Fail(), "failed; its log says why"), ({"type": "x"}, "does not know such a command")],
)
def test_a_command_that_cannot_be_done(tmp_path: Path, request_: Any, error: str) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (_, end):
            end.channel.send(Command(1, pack(request_)))
            await until(lambda: end.received)
            assert error in end.received[-1].error

    run(scenario())


def test_permits_go_both_ways(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            player.ask(pack(["may I"]))
            await until(lambda: end.received)
            assert end.received == [Permit(pack(["may I"]))]
            end.channel.send(Permit(pack("yes")))
            await until(lambda: player.permits == ["yes"])

    run(scenario())


def test_what_clients_did_goes_both_ways(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            rows = [Row("client.messages", "192.0.2.1", 7, 3)]
            player.share(rows)
            await until(lambda: end.received)
            assert end.received == [control.Counted(rows)]
            end.channel.send(control.Counted(rows * 2))
            end.channel.send(control.Lifted(["192.0.2.1"]))
            await until(lambda: player.lifted)
            assert (player.rows, player.lifted) == (rows * 2, {"192.0.2.1"})

    run(scenario())


def test_reloads_come_one_after_the_other_and_the_newest_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (player, end):
            player.wait.clear()
            for names in (["second"], ["third", "half", "bad", "last"]):
                for name in names:
                    end.channel.send(control.Reload(Source(TEXT.format(name=name), str(tmp_path))))
                end.channel.send(control.Ask())
                await until(lambda: end.received)
                end.received.clear()
            player.wait.set()
            await until(lambda: len(end.received) == 2)
            names = [config.hostname.partition(".")[0] for config in player.configs]
            assert names == ["first", "second", "last"]
            assert end.received == [control.Reloaded([])] * 2

    run(scenario())


@pytest.mark.parametrize(
    ("name", "problem"),
    [("half", "tls: one problem"), ("bad", "RuntimeError: no"), ("no name", "is no domain name")],
)
def test_what_cannot_be_taken_on_is_said(tmp_path: Path, name: str, problem: str) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (_, end):
            end.channel.send(control.Reload(Source(TEXT.format(name=name), str(tmp_path))))
            await until(lambda: end.received)
            [said] = end.received[0].problems
            assert problem in said

    run(scenario())
