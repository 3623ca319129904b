"""Pools and sources: who leaves from where."""

from collections import Counter
from pathlib import Path

import pytest

from fastmta.config import parse
from fastmta.delivery.site import Host
from fastmta.delivery.source import Sources
from fastmta.mail.disposition import Kind
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.queue.limits import Limits
from tests.delivery.mx import SILENCE, Mx
from tests.delivery.relay import BASIC, Relay, saying, site
from tests.support import run, until

TWO = """
[[source]]
name = "one"
addresses = ["127.0.0.11"]
hostname = "one.me.test"
[[source]]
name = "two"
addresses = ["127.0.0.12"]
[[pool]]
name = "default"
sources = { one = 2, two = 1 }
"""
GONE = """
[[source]]
name = "gone"
addresses = ["192.0.2.77"]
[[pool]]
name = "lost"
sources = { gone = 1 }
tenants = ["lost"]
"""
CHOICE = """
[[source]]
name = "s"
addresses = ["127.0.0.11", "::1"]
[[pool]]
name = "bulk"
sources = { s = 1 }
tenants = ["newsletter"]
[[pool]]
name = "news"
sources = { s = 1 }
senders = ["news.test", "*.news.test"]
[[pool]]
name = "deep"
sources = { s = 1 }
senders = ["*.deep.news.test"]
"""


def sources(text: str) -> Sources:
    return Sources(parse(BASIC + text, Path("/tmp")), lambda: 0.0)


@pytest.mark.parametrize(
    ("sender", "tenant", "named", "pool"),
    [
        ("a@b.test", "", "", None),
        ("", "", "", None),
        ("a@b.test", "newsletter", "", "bulk"),
        ("a@b.test", "newsletter", "news", "news"),
        ("a@b.test", "newsletter", "unknown", "bulk"),
        ("a@News.test", "", "", "news"),
        ("a@x.y.news.test", "", "", "news"),
        ("a@x.deep.news.test", "", "", "deep"),
        ("a@deep.news.test", "", "", "news"),
        ("a@badnews.test", "", "", None),
    ],
)
def test_who_has_which_pool(sender: str, tenant: str, named: str, pool: str | None) -> None:
    mail = Envelope(1, 0, sender, "b.test", [Recipient("r@b.test")], 0.0, 1)
    mail.tenant, mail.pool = tenant, named
    found = sources(CHOICE).pool_of(mail)
    assert (found and found.name) == pool
    found = sources(CHOICE.replace('"deep"', '"default"')).pool_of(mail)
    assert found and found.name == {None: "default", "deep": "default"}.get(pool, pool)


def test_turns_are_smooth_and_by_site() -> None:
    text = TWO.replace("one = 2, two = 1", "one = 5, two = 2")
    all_sources = sources(text)
    mail = Envelope(1, 0, "s@a.test", "b.test", [Recipient("r@b.test")], 0.0, 1)
    pool = all_sources.pool_of(mail)
    assert pool
    turns: dict[str, str] = {"x": "", "y": ""}
    for _ in range(14):
        for name in turns:
            order = all_sources.order(pool, site(Host("h", ("192.0.2.1",), 25), name=name))
            turns[name] += order[0].name[0]
            pool.took(name, order[0], order)
    assert turns == {"x": "otoooto" * 2, "y": "otoooto" * 2}


def test_only_sources_of_the_family_are_asked() -> None:
    text = TWO.replace('"127.0.0.12"', '"::1"')
    all_sources = sources(text)
    mail = Envelope(1, 0, "s@a.test", "b.test", [Recipient("r@b.test")], 0.0, 1)
    pool = all_sources.pool_of(mail)
    assert pool

    def names(*addresses: str) -> set[str]:
        return {one.name for one in all_sources.order(pool, site(Host("h", addresses, 25)))}

    assert names("192.0.2.1") == {"one"}
    assert names("2001:db8::1") == {"two"}
    assert names("2001:db8::1", "192.0.2.1") == {"one", "two"}
    assert names() == {"one", "two"}  # that no host has an address is not a matter of sources


def test_two_sources_by_weight_with_their_names() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(sources=TWO)
            await relay.send(site(mx.host), 30)
            await until(lambda: all(session.commands for session in mx.sessions))
            assert Counter(relay.sources) == {"one": 20, "two": 10}
            peers = {
                (session.transport.get_extra_info("peername")[0], session.commands[0])
                for session in mx.sessions
            }
            assert peers == {("127.0.0.11", "EHLO one.me.test"), ("127.0.0.12", "EHLO me.test")}
            assert {path.name for path in relay.dispatcher.paths()} == {"one>b.test", "two>b.test"}
            await relay.dispatcher.drain(5)

    run(scenario())


def test_where_one_path_is_full_the_other_is_taken() -> None:
    async def scenario() -> None:
        async with Mx(saying({"": SILENCE})) as mx:
            relay = Relay(Limits(ready=10), sources=TWO)
            offers = [relay.offer(site(mx.host)) for _ in range(22)]
            assert offers[:20] == [""] * 20
            assert offers[20] == offers[21] and offers[20] in ("one>b.test", "two>b.test")
            for session in mx.sessions:
                session.transport.write(b"220 mx.test\r\n")
            mx.answer = lambda session, command: None
            await until(lambda: offers[20] in relay.room)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_bad_source_address_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(sources=TWO.replace("127.0.0.12", "192.0.2.77"))
            ends = await relay.send(site(mx.host), 30)
            assert {end.kind for end in ends} == {Kind.DELIVERED}
            assert set(relay.sources) == {"one"}
            warnings = [record.getMessage() for record in caplog.records]
            assert warnings == ["no mail leaves from 192.0.2.77: it is not on this machine"]
            await relay.dispatcher.drain(5)

    run(scenario())


def test_pool_without_any_address_defers() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay(sources=GONE)
            ends = await relay.send(site(mx.host), 3, tenant="lost")
            ends += await relay.send(site(mx.host), 3, tenant="lost")
            assert {(end.kind, str(end.reply)) for end in ends} == {
                (
                    Kind.DEFERRED,
                    "451 4.3.5 no source address of pool lost is on this machine: 192.0.2.77",
                )
            }
            (end,) = await relay.send(site(mx.host))
            assert end.kind is Kind.DELIVERED  # without a pool
            await until(lambda: len(relay.dispatcher.paths()) == 1)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_source_that_is_back_is_used_again() -> None:
    now = 0.0
    all_sources = Sources(parse(BASIC + GONE, Path("/tmp")), lambda: now)
    mail = Envelope(1, 0, "", "b.test", [Recipient("r@b.test")], 0.0, 1)
    mail.tenant = "lost"
    pool, to = all_sources.pool_of(mail), site(Host("h", ("192.0.2.1",), 25))
    assert pool
    all_sources.set_aside("192.0.2.77", OSError(99, "gone"))
    assert not all_sources.order(pool, to)
    now = 60.0
    assert all_sources.order(pool, to)
