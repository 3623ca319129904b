"""Two workers ask the supervisor for what they share, and one of them dies."""

import asyncio
from pathlib import Path
from typing import Any

from msgspec import Raw, msgpack

from fastmta.config import Source
from fastmta.control import pack
from fastmta.queue.limits import Answer, Limits, Shape
from fastmta.queue.permits import SharedPermits
from fastmta.supervisor import Supervisor
from tests.support import run, until

TEXT = """
hostname = "relay.example.test"
data_dir = "data"
workers = 2
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
"""
ONE = Shape("site.test", Limits(connections=1), {})


class Holder:
    def __init__(self) -> None:
        self.may_ask = False

    def wake(self) -> None:
        self.may_ask = True

    def recall(self) -> None:
        pass


class Worker:
    """A WorkerProcess without a process: its permits are here."""

    def __init__(self, index: int, supervisor: Any) -> None:
        self.index, self._supervisor = index, supervisor
        self.permits = SharedPermits(self._ask, asyncio.get_running_loop())

    def _ask(self, request: Any) -> None:
        self._supervisor.permit(self, pack(request))

    def permit(self, payload: Raw) -> None:
        self.permits.receive(msgpack.decode(payload, type=Answer))


def test_a_limit_of_one_is_one_and_free_again_when_its_worker_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        source = Source(TEXT, str(tmp_path))
        supervisor: Any = Supervisor(tmp_path / "fastmta.toml", source, source.parse())
        one, other = supervisor._workers = [Worker(index, supervisor) for index in range(2)]
        first, second = Holder(), Holder()
        assert not one.permits.connect(ONE, first)
        await until(lambda: first.may_ask)
        assert one.permits.connect(ONE, first)
        await asyncio.sleep(0)
        assert not other.permits.connect(ONE, second)
        # It is told before it is answered, and what it is told is that it has to wait.
        await until(lambda: other.permits._held[ONE.path].known)
        assert not second.may_ask
        supervisor.gone(one)
        await until(lambda: second.may_ask)
        assert other.permits.connect(ONE, second)
        supervisor._limits.close()

    run(scenario())
