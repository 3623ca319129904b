"""The resolver against a DNS server that tells the truth, lies, breaks and keeps silent."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmta import config
from fastmta.config import Duration, Endpoint
from fastmta.delivery import dns as resolver_module
from fastmta.delivery.dns import (
    FAILURES,
    HITS,
    QUERIES,
    STALE,
    STALE_MOST,
    TTL_STALE,
    Answer,
    Exchange,
    Resolver,
    Status,
    _joined,
)
from tests.dns_server import FORGED, DnsServer, Fault, Zone
from tests.support import run

GOOD: Zone = {
    "example.test": {"MX": ["20 mx2.example.test.", "10 MX1.Example.Test."]},
    "mx1.example.test": {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]},
    "mx2.example.test": {"A": ["192.0.2.3"]},
    "null.test": {"MX": ["0 ."]},
    "alias.test": {"CNAME": ["example.test."]},
}


class Clock:
    """A clock that goes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def resolving(
    *servers: DnsServer | Endpoint, patience: float = 30, clock: Clock | None = None
) -> AsyncIterator[Resolver]:
    endpoints = tuple(each if isinstance(each, Endpoint) else each.endpoint for each in servers)
    resolver = Resolver(
        config.Dns(nameservers=endpoints, timeout=Duration(patience)), clock or Clock()
    )
    try:
        yield resolver
    finally:
        resolver.close()


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(dict(GOOD)) as server:
        yield server


def closed_port() -> Endpoint:
    """Where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(*probe.getsockname())


def test_exchanges_come_by_preference_and_addresses_by_family(server: DnsServer) -> None:
    async def scenario() -> None:
        async with resolving(server) as resolver:
            answer = await resolver.exchanges("example.test")
            assert answer.status is Status.FOUND
            assert answer.records == (
                Exchange(10, "mx1.example.test"),
                Exchange(20, "mx2.example.test"),
            )
            addresses = (await resolver.addresses("mx1.example.test")).records
            assert set(addresses[:2]) == {"192.0.2.1", "192.0.2.2"}
            assert addresses[2:] == ("2001:db8::1",)
            assert (await resolver.exchanges("null.test")).records == (Exchange(0, "."),)

    run(scenario())


def test_records_of_other_types_are_text(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone["1.2.0.192.in-addr.arpa"] = {"PTR": ["MX1.Example.Test."]}
        server.zone["2.0.0.127.bl.test"] = {"A": ["127.0.0.2"], "TXT": ['"for " "spam \\228"']}
        server.zone["dead.test"] = Fault.SERVFAIL
        clock = Clock()
        async with resolving(server, clock=clock) as resolver:
            assert await resolver.records("1.2.0.192.in-addr.arpa", "PTR") == ("mx1.example.test",)
            assert await resolver.records("2.0.0.127.bl.test", "A") == ("127.0.0.2",)
            assert await resolver.records("2.0.0.127.bl.test", "TXT") == ("for spam \ufffd",)
            assert await resolver.records("3.0.0.127.bl.test", "A") == ()
            assert await resolver.records("dead.test", "A") is None
            server.zone["2.0.0.127.bl.test"] = Fault.SERVFAIL
            clock.now += 1000  # what has expired says nothing of now
            assert await resolver.records("2.0.0.127.bl.test", "A") is None

    run(scenario())


def test_no_name_and_no_data_differ(server: DnsServer) -> None:
    async def scenario() -> None:
        async with resolving(server) as resolver:
            assert (await resolver.exchanges("nowhere.test")).status is Status.NO_NAME
            assert (await resolver.addresses("nowhere.test")).status is Status.NO_NAME
            assert (await resolver.exchanges("mx1.example.test")).status is Status.NO_DATA
            assert (await resolver.addresses("example.test")).status is Status.NO_DATA

    run(scenario())


def test_localhost_is_never_asked_for(server: DnsServer) -> None:
    async def scenario() -> None:
        async with resolving(server) as resolver:
            assert (await resolver.addresses("localhost")).records == ("127.0.0.1", "::1")
        assert not server.queries

    run(scenario())


@pytest.mark.parametrize("name", ["a..test", "a" * 64 + ".test", "a." * 130 + "test", "bü.test"])
def test_an_impossible_name_does_not_exist_and_is_not_asked_for(
    server: DnsServer, name: str
) -> None:
    async def scenario() -> None:
        async with resolving(server) as resolver:
            assert (await resolver.exchanges(name)).status is Status.NO_NAME
        assert not server.queries

    run(scenario())


def test_concurrent_look_ups_of_one_name_are_one_query(server: DnsServer) -> None:
    async def scenario() -> None:
        server.gate.clear()
        async with resolving(server) as resolver:
            tasks = [asyncio.create_task(resolver.exchanges("example.test")) for _ in range(100)]
            tasks += [asyncio.create_task(resolver.exchanges("null.test")) for _ in range(100)]
            await asyncio.sleep(0)
            tasks[0].cancel()  # one who gives up leaves the others their answer
            server.gate.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert all(not isinstance(each, BaseException) and each.records for each in answers[1:])
        assert server.queries == {("example.test", "MX"): 1, ("null.test", "MX"): 1}

    run(scenario())


def test_answers_are_kept_for_their_ttl_and_no_longer(server: DnsServer) -> None:
    async def scenario() -> None:
        clock, server.ttl = Clock(), 100
        async with resolving(server, clock=clock) as resolver:
            hits = HITS.value
            await resolver.exchanges("example.test")
            clock.now += 99
            assert (await resolver.exchanges("example.test")).expires == 1100
            assert server.queries["example.test", "MX"] == 1
            assert HITS.value == hits + 1
            clock.now += 1
            assert (await resolver.exchanges("example.test")).expires == 1200
            assert server.queries["example.test", "MX"] == 2

    run(scenario())


@pytest.mark.parametrize(("ttl", "kept"), [(0, 5), (2**31 - 1, 86_400)])
def test_ttls_have_a_floor_and_a_cap(server: DnsServer, ttl: int, kept: int) -> None:
    async def scenario() -> None:
        server.ttl = ttl
        async with resolving(server) as resolver:
            assert (await resolver.exchanges("example.test")).expires == 1000 + kept

    run(scenario())


@pytest.mark.parametrize("name", ["nowhere.test", "mx1.example.test"])
@pytest.mark.parametrize(("minimum", "kept"), [(60, 60), (0, 5), (10**6, 3600)])
def test_negative_answers_are_kept_as_the_soa_says(
    server: DnsServer, name: str, minimum: int, kept: int
) -> None:
    """RFC 2308 section 5: the lesser of the SOA's own TTL, here 3,600, and its minimum."""

    async def scenario() -> None:
        clock, server.negative_ttl = Clock(), minimum
        async with resolving(server, clock=clock) as resolver:
            assert (await resolver.exchanges(name)).expires == 1000 + kept
            clock.now += kept - 1
            await resolver.exchanges(name)
            assert server.queries[name, "MX"] == 1
            clock.now += 1
            await resolver.exchanges(name)
            assert server.queries[name, "MX"] == 2

    run(scenario())


def test_the_cache_is_bounded_and_forgets_what_is_least_used(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "CACHE_SIZE", 3)

    async def scenario() -> None:
        async with resolving(server) as resolver:
            for name in ("example.test", "b.test", "c.test", "example.test", "d.test"):
                await resolver.exchanges(name)
            for name in ("example.test", "c.test", "d.test"):
                await resolver.exchanges(name)
            assert max(server.queries.values()) == 1
            await resolver.exchanges("b.test")
        assert server.queries["b.test", "MX"] == 2

    run(scenario())


def test_look_ups_are_bounded(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "MAX_PENDING", 1)

    async def scenario() -> None:
        async with resolving(server) as resolver:
            first, second = await asyncio.gather(
                resolver.exchanges("example.test"), resolver.exchanges("null.test")
            )
            assert (first.status, second.status) == (Status.FOUND, Status.FAILURE)
            assert (await resolver.exchanges("null.test")).status is Status.FOUND

    run(scenario())


def test_a_cname_is_followed_within_an_answer_and_across_answers(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone |= {"twice.test": {"CNAME": ["alias.test."]}}
        for server.follows_cnames in (True, False):
            async with resolving(server) as resolver:
                answer = await resolver.exchanges("twice.test")
                assert answer.records[0].host == "mx1.example.test"

    run(scenario())


def test_a_cname_to_nowhere_is_no_name(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone |= {"dangling.test": {"CNAME": ["nowhere.example."]}}
        for server.follows_cnames in (True, False):
            async with resolving(server) as resolver:
                assert (await resolver.exchanges("dangling.test")).status is Status.NO_NAME

    run(scenario())


@pytest.mark.parametrize("follows", [True, False])
def test_threat_13_a_cname_loop_is_a_passing_failure(server: DnsServer, follows: bool) -> None:
    async def scenario() -> None:
        server.zone |= {
            "a.test": {"CNAME": ["b.test."]},
            "b.test": {"CNAME": ["a.test."]},
            "self.test": {"CNAME": ["self.test."]},
        }
        server.follows_cnames = follows
        async with resolving(server) as resolver:
            for name in ("a.test", "self.test"):
                assert (await resolver.exchanges(name)).status is Status.FAILURE
        assert server.queries.total() <= 2 * resolver_module.MAX_CHAIN

    run(scenario())


def test_a_long_chain_of_cnames_ends(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone |= {f"c{i}.test": {"CNAME": [f"c{i + 1}.test."]} for i in range(100)}
        server.zone["c100.test"] = {"MX": ["10 mx1.example.test."]}
        for server.follows_cnames in (True, False):
            async with resolving(server) as resolver:
                assert (await resolver.exchanges("c0.test")).status is Status.FAILURE
                assert (await resolver.exchanges("c97.test")).status is Status.FOUND

    run(scenario())


def test_threat_13_servfail_is_no_nxdomain(server: DnsServer) -> None:
    async def scenario() -> None:
        clock, failures = Clock(), FAILURES.value
        server.zone |= {"broken.test": Fault.SERVFAIL, "refused.test": Fault.REFUSED}
        async with resolving(server, clock=clock) as resolver:
            for name, said in (("broken.test", "SERVFAIL"), ("refused.test", "REFUSED")):
                answer = await resolver.exchanges(name)
                assert answer.status is Status.FAILURE
                assert answer.detail == f"{server.endpoint}: {said}"
            await resolver.exchanges("broken.test")
            assert server.queries["broken.test", "MX"] == 1  # a failure is kept as well
            assert FAILURES.value == failures + 2
            clock.now += resolver_module.TTL_FAILURE
            server.zone["broken.test"] = {"MX": ["10 mx1.example.test."]}
            assert (await resolver.exchanges("broken.test")).status is Status.FOUND

    run(scenario())


def test_what_has_expired_is_better_than_nothing(server: DnsServer) -> None:
    """RFC 8767, for a day."""

    async def scenario() -> None:
        clock, stale, server.ttl = Clock(), STALE.value, 100
        async with resolving(server, clock=clock) as resolver:
            fresh = await resolver.exchanges("example.test")
            expired = clock.now + 100
            server.zone["example.test"] = Fault.SERVFAIL
            for later in (100, 200, STALE_MOST / 2, STALE_MOST - 40):
                clock.now = expired + later
                answer = await resolver.exchanges("example.test")
                assert (answer.status, answer.records) == (Status.FOUND, fresh.records)
                assert answer.expires == clock.now + TTL_STALE  # then they are asked again
            assert STALE.value == stale + 4
            clock.now = expired + STALE_MOST + 1
            assert (await resolver.exchanges("example.test")).status is Status.FAILURE
            server.zone["example.test"] = GOOD["example.test"]
            clock.now += 3600
            assert await resolver.exchanges("example.test") == Answer(
                Status.FOUND, clock.now + 100, fresh.records
            )

    run(scenario())


def test_that_nothing_is_there_is_not_believed_for_longer(server: DnsServer) -> None:
    """It would bounce mail, on old evidence."""

    async def scenario() -> None:
        clock = Clock()
        async with resolving(server, clock=clock) as resolver:
            assert (await resolver.exchanges("nowhere.test")).status is Status.NO_NAME
            server.zone["nowhere.test"] = Fault.SERVFAIL
            clock.now += 3600
            assert (await resolver.exchanges("nowhere.test")).status is Status.FAILURE

    run(scenario())


def test_silence_ends_in_a_failure_after_several_tries(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone["silent.test"] = Fault.DROP
        async with resolving(server, patience=0.3) as resolver:
            queries = QUERIES.value
            answer = await resolver.exchanges("silent.test")
            assert answer.status is Status.FAILURE
            assert answer.detail == f"{server.endpoint}: no answer in time"
            assert QUERIES.value == queries + resolver_module.ROUNDS

    run(scenario())


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.SERVFAIL, Fault.REFUSED, Fault.TCP_CUT])
def test_the_next_nameserver_is_asked_and_then_preferred(server: DnsServer, fault: Fault) -> None:
    async def scenario() -> None:
        with DnsServer({"example.test": fault, "null.test": fault}) as bad:
            async with resolving(bad, server, patience=6) as resolver:
                assert (await resolver.exchanges("example.test")).status is Status.FOUND
                assert (await resolver.exchanges("null.test")).status is Status.FOUND
            assert ("example.test", "MX") in bad.queries
            assert ("null.test", "MX") not in bad.queries

    run(scenario())


def test_a_port_where_nobody_listens_costs_no_time(server: DnsServer) -> None:
    async def scenario() -> None:
        async with resolving(closed_port(), server, patience=3600) as resolver:
            assert (await resolver.exchanges("example.test")).status is Status.FOUND
        async with resolving(closed_port(), patience=3600) as resolver:
            answer = await resolver.exchanges("example.test")
            assert answer.status is Status.FAILURE
            assert "refused" in answer.detail

    run(scenario())


def test_an_answer_that_does_not_fit_comes_over_tcp(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone["large.test"] = {"MX": [f"10 mx{i}.large.test." for i in range(80)]}
        async with resolving(server) as resolver:
            assert len((await resolver.exchanges("large.test")).records) == 80
        assert server.over_tcp == 1

    run(scenario())


def test_threat_13_thousands_of_records_are_cut(
    server: DnsServer,
) -> None:
    async def scenario() -> None:
        hosts = [f"{i} mx{i}.h.test." for i in range(2500)]
        server.zone["huge.test"] = {"MX": list(reversed(hosts))}
        async with resolving(server) as resolver:
            records = (await resolver.exchanges("huge.test")).records
        assert records == tuple(Exchange(i, f"mx{i}.h.test") for i in range(100))

    run(scenario())


@pytest.mark.parametrize(
    "fault", [Fault.WRONG_ID, Fault.WRONG_QUESTION, Fault.WRONG_PORT, Fault.GARBAGE]
)
def test_forged_answers_are_ignored(server: DnsServer, fault: Fault) -> None:
    async def scenario() -> None:
        server.zone["target.test"] = fault
        async with resolving(server) as resolver:
            records = (await resolver.addresses("target.test")).records
        assert FORGED not in records
        assert records == ("192.0.2.53",)

    run(scenario())


def test_one_family_without_an_answer_is_a_failure_unless_the_other_has_addresses() -> None:
    failed: Answer[str] = Answer(Status.FAILURE, 10, detail="SERVFAIL")
    no_name: Answer[str] = Answer(Status.NO_NAME, 60)
    found = Answer(Status.FOUND, 300, ("192.0.2.1",))
    assert _joined(failed, no_name) == _joined(no_name, failed) == failed
    assert _joined(found, failed) == Answer(Status.FOUND, 10, ("192.0.2.1",))


def test_many_look_ups_at_once_each_get_their_own_answer(server: DnsServer) -> None:
    async def scenario() -> None:
        server.zone |= {f"d{i}.test": {"A": [f"198.51.100.{i}"]} for i in range(250)}
        async with resolving(server) as resolver:
            answers = await asyncio.gather(*(resolver.addresses(f"d{i}.test") for i in range(250)))
        assert [each.records for each in answers] == [(f"198.51.100.{i}",) for i in range(250)]

    run(scenario())


def exchange(server: DnsServer, raw: bytes) -> Coroutine[None, None, Status]:
    async def scenario() -> Status:
        server.raw = raw
        async with resolving(server, patience=0.03) as resolver:
            await resolver.addresses("example.test")
            return (await resolver.exchanges("example.test")).status

    return scenario()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=600))
def test_random_octets_as_an_answer_never_raise(server: DnsServer, raw: bytes) -> None:
    assert run(exchange(server, raw)) in Status


@contextmanager
def dnsmasq(folder: Path, *lines: str) -> Iterator[Endpoint]:
    program = shutil.which("dnsmasq", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "dnsmasq is missing: python tools/system_packages.py test"
    endpoint = closed_port()
    common = ["no-resolv", "no-hosts", "local=/test/", "bind-interfaces", "user=", "pid-file="]
    file = folder / "dnsmasq.conf"
    file.write_text(
        "\n".join([f"port={endpoint.port}", "listen-address=127.0.0.1", *common, *lines])
    )
    process = subprocess.Popen([program, "--keep-in-foreground", f"--conf-file={file}"])
    try:
        wait_for_tcp(endpoint, process)
        yield endpoint
    finally:
        process.terminate()
        process.wait(10)


def wait_for_tcp(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> None:
    """dnsmasq binds UDP and TCP before it serves either."""
    for _ in range(600):
        assert process.poll() is None, "dnsmasq ended"
        try:
            socket.create_connection(endpoint).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError("dnsmasq does not listen")


def test_against_dnsmasq(tmp_path: Path) -> None:
    records = [
        "mx-host=example.test,mx1.example.test,10",
        "mx-host=example.test,mx2.example.test,20",
        "host-record=mx1.example.test,192.0.2.1,2001:db8::1,77",
        "cname=alias.example.test,mx1.example.test",
        *(f"mx-host=large.test,mx{i}.large.test,{i}" for i in range(90)),
    ]

    async def scenario(endpoint: Endpoint) -> None:
        async with resolving(endpoint) as resolver:
            found = (await resolver.exchanges("example.test")).records
            assert [(each.preference, each.host) for each in found] == [
                (10, "mx1.example.test"),
                (20, "mx2.example.test"),
            ]
            for host in ("mx1.example.test", "alias.example.test"):
                assert (await resolver.addresses(host)).records == ("192.0.2.1", "2001:db8::1")
            assert (await resolver.addresses("mx1.example.test")).expires == 1077
            assert (await resolver.exchanges("mx1.example.test")).status is Status.NO_DATA
            assert (await resolver.exchanges("nowhere.test")).status is Status.NO_NAME
            assert len((await resolver.exchanges("large.test")).records) == 90

    with dnsmasq(tmp_path, *records) as endpoint:
        run(scenario(endpoint))
