"""From domains to sites: by route, by MX, by address, and every way in which there is none."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import (
    Config,
    Delivery,
    Dns,
    Domain,
    DomainName,
    DomainPattern,
    Duration,
    Endpoint,
    Listener,
    NextHop,
    Route,
)
from fastmta.delivery import router as router_module
from fastmta.delivery.dns import MAX_QUERIES, QUERIES, Resolver
from fastmta.delivery.router import Router
from fastmta.delivery.site import LOCAL, Host, RoutingError, Site
from fastmta.delivery.survey import MAX_ADDRESSES, MAX_NAME, Candidate, Target, judge, site_name
from fastmta.mail.reply import Reply
from tests.delivery.test_addresses import own_address
from tests.delivery.test_dns import Clock
from tests.dns_server import DnsServer, Fault, Zone
from tests.support import run, until

ZONE: Zone = {
    "example.test": {"MX": ["10 mx1.example.test.", "10 mx2.example.test."]},
    "other.test": {"MX": ["5 MX2.example.test.", "5 mx1.example.test."]},
    "backup.test": {"MX": ["10 mx1.example.test.", "20 mx2.example.test."]},
    "mx1.example.test": {"A": ["198.51.100.1"], "AAAA": ["2001:db8::1"]},
    "mx2.example.test": {"A": ["198.51.100.2"]},
    "implicit.test": {"A": ["198.51.100.9"]},
    "null.test": {"MX": ["0 ."]},
    "local.test": {"MX": ["10 local.test."], "A": ["127.0.0.1"]},
    "broken.test": Fault.SERVFAIL,
    "text.test": {"TXT": ["x"]},
}


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(dict(ZONE)) as server:
        yield server


def settings(server: DnsServer, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "hostname": DomainName("relay.example.test"),
        "data_dir": Path(),
        "listener": (),
        "dns": Dns(nameservers=(server.endpoint,), timeout=Duration(30)),
    }
    return Config(**(values | changes))


def route(domain: str, *next_hop: str) -> Route:
    return Route(domain=DomainPattern(domain), next_hop=tuple(map(NextHop.parse, next_hop)))


@asynccontextmanager
async def routing(
    server: DnsServer, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[Router]:
    config = settings(server, **changes)
    resolver = Resolver(config.dns, clock or Clock())
    try:
        yield Router(config, resolver)
    finally:
        resolver.close()


def outcome(server: DnsServer, domain: str, **changes: Any) -> Site | Reply:
    """The site of a domain, or the reply of the RoutingError."""

    async def scenario() -> Site | Reply:
        async with routing(server, **changes) as router:
            try:
                return await router.site(domain)
            except RoutingError as error:
                assert router.cached(domain) is None
                return error.reply

    return run(scenario())


def site(server: DnsServer, domain: str, **changes: Any) -> Site:
    found = outcome(server, domain, **changes)
    assert isinstance(found, Site), found
    return found


def refusal(server: DnsServer, domain: str, **changes: Any) -> str:
    found = outcome(server, domain, **changes)
    assert isinstance(found, Reply), found
    return str(found)


# By MX


def test_a_site_has_its_hosts_by_preference(server: DnsServer) -> None:
    first = Host("mx1.example.test", ("198.51.100.1", "2001:db8::1"), 25)
    second = Host("mx2.example.test", ("198.51.100.2",), 25)
    assert site(server, "example.test") == Site("(mx1|mx2).example.test", ((first, second),))
    assert site(server, "backup.test") == Site("(mx1>mx2).example.test", ((first,), (second,)))


def test_the_port_is_that_of_the_configuration(server: DnsServer) -> None:
    found = site(server, "implicit.test", delivery=Delivery(port=2600))
    assert found.tiers == ((Host("implicit.test", ("198.51.100.9",), 2600),),)


def test_domains_with_the_same_hosts_share_one_site(server: DnsServer) -> None:
    async def scenario() -> None:
        async with routing(server) as router:
            one, two = await router.site("example.test"), await router.site("other.test")
            assert one is two
            assert await router.site("backup.test") is not one
            assert router.cached("other.test") is one
            assert router.cached("never.test") is None

    run(scenario())


def test_a_site_is_known_for_the_ttl_and_keeps_its_identity(server: DnsServer) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with routing(server, clock) as router:
            one = await router.site("example.test")
            clock.now += 59
            assert router.cached("example.test") is one
            clock.now += 1  # that mx2 has no AAAA record is to be believed for a minute
            assert router.cached("example.test") is None
            assert await router.site("example.test") is one
            assert server.queries["mx2.example.test", "AAAA"] == 2
            assert server.queries["example.test", "MX"] == 1
            clock.now += 240
            server.zone["mx1.example.test"] = {"A": ["198.51.100.77"]}
            moved = await router.site("example.test")
            assert moved.name == one.name
            assert moved.tiers[0][0].addresses == ("198.51.100.77",)

    run(scenario())


def test_what_is_known_is_bounded(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "CACHE_SIZE", 2)

    async def scenario() -> None:
        async with routing(server) as router:
            for domain in ("example.test", "backup.test", "implicit.test"):
                await router.site(domain)
            known = [bool(router.cached(each)) for each in ("example.test", "backup.test")]
            assert known == [False, True]

    run(scenario())


def test_without_mx_the_domain_is_its_own_exchange(server: DnsServer) -> None:
    assert site(server, "implicit.test").tiers == ((Host("implicit.test", ("198.51.100.9",), 25),),)


def test_a_host_that_cannot_be_found_leaves_the_others(server: DnsServer) -> None:
    server.zone["mixed.test"] = {
        "MX": ["1 broken.test.", "2 nowhere.test.", "3 text.test.", "4 mx2.example.test."]
    }
    assert site(server, "mixed.test").name == "mx2.example.test"


def test_a_passing_failure_of_one_host_is_asked_about_again_soon(server: DnsServer) -> None:
    server.zone["mixed.test"] = {"MX": ["1 broken.test.", "4 mx2.example.test."]}

    async def scenario() -> None:
        clock = Clock()
        async with routing(server, clock) as router:
            assert (await router.site("mixed.test")).name == "mx2.example.test"
            clock.now += 10
            server.zone["broken.test"] = {"A": ["198.51.100.8"]}
            assert (await router.site("mixed.test")).name == "broken.test>mx2.example.test"

    run(scenario())


def test_threat_13_nxdomain_bounces_and_servfail_waits(server: DnsServer) -> None:
    assert refusal(server, "nowhere.test") == "550 5.1.2 the domain nowhere.test does not exist"
    assert refusal(server, "broken.test") == (
        f"451 4.4.3 MX look-up of broken.test failed: {server.endpoint}: SERVFAIL"
    )


def test_threat_13_null_mx_bounces_at_once(server: DnsServer) -> None:
    assert refusal(server, "null.test") == "556 5.1.10 null.test accepts no mail (null MX)"


def test_a_null_mx_among_others_is_no_host(server: DnsServer) -> None:
    server.zone["mixed.test"] = {"MX": ["0 .", "10 mx2.example.test."]}
    assert site(server, "mixed.test").name == "mx2.example.test"


def test_neither_mx_nor_address(server: DnsServer) -> None:
    assert refusal(server, "text.test").startswith("550 5.1.2 text.test has neither")
    server.zone["nohost.test"] = {"MX": ["10 nowhere.test.", "20 text.test."]}
    assert refusal(server, "nohost.test").startswith("550 5.4.4 no MX host of nohost.test")


def test_a_host_that_failed_for_now_makes_mail_wait(server: DnsServer) -> None:
    server.zone["wait.test"] = {"MX": ["10 nowhere.test.", "20 broken.test."]}
    assert refusal(server, "wait.test").startswith("451 4.4.3 look-up of broken.test failed")


def test_threat_13_an_address_literal_as_mx_is_skipped(server: DnsServer) -> None:
    literals = ["1 198.51.100.5.", "2 [198.51.100.5].", "3 [IPv6:2001:db8::5]."]
    server.zone["literal.test"] = {"MX": [*literals, "9 mx2.example.test."]}
    server.zone["198.51.100.5"] = {"A": ["198.51.100.5"]}
    assert site(server, "literal.test").name == "mx2.example.test"
    server.zone["literal.test"] = {"MX": literals}
    assert refusal(server, "literal.test").startswith("550 5.4.4 no MX host")
    assert not any("51" in name for name, _ in server.queries)


def test_a_host_name_cannot_forge_the_name_of_another_site(server: DnsServer) -> None:
    server.zone["forger.test"] = {"MX": [r"1 mx1.example.test>mx2.example.test."]}
    server.zone["mx1.example.test>mx2.example.test"] = {"A": ["203.0.113.1"]}
    assert refusal(server, "forger.test").startswith("550 5.4.4")


def test_threat_13_a_thousand_mx_records_cost_few_look_ups(server: DnsServer) -> None:
    server.zone |= {
        "many.test": {"MX": [f"{i // 10} h{i}.many.test." for i in range(1000)]},
        **{f"h{i}.many.test": {"A": ["198.51.100.1"]} for i in range(1000)},
    }
    found = site(server, "many.test")
    assert [len(tier) for tier in found.tiers] == [10, 10]
    assert {host.name for host in found.tiers[0]} == {f"h{i}.many.test" for i in range(10)}
    assert len(found.name) <= MAX_NAME
    assert sum(kind != "MX" for _, kind in server.queries.elements()) == 2 * 20


def test_a_host_named_twice_counts_at_its_best_preference(server: DnsServer) -> None:
    server.zone["twice.test"] = {
        "MX": ["20 mx2.example.test.", "15 mx1.example.test.", "10 mx2.example.test."]
    }
    assert site(server, "twice.test").name == "(mx2>mx1).example.test"


def test_a_host_with_many_addresses_does_not_use_up_all_attempts(server: DnsServer) -> None:
    server.zone["wide.test"] = {"A": [f"198.51.100.{i}" for i in range(50)]}
    assert len(site(server, "wide.test").tiers[0][0].addresses) == MAX_ADDRESSES


def test_an_alias_is_the_domain_that_it_points_to(server: DnsServer) -> None:
    server.zone["alias.test"] = {"CNAME": ["example.test."]}
    assert site(server, "alias.test").name == "(mx1|mx2).example.test"


# Our own host among the exchanges (RFC 5321 section 5.1)


@pytest.mark.parametrize(
    ("records", "left"),
    [
        (["10 mx1.example.test.", "20 relay.example.test.", "20 a.test."], "mx1.example.test"),
        (["10 mx1.example.test.", "20 Relay.Example.test.", "30 a.test."], "mx1.example.test"),
        (["10 relay.example.test.", "20 mx1.example.test."], None),
        (["10 relay.example.test.", "10 mx1.example.test."], None),
        (["5 nowhere.test.", "10 relay.example.test."], None),
    ],
)
def test_threat_14_only_better_exchanges_than_we_are_are_tried(
    server: DnsServer, records: list[str], left: str | None
) -> None:
    server.zone |= {"ours.test": {"MX": records}, "a.test": {"A": ["198.51.100.4"]}}
    if left:
        assert site(server, "ours.test").name == left
    else:
        assert refusal(server, "ours.test") == (
            "554 5.4.6 mail for ours.test loops back: its best MX is this host"
        )


def test_mail_waits_while_a_better_exchange_than_we_are_cannot_be_found(server: DnsServer) -> None:
    server.zone["ours.test"] = {"MX": ["5 broken.test.", "10 relay.example.test."]}
    assert refusal(server, "ours.test").startswith("451 4.4.3")


@pytest.mark.parametrize(
    ("bind", "port", "loops"),
    [
        ("127.0.0.1:2525", 2525, True),
        ("0.0.0.0:2525", 2525, True),
        ("[::]:2525", 2525, True),
        ("127.0.0.1:2525", 2526, False),
        ("127.0.0.2:2525", 2525, False),
    ],
)
def test_threat_14_an_exchange_with_the_address_of_a_listener_is_us(
    server: DnsServer, bind: str, port: int, loops: bool
) -> None:
    found = outcome(
        server,
        "local.test",
        listener=(Listener(service="smtp", bind=Endpoint.parse(bind)),),
        delivery=Delivery(port=port, allow_local_addresses=True),
    )
    assert isinstance(found, Reply) == loops
    assert not isinstance(found, Reply) or found.enhanced == "5.4.6"


# Addresses that are refused


@pytest.mark.parametrize(
    ("kind", "address", "reason"),
    [
        ("A", "127.0.0.1", "loopback"),
        ("A", "10.1.2.3", "private"),
        ("A", "169.254.169.254", "link-local"),
        ("A", "0.0.0.0", "unspecified"),
        ("A", "224.0.0.1", "multicast"),
        ("AAAA", "::1", "loopback"),
        ("AAAA", "::ffff:127.0.0.1", "loopback, as 127.0.0.1"),
        ("AAAA", "64:ff9b::7f00:1", "loopback, as 127.0.0.1"),
    ],
)
def test_threat_13_no_mail_to_addresses_that_only_we_can_reach(
    server: DnsServer, kind: str, address: str, reason: str
) -> None:
    server.zone |= {
        "evil.test": {"MX": ["10 host.evil.test."]},
        "host.evil.test": {kind: [address]},
    }
    said = refusal(server, "evil.test")
    assert re.fullmatch(r"550 5\.4\.4 host\.evil\.test has the address .*, which is .*", said)
    assert f"({reason})" in said
    assert "delivery.allow_local_addresses" in said
    allowed = site(server, "evil.test", delivery=Delivery(allow_local_addresses=True))
    assert len(allowed.tiers[0][0].addresses) == 1


def test_threat_13_own_addresses_are_refused_as_exchanges(server: DnsServer) -> None:
    if (own := own_address()) is None:
        pytest.skip("this machine has no address but loopback")
    kind = "AAAA" if ":" in own else "A"
    server.zone["own.test"] = {kind: [own]}
    assert refusal(server, "own.test").startswith("550 5.4.4")
    listener = Listener(service="smtp", bind=Endpoint("0.0.0.0", 25))
    assert refusal(server, "own.test", listener=(listener,)).startswith("554 5.4.6")


def test_one_refused_address_leaves_the_others_of_the_host(server: DnsServer) -> None:
    server.zone["mixed.test"] = {"A": ["127.0.0.1", "198.51.100.7"], "AAAA": ["::1"]}
    assert site(server, "mixed.test").tiers[0][0].addresses == ("198.51.100.7",)


def test_localhost_as_exchange_is_refused(server: DnsServer) -> None:
    server.zone["evil.test"] = {"MX": ["10 localhost."]}
    assert "(loopback)" in refusal(server, "evil.test")


# Address literals


def test_a_literal_is_its_own_site(server: DnsServer) -> None:
    for domain, address in (
        ("[198.51.100.1]", "198.51.100.1"),
        ("[ipv6:2001:db8::1]", "2001:db8::1"),
    ):
        found = site(server, domain)
        assert found.name == f"[{address}]"
        assert found.tiers == ((Host(f"[{address}]", (address,), 25),),)


@pytest.mark.parametrize("domain", ["[127.0.0.1]", "[ipv6:::1]", "[ipv6:::ffff:127.0.0.1]"])
def test_threat_13_a_literal_obeys_the_same(server: DnsServer, domain: str) -> None:
    assert refusal(server, domain).startswith("550 5.4.4")
    assert site(server, domain, delivery=Delivery(allow_local_addresses=True))


def test_brackets_around_anything_else(server: DnsServer) -> None:
    assert refusal(server, "[example.test]").startswith("550 5.1.2")


# By route


def test_the_first_route_that_matches_wins(server: DnsServer) -> None:
    routes = (
        route("a.test", "127.0.0.1:1"),
        route("*.a.test", "127.0.0.1:2"),
        route("*", "127.0.0.1:3"),
    )
    ports = {"a.test": 1, "b.a.test": 2, "c.b.a.test": 2, "aa.test": 3, "[198.51.100.1]": 3}
    for domain, port in ports.items():
        assert site(server, domain, route=routes).name == f"127.0.0.1:{port}"
    assert site(server, "example.test", route=routes[:2]).name == "(mx1|mx2).example.test"
    assert {name for name, _ in server.queries} <= set(ZONE)


def test_people_are_told_which_route_it_is(server: DnsServer) -> None:
    async def scenario() -> None:
        routes = route("a.test", "127.0.0.1:1"), route("*.test", "127.0.0.1:2")
        async with routing(server, route=routes) as router:
            found = [router.route(domain) for domain in ("a.test", "b.test", "example.org")]
            assert found == ["route a.test", "route *.test", ""]

    run(scenario())


def test_threat_13_a_route_may_name_any_address(server: DnsServer) -> None:
    found = site(server, "a.test", route=(route("*", "127.0.0.1:2700", "[::1]:2700"),))
    assert found == Site(
        "127.0.0.1:2700>[::1]:2700",
        ((Host("127.0.0.1", ("127.0.0.1",), 2700),), (Host("::1", ("::1",), 2700),)),
    )


def test_a_route_to_a_name_takes_its_addresses_and_not_its_mx(server: DnsServer) -> None:
    found = site(server, "a.test", route=(route("*", "local.test:26", "mx2.example.test:25"),))
    assert found.tiers == (
        (Host("local.test", ("127.0.0.1",), 26),),
        (Host("mx2.example.test", ("198.51.100.2",), 25),),
    )
    assert not any(kind == "MX" for _, kind in server.queries)


def test_a_route_is_one_site_for_all_of_its_domains(server: DnsServer) -> None:
    async def scenario() -> None:
        async with routing(server, route=(route("*", "127.0.0.1:2700"),)) as router:
            assert await router.site("a.test") is await router.site("b.test")
            assert router.cached("a.test") is router.cached("b.test")

    run(scenario())


def test_a_next_hop_that_is_not_found_bounces_nothing(server: DnsServer) -> None:
    assert refusal(server, "a.test", route=(route("*", "nowhere.test:25"),)) == (
        "451 4.4.4 next hop nowhere.test of route *: no such name"
    )
    assert refusal(server, "a.test", route=(route("*", "broken.test:25"),)).startswith("451 4.4.3")
    both = (route("*", "nowhere.test:25", "mx2.example.test:25"),)
    assert site(server, "a.test", route=both).name == "mx2.example.test:25"


def test_a_route_by_lmtp(server: DnsServer) -> None:
    route = Route(
        domain=DomainPattern("*"),
        protocol="lmtp",
        next_hop=tuple(map(NextHop.parse, ["unix:/run/lmtp", "127.0.0.1:24", "[::1]:24"])),
    )
    found = site(server, "a.test", route=(route,))
    assert found == Site(
        "lmtp:unix:/run/lmtp>127.0.0.1:24>[::1]:24",
        (
            (Host("unix:/run/lmtp", ("unix:/run/lmtp",), 0, "lmtp"),),
            (Host("127.0.0.1", ("127.0.0.1",), 24, "lmtp"),),
            (Host("::1", ("::1",), 24, "lmtp"),),
        ),
    )
    assert not server.queries


def test_what_speaks_lmtp_is_another_site(server: DnsServer) -> None:
    hops = (NextHop.parse("127.0.0.1:24"),)
    by = {
        protocol: site(
            server,
            "a.test",
            route=(Route(domain=DomainPattern("*"), protocol=protocol, next_hop=hops),),
        )
        for protocol in ("smtp", "lmtp")
    }
    assert by["smtp"].name != by["lmtp"].name


def test_hosts_with_a_tls_of_their_route_are_another_site(server: DnsServer) -> None:
    hops = (NextHop.parse("127.0.0.1:25"),)

    def found(**options: Any) -> Site:
        one = Route(domain=DomainPattern("*"), next_hop=hops, **options)
        return site(server, "a.test", route=(one,))

    assert (found().name, found().tls) == ("127.0.0.1:25", None)
    verified = found(tls="verified")
    assert (verified.name, verified.tls) == ("127.0.0.1:25!verified", "verified")
    implicit = found(protocol="smtps", tls="required")
    assert implicit.name == "smtps:127.0.0.1:25!required"
    assert implicit.tiers == ((Host("127.0.0.1", ("127.0.0.1",), 25, "smtps"),),)


# By order of an operator


def hop(server: DnsServer, text: str) -> Site | Reply:
    async def scenario() -> Site | Reply:
        async with routing(server) as router:
            try:
                found = await router.site(text)
            except RoutingError as error:
                return error.reply
            assert router.cached(text) is found is await router.site(text)
            return found

    return run(scenario())


@pytest.mark.parametrize(
    ("text", "name", "host"),
    [
        ("127.0.0.1:25", "127.0.0.1:25", Host("127.0.0.1", ("127.0.0.1",), 25)),
        (
            "lmtp:unix:/run/lmtp",
            "lmtp:unix:/run/lmtp",
            Host("unix:/run/lmtp", ("unix:/run/lmtp",), 0, "lmtp"),
        ),
        (
            "smtps:127.0.0.1:465",
            "smtps:127.0.0.1:465",
            Host("127.0.0.1", ("127.0.0.1",), 465, "smtps"),
        ),
        ("lmtp:[::1]:24", "lmtp:[::1]:24", Host("::1", ("::1",), 24, "lmtp")),
        (
            "MX2.example.test:26",
            "mx2.example.test:26",
            Host("mx2.example.test", ("198.51.100.2",), 26),
        ),
    ],
)
def test_a_next_hop_by_itself(server: DnsServer, text: str, name: str, host: Host) -> None:
    assert hop(server, text) == Site(name, ((host,),))


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("nowhere.test:25", "451 4.4.4 next hop nowhere.test of an operator's order: no such name"),
        ("broken.test:25", "451 4.4.3 next hop broken.test of an operator's order: "),
        ("unix:/run/lmtp", '451 4.4.4 next hop: "unix:/run/lmtp": a unix socket speaks LMTP'),
        ("lmtp:unix:run", '451 4.4.4 next hop: "unix:run" is no socket'),
    ],
)
def test_a_next_hop_that_cannot_be_used_bounces_nothing(
    server: DnsServer, text: str, reply: str
) -> None:
    assert str(hop(server, text)).startswith(reply)


# Many at once


def test_one_query_a_name_and_a_bounded_number_at_a_time(server: DnsServer) -> None:
    domains = [f"d{number}.test" for number in range(1000)]
    for number, domain in enumerate(domains):
        mx = f"mx{number % 50}.hosts.test."
        server.zone[domain] = {"MX": [f"10 a.{mx}", f"20 b.{mx}"]}
    for number in range(50):
        for letter in "ab":
            server.zone[f"{letter}.mx{number}.hosts.test"] = {
                "A": ["198.51.100.1"],
                "AAAA": ["2001:db8::1"],
            }

    async def scenario() -> None:
        server.gate.clear()
        async with routing(server) as router:
            before = QUERIES.value
            found = asyncio.gather(*map(router.site, domains))
            for _ in range(10):  # each of them has asked, or waits for its turn
                await asyncio.sleep(0)
            assert QUERIES.value - before == MAX_QUERIES == 200
            server.gate.set()
            assert len({id(site) for site in await found}) == 50
            assert QUERIES.value - before == 1000 + 2 * 100

    run(scenario())
    assert set(server.queries.values()) == {1}


# Pure parts


@pytest.mark.parametrize(
    ("tiers", "name"),
    [
        ([["mx1.example.test"]], "mx1.example.test"),
        ([["mx1.example.test", "mx2.example.test"]], "(mx1|mx2).example.test"),
        ([["a.x.test", "b.x.test"], ["c.d.x.test"]], "(a|b>c.d).x.test"),
        ([["x.test", "mx.x.test"]], "(|mx).x.test"),
        ([["a.test", "b.test"]], "a.test|b.test"),
        ([["mx.a.test"], ["mx.b.test"]], "mx.a.test>mx.b.test"),
        (
            [["gmail-smtp-in.l.google.com"]]
            + [[f"alt{n}.gmail-smtp-in.l.google.com"] for n in range(1, 5)],
            "(>alt1>alt2>alt3>alt4).gmail-smtp-in.l.google.com",
        ),
        (
            [
                ["aspmx.l.google.com"],
                ["alt1.aspmx.l.google.com", "alt2.aspmx.l.google.com"],
                ["alt3.aspmx.l.google.com", "alt4.aspmx.l.google.com"],
            ],
            "(>alt1|alt2>alt3|alt4).aspmx.l.google.com",
        ),
        ([["tenant-com.mail.protection.outlook.com"]], "tenant-com.mail.protection.outlook.com"),
        ([["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"]], "(mta5|mta6).am0.yahoodns.net"),
    ],
)
def test_site_names(tiers: list[list[str]], name: str) -> None:
    assert site_name(tiers) == name


def test_a_long_site_name_is_cut_and_still_its_own() -> None:
    def named(count: int) -> str:
        targets = (Target("198.51.100.1", ""),)
        hosts = [Candidate(0, f"{i}.{'x' * 40}.test", 25, targets=targets) for i in range(count)]
        decided = judge("a.test", hosts, implicit=False)
        assert isinstance(decided, Site)
        return decided.name

    names = {named(count) for count in range(1, 200)}
    assert len(names) == 199
    assert max(map(len, names)) == MAX_NAME


label = st.text("ab", min_size=1, max_size=2)
host = st.lists(label, min_size=1, max_size=4).map(".".join)
tiers = st.lists(st.lists(host, min_size=1, max_size=3, unique=True), min_size=1, max_size=3)


@given(tiers, tiers)
def test_different_hosts_never_share_a_name(one: list[list[str]], two: list[list[str]]) -> None:
    assert (site_name(one) == site_name(two)) == (one == two)


candidates = st.builds(
    lambda preference, name, targets, is_us: Candidate(
        preference, f"{name}.test", 25, targets=tuple(targets), is_us=is_us
    ),
    st.integers(0, 3),
    label,
    st.lists(
        st.builds(Target, st.just("198.51.100.1"), st.sampled_from(["", "private"])), max_size=3
    ),
    st.booleans(),
)


@given(st.lists(candidates, min_size=1, max_size=5))
def test_whatever_is_found_no_worse_exchange_than_we_are_and_no_refused_address_is_left(
    found: list[Candidate],
) -> None:
    ours = min((each.preference for each in found if each.is_us), default=99)
    decided = judge("a.test", found, implicit=False)
    usable = [each for each in found if each.preference < ours and each.usable]
    assert isinstance(decided, Site) == bool(usable)
    if isinstance(decided, Site):
        hosts = sorted(host.name for tier in decided.tiers for host in tier)
        assert hosts == sorted(each.host for each in usable)


@pytest.mark.parametrize("hop", ["127.0.0.1:2525", "[::1]:2525"])
def test_a_next_hop_that_an_operator_chose_is_exempt_from_the_local_check(
    server: DnsServer, hop: str
) -> None:
    found = site(server, hop, route=(route("*", "192.0.2.7:25"),))
    host, _, port = hop.rpartition(":")
    assert (found.name, found.tiers[0][0].addresses) == (hop, (host.strip("[]"),))
    assert found.tiers[0][0].port == int(port)


def test_a_next_hop_by_its_name_is_looked_up(server: DnsServer) -> None:
    assert site(server, "mx2.example.test:26").tiers[0][0].addresses == ("198.51.100.2",)
    # A slip must bounce nothing.
    assert refusal(server, "mx2.exampl.test:26").startswith("451 4.4.4 next hop mx2.exampl.test")


def test_a_router_that_another_follows_answers_what_it_was_asked() -> None:
    async def scenario() -> None:
        with DnsServer(dict(ZONE)) as server:
            config = settings(server)
            resolver = Resolver(config.dns)
            router = Router(config, resolver)
            server.gate.clear()
            asked = [asyncio.ensure_future(router.site(name)) for name in ("example.test",) * 2]
            await until(lambda: server.queries["example.test", "MX"])
            router.retire()
            server.gate.set()
            first, second = await asyncio.gather(*asked)
            assert first is second
            assert {host.name for tier in first.tiers for host in tier} == {
                "mx1.example.test",
                "mx2.example.test",
            }
            # Its sockets are closed, or the test would end with a warning.

    run(scenario())


def test_a_domain_of_ours_stays_here_whatever_routes_and_records_say() -> None:
    async def scenario() -> None:
        domains = {DomainName("example.test"): Domain()}
        with DnsServer(dict(ZONE)) as server:
            async with routing(server, domains=domains, route=(route("*", "127.0.0.1:26"),)) as one:
                assert await one.site("example.test") is LOCAL
                assert one.cached("example.test") is LOCAL
                assert one.route("example.test") == ""
                assert await one.site("sub.example.test") is not LOCAL
                assert await one.site("127.0.0.1:2700") is not LOCAL  # an operator's order
            assert not server.queries

    run(scenario())
