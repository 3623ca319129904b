"""One path over real sockets: permits, room, paused hosts, what operators do."""

import asyncio
import time
from pathlib import Path

import pytest

from fastmta.config import parse
from fastmta.config_reader import Rate
from fastmta.delivery.dispatcher import Bounds
from fastmta.delivery.hosts import Hosts
from fastmta.delivery.numbers import PathNumbers
from fastmta.delivery.path import UNPROVEN
from fastmta.delivery.site import Host, Site
from fastmta.delivery.source import Sources
from fastmta.mail.disposition import Kind
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_steps import Timeouts
from fastmta.queue.limits import Limits, Shape
from fastmta.queue.permits import local_permits
from fastmta.queue.ready import Job
from tests.delivery.mx import DROP, SILENCE, Mx, Session
from tests.delivery.relay import BASIC, Rationed, Relay, refusing, saying, site
from tests.support import run, until

DELIVERED, DEFERRED = Kind.DELIVERED, Kind.DEFERRED


@pytest.fixture(autouse=True)
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmta.delivery.dispatcher.SWEEP_SECONDS", 0.01)


class Clock:
    """Goes only as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def only(relay: Relay) -> PathNumbers:
    (numbers,) = relay.dispatcher.paths()
    return numbers


# Permits.


def test_connections_as_many_as_permitted() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(connections=2))
            relay.permits.open["b.test"] = 1  # another worker has one
            ends = await relay.send(site(mx.host), 100)
            assert {end.kind for end in ends} == {DELIVERED}
            assert mx.most == 1
            relay.permits.open["b.test"] -= 1
            await relay.dispatcher.drain(5)
            assert not relay.permits.holders

    run(scenario())


def test_no_connection_until_woken() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(connections=1))
            relay.permits.open["b.test"] = 1
            assert relay.submit(site(mx.host))
            await until(lambda: relay.permits.refused)
            asked = only(relay)
            assert (asked.waiting, asked.waits_for) == (1, "connection limit")
            relay.permits.open["b.test"] = 0
            relay.permits.grant(0)
            await relay.until_settled(1)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_recalled_connections_end_after_their_transaction() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return SILENCE if command == "BDAT" else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(Limits(connections=2))
            for _ in range(10):
                assert relay.submit(site(mx.host))
            await until(lambda: sum(len(each.commands) for each in mx.sessions) == 8)
            (holder,) = relay.permits.holders
            holder.recall()
            mx.answer = lambda session, command: None
            for session in mx.sessions:
                session.transport.write(b"250 2.0.0 ok\r\n")
            await relay.until_settled(10)
            first, second = (len(session.messages) for session in mx.sessions[:2])
            quits = [each.commands[3:5] == ["BDAT 29 LAST", "QUIT"] for each in mx.sessions]
            assert sum(quits) == 1 and (first, second) != (1, 1)
            await until(lambda: only(relay).idle > 0)
            idle = only(relay).idle
            holder.recall()  # one that is idle ends at once
            assert only(relay).idle == idle - 1
            await relay.dispatcher.drain(5)

    run(scenario())


def test_messages_as_many_as_permitted() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(permits=Rationed(messages=5))
            for _ in range(20):
                assert relay.submit(site(mx.host))
            await relay.until_settled(5)
            await until(lambda: only(relay).busy == only(relay).opening == 0)
            waits = only(relay)
            assert (waits.waiting, waits.waits_for) == (15, "message rate")
            opened = len(mx.sessions)
            for round_ in range(1, 4):
                relay.permits.grant(5)
                await relay.until_settled(5 + 5 * round_)
            assert len(mx.messages) == 20 and len(mx.sessions) == opened
            await relay.dispatcher.drain(5)

    run(scenario())


def test_paced_path_opens_no_connection_before_it_may_send() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(idle_timeout=0.01), permits=Rationed(messages=1))
            for _ in range(2):
                assert relay.submit(site(mx.host))
            await relay.until_settled(1)
            await until(lambda: mx.sessions and not mx.open)
            opened = len(mx.sessions)
            for _ in range(5):  # sweeps
                await asyncio.sleep(0.01)
            assert len(mx.sessions) == opened
            relay.permits.grant(1)
            await relay.until_settled(2)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_woken_path_leaves_a_connection_that_ends_alone() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(connections=1), permits=Rationed(messages=1))
            for _ in range(2):
                assert relay.submit(site(mx.host))
            await relay.until_settled(1)
            await until(lambda: only(relay).idle == 1)
            (connection,) = relay.dispatcher.connections
            connection.expire()
            relay.permits.grant(1)
            await relay.until_settled(2)
            assert relay.settled[1][1][0].kind is DELIVERED
            assert len(mx.messages) == 2
            await relay.dispatcher.drain(5)

    run(scenario())


def test_permits_hear_what_hosts_say() -> None:
    async def scenario() -> None:
        async with Mx(saying({"BDAT": b"451 4.7.0 slow down\r\n"})) as mx:
            relay = Relay()
            await relay.send(site(mx.host))
            down = refusing()
            await relay.send(site(down, name="down.test"))
            heard = relay.permits.heard_replies
            assert heard[0] == Reply(451, "4.7.0", "slow down")
            text = f"connection refused by down.test [127.0.0.1] port {down.port}"
            assert heard[1] == Reply(451, "4.4.1", text)
            assert relay.settled[-1][1][0].host == "down.test [127.0.0.1]"
            await relay.dispatcher.drain(5)

    run(scenario())


# Room.


def test_a_path_may_have_all_its_room_while_there_are_few_jobs() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": SILENCE})) as mx:
            relay = Relay(limits=Limits(ready=50), bounds=Bounds(plenty=100))
            assert [relay.offer(site(mx.host)) for _ in range(51)] == [""] * 50 + ["b.test"]
            other = [relay.offer(site(mx.host, name="other.test")) for _ in range(50)]
            assert other == [""] * 50
            third = [relay.offer(site(mx.host, name="third.test")) for _ in range(UNPROVEN + 1)]
            assert third == [""] * UNPROVEN + ["third.test"]
            await relay.dispatcher.drain(0)

    run(scenario())


def test_room_grows_with_what_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmta.delivery.dispatcher.SWEEP_SECONDS", 60)

    async def scenario() -> None:
        async with Mx(saying({"": SILENCE})) as mx:
            relay = Relay(bounds=Bounds(plenty=0))
            offers = [relay.offer(site(mx.host)) for _ in range(UNPROVEN + 1)]
            assert offers == [""] * UNPROVEN + ["b.test"]
            await until(lambda: bool(mx.sessions))
            mx.answer = lambda session, command: None
            mx.sessions[0].transport.write(b"220 mx.test\r\n")
            await until(lambda: relay.room == ["b.test"])
            await relay.until_settled(UNPROVEN)
            taken = 0
            while relay.submit(site(mx.host)):
                taken += 1
            assert taken > 2 * UNPROVEN
            await relay.dispatcher.drain(5)

    run(scenario())


def test_room_is_told_once_and_when_the_path_is_forgotten() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": SILENCE})) as mx:
            relay = Relay(Limits(ready=2))
            assert [relay.offer(site(mx.host)) for _ in range(5)] == ["", "", *["b.test"] * 3]
            await until(lambda: bool(mx.sessions))
            mx.sessions[0].transport.close()
            await until(lambda: relay.room == ["b.test"])
            await until(lambda: not relay.dispatcher.paths())
            assert relay.room == ["b.test"]

    run(scenario())


def test_one_path_more_than_there_may_be() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(limits=Limits(idle_timeout=0.01), bounds=Bounds(paths=1))
            assert relay.submit(site(mx.host))
            name = relay.offer(site(mx.host, name="other.test"))
            assert name
            await until(lambda: relay.room == [name])
            assert relay.submit(site(mx.host, name="other.test"))
            await relay.dispatcher.drain(5)

    run(scenario())


def test_fast_site_keeps_its_rate_beside_black_holes() -> None:
    """Whoever gives out a bounded window of jobs is never full of those that go nowhere."""

    async def scenario() -> None:
        async with Mx() as fast, Mx(saying({"": SILENCE})) as hole:
            relay = Relay(bounds=Bounds(plenty=0))
            holes = [site(hole.host, name=f"hole{number}.test") for number in range(30)]
            refused = set()
            for _ in range(1000 // 30):
                refused |= {relay.offer(each) for each in holes}
            assert relay.dispatcher.active_jobs() == 30 * UNPROVEN
            assert refused == {"", *(each.name for each in holes)}
            ends = await relay.send(site(fast.host), 2000)
            assert {end.kind for end in ends} == {DELIVERED}
            assert relay.dispatcher.active_jobs() <= 30 * UNPROVEN
            await relay.dispatcher.drain(5)

    run(scenario())


# Hosts that are dead.


def test_dead_mx_among_two_is_tried_once() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(messages_per_connection=1))
            down = refusing()
            ends = await relay.send(site(down, mx.host), 50)
            assert {end.kind for end in ends} == {DELIVERED}
            failed = [reply for reply in relay.permits.heard_replies if not reply.is_positive]
            assert len(failed) == 1
            await relay.dispatcher.drain(5)

    run(scenario())


def test_nobody_waits_for_the_probe_of_a_dead_mx() -> None:
    """The first accepts connections and says nothing."""

    async def scenario() -> None:
        clock = Clock()
        async with Mx(saying({"": SILENCE}), name="hole.test") as hole, Mx() as mx:
            to = site(hole.host, mx.host)
            relay = Relay(hosts=Hosts(clock), timeouts=Timeouts(greeting=0.05))
            await relay.send(to, 10)
            assert len(hole.sessions) == 1
            await until(lambda: not hole.open)
            await relay.dispatcher.drain(5)
            relay = Relay(hosts=relay.dispatcher.hosts)  # without that time limit
            clock.now += 31
            ends = await relay.send(to, 10)
            assert {end.host for end in ends} == {"mx.test [127.0.0.1]"}
            assert (len(hole.sessions), hole.open) == (2, 1)  # the probe is still under way
            hole.sessions[1].transport.write(b"220 hole.test\r\n")
            hole.answer = lambda session, command: None
            await until(lambda: only(relay).opening == 0)
            assert relay.dispatcher.hosts.paused() == []
            await relay.dispatcher.drain(5)

    run(scenario())


def test_all_dead_is_one_probe_and_an_answer_at_once() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with Mx(saying({"": b"421 4.3.2 not now\r\n" + DROP})) as one:
            relay = Relay(hosts=Hosts(clock))
            sites = [site(one.host, name=f"site{number}") for number in range(5)]
            for _ in range(2):
                for each in sites:
                    (end,) = await relay.send(each)
                    assert (end.kind, end.host) == (DEFERRED, "mx.test [127.0.0.1]")
                    assert str(end.reply) == "421 4.3.2 not now"
                assert len(one.sessions) == 1
            clock.now += 31
            one.answer = lambda session, command: None
            for each in sites:  # the first is the probe
                (end,) = await relay.send(each)
                assert end.kind is DELIVERED
            await relay.dispatcher.drain(5)

    run(scenario())


def test_who_has_no_other_host_waits_for_the_probe() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with Mx(saying({"": b"421 4.3.2 not now\r\n" + DROP})) as mx:
            relay = Relay(hosts=Hosts(clock))
            await relay.send(site(mx.host))
            clock.now += 31
            mx.answer = saying({"": SILENCE})
            assert relay.submit(site(mx.host))
            await until(lambda: len(mx.sessions) == 2)
            assert relay.submit(site(mx.host, name="other"))
            assert relay.dispatcher.paths()[1].waits_for == "host paused"
            mx.answer = lambda session, command: None
            mx.sessions[1].transport.write(b"220 mx.test\r\n")
            await relay.until_settled(3)
            assert [ends[0].kind for _, ends in relay.settled[1:]] == [DELIVERED] * 2
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_paused_host_and_ourselves_is_no_loop() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"220 me.test ESMTP\r\n"})) as us:
            relay, to = Relay(), site(refusing(), us.host)
            for _ in range(3):
                (end,) = await relay.send(to)
                assert (end.kind, end.reply.enhanced) == (DEFERRED, "4.4.1")

    run(scenario())


def test_timeout_names_the_host() -> None:
    async def scenario() -> None:
        relay = Relay(timeouts=Timeouts(connect=0.0))
        (end,) = await relay.send(site(Host("mx.test", ("192.0.2.1",), 25)))
        assert end.reply.text == "connection to mx.test [192.0.2.1] port 25 timed out"

    run(scenario())


# What operators do.


def test_retry_now_forgets_pauses() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": b"421 4.3.2 not now\r\n" + DROP})) as mx:
            relay = Relay()
            await relay.send(site(mx.host))
            mx.answer = lambda session, command: None
            assert (await relay.send(site(mx.host)))[0].kind is DEFERRED
            relay.dispatcher.retry_now("another")
            assert (await relay.send(site(mx.host)))[0].kind is DEFERRED
            relay.dispatcher.retry_now("b.test")
            assert (await relay.send(site(mx.host)))[0].kind is DELIVERED
            await relay.dispatcher.drain(5)

    run(scenario())


def test_withdrawn_jobs_are_given_back_unsettled() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return SILENCE if command == "BDAT" else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(Limits(connections=1))
            for number in range(10):
                assert relay.submit(site(mx.host), tenant=f"t{number % 2}")
            await until(lambda: mx.sessions and len(mx.sessions[0].commands) == 4)
            jobs = relay.dispatcher.withdraw(
                lambda job, name: name == "b.test" and job.envelope.tenant == "t0"
            )
            assert [job.envelope.message for job in jobs] == [3, 5, 7, 9]  # 1 is under way
            assert relay.dispatcher.active_jobs() == 6
            mx.answer = lambda session, command: None
            mx.sessions[0].transport.write(b"250 2.0.0 ok\r\n")
            await relay.until_settled(6)
            assert relay.dispatcher.active_jobs() == 0
            await relay.dispatcher.drain(5)

    run(scenario())


def test_numbers_of_a_path() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            await relay.send(site(mx.host), 20)
            await until(lambda: only(relay).delivered > 0)
            numbers = only(relay)
            assert (numbers.name, numbers.source, numbers.waiting) == ("b.test", "", 0)
            assert numbers.last == Reply(250, "2.0.0", "ok")
            assert abs(numbers.last_time - time.time()) < 60
            assert (numbers.waits_for, numbers.until) == ("ready", 0.0)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_settings_change_with_the_next_job() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(connections=1))
            to: Site = site(mx.host)
            await relay.send(to, 30)
            assert mx.most == 1
            relay.limits = Limits(messages_per_connection=1)
            await relay.send(to, 30)
            assert [len(each.messages) for each in mx.sessions[1:]] == [1] * (len(mx.sessions) - 1)
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.parametrize("rate", [None, Rate(1000, 1.0)])
def test_a_limit_that_is_raised_holds_for_what_waits_already(rate: Rate | None) -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(message_rate=Rate(1, 3600.0)))
            relay.dispatcher.permits = local_permits(asyncio.get_running_loop())
            for _ in range(10):
                assert relay.submit(site(mx.host))
            await until(lambda: relay.settled and only(relay).waits_for == "message rate")
            assert only(relay).waiting
            relay.limits = Limits(message_rate=rate)
            relay.dispatcher.reshape(lambda job: pytest.fail("its path is the same"))
            await relay.until_settled(10)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_jobs_whose_path_is_another_now_are_given_back() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(message_rate=Rate(1, 3600.0)))
            relay.dispatcher.permits = local_permits(asyncio.get_running_loop())
            to: Site = site(mx.host)
            for _ in range(10):
                assert relay.submit(to)
            await until(lambda: relay.settled and only(relay).waits_for == "message rate")
            waiting = only(relay).waiting
            relay.dispatcher.shape = lambda *_: Shape("b.test#new", Limits(), {})
            again: list[Job] = []
            relay.dispatcher.reshape(again.append)
            assert len(again) == waiting
            for job in again:
                assert relay.dispatcher.submit(to, job) == ""
            await relay.until_settled(10)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_jobs_whose_source_is_gone_are_settled_where_a_reload_took_its_pool_away() -> None:
    tables = """
    [[source]]
    name = "a"
    addresses = ["203.0.113.9"]
    [[pool]]
    name = "default"
    sources = {a = 1}
    """

    async def scenario() -> None:
        async with Mx(lambda session, command: SILENCE) as mx:
            relay = Relay(sources=tables)
            for _ in range(3):
                assert relay.submit(site(mx.host))
            plain = parse(BASIC, Path("/tmp"))
            relay.dispatcher.sources = Sources(plain, asyncio.get_running_loop().time)
            while relay.submit(site(mx.host)):
                pass
            await relay.until_settled(3)
            assert {end.reply.enhanced for _, (end,) in relay.settled} == {"4.3.5"}
            await relay.dispatcher.drain(0)

    run(scenario())


# Flow.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever delivers five is quick, and 200 that wait are a crowd, however fast this machine is:
    five since the last sweep count as 5 to 500 a second."""
    monkeypatch.setattr("fastmta.delivery.dispatcher.SWEEP_SECONDS", 1e6)
    monkeypatch.setattr("fastmta.delivery.pace.QUICK", 1.0)
    monkeypatch.setattr("fastmta.delivery.pace.CROWD", 0.4)


async def _crowded(relay: Relay, mx: Mx, jobs: int = 256) -> int:
    """Five are delivered, and so many wait; how many found no room."""
    for _ in range(5):
        assert relay.submit(site(mx.host))
    await relay.until_settled(5)
    return sum(not relay.submit(site(mx.host)) for _ in range(jobs))


@pytest.mark.usefixtures("quick")
def test_a_quick_path_is_crowded_until_half_has_left() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(permits=Rationed(messages=5))
            flow = relay.dispatcher.flow
            await _crowded(relay, mx)
            assert flow.is_crowded
            eased: list[int] = []
            flow.pause(lambda: eased.append(only(relay).waiting))
            relay.permits.grant(1 << 20)
            await relay.until_settled(5 + 256)
            assert not flow.is_crowded
            assert 0 < eased[0] <= 100
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_nobody_pauses_for_a_slow_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmta.delivery.pace.QUICK", 501.0)

    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(permits=Rationed(messages=5))
            await _crowded(relay, mx)
            assert not relay.dispatcher.flow.is_crowded
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_nobody_pauses_for_what_waits_in_the_spool() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(Limits(ready=256), permits=Rationed(messages=5))
            assert await _crowded(relay, mx, jobs=257) == 1
            assert not relay.dispatcher.flow.is_crowded
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_nobody_pauses_for_a_path_that_has_stopped() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(permits=Rationed(messages=5))
            await _crowded(relay, mx)
            relay.dispatcher._sweep()
            assert relay.dispatcher.flow.is_crowded
            relay.dispatcher._sweep()
            assert not relay.dispatcher.flow.is_crowded
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_nobody_pauses_for_mail_that_was_withdrawn() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(permits=Rationed(messages=5))
            await _crowded(relay, mx)
            assert len(relay.dispatcher.withdraw(lambda job, site: True)) == 256
            assert not relay.dispatcher.flow.is_crowded
            await relay.dispatcher.drain(5)

    run(scenario())
