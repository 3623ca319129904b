"""Asking one nameserver: ids, ports, sockets, and octets that are no answer."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Endpoint
from fastmta.delivery import nameserver
from tests.delivery.test_dns import GOOD, resolving
from tests.dns_server import DnsServer
from tests.support import run


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(dict(GOOD)) as server:
        yield server


def test_ids_and_ports_change(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5452 section 9.2: what a forger has to guess is not to be learnt from earlier queries."""
    monkeypatch.setattr(nameserver, "PORT_QUERIES", 5)
    seen: list[tuple[int, int]] = []

    async def scenario() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.setblocking(False)
            async with resolving(Endpoint(*listener.getsockname())) as resolver:
                for i in range(60):
                    task = asyncio.create_task(resolver.exchanges(f"d{i}.test"))
                    wire, peer = await receive(listener)
                    seen.append((int.from_bytes(wire[:2], "big"), peer[1]))
                    response = dns.message.make_response(dns.message.from_wire(wire))
                    listener.sendto(response.to_wire(), peer)
                    await task

    run(scenario())
    assert len({number for number, _ in seen}) > 50
    assert len({port for _, port in seen}) >= 60 / 5
    assert len({seen[i + 1][0] - seen[i][0] for i in range(59)}) > 50  # no counter


async def receive(listener: socket.socket) -> tuple[bytes, tuple[str, int]]:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listener, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listener)
    wire, peer = listener.recvfrom(4096)
    return wire, peer


def test_queries_with_the_same_id_on_one_port(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nameserver, "PORTS", 1)

    async def scenario() -> None:
        asked = nameserver.Nameserver(*server.endpoint)
        names = ("example.test.", "null.test.", "mx1.example.test.")
        queries = [dns.message.make_query(name, "MX", id=7, use_edns=0) for name in names]
        answers = await asyncio.gather(*map(asked.ask, queries))
        assert [each.question[0].name.to_text() for each in answers] == list(names)
        asked.close()

    run(scenario())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_sockets_are_closed(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "PORT_QUERIES", 3)

    async def scenario() -> None:
        async with resolving(server) as resolver:
            before = descriptors()
            for i in range(200):
                await resolver.exchanges(f"d{i}.test")
            # Of 67 sockets, those in use and the few whose closing is under way.
            assert descriptors() < before + 20

    run(scenario())


QUERY = dns.message.make_query("example.test", "MX", use_edns=0)
RESPONSE = dns.message.make_response(QUERY)
RESPONSE.answer.append(
    dns.rrset.from_text("example.test.", 300, "IN", "MX", "10 mx1.example.test.", "20 b.test.")
)
WIRE = RESPONSE.to_wire()


@given(st.binary(max_size=100), st.integers(0, 11))
def test_parsing_random_octets_never_raises(raw: bytes, kept: int) -> None:
    nameserver.parse(raw, QUERY)
    nameserver.parse(WIRE[:kept] + raw, QUERY)
    nameserver.parse(WIRE[:12] + raw, QUERY)


@given(st.integers(0, len(WIRE) - 1), st.integers(1, 255))
def test_parsing_a_damaged_answer_never_raises(place: int, change: int) -> None:
    damaged = bytearray(WIRE)
    damaged[place] ^= change
    answer = nameserver.parse(bytes(damaged), QUERY)
    if answer is not None:
        assert QUERY.is_response(answer)


def test_a_cut_or_prolonged_answer_is_none() -> None:
    assert nameserver.parse(WIRE, QUERY) is not None
    assert all(nameserver.parse(WIRE[:end], QUERY) is None for end in range(len(WIRE)))
    assert nameserver.parse(WIRE + b"\0", QUERY) is None


@pytest.mark.parametrize("split", [1, 2, 3, 1000])
def test_an_answer_over_tcp_in_any_pieces(split: int) -> None:
    async def scenario() -> None:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stream = nameserver._Stream(answer)
        octets = len(WIRE).to_bytes(2, "big") + WIRE + b"trailing"
        for start in range(0, len(octets), split):
            stream.data_received(octets[start : start + split])
        assert await answer == WIRE

    run(scenario())
