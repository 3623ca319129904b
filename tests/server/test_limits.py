"""Rate limits as the judge of a session."""

from ipaddress import ip_network
from typing import Any

import pytest
from msgspec import Struct

from fastmta.config import Limits as Settings
from fastmta.config_abuse import AccountLimits, ClientLimits
from fastmta.config_reader import Rate
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.counts import Row
from fastmta.server.limits import REFUSED, Limits, subjects_of
from tests.server.test_counts import Clock

HOUR = 3600.0


class Someone(Struct):
    """The facts of a session."""

    client: str = "192.0.2.1"
    service: str = "smtp"
    helo: str = "client.example.test"
    tls: str = ""
    account: str = ""
    tenant: str = ""
    may_relay: bool = False


def limits(**tables: Any) -> Limits:
    return Limits(Settings(**tables), lambda rows: None, Clock())


def ask(one: Limits, step: Step, someone: Someone | None = None) -> Reply | None:
    return one.judge(Question(step), someone or Someone())


def asked(one: Limits, step: Step, *clients: str) -> list[int]:
    """The code that each client hears in turn, 0 where nothing is against it."""
    verdicts = [ask(one, step, Someone(client)) for client in clients]
    return [verdict.code if verdict else 0 for verdict in verdicts]


def test_nothing_is_asked_where_nothing_is_limited() -> None:
    assert limits().steps == frozenset()


@pytest.mark.parametrize(
    ("what", "steps", "notes"),
    [
        ("sessions", {Step.CONNECT}, False),
        ("errors", {Step.CONNECT}, True),
        ("auth_failures", {Step.CONNECT, Step.AUTH}, True),
        ("messages", {Step.MAIL}, False),
        ("recipients", {Step.RCPT}, False),
    ],
)
def test_each_limit_asks_at_its_steps_alone(what: str, steps: set[Step], notes: bool) -> None:
    one = limits(client=ClientLimits(**{what: Rate(1, HOUR)}))
    assert (one.steps, one.notes) == (steps, notes)


@pytest.mark.parametrize(
    ("what", "step", "reply"),
    [
        ("sessions", Step.CONNECT, Reply(421, "4.7.0", "Too many sessions from your address; ")),
        ("messages", Step.MAIL, Reply(450, "4.7.1", "Too many messages from your address; ")),
        ("recipients", Step.RCPT, Reply(450, "4.7.1", "Too many recipients from your address; ")),
    ],
)
def test_one_more_than_the_rate_is_refused(what: str, step: Step, reply: Reply) -> None:
    one = limits(client=ClientLimits(**{what: Rate(2, HOUR)}))
    before = REFUSED.counts[f"client.{what}"]
    assert ask(one, step) is ask(one, step) is None
    refusal = ask(one, step)
    assert refusal == Reply(reply.code, reply.enhanced, reply.text + "come again in 62 minutes")
    assert REFUSED.counts[f"client.{what}"] == before + 1
    assert ask(one, step, Someone("192.0.2.2")) is None


def test_what_is_refused_is_not_counted() -> None:
    one = limits(client=ClientLimits(messages=Rate(2, 60.0)))
    assert asked(one, Step.MAIL, *["192.0.2.1"] * 9) == [0, 0] + [450] * 7
    assert one.counts["client.messages"].used("192.0.2.1", 1000.0) == 2


def test_a_network_shares_its_limit() -> None:
    one = limits(network=ClientLimits(messages=Rate(2, HOUR)))
    clients = "192.0.2.1", "192.0.2.200", "192.0.2.7", "192.0.3.1"
    assert asked(one, Step.MAIL, *clients) == [0, 0, 450, 0]
    clients = "2001:db8::1", "2001:db8::ffff:1", "2001:db8::2", "2001:db8:0:1::1"
    assert asked(one, Step.MAIL, *clients) == [0, 0, 450, 0]


def test_how_large_a_network_is_can_be_set() -> None:
    one = limits(network=ClientLimits(messages=Rate(1, HOUR)), ipv4_prefix=16, ipv6_prefix=48)
    assert asked(one, Step.MAIL, "192.0.2.1", "192.0.3.1", "192.1.2.1") == [0, 450, 0]
    assert asked(one, Step.MAIL, "2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1") == [0, 450, 0]


def test_both_limits_count_or_none() -> None:
    hour = Rate(1, HOUR)
    one = limits(client=ClientLimits(messages=hour), network=ClientLimits(messages=Rate(2, HOUR)))
    assert asked(one, Step.MAIL, "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3") == [
        *(0, 450, 0, 450)
    ]


def test_who_is_exempt() -> None:
    one = limits(
        client=ClientLimits(messages=Rate(1, HOUR)),
        exempt=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")),
    )
    assert asked(one, Step.MAIL, *["198.51.100.9"] * 3, *["2001:db8::1"] * 3) == [0] * 6
    relay = Someone(may_relay=True)
    assert [ask(one, Step.MAIL, relay) for _ in range(3)] == [None] * 3
    strict = limits(client=ClientLimits(messages=Rate(1, HOUR)), exempt_relay_networks=False)
    assert ask(strict, Step.MAIL, relay) is None
    assert ask(strict, Step.MAIL, relay) is not None


def test_what_an_account_sends_is_its_own() -> None:
    one = limits(
        client=ClientLimits(messages=Rate(1, HOUR)), account=AccountLimits(messages=Rate(2, HOUR))
    )
    anna = [Someone(f"192.0.2.{i}", account="anna", may_relay=True) for i in range(3)]
    bert = Someone("192.0.2.0", account="bert", may_relay=True)
    assert [ask(one, Step.MAIL, each) for each in anna[:2]] == [None, None]
    assert ask(one, Step.MAIL, anna[2]) == Reply(
        450, "4.7.1", "Too many messages from your account; come again in 62 minutes"
    )
    assert ask(one, Step.MAIL, bert) is None
    assert ask(one, Step.MAIL, Someone("192.0.2.0")) is None


@pytest.mark.parametrize("what", ["errors", "auth_failures"])
def test_who_fails_too_often_may_not_come_in(what: str) -> None:
    one = limits(client=ClientLimits(**{what: Rate(2, HOUR)}))
    for _ in range(2):
        assert ask(one, Step.CONNECT) is None
        assert ask(one, Step.AUTH) is None
        one.note(what, Someone())
    refusal = ask(one, Step.CONNECT)
    assert refusal is not None
    assert (refusal.code, refusal.enhanced) == (421, "4.7.0")
    if what == "auth_failures":
        refusal = ask(one, Step.AUTH)
        assert refusal is not None
        assert (refusal.code, refusal.enhanced) == (454, "4.7.0")


def test_the_others_are_told_what_was_counted_once() -> None:
    told: list[list[Row]] = []
    settings = Settings(client=ClientLimits(messages=Rate(9, HOUR)))
    one = Limits(settings, told.append, Clock())
    asked(one, Step.MAIL, "192.0.2.1", "192.0.2.2", "192.0.2.1")
    one.flush()
    one.flush()
    part = int(1000 / (HOUR / 20))
    assert told == [
        [Row("client.messages", "192.0.2.1", part, 2), Row("client.messages", "192.0.2.2", part, 1)]
    ]


def test_what_others_count_counts() -> None:
    settings = Settings(client=ClientLimits(messages=Rate(3, HOUR)))
    one = Limits(settings, lambda rows: other.counts.add(rows), Clock())
    other = Limits(settings, lambda rows: None, Clock())
    asked(one, Step.MAIL, *["192.0.2.1"] * 3)
    assert asked(other, Step.MAIL, "192.0.2.1") == [0]
    one.flush()
    assert asked(other, Step.MAIL, "192.0.2.1", "192.0.2.2") == [450, 0]


def test_an_operator_lifts_what_counts() -> None:
    told: list[list[Row]] = []
    settings = Settings(
        client=ClientLimits(messages=Rate(1, HOUR)), network=ClientLimits(messages=Rate(1, HOUR))
    )
    one = Limits(settings, told.append, Clock())
    assert asked(one, Step.MAIL, *["192.0.2.1"] * 2) == [0, 450]
    one.clear(subjects_of(settings, "192.0.2.1"))
    one.flush()
    assert told == []
    assert asked(one, Step.MAIL, "192.0.2.1") == [0]


def test_what_a_name_stands_for() -> None:
    settings = Settings()
    assert subjects_of(settings, "192.0.2.1") == {"192.0.2.1", "192.0.2.0/24"}
    assert subjects_of(settings, "2001:DB8::0001") == {"2001:db8::1", "2001:db8::/64"}
    assert subjects_of(settings, "192.0.2.0/24") == {"192.0.2.0/24"}
    assert subjects_of(settings, "anna") == {"anna"}


def test_a_reload_changes_the_limit_and_keeps_the_count() -> None:
    one = limits(client=ClientLimits(messages=Rate(1, HOUR)))
    assert asked(one, Step.MAIL, *["192.0.2.1"] * 2) == [0, 450]
    one.configure(Settings(client=ClientLimits(messages=Rate(2, HOUR))))
    assert asked(one, Step.MAIL, *["192.0.2.1"] * 2) == [0, 450]
    one.configure(Settings(client=ClientLimits(messages=Rate(2, HOUR)), ipv4_prefix=16))
    one.configure(Settings())
    assert one.steps == frozenset()
