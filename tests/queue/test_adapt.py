"""Slowing down and recovering, printed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config_reader import Rate
from fastmta.config_shaping import (
    Shaping,
    SlowDownRule,
    check_shaping,
    shipped_providers,
    shipped_slow_down_rules,
)
from fastmta.mail.reply import Reply
from fastmta.queue.adapt import HOLD, STEP, SlowDownRules, Slowed, recover, slow_down, step_time
from fastmta.queue.arbiter import CONNECTIONS
from fastmta.queue.budget import SLOW_DOWNS, SLOWED
from fastmta.queue.limits import SharedLimits, SlowDown
from tests.queue.exchange import Sender, Server, shape

LIMITS = SharedLimits(20, None, Rate.parse("100/s"))
NO_RATE = SharedLimits(20, None, None)
CAUSE = SlowDown(0.0, "421 4.7.28 slow", "4.7.28", 0.0)
DOCUMENT = Path(__file__).parents[2] / "docs" / "shaping.md"
SHIPPED = SlowDownRules(shipped_slow_down_rules())
BUSY = Reply(421, "4.7.28", "unusual rate of unsolicited mail")


def schedule(limits: SharedLimits, replies: list[float], measured: float = 0.0) -> list[str]:
    """What a path may do, a line for each change; deliveries succeed all the time."""
    present: Slowed | None = None
    lines = [line(0, limits, present, "as configured")]
    now = 0.0
    while replies or present is not None:
        now += 1
        if replies and replies[0] <= now:
            replies = replies[1:]
            before = present
            present = slow_down(limits, present, CAUSE, measured, now)
            told = "slow down" if not before or before.changed != present.changed else "again"
            lines.append(line(now, limits, present, told))
        if present is not None:
            present, changed = recover(limits, present, 1, now)
            if changed:
                told = "a step up" if present else "as configured"
                lines.append(line(now, limits, present, told))
    return lines


def line(now: float, limits: SharedLimits, present: Slowed | None, what: str) -> str:
    connections = present.connections if present else limits.connections
    configured = str(limits.message_rate) if limits.message_rate else "any"
    rate = f"{present.rate:g}/s" if present and present.rate else configured
    minutes, seconds = divmod(int(now), 60)
    return f"{minutes:2}:{seconds:02}  {connections:3}  {rate:>7}  {what}"


def test_the_schedule_of_slowing_down_and_recovering() -> None:
    lines = schedule(LIMITS, [1, 5, 40, 100])
    print("\n".join(lines))
    assert lines == [
        " 0:00   20    100/s  as configured",
        " 0:01   10     50/s  slow down",
        " 0:05   10     50/s  again",
        " 0:40    5     25/s  slow down",
        " 1:40    2   12.5/s  slow down",
        " 2:40    4   22.5/s  a step up",
        " 3:40    6   32.5/s  a step up",
        " 4:40    8   42.5/s  a step up",
        " 5:40   10   52.5/s  a step up",
        " 6:40   12   62.5/s  a step up",
        " 7:40   14   72.5/s  a step up",
        " 8:40   16   82.5/s  a step up",
        " 9:40   18   92.5/s  a step up",
        "10:40   20    100/s  as configured",
    ]
    assert "\n".join(lines) in DOCUMENT.read_text()


def test_without_a_rate_half_of_what_was_measured_holds_until_it_is_reached() -> None:
    lines = schedule(NO_RATE, [1], measured=8.0)
    assert [text[6:].split()[:2] for text in lines] == [
        ["20", "any"],
        ["10", "4/s"],
        ["12", "4.8/s"],
        ["14", "5.6/s"],
        ["16", "6.4/s"],
        ["18", "7.2/s"],
        ["20", "any"],
    ]


def test_where_nothing_was_delivered_only_connections_are_fewer() -> None:
    present = slow_down(NO_RATE, None, CAUSE, 0.0, 10.0)
    assert (present.connections, present.rate) == (10, None)


def test_without_deliveries_nothing_is_raised() -> None:
    present = slow_down(LIMITS, None, CAUSE, 0.0, 10.0)
    assert recover(LIMITS, present, 0, 1e6) == (present, False)


def test_a_slow_down_within_the_hold_puts_the_recovery_off() -> None:
    present = slow_down(LIMITS, None, CAUSE, 0.0, 10.0)
    again = slow_down(LIMITS, present, CAUSE, 0.0, 10.0 + HOLD - 1)
    assert (again.connections, again.rate) == (present.connections, present.rate)
    assert step_time(again) == 10.0 + HOLD - 1 + STEP


@given(
    connections=st.integers(1, 1000),
    rate=st.none() | st.builds(Rate, st.integers(1, 10**9), st.sampled_from([1.0, 3600.0])),
    measured=st.floats(0, 1e6),
    pauses=st.lists(st.floats(0, 200), min_size=1, max_size=50),
)
def test_a_path_is_never_stopped_and_always_recovers(
    connections: int, rate: Rate | None, measured: float, pauses: list[float]
) -> None:
    limits = SharedLimits(connections, None, rate)
    present: Slowed | None = None
    now = 0.0
    for pause in pauses:
        now += pause
        present = slow_down(limits, present, CAUSE, measured, now)
        assert 1 <= present.connections <= connections
        assert present.rate is None or present.rate > 0
        assert rate is None or (present.rate or 0) <= rate.events / rate.seconds
    for _ in range(25):
        assert present is not None
        now = step_time(present)
        present, changed = recover(limits, present, 1, now)
        assert changed
        if present is None:
            break
    assert present is None


# What means "slow down".

TEMPORARILY = "temporarily deferred due to unexpected volume or user complaints - 4.16.55.1"


@pytest.mark.parametrize(
    ("provider", "code", "enhanced", "text"),
    [
        ("google", 421, "4.7.28", "Our system has detected an unusual rate of unsolicited mail"),
        ("google", 421, "4.7.0", "Try again later, closing connection. - gsmtp"),
        ("google", 421, "4.4.5", "Server busy, try again later."),
        ("outlook", 451, "4.7.650", "has been temporarily rate limited due to IP reputation"),
        ("outlook", 451, "4.7.652", "has exceeded the maximum number of connections. (S3115)"),
        ("microsoft365", 451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]"),
        ("outlook", 421, "", "RP-001 (SNT004-MC1F43) Unfortunately, some messages weren't sent"),
        ("yahoo", 421, "4.7.0", f"[TSS04] Messages from 192.0.2.1 {TEMPORARILY}"),
        ("yahoo", 421, "4.7.0", f"[TS03] Messages from 192.0.2.1 {TEMPORARILY}"),
        ("comcast", 421, "4.1.0", "192.0.2.1 Throttled - try again later. RL000003"),
        ("comcast", 421, "", "Too many sessions opened"),
        ("orange", 421, "", "mwinf5c OFR004_104 Trop de connexions"),
        ("qq", 550, "", "Ip frequency limited"),
        ("", 452, "4.3.2", "Connection rate limit exceeded."),
        ("", 421, "4.7.0", "mx.test Error: too many connections from 192.0.2.1"),
        ("", 421, "", "Too many concurrent SMTP connections from this IP address"),
        ("", 450, "4.7.1", "Error: too much mail from 192.0.2.1"),
        ("", 450, "", "too many connections from your IP (rate controlled)"),
        ("gmx", 421, "", "Nemesis ESMTP Service not available\nToo many connections"),
    ],
)
def test_a_reply_that_means_slow_down(provider: str, code: int, enhanced: str, text: str) -> None:
    assert SHIPPED.match(Reply(code, enhanced, text), provider)


@pytest.mark.parametrize(
    ("provider", "code", "enhanced", "text"),
    [
        ("google", 550, "5.1.1", "The email account that you tried to reach does not exist."),
        ("google", 450, "4.2.1", "The user you try to contact is receiving mail too quickly"),
        ("google", 452, "4.2.2", "The email account that you tried to reach is over quota."),
        ("", 450, "4.2.0", "Greylisted, please try again later"),
        ("", 451, "4.4.1", "cannot connect to mx.test port 25: Connection refused"),
        ("", 451, "4.3.2", "cut off by our shutdown"),
        ("", 421, "4.7.0", "[TSS04] no provider whose codes these are"),
        ("", 554, "5.7.1", "Rejected: separate limits"),
        ("", 421, "4.7.280", "another code"),
    ],
)
def test_a_reply_that_does_not(provider: str, code: int, enhanced: str, text: str) -> None:
    assert SHIPPED.match(Reply(code, enhanced, text), provider) is None


def test_what_is_shipped_is_as_good_as_a_configuration_must_be() -> None:
    shaping = Shaping(
        builtin_providers=False,
        provider=shipped_providers(),
        slow_down=shipped_slow_down_rules(),
    )
    assert list(check_shaping(shaping)) == []


def test_a_reply_cannot_stop_the_loop() -> None:
    """The peer chooses the text; with a pattern like this `re` would need years for it."""
    rules = SlowDownRules([SlowDownRule(pattern="(a+)+b")])
    assert rules.match(Reply(450, "", "a" * 1000), "") is None
    assert rules.match(Reply(450, "", "a" * 900 + "b"), "") == "/(a+)+b/"


def test_a_reply_of_any_characters_is_matched() -> None:
    rules = SlowDownRules([SlowDownRule(pattern="caf\u00e9.slow")])
    assert rules.match(Reply(450, "", "caf\u00e9\nslow \udcff"), "") == "/caf\u00e9.slow/"


def test_a_rule_of_the_configuration_is_named_in_full() -> None:
    rules = SlowDownRules([SlowDownRule(enhanced="4.9.9", pattern="qu(?:eu)?e", provider="x")])
    assert rules.match(Reply(450, "4.9.9", "a long\nQueue"), "x") == "x: 4.9.9 /qu(?:eu)?e/"
    assert rules.match(Reply(450, "4.9.9", "a long queue"), "y") is None
    assert rules.match(Reply(450, "4.9.8", "a long queue"), "x") is None


@given(code=st.integers(400, 599), enhanced=st.just("") | st.just("4.7.0"), text=st.text())
def test_any_reply_is_read(code: int, enhanced: str, text: str) -> None:
    for provider in ("", "google", "yahoo", "orange"):
        SHIPPED.match(Reply(code, enhanced, text), provider)


# In the arbiter.


def test_a_path_is_slowed_for_all_workers_and_recovers() -> None:
    server = Server(2, SHIPPED)
    limited = shape(provider="google", connections=8, message_rate=Rate.parse("10/s"))
    made = [Sender(server, worker, limited) for worker in range(2)]
    slow_downs, slowed = SLOW_DOWNS.value, SLOWED.value
    for each in made:
        each.wants_connections, each.wants_messages = 4, 10**6
        each.go()
    server.world.run(10)
    made[0].permits.heard(limited, BUSY)
    made[1].permits.heard(limited, BUSY)  # the same again, at the same time
    server.world.run(1)
    (report,) = server.loop.arbiter.report()
    assert (report.connections, report.configured_connections) == (4, 8)
    assert (report.rate, report.configured_rate) == (5.0, 10.0)
    assert report.slowed is not None
    assert report.slowed.reply == str(BUSY)
    assert CONNECTIONS.read is not None
    assert CONNECTIONS.read() == [((report.path, report.slowed.rule), report.connections)]
    assert report.slowed.rule == "google: 4.7.28"
    assert (SLOW_DOWNS.value - slow_downs, SLOWED.value - slowed) == (1, 1)
    assert sum(each.open for each in made) == 4
    before = sum(len(each.begun) for each in made)
    server.world.run(20)
    assert 98 <= sum(len(each.begun) for each in made) - before <= 102
    for _ in range(400):
        made[1].permits.heard(limited, Reply(250, "2.0.0", "OK"))
        server.world.run(1)
    (report,) = server.loop.arbiter.report()
    assert (report.connections, report.rate, report.slowed) == (8, 10.0, None)
    assert SLOWED.value == slowed
    assert sum(each.open for each in made) == 8


def test_a_path_without_a_rate_gets_half_of_what_it_did() -> None:
    server = Server(2, SHIPPED)
    limited = shape(provider="google", connections=2)
    made = [Sender(server, worker, limited) for worker in range(2)]
    for each in made:
        each.wants_connections = 1
        each.go()
    for _ in range(300):
        for each in made:
            each.permits.heard(limited, Reply(250, "2.0.0", "OK"))
        server.world.run(0.1)
    made[0].permits.heard(limited, BUSY)
    server.world.run(0.1)
    (report,) = server.loop.arbiter.report()
    assert report.rate == pytest.approx(10, rel=0.05)
    for each in made:
        each.wants_messages = 10**6
        each.go()
    server.world.run(20)
    assert sum(len(each.begun) for each in made) == pytest.approx(200, rel=0.1)


def test_a_refused_first_connection_is_heard_though_the_path_goes_with_it() -> None:
    server = Server(1, SHIPPED)
    path = Sender(server, 0, shape(connections=8))
    path.wants_connections = 1
    path.go()
    server.world.run(0.1)
    path.permits.heard(path.shape, Reply(421, "4.7.0", "too many connections"))
    path.permits.disconnect(path.shape, path)
    path.permits.forget(path.shape, path)
    server.world.run(1)
    (report,) = server.loop.arbiter.report()
    assert (report.open, report.connections) == (0, 4)
    path.open = 0
    path.wants_connections = 8
    path.go()
    server.world.run(1)
    assert path.open == 4


def test_a_slow_down_of_a_path_that_nobody_uses_is_forgotten_after_an_hour() -> None:
    server = Server(1, SHIPPED)
    path = Sender(server, 0, shape(connections=8))
    slowed = SLOWED.value
    path.go()
    path.permits.connect(path.shape, path)
    server.world.settle()
    path.permits.heard(path.shape, Reply(421, "4.7.0", "too many connections"))
    path.permits.forget(path.shape, path)
    server.world.run(1800)
    assert len(server.loop.arbiter.report()) == 1
    server.world.run(1900)
    assert server.loop.arbiter.report() == []
    assert SLOWED.value == slowed
