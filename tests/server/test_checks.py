"""What the DNS says of a client, and what becomes of it."""

import asyncio
from collections import Counter
from inspect import isawaitable
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Checks as Settings
from fastmta.config_abuse import DnsList
from fastmta.config_reader import DomainName, Duration
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server import checks
from fastmta.server.checks import RESULTS, Checks
from tests.server.test_counts import Clock
from tests.server.test_limits import Someone
from tests.support import run

BLOCK = DnsList(zone=DomainName("bl.test"))
ALLOW = DnsList(zone=DomainName("wl.test"))
LISTED = {("1.2.0.192.bl.test", "A"): ("127.0.0.2",)}
NAMED = {("1.2.0.192.in-addr.arpa", "PTR"): ("mx.a.test",), ("mx.a.test", "A"): ("192.0.2.1",)}

Zone = dict[tuple[str, str], tuple[str, ...] | None]


class Dns:
    """Says what is in its zone; None there: no answer; what hangs never answers."""

    def __init__(self, zone: Zone | None = None, hangs: str = "") -> None:
        self.zone, self.hangs = zone or {}, hangs
        self.asked: Counter[tuple[str, str]] = Counter()

    async def __call__(self, name: str, kind: str) -> tuple[str, ...] | None:
        self.asked[name, kind] += 1
        if self.hangs and self.hangs in name:
            await asyncio.Event().wait()
        return self.zone.get((name, kind), ())


def checking(dns: Dns, **settings: Any) -> Checks:
    return Checks(Settings(timeout=Duration(0.3 if dns.hangs else 60), **settings), dns, Clock())


async def ask(one: Checks, someone: Someone | None = None) -> Reply | None:
    verdict = one.judge(Question(Step.MAIL), someone or Someone())
    return await verdict if isawaitable(verdict) else verdict


def verdict(zone: Zone, client: str = "192.0.2.1", hangs: str = "", **settings: Any) -> Any:
    """What the client hears, and what was counted."""
    before = dict(RESULTS.counts)
    refusal = run(ask(checking(Dns(zone, hangs), **settings), Someone(client)))
    [counted] = [name for name, count in RESULTS.counts.items() if count > before[name]]
    return refusal, counted


def test_who_is_not_listed_comes_in() -> None:
    assert verdict({}, block_list=(BLOCK,)) == (None, "passed")


def test_who_is_listed_hears_the_lists_reason() -> None:
    zone = LISTED | {("1.2.0.192.bl.test", "TXT"): ("seen http://bl.test/?192.0.2.1",)}
    refusal, counted = verdict(zone, block_list=(BLOCK,))
    text = "192.0.2.1 is listed by bl.test: seen http://bl.test/?192.0.2.1"
    assert (refusal, counted) == (Reply(554, "5.7.1", text), "listed")


@pytest.mark.parametrize("hangs", ["", "bl.test"])
def test_a_reason_is_not_needed(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_REASON_SECONDS", 0.01)

    class Late(Dns):
        async def __call__(self, name: str, kind: str) -> tuple[str, ...] | None:
            self.hangs = hangs if kind == "TXT" else ""
            return await super().__call__(name, kind)

    refusal = run(ask(checking(Late(LISTED), block_list=(BLOCK,))))
    assert refusal == Reply(554, "5.7.1", "192.0.2.1 is listed by bl.test: no reason is given")


@given(st.text(max_size=2000))
def test_a_reason_cannot_break_a_reply(text: str) -> None:
    wire = bytes(Reply(554, "5.7.1", checks._clean(text)))
    assert wire.count(b"\n") == wire.count(b"\r\n") == 1
    assert len(wire) < 512
    assert all(0x20 <= octet < 0x7F for octet in wire[:-2])


def test_ipv6_goes_by_nibbles() -> None:
    nibbles = "1." + "0." * 23 + "8.b.d.0.1.0.0.2"
    refusal, _ = verdict(
        {(f"{nibbles}.bl.test", "A"): ("127.0.0.2",)}, client="2001:db8::1", block_list=(BLOCK,)
    )
    assert refusal.code == 554


@pytest.mark.parametrize(
    ("answer", "replies", "is_refused"),
    [
        ("127.0.0.2", "127.0.0.2/32", True),
        ("127.0.0.4", "127.0.0.2/31", False),
        ("127.255.255.254", "127.0.0.0/16", False),  # "you may not ask"
        ("192.0.2.53", "127.0.0.0/8", False),  # a resolver that answers everything
    ],
)
def test_only_some_answers_count(answer: str, replies: str, is_refused: bool) -> None:
    one = DnsList(zone=DomainName("bl.test"), replies=(ip_network(replies),))
    refusal, _ = verdict({("1.2.0.192.bl.test", "A"): (answer,)}, block_list=(one,))
    assert bool(refusal) is is_refused


@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
def test_a_list_of_everybody_is_not_believed(client: str) -> None:
    class Everybody(Dns):
        async def __call__(self, name: str, kind: str) -> tuple[str, ...] | None:
            return ("127.0.0.2",)

    dns = Everybody()
    assert run(ask(checking(dns, block_list=(BLOCK,)), Someone(client))) is None


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_list_that_does_not_answer_lets_mail_in_and_is_counted(how: str) -> None:
    zone: Zone = {("1.2.0.192.bl.test", "A"): None} if how == "fails" else {}
    found = verdict(zone, hangs="bl.test" if how == "hangs" else "", block_list=(BLOCK,))
    assert found == (None, "failed")


def test_one_list_that_hangs_does_not_save_who_is_on_another() -> None:
    dead = DnsList(zone=DomainName("dead.test"))
    refusal, _ = verdict(LISTED, hangs="dead.test", block_list=(dead, BLOCK))
    assert refusal.code == 554


def test_an_allow_list_goes_before_all() -> None:
    zone = LISTED | {("1.2.0.192.wl.test", "A"): ("127.0.5.1",)}
    found = verdict(zone, allow_list=(ALLOW,), block_list=(BLOCK,), reverse_name="exists")
    assert found == (None, "allowed")


@pytest.mark.parametrize(
    ("zone", "reverse_name", "is_refused"),
    [
        (NAMED, "exists", False),
        (NAMED, "confirmed", False),
        ({}, "exists", True),
        ({}, "confirmed", True),
        (NAMED | {("mx.a.test", "A"): ("192.0.2.9",)}, "exists", False),
        (NAMED | {("mx.a.test", "A"): ("192.0.2.9",)}, "confirmed", True),
        (NAMED | {("mx.a.test", "A"): None}, "confirmed", False),
        ({("1.2.0.192.in-addr.arpa", "PTR"): None}, "exists", False),
    ],
)
def test_reverse_names(zone: Zone, reverse_name: str, is_refused: bool) -> None:
    refusal, _ = verdict(zone, reverse_name=reverse_name)
    assert (refusal.enhanced if refusal else "") == ("5.7.25" if is_refused else "")


def test_who_has_no_name_may_be_deferred() -> None:
    refusal, counted = verdict({}, reverse_name="exists", without_reverse_name="defer")
    assert refusal == Reply(450, "4.7.25", "192.0.2.1 has no name")
    assert counted == "no_name"


def test_a_name_that_leads_elsewhere_is_looked_up_only_so_often() -> None:
    names = tuple(f"n{i}.test" for i in range(100))
    dns = Dns({("1.2.0.192.in-addr.arpa", "PTR"): names})
    assert run(ask(checking(dns, reverse_name="confirmed"))) is not None
    assert dns.asked.total() == 11


@pytest.mark.parametrize(
    "someone",
    [Someone(may_relay=True), Someone("198.51.100.7"), Someone(service="submission")],
    ids=["relays", "exempt", "submission"],
)
def test_who_is_not_asked_about(someone: Someone) -> None:
    async def scenario() -> None:
        dns = Dns()
        one = checking(
            dns,
            block_list=(BLOCK,),
            greeting_delay=Duration(9),
            exempt=(ip_network("198.51.100.0/24"),),
        )
        assert one.judge(Question(Step.CONNECT), someone) is None
        assert one.judge(Question(Step.MAIL), someone) is None
        assert not dns.asked

    run(scenario())


def test_a_client_is_asked_about_once_in_a_while() -> None:
    async def scenario() -> None:
        dns = Dns(LISTED)
        one = checking(dns, block_list=(BLOCK,))
        assert isinstance(one._clock, Clock)
        first = await ask(one)
        assert one.judge(Question(Step.MAIL), Someone()) == first
        assert dns.asked["1.2.0.192.bl.test", "A"] == 1
        one._clock.now += checks.KEEP + 1
        dns.zone = {}
        assert await ask(one) is None
        assert dns.asked["1.2.0.192.bl.test", "A"] == 2

    run(scenario())


def test_what_is_known_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MOST", 3)

    async def scenario() -> None:
        one = checking(Dns(), block_list=(BLOCK,))
        for number in range(10):
            await ask(one, Someone(f"192.0.2.{number}"))
            assert len(one._known) <= 3

    run(scenario())


def test_nothing_is_asked_where_nothing_is_set() -> None:
    assert checking(Dns()).steps == frozenset()
    assert checking(Dns(), reverse_name="exists").steps == {Step.MAIL}
    assert checking(Dns(), greeting_delay=Duration(1)).steps == {Step.CONNECT}
