"""From the spool to the ready queues: look-ups, full paths, orders, and what is urgent."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from fastmta.config import Reports
from fastmta.log import DispositionLog
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Priority
from fastmta.mail.reply import Reply
from fastmta.queue import scheduler
from fastmta.queue.expiry import Expiry
from fastmta.queue.orders import Action, Order, Orders
from fastmta.queue.ready import Job, ReadyQueue
from fastmta.queue.scheduler import Scheduler
from fastmta.queue.selector import Selector
from fastmta.queue.settlement import Settlement
from fastmta.store import lanes, spool
from fastmta.store.spool import Spool
from fastmta.store.turns import alike
from tests.store.backlog import fill, waiting
from tests.store.test_spool import accept, arrival
from tests.support import run, until

PAST = 1_700_000_000.0
OK = Reply(250, "2.0.0", "taken")


class Place:
    """A site."""

    def __init__(self, name: str) -> None:
        self.name = name


class Policy:
    first, max_interval, give_up_after = 300.0, 4 * 3600.0, 1e9


class Engine:
    """A shard with a scheduler, and a path for each site that delivers when told to."""

    def __init__(
        self,
        folder: Path,
        ready: int = 100,
        weight_of: Callable[[Hashable], int] = alike,
        site_of: Callable[[str], str] = str,
    ) -> None:
        self.spool, self.orders = Spool(folder, 0, min_free=0), Orders()
        journal = DispositionLog("-")
        journal.write = lambda event: None  # type: ignore[assignment,method-assign]
        self.settlement = Settlement(
            self.spool, lambda _: Policy(), Reports(), "me.test", journal, self.orders
        )
        expiry = Expiry(self.spool, self.settlement, lambda _: Policy(), lambda: 1e9, lambda _: [])
        self.known: dict[str, Place] = {}
        self.looking_up: list[str] = []
        self.answer = asyncio.Event()
        self.answer.set()
        self.scheduler = Scheduler(
            self.spool,
            self.settlement,
            self.known.get,
            self.resolve,
            self.submit,
            expiry,
            self.orders,
        )
        self.ready, self.weight_of, self.site_of = ready, weight_of, site_of
        self.paths: dict[str, ReadyQueue] = {}
        self.delivered: list[Envelope] = []

    async def __aenter__(self) -> "Engine":
        await self.spool.start(self.scheduler.admit)
        self.running = asyncio.ensure_future(self.scheduler.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.scheduler.stop()
        await self.settlement.finish()
        await self.spool.close()

    async def resolve(self, domain: str) -> Place | Reply:
        self.looking_up.append(domain)
        await self.answer.wait()
        self.looking_up.remove(domain)
        self.known[domain] = Place(self.site_of(domain))
        return self.known[domain]

    def submit(self, site: Place, job: Job) -> str:
        queue = self.paths.setdefault(site.name, ReadyQueue(self.ready, self.weight_of))
        return "" if queue.put(job) else f"{site.name} {queue.line_of(job)[1]}"

    def deliver(self, count: int, only: str = "") -> int:
        """So many from each path; how many there were."""
        done = 0
        for name, queue in self.paths.items():
            for _ in range(count if only in ("", name) else 0):
                if (job := queue.take()) is None:
                    break
                done += 1
                self.delivered.append(job.envelope)
                end = Disposition.of_reply(OK, "mx.test", time.time())
                self.settlement.settle(job, name, "", [end] * len(job.envelope.recipients))
                for _, tenant in queue.regained(job):
                    self.spool.room(f"{name} {tenant}")
        return done

    def wants_more(self) -> bool:
        """Some tenant has less than half of its share in a path."""
        turns = [path._turns for path in self.paths.values()]
        return not turns or any(
            each is None
            or any(
                each.waiting(Priority.NORMAL, tenant) * 2
                < (each.share(Priority.NORMAL, tenant, self.ready, 1) or 0)
                for tenant in ("great", "small")
            )
            for each in turns
        )

    async def until_delivered(self, count: int) -> None:
        def enough() -> bool:
            self.deliver(50)
            return len(self.delivered) >= count

        await until(enough)


def test_everything_gets_out_through_full_paths_in_the_order_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "LOOK_INTERVAL", 1e6)  # a look may find what is behind others
    fill(tmp_path, (waiting(n, f"d{n % 3}.test", PAST + n) for n in range(1, 3001)))

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            # What waits for a look-up would leave behind what is read after it.
            engine.known.update((name, Place(name)) for name in ("d0.test", "d1.test", "d2.test"))
            await engine.until_delivered(3000)
            for domain in ("d0.test", "d1.test", "d2.test"):
                times = [e.due for e in engine.delivered if e.domain == domain]
                assert len(times) == 1000
                assert times == sorted(times)
            await until(lambda: engine.spool.statistics().envelopes == 0)

    run(scenario())


def test_a_full_path_does_not_hold_up_the_others(tmp_path: Path) -> None:
    many = [waiting(n, "slow.test", PAST) for n in range(1, 5001)]
    fill(tmp_path, [*many, *(waiting(n, "fast.test", PAST + 1) for n in range(6000, 8000))])

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:

            def enough() -> bool:
                engine.deliver(50, "fast.test")
                return len(engine.delivered) >= 2000

            await until(enough)
            assert {envelope.domain for envelope in engine.delivered} == {"fast.test"}
            # What waits for the slow one is not out but for its ready queue.
            await until(lambda: len(engine.spool._out) == 100)
            await engine.until_delivered(7000)

    run(scenario())


@pytest.mark.parametrize("ready", [32, 1000])
def test_tenants_share_a_path_by_their_weights(tmp_path: Path, ready: int) -> None:
    """One has ten domains and came first, the other weighs three times as much."""
    weights = {"great": 1, "small": 3}
    great = (waiting(n, f"d{n % 10}.test", PAST, tenant="great") for n in range(1, 9001))
    small = (waiting(n, "only.test", PAST + 1, tenant="small") for n in range(9001, 12001))
    fill(tmp_path, [*great, *small])

    async def scenario() -> None:
        async with Engine(tmp_path, ready, lambda t: weights[str(t)], lambda _: "mx") as engine:

            async def share(count: int) -> float:
                """Of the next deliveries, each of which leaves time to refill."""
                before = len(engine.delivered)
                while len(engine.delivered) < before + count:
                    engine.deliver(4)
                    await until(lambda: not engine.wants_more())
                of = Counter(each.tenant for each in engine.delivered[before:])
                return of["small"] / of.total()

            await until(lambda: not engine.wants_more())
            assert 0.7 < await share(1000) < 0.8
            weights["small"] = 1  # as by a reload
            await share(1000)
            assert 0.45 < await share(400) < 0.55

    run(scenario())


def test_an_urgent_message_gets_through_100_000_of_bulk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same site, whose ready queue is full, and through a window that is full."""
    monkeypatch.setattr(spool, "WINDOW", 2000)
    domains = [f"d{n}.test" for n in range(100)]
    fill(
        tmp_path,
        (waiting(n, domains[n % 100], PAST, priority=Priority.BULK) for n in range(1, 100_001)),
    )

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            await until(lambda: len(engine.spool._out) >= 1900)
            await engine.until_delivered(1000)
            await until(lambda: len(engine.spool._out) >= 1900)
            now = arrival(engine.spool, "now@d7.test")
            now.priority = Priority.URGENT
            await accept(engine.spool, now)
            # From its path it leaves as the first, though not before its domain is looked up.
            path = engine.paths.setdefault("d7.test", ReadyQueue(engine.ready))
            await until(lambda: path._waiting((Priority.URGENT, ""))[0])
            engine.deliver(1, "d7.test")
            assert engine.delivered[-1].message == now.message

    run(scenario())


def test_so_many_domains_are_looked_up_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_UPS", 20)
    fill(tmp_path, (waiting(n, f"d{n % 500}.test", PAST) for n in range(1, 1001)))

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            engine.answer.clear()
            await until(lambda: len(engine.spool._out) == 1000)
            assert len(engine.looking_up) == len(set(engine.looking_up)) == 20
            engine.answer.set()
            await engine.until_delivered(1000)

    run(scenario())


def test_a_new_message_whose_path_is_full_waits_on_the_disk_and_keeps_its_order(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with Engine(tmp_path, ready=10) as engine:
            sent = [arrival(engine.spool, f"u{n}@to.test") for n in range(100)]
            for each in sent:
                await accept(engine.spool, each)
            await until(lambda: len(engine.spool._out) == 10)
            await engine.until_delivered(100)
            assert [e.message for e in engine.delivered[:10]] == [e.message for e in sent[:10]]
            assert {e.message for e in engine.delivered} == {e.message for e in sent}
            assert {e.attempts for e in engine.delivered} == {0}

    run(scenario())


def test_an_order_is_asked_before_a_job_is_submitted(tmp_path: Path) -> None:
    hold = Order(action=Action.HOLD, selector=Selector(site=("stopped.test",)), number=3)
    fill(tmp_path, [waiting(n, "stopped.test", PAST) for n in (1, 2)])

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            await engine.until_delivered(2)
            engine.orders.stand([hold])
            await accept(engine.spool, arrival(engine.spool, "a@stopped.test"))
            await accept(engine.spool, arrival(engine.spool, "a@other.test"))
            await engine.until_delivered(3)
            await engine.spool.written()
            assert engine.delivered[-1].domain == "other.test"
            (held,), _ = await engine.spool.scan(b"", 10)
            assert (held.domain, held.held) == ("stopped.test", "3")

    run(scenario())


def test_an_order_is_asked_before_a_look_up_that_outlasts_it(tmp_path: Path) -> None:
    delete = Order(action=Action.DELETE, selector=Selector(domain=("a.test",)), number=3)

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            engine.answer.clear()
            engine.orders.begin(delete)
            for address in ("a@a.test", "c@c.test"):
                await accept(engine.spool, arrival(engine.spool, address))
            await until(lambda: engine.looking_up)
            engine.orders.end(delete)
            engine.answer.set()
            await engine.until_delivered(1)
            await engine.spool.written()
            assert [each.domain for each in engine.delivered] == ["c.test"]
            assert engine.spool.statistics().envelopes == 0

    run(scenario())


def test_what_waits_for_dns_is_withdrawn(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            engine.answer.clear()
            for address in ("a@a.test", "b@a.test", "c@c.test"):
                await accept(engine.spool, arrival(engine.spool, address))
            await until(lambda: len(engine.looking_up) == 2)
            taken = engine.scheduler.withdraw(lambda job, _: job.envelope.domain == "a.test")
            assert len(taken) == 2
            engine.answer.set()
            await engine.until_delivered(1)
            assert [each.domain for each in engine.delivered] == ["c.test"]
            for job in taken:
                engine.spool.settle(job.envelope, None)

    run(scenario())


def test_mail_goes_to_the_next_hop_that_an_operator_chose(tmp_path: Path) -> None:
    fill(tmp_path, [msgspec.structs.replace(waiting(1, "a.test", PAST), next_hop="127.0.0.1:26")])

    async def scenario() -> None:
        async with Engine(tmp_path) as engine:
            await engine.until_delivered(1)
            assert list(engine.paths) == ["127.0.0.1:26"]

    run(scenario())


def test_somebody_may_choose_where_an_envelope_goes(tmp_path: Path) -> None:
    """By its domain where nobody chooses; a refusal settles it; an operator's hop is not asked."""

    async def scenario() -> None:
        answers = {"a.test": "x.test", "b.test": "", "c.test": Reply(451, "4.0.0", "no")}
        asked: list[str] = []

        async def choose(envelope: Envelope) -> str | Reply:
            asked.append(envelope.domain)
            await asyncio.sleep(0)
            if envelope.domain == "d.test":
                raise RuntimeError("planted")
            return answers[envelope.domain]

        async with Engine(tmp_path) as engine:
            engine.scheduler.choose = choose
            settled: dict[str, Reply] = {}

            def settle(job: Job, site: str, source: str, ends: list[Disposition]) -> None:
                settled[job.envelope.domain] = ends[0].reply

            told = SimpleNamespace(settle=settle)
            engine.scheduler._settlement = cast(Settlement, told)
            for domain in ("a.test", "b.test", "c.test", "d.test"):
                await accept(engine.spool, arrival(engine.spool, f"u@{domain}"))
            await until(lambda: sorted(engine.paths) == ["b.test", "x.test"])
            await until(lambda: len(asked) == 4)
            assert sorted(asked) == ["a.test", "b.test", "c.test", "d.test"]
            await until(lambda: len(settled) == 2)
            assert {domain: reply.text for domain, reply in settled.items()} == {
                "c.test": "no",
                "d.test": scheduler.FAILED.text,
            }

    run(scenario())


def test_what_waits_for_a_choice_can_be_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()

        async def choose(envelope: Envelope) -> str:
            await gate.wait()
            return ""

        async with Engine(tmp_path) as engine:
            engine.scheduler.choose = choose
            for domain in ("a.test", "b.test"):
                await accept(engine.spool, arrival(engine.spool, f"u@{domain}"))
            await until(lambda: len(engine.scheduler._undecided) == 2)
            [taken] = engine.scheduler.withdraw(lambda job, _: job.envelope.domain == "a.test")
            gate.set()
            await until(lambda: engine.paths)
            assert sorted(engine.paths) == ["b.test"]
            assert taken.envelope.domain == "a.test"

    run(scenario())
