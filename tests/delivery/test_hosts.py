"""What is remembered of hosts that do not answer, by a clock that the test owns."""

import logging

import pytest

from fastmta.delivery.hosts import Hosts, Spot
from fastmta.mail.reply import Reply

REFUSED = Reply(451, "4.4.1", "connection refused by mx.test [192.0.2.1] port 25")
LISTED = Reply(450, "4.7.1", "refused to talk to us: 554 5.7.1 you are on a list")
SPOT = Spot("192.0.2.1", 25, "out1")
OTHER = Spot("192.0.2.1", 25, "out2")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(hosts: Hosts, spot: Spot = SPOT, *, greeted: bool = False, site: str = "s") -> None:
    """One attempt as a path makes it."""
    probe = hosts.begin(spot)
    reply = LISTED if greeted else REFUSED
    hosts.failed(spot, "mx.test [192.0.2.1]", reply, site, greeted=greeted, probe=probe)


def test_schedule_of_a_dead_host() -> None:
    """Who asks all the time gets one attempt at each of these times."""
    clock = Clock()
    hosts = Hosts(clock)
    tried: list[float] = []
    while clock.now < 1000 + 3 * 3600:
        if hosts.trouble(SPOT) is None:
            tried.append(clock.now - 1000)
            fail(hosts)
        clock.now += 10
    assert tried == [0, 30, 90, 210, 450, 930, 1890, 3690, 5490, 7290, 9090]


def test_first_pause_is_not_longer_than_the_first_retry() -> None:
    clock = Clock()
    hosts = Hosts(clock, first=2.0)
    for pause in (2, 4, 8):
        fail(hosts)
        clock.now += pause - 0.1
        assert hosts.trouble(SPOT)
        clock.now += 0.1
        assert hosts.trouble(SPOT) is None


def test_one_probe_at_a_time_for_all_sources() -> None:
    clock = Clock()
    hosts = Hosts(clock)
    fail(hosts)
    assert hosts.trouble(OTHER) and hosts.paused()
    clock.now += 30
    assert hosts.trouble(SPOT) is None and not hosts.paused()
    assert hosts.begin(SPOT)
    for spot in (SPOT, OTHER):
        trouble = hosts.trouble(spot)
        assert trouble and trouble.is_probed and trouble.reply == REFUSED
    hosts.let_go(SPOT)
    assert hosts.trouble(OTHER) is None


def test_success_clears_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    hosts = Hosts(clock)
    with caplog.at_level(logging.INFO):
        fail(hosts)
        clock.now += 30
        fail(hosts)
        clock.now += 60
        assert hosts.begin(OTHER)
        hosts.answered(OTHER)
        assert hosts.trouble(SPOT) is None and not hosts.begin(SPOT)
    assert [record.getMessage() for record in caplog.records] == [
        f"mx.test [192.0.2.1] is paused: {REFUSED}",
        "mx.test [192.0.2.1] is back",
    ]


def test_a_bad_greeting_concerns_one_source() -> None:
    hosts = Hosts(Clock())
    fail(hosts, greeted=True)
    assert hosts.trouble(SPOT) and hosts.trouble(OTHER) is None


def test_failures_that_were_under_way_count_once() -> None:
    clock = Clock()
    hosts = Hosts(clock)
    attempts = [hosts.begin(SPOT) for _ in range(32)]
    for probe in attempts:
        hosts.failed(SPOT, "mx.test", REFUSED, "s", greeted=False, probe=probe)
    clock.now += 30
    assert hosts.trouble(SPOT) is None


def test_a_host_with_open_connections_is_not_dead() -> None:
    hosts = Hosts(Clock())
    hosts.answered(SPOT)
    fail(hosts)
    assert hosts.trouble(SPOT) is None
    fail(hosts, OTHER, greeted=True)
    assert hosts.trouble(OTHER), "the other source is not wanted"
    hosts.closed(SPOT)
    fail(hosts)
    assert hosts.trouble(SPOT)


def test_after_a_long_time_it_begins_anew() -> None:
    clock = Clock()
    hosts = Hosts(clock)
    for _ in range(8):
        fail(hosts)
        clock.now += 1800
    clock.now += 7200
    fail(hosts)
    clock.now += 30
    assert hosts.trouble(SPOT) is None


def test_an_operator_may_forget_pauses() -> None:
    hosts = Hosts(Clock())
    there = Spot("192.0.2.9", 25, "")
    fail(hosts, site="one")
    fail(hosts, there, site="two")
    hosts.forget("two")
    assert hosts.trouble(SPOT) and hosts.trouble(there) is None
    trouble = hosts.trouble(SPOT)
    assert trouble
    hosts.concerns(trouble, "three")
    hosts.forget("three")
    assert hosts.trouble(SPOT) is None
    fail(hosts)
    hosts.forget()
    assert hosts.trouble(SPOT) is None


def test_the_table_is_bounded() -> None:
    hosts = Hosts(Clock(), size=100)
    spots = [Spot("192.0.2.1", port, "") for port in range(1, 301)]
    for spot in spots:
        fail(hosts, spot)
    assert len(hosts.paused()) == 100
    assert hosts.trouble(spots[-1]) and hosts.trouble(spots[0]) is None
