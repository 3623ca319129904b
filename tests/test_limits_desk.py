"""The supervisor's part in limits for clients, with workers that only write down what they hear."""

import time
from pathlib import Path
from typing import Any

import pytest

from fastmta import limits_desk
from fastmta.config import Config, parse
from fastmta.control import Counted, Lifted
from fastmta.limits_desk import Freed, LimitsDesk, Overs, WhoIsOver
from fastmta.server.counts import Row

TEXT = """
hostname = "relay.example.test"
data_dir = "data"
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
[limits.client]
messages = "{rate}"
"""
PART = int(time.monotonic() / 180)


class Worker:
    def __init__(self, is_ready: bool = True) -> None:
        self.is_ready = is_ready
        self.heard: list[Counted | Lifted] = []

    def tell(self, message: Counted | Lifted) -> None:
        self.heard.append(message)


def config(rate: str) -> Config:
    return parse(TEXT.format(rate=rate), Path("/tmp"))


def desk(*workers: Worker) -> LimitsDesk:
    players: Any = list(workers)
    return LimitsDesk(config("3/h"), players)


def row(subject: str, count: int) -> Row:
    return Row("client.messages", subject, PART, count)


def count(one: LimitsDesk, worker: Any, *rows: Row) -> None:
    one.counted(worker, list(rows))


def over(one: LimitsDesk) -> list[str]:
    answer = one.answer(WhoIsOver())
    assert isinstance(answer, Overs)
    return [each.subject for each in answer.over]


def test_the_others_hear_what_one_counts() -> None:
    first, second, dead = Worker(), Worker(), Worker(is_ready=False)
    count(desk(first, second, dead), first, row("192.0.2.1", 2))
    assert (first.heard, second.heard, dead.heard) == ([], [Counted([row("192.0.2.1", 2)])], [])


def test_a_worker_that_begins_hears_who_is_near_a_limit() -> None:
    first, second = Worker(), Worker(is_ready=False)
    one = desk(first, second)
    count(one, first, row("192.0.2.1", 2), row("192.0.2.2", 1), row("192.0.2.1", 1))
    player: Any = second
    one.welcome(player)
    assert second.heard == [Counted([row("192.0.2.1", 3)])]
    assert over(one) == ["192.0.2.1"]


def test_what_is_lifted_is_forgotten_by_all() -> None:
    first, second = Worker(), Worker()
    one = desk(first, second)
    count(one, first, row("192.0.2.1", 3), row("192.0.2.2", 3))
    answer = one.answer(limits_desk.Lift("192.0.2.1"))
    assert isinstance(answer, Freed)
    assert [(each.subject, each.used, each.rate) for each in answer.over] == [
        ("192.0.2.1", 3, "3/h")
    ]
    assert first.heard == [Lifted(["192.0.2.0/24", "192.0.2.1"])]
    assert second.heard[1:] == first.heard
    assert over(one) == ["192.0.2.2"]


def test_another_configuration_counts_by_its_own_rate() -> None:
    one, worker = desk(), Worker()
    count(one, worker, row("192.0.2.1", 3))
    one.configure(config("4/h"))
    assert over(one) == []
    count(one, worker, row("192.0.2.1", 1))
    assert over(one) == ["192.0.2.1"]


def test_only_so_many_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_desk, "MOST_SHOWN", 2)
    one, worker = desk(), Worker()
    count(one, worker, row("192.0.2.1", 3), row("192.0.2.2", 3))
    assert one.answer(WhoIsOver()).is_all  # type: ignore[union-attr]
    count(one, worker, row("192.0.2.3", 3))
    answer = one.answer(WhoIsOver())
    assert isinstance(answer, Overs)
    assert (len(answer.over), answer.is_all) == (2, False)
