"""Orders over what lies in the queue, what is in memory, and what is on its way."""

import asyncio
from typing import Any, cast

import pytest

from fastmta import log
from fastmta.config import Duration, Reports, Retry
from fastmta.log import DispositionLog
from fastmta.mail.arrival import Arrival
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue import steward
from fastmta.queue.orders import RETURNED, Action, Order, Orders
from fastmta.queue.ready import Job
from fastmta.queue.requests import Result
from fastmta.queue.selector import Selector
from fastmta.queue.settlement import Settlement
from fastmta.queue.steward import BATCH, Meant, Step, Steward
from fastmta.store.spool import Spool
from tests.queue.mail import MemoryLog, MemorySpool, envelope
from tests.support import run, until

ACME = Selector(tenant=("acme",))
SITE = "mx.a.test"


class Memory:
    """Jobs in ready queues and in transactions."""

    def __init__(self) -> None:
        self.ready: list[Job] = []
        self.busy: list[Job] = []
        self.paused = {SITE, "mx.b.test"}

    def withdraw(self, meant: Meant) -> list[Job]:
        taken = [job for job in self.ready if meant(job, SITE)]
        self.ready = [job for job in self.ready if job not in taken]
        return taken

    def under_way(self, meant: Meant) -> int:
        return sum(meant(job, SITE) for job in self.busy)

    def retry_now(self, site: str) -> None:
        self.paused.discard(site)


class Desk:
    """A worker with one shard, as its steward sees it."""

    def __init__(self, *envelopes: Envelope) -> None:
        self.spool, self.log = MemorySpool(*envelopes), MemoryLog()
        self.orders, self.memory = Orders(), Memory()
        self.settlement = self.settlement_of(self.spool)
        self.asked: list[str] = []
        shards = {0: cast(steward.Shard, self)}
        self.steward = Steward(3, self.orders, shards, self.memory, self.resolve)

    def settlement_of(self, spool: MemorySpool) -> Settlement:
        policy = Retry(first=Duration(60))
        return Settlement(
            cast(Spool, spool),
            lambda _: policy,
            Reports(),
            "relay.test",
            cast(DispositionLog, self.log),
            self.orders,
        )

    async def resolve(self, domain: str) -> str:
        self.asked.append(domain)
        return f"mx.{domain}"

    async def carry_out(self, order: Order) -> Result:
        *_, result = [each async for each in self.steward.carry_out(order)]
        assert isinstance(result, Result)
        return result

    def out(self, one: Envelope) -> Job:
        self.spool.out.add((one.message, one.index))
        return Job(one)

    def held(self) -> list[int]:
        return [each.message >> 8 for each in self.spool.kept.values() if each.held]

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.log.events]


def order(action: Action, selector: Selector = ACME, **fields: Any) -> Order:
    return Order(action=action, selector=selector, number=7, by="eve", **fields)


def acme(number: int, **fields: Any) -> Envelope:
    return envelope(number, tenant="acme", **fields)


@pytest.mark.parametrize("action", [Action.RELEASE, Action.RETRY, Action.REROUTE])
def test_what_is_out_again_at_once_is_not_waited_for(action: Action) -> None:
    """It may wait for hours where its path may send a hundred an hour."""

    class Eager(MemorySpool):
        """Hands over again what is due, before anybody looks."""

        def _put(self, number: tuple[int, int], remaining: Envelope | None, *_: Arrival) -> None:
            super()._put(number, remaining)
            self.out.add(number)

    async def scenario() -> None:
        desk = Desk()
        held = "1: wait" if action is Action.RELEASE else ""
        desk.spool = Eager(acme(1, held=held), acme(2, held=held))
        desk.settlement = desk.settlement_of(desk.spool)
        async with asyncio.timeout(5):
            result = await desk.carry_out(order(action, argument="192.0.2.1:25"))
        assert result.envelopes == 2
        assert desk.spool.commits

    run(scenario())


def test_hold_what_lies_in_the_queue() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1), envelope(2), acme(3), acme(4, held="1: before"))
        hold = order(Action.HOLD)
        desk.orders.stand([hold])
        assert await desk.carry_out(hold) == Result(3, envelopes=2, recipients=2)
        assert desk.held() == [1, 3, 4]
        assert desk.spool.kept[4 << 8, 0].held == "1: before"
        assert desk.names() == ["Held", "Held"]
        assert desk.orders.any  # it stands

    run(scenario())


def test_release_only_what_no_other_hold_keeps() -> None:
    async def scenario() -> None:
        desk = Desk(
            acme(1, held="7"),
            acme(2, held="7", domain="b.test"),
            acme(3, held="8", domain="b.test"),
            acme(4),
        )
        other = Order(action=Action.HOLD, selector=Selector(domain=("b.test",)), number=8)
        desk.orders.stand([other])
        result = await desk.carry_out(order(Action.RELEASE, ends=(7,)))
        assert result == Result(3, envelopes=1, recipients=1, kept=2)
        assert [each.held for each in desk.spool.kept.values()] == ["", "8", "8", ""]
        assert desk.names() == ["Released", "Held"]
        assert desk.spool.kept[1 << 8, 0].due < 5e9
        assert desk.spool.kept[4 << 8, 0].due == 5000.0

    run(scenario())


def test_release_of_one_hold_alone() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1, held="5: a"), acme(2, held="6: b"), acme(3, held="56"))
        await desk.carry_out(order(Action.RELEASE, Selector(), hold=5, ends=(5,)))
        assert desk.held() == [2, 3]

    run(scenario())


def test_what_a_hold_keeps_is_free_with_it_though_it_matches_no_longer() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1, held="5", site="mx.elsewhere.test"))
        await desk.carry_out(order(Action.RELEASE, Selector(site=(SITE,)), ends=(5,)))
        assert desk.held() == []

    run(scenario())


def test_delete() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1), envelope(2), acme(3, held="1"))
        result = await desk.carry_out(order(Action.DELETE, reason="sent by mistake"))
        assert result == Result(3, envelopes=2, recipients=2)
        assert [message >> 8 for message, _ in desk.spool.kept] == [2]
        assert not desk.spool.reports
        event = desk.log.events[0]
        assert isinstance(event, log.Deleted)
        assert (event.recipient, event.by, event.order) == ("bob1@a.test", "eve", 7)
        assert event.reason == "sent by mistake"
        assert not desk.orders.any

    run(scenario())


@pytest.mark.parametrize("report", [True, False])
def test_bounce(report: bool) -> None:
    async def scenario() -> None:
        desk = Desk(acme(1), acme(2, sender=""), envelope(3))
        result = await desk.carry_out(order(Action.BOUNCE, argument=RETURNED, report=report))
        assert result.envelopes == 2
        assert [message >> 8 for message, _ in desk.spool.kept] == [3]
        # RFC 5321 section 4.5.5: the null reverse-path is told nothing.
        assert [each.recipients[0].address for each in desk.spool.reports] == (
            ["news@lists.test"] if report else []
        )
        assert sorted(desk.names()) == ["Bounced"] * 2 + ["Returned"] * 2
        assert desk.names()[0] == "Returned"
        bounced = next(each for each in desk.log.events if isinstance(each, log.Bounced))
        assert isinstance(bounced, log.Bounced)
        assert (bounced.code, bounced.enhanced, bool(bounced.dsn)) == (550, "5.7.1", report)

    run(scenario())


def test_what_an_operator_returns_says_nothing_of_an_address() -> None:
    """Whatever reply he writes: it must not put people on the suppression list."""

    async def scenario() -> None:
        desk = Desk(acme(1))
        await desk.carry_out(order(Action.BOUNCE, argument="550 5.1.1 No such user"))
        (bounced,) = (each for each in desk.log.events if isinstance(each, log.Bounced))
        assert bounced.category == "operator"

    run(scenario())


def test_retry_forgets_pauses_and_leaves_held_mail_alone() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1, attempts=4, site=SITE), acme(2, held="1", site="mx.b.test"))
        result = await desk.carry_out(order(Action.RETRY))
        assert result == Result(3, envelopes=1, recipients=1, kept=1)
        assert desk.spool.kept[1 << 8, 0].attempts == 4
        assert desk.spool.kept[1 << 8, 0].due != 5000.0
        assert desk.memory.paused == {"mx.b.test"}

    run(scenario())


def test_a_site_is_asked_for_once_and_only_where_it_is_not_known() -> None:
    async def scenario() -> None:
        desk = Desk(envelope(1), envelope(2), envelope(3, site=SITE), envelope(4, domain="b.test"))
        result = await desk.carry_out(order(Action.DELETE, Selector(site=("MX.A.test",))))
        assert result.envelopes == 3
        assert sorted(desk.asked) == ["a.test", "b.test"]

    run(scenario())


def test_nobody_asks_for_sites_without_need() -> None:
    async def scenario() -> None:
        desk = Desk(envelope(1))
        await desk.carry_out(order(Action.DELETE))
        assert desk.asked == []

    run(scenario())


def test_what_is_ready_to_leave_does_not() -> None:
    async def scenario() -> None:
        fresh, other = acme(1, due=0.0), envelope(2)
        desk = Desk(fresh, other)
        desk.memory.ready = [desk.out(fresh), desk.out(other)]
        hold = order(Action.HOLD)
        desk.orders.stand([hold])
        assert (await desk.carry_out(hold)).envelopes == 1
        assert [job.envelope for job in desk.memory.ready] == [other]
        assert desk.held() == [1]

    run(scenario())


def test_what_an_attempt_leaves_is_caught() -> None:
    async def scenario() -> None:
        one = acme(1)
        desk = Desk(one)
        job = desk.out(one)
        desk.memory.busy = [job]
        task = asyncio.ensure_future(desk.carry_out(order(Action.DELETE)))
        await until(lambda: desk.spool.scanned)
        assert not task.done()
        later = Disposition(Kind.DEFERRED, Reply(450, "4.2.0", "later"), "mx", 1100.0)
        desk.settlement.settle(job, SITE, "", [later])
        desk.memory.busy = []
        assert (await task).envelopes == 1
        assert desk.spool.kept == {}
        assert desk.names() == ["Deferred", "Deleted"]

    run(scenario())


def test_what_met_a_dead_connection_is_caught_before_it_leaves_again() -> None:
    async def scenario() -> None:
        one = acme(1)
        desk = Desk(one)
        desk.memory.busy = [job := desk.out(one)]
        task = asyncio.ensure_future(desk.carry_out(order(Action.DELETE)))
        await until(lambda: desk.spool.scanned)
        desk.memory.busy, desk.memory.ready = [], [job]
        assert (await task).envelopes == 1
        assert desk.spool.kept == {}
        assert desk.memory.ready == []

    run(scenario())


def test_a_hold_that_is_released_while_it_is_carried_out_keeps_nothing() -> None:
    async def scenario() -> None:
        mail = [acme(number) for number in range(1, 3 * BATCH)]
        desk = Desk(*mail)
        hold = order(Action.HOLD)
        desk.orders.stand([hold])
        task = asyncio.ensure_future(desk.carry_out(hold))
        await until(desk.held)
        assert not desk.spool.scanned[mail[-1].message]
        desk.orders.stand([])
        release = order(Action.RELEASE, ends=(hold.number,))
        await asyncio.gather(task, desk.carry_out(release))
        assert not desk.held()
        assert not desk.spool.out

    run(scenario())


def test_what_fails_and_what_the_operator_bounces_are_one_report() -> None:
    async def scenario() -> None:
        two = acme(1, recipients=[*acme(1).recipients, *acme(2).recipients])
        desk = Desk(two)
        job = desk.out(two)
        desk.orders.begin(order(Action.BOUNCE, argument=RETURNED))
        ends = [
            Disposition(Kind.FAILED, Reply(550, "5.1.1", "nobody"), "mx", 1100.0),
            Disposition(Kind.DEFERRED, Reply(450, "4.2.0", "later"), "mx", 1100.0),
        ]
        desk.settlement.settle(job, SITE, "", ends)
        await desk.settlement.finish()
        assert desk.spool.kept == {}
        (report,) = desk.spool.reports
        text = b"".join(report.parts)
        assert b"bob1@a.test" in text and b"bob2@a.test" in text
        assert b"returned by the operator" in text

    run(scenario())


def test_what_does_not_end_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward, "PATIENCE", 0.0)

    async def scenario() -> None:
        one = acme(1)
        desk = Desk(one)
        desk.memory.busy = [desk.out(one)]
        assert (await desk.carry_out(order(Action.DELETE))).under_way == 1

    run(scenario())


def test_what_moved_past_the_scan_is_met_by_a_second_one() -> None:
    """It was read to be sent, found no room, and lies still again without a write."""

    async def scenario() -> None:
        mail = [acme(number) for number in range(1, 3 * BATCH)]
        desk = Desk(*mail)
        moving = mail[BATCH + 5]
        desk.out(moving)

        async def put_back() -> None:
            await until(lambda: desk.spool.scanned[mail[-1].message])
            desk.spool.out.clear()

        desk.memory.busy = [Job(mail[0])]
        task = asyncio.ensure_future(desk.carry_out(order(Action.DELETE)))
        await put_back()
        desk.memory.busy = []
        assert (await task).envelopes == len(mail)
        assert desk.spool.kept == {}

    run(scenario())


def test_a_release_does_not_wait_for_a_slow_path() -> None:
    """What it freed may be in a ready queue, and out again, before anybody looks."""

    async def scenario() -> None:
        mail = [acme(number, held="5: stop") for number in range(1, 3 * BATCH)]
        desk = Desk(*mail)
        settle = desk.spool.settle

        def settle_and_lease(one: Envelope, *rest: Any, **named: Any) -> None:
            settle(one, *rest, **named)
            desk.out(one)

        desk.spool.settle = settle_and_lease  # type: ignore[method-assign,assignment]
        assert (await desk.carry_out(order(Action.RELEASE))).envelopes == len(mail)
        assert not desk.held()

    run(scenario())


def test_the_loop_and_the_disk_keep_up() -> None:
    async def scenario() -> None:
        desk = Desk(*(acme(number) for number in range(1, 10 * BATCH + 1)))
        steps = [each async for each in desk.steward.carry_out(order(Action.DELETE))]
        assert isinstance(steps[0], Step)
        assert steps[0].total == 10 * BATCH
        assert steps[-1] == Result(3, envelopes=10 * BATCH, recipients=10 * BATCH)

    run(scenario())


def test_a_command_that_nobody_waits_for_ends() -> None:
    async def scenario() -> None:
        desk = Desk(acme(1))
        desk.memory.busy = [Job(acme(1))]
        task = asyncio.ensure_future(desk.carry_out(order(Action.DELETE)))
        await until(lambda: desk.orders.any)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not desk.orders.any

    run(scenario())


def test_a_command_that_is_cut_short_leaves_nothing_claimed() -> None:
    async def scenario() -> None:
        desk = Desk(*(acme(number) for number in range(1, BATCH + 1)))
        task = asyncio.ensure_future(desk.carry_out(order(Action.RETRY)))
        await until(lambda: desk.names(), pause=0)  # each turn of the loop: a batch has several
        assert len(desk.names()) < BATCH
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not desk.spool.out

    run(scenario())
