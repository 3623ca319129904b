"""The supervisor's part in orders: what stands, and when it stands no longer."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from fastmta import control, order_desk
from fastmta.order_desk import Case, OrderDesk, Refused
from fastmta.queue.orders import Action, Order
from fastmta.queue.requests import Carry, Give, Given, Holds, Stand
from fastmta.queue.selector import Selector
from fastmta.queue.standing import Standing
from fastmta.worker_process import Receive, WorkerProcess
from tests.support import run, until

ACME = Selector(tenant=("acme",))


class FakeWorker:
    """Writes down what it is asked, and ends commands as it is told."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.asked: list[Carry | Stand] = []
        self.error = ""

    def command(self, request: msgspec.Raw, receive: Receive) -> int:
        self.asked.append(msgspec.msgpack.decode(request, type=Carry | Stand))
        receive(cast(WorkerProcess, self), control.Progress(1, 1, 2))
        receive(cast(WorkerProcess, self), control.Ended(1, self.error))
        return 1

    def more(self, number: int) -> None:
        pass


def desk(folder: Path, *workers: FakeWorker) -> OrderDesk:
    return OrderDesk(folder, cast(list[WorkerProcess], list(workers)))


def give(one: OrderDesk, action: Action, **fields: Any) -> Case:
    order = Order(action=action, **{"selector": ACME} | fields)
    case = one.open(control.pack(Give(order)))
    assert case is not None
    return case


def carried(case: Case) -> Carry:
    return msgspec.msgpack.decode(case.request, type=Carry)


def test_a_hold_is_on_disk_before_a_worker_hears_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        case = give(desk(tmp_path), Action.HOLD)
        (hold,) = Standing(tmp_path).holds
        assert carried(case) == Carry(hold, [hold])
        assert msgspec.msgpack.decode(case.first, type=Given).order == hold
        case.close(False)  # whatever became of it
        assert Standing(tmp_path).holds == [hold]

    run(scenario())


@pytest.mark.parametrize("is_done", [True, False])
def test_a_release_ends_a_hold_only_when_all_have_carried_it_out(
    tmp_path: Path, is_done: bool
) -> None:
    async def scenario() -> None:
        worker = FakeWorker(0)
        one = desk(tmp_path, worker)
        hold = carried(give(one, Action.HOLD)).order
        release = give(one, Action.RELEASE)
        assert carried(release).holds == one.holds == []  # nobody is to hold it again
        assert Standing(tmp_path).holds == [hold]  # also if all dies now
        release.close(is_done)
        left = [] if is_done else [hold]
        assert one.holds == Standing(tmp_path).holds == left
        assert worker.asked == [Stand(left)]

    run(scenario())


def test_what_is_no_order_is_for_the_workers(tmp_path: Path) -> None:
    assert desk(tmp_path).open(control.pack(control.Status())) is None


def test_the_list_of_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = desk(tmp_path)
        hold = carried(give(one, Action.HOLD)).order
        case = one.open(control.pack(Holds()))
        assert case is not None
        assert msgspec.msgpack.decode(case.first, type=list[Order]) == [hold]
        assert msgspec.msgpack.decode(case.request, type=Holds) == Holds()

    run(scenario())


def test_there_is_no_such_hold(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no hold 3"):
        give(desk(tmp_path), Action.RELEASE, hold=3)


def test_a_hold_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    one = desk(folder)
    folder.rmdir()
    with pytest.raises(Refused, match="No such file"):
        give(one, Action.HOLD)
    assert one.holds == []


def test_a_hold_for_a_time_is_released_by_the_workers_that_it_concerns(tmp_path: Path) -> None:
    async def scenario() -> None:
        workers = FakeWorker(0), FakeWorker(1)
        one = desk(tmp_path, *workers)
        give(one, Action.HOLD, until=time.time() + 0.05, worker=1)
        one.start()
        await until(lambda: not Standing(tmp_path).holds)
        release = workers[1].asked[0]
        assert isinstance(release, Carry)
        assert (release.order.action, release.order.ends) == (Action.RELEASE, (1,))
        assert not any(isinstance(asked, Carry) for asked in workers[0].asked)
        one.stop()

    run(scenario())


def test_it_is_tried_again_where_a_worker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_desk, "AGAIN", 0.01)

    async def scenario() -> None:
        worker = FakeWorker(0)
        worker.error = "is not running now"
        one = desk(tmp_path, worker)
        give(one, Action.HOLD, until=time.time() - 1)
        await until(lambda: len(worker.asked) > 3)
        assert len(Standing(tmp_path).holds) == 1
        worker.error = ""
        await until(lambda: not Standing(tmp_path).holds)
        one.stop()

    run(scenario())


def test_a_worker_that_starts_hears_what_it_has_missed(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = FakeWorker(0)
        one = desk(tmp_path, worker)
        known = one.holds
        hold = carried(give(one, Action.HOLD)).order
        one.tell(cast(WorkerProcess, worker), known)
        one.tell(cast(WorkerProcess, worker), one.holds)
        assert worker.asked == [Stand([hold])]
        await asyncio.sleep(0)

    run(scenario())
