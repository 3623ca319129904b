"""What comes before a session, over real sockets: a proxy's header, implicit TLS, or both."""

import array
import asyncio
import errno
import fcntl
import socket
import termios
from ipaddress import ip_network
from typing import Any

import pytest

from fastmta.config import Endpoint
from fastmta.protocol.proxy import BadHeader
from fastmta.server import opening, port, smtp_session, tls
from fastmta.server.opening import read_header
from fastmta.server.port import Port
from fastmta.server.session import Sessions
from tests.certificates import Certificate, make_certificate
from tests.protocol.test_proxy import BAD, GOOD, IPV4, PORTS, v2
from tests.server.test_smtp import Client, Server, _time_stands_still, serving, trusting
from tests.support import run, until

__all__ = ["_time_stands_still"]
HERE = ("127.0.0.0/8",)
ELSEWHERE = ("192.0.2.0/24",)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 25\r\n"
LOCAL = v2(command=0x20, family=0, rest=b"")
MAIL = ["EHLO client.test", "MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", "."]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:relay.test")


async def connect(server: Server, header: bytes, under_tls: bool = False) -> Client:
    """A client behind a proxy that says this first."""
    connection = socket.create_connection(server.address)
    connection.sendall(header)
    connection.setblocking(False)
    options: dict[str, Any] = {"ssl": trusting(), "server_hostname": ""} if under_tls else {}
    client = Client(*await asyncio.open_connection(sock=connection, **options))
    server.clients.append(client)
    return client


async def ended(client: Client) -> bytes:
    """What is said until the connection ends: by RST where we have sent what nobody reads."""
    try:
        return await client.reader.read()
    except ConnectionResetError:
        return b""


def unread(connection: socket.socket) -> int:
    """Octets that wait in this socket."""
    count = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


# The header of a proxy


@pytest.mark.parametrize("header", [V1, v2(), v2(rest=IPV4 + PORTS + b"\x04\x00\x01x")])
@pytest.mark.parametrize("mode", ["none", "implicit", "starttls"])
def test_the_client_is_who_the_proxy_says(
    header: bytes, mode: str, certificate: Certificate
) -> None:
    async def scenario() -> None:
        networks = {"proxy_networks": HERE, "relay_networks": (ip_network("192.0.2.0/24"),)}
        async with serving(certificate, mode=mode, **networks) as server:  # type: ignore[arg-type]
            client = await connect(server, header, mode == "implicit")
            assert await client.reply() == "220"
            if mode == "starttls":
                assert await client.say("EHLO a", "STARTTLS") == "220 2.0.0"
                await client.writer.start_tls(trusting())
            assert await client.say(*MAIL) == "250 2.0.0"
            assert b"([192.0.2.7])" in server.memory.arrivals[0].parts[0]
            assert server.memory.arrivals[0].client == "client.test [192.0.2.7]"

    run(scenario())


@pytest.mark.parametrize("mode", ["none", "implicit"])
@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n", v2(family=0, rest=b"")])
def test_a_proxy_that_speaks_for_itself(header: bytes, mode: str, certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode=mode, proxy_networks=HERE) as server:
            client = await connect(server, header, mode == "implicit")
            assert await client.reply() == "220"
            assert server.session.client == "127.0.0.1"

    run(scenario())


def test_the_right_to_relay_is_the_clients_and_not_the_proxys() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE) as server:  # relay_networks has 127.0.0.0/8
            client = await connect(server, V1)
            assert await client.reply() == "220"
            assert await client.say(*MAIL[:3]) == "550 5.7.1"

    run(scenario())


def test_the_sessions_of_a_client_are_counted_for_it() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE, max_sessions_per_client=1) as server:
            first = await connect(server, V1)
            assert await first.reply() == "220"
            second = await connect(server, V1)
            assert [await second.reply(), await second.reply()] == ["421 4.7.0", ""]
            other = await connect(server, V1.replace(b"2.7", b"2.8"))
            assert await other.reply() == "220"

    run(scenario())


@pytest.mark.parametrize("text", [*sorted(GOOD), *BAD])
def test_nothing_behind_a_header_is_read_wherever_it_is_split(text: bytes) -> None:
    """What stands behind it may be a handshake, for which nobody may have read."""
    behind = b"\x16\x03\x01 and so on"

    async def pieces(*data: bytes) -> tuple[str, bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            reading = asyncio.ensure_future(read_header(theirs))
            for piece in data:
                if reading.done() and reading.exception():
                    break
                ours.sendall(piece)
                await until(lambda: reading.done() or not unread(theirs), pause=0)
            ours.shutdown(socket.SHUT_WR)
            try:
                client = await reading
            except BadHeader:
                return "bad", b""
            return client, theirs.recv(100)

    async def scenario() -> None:
        expected = (GOOD[text], behind) if text in GOOD else ("bad", b"")
        for cut in range(0, len(text), 1 if len(text) < 300 else 97):
            assert await pieces(text[:cut], text[cut:] + behind) == expected
        assert await pieces(*(text[i : i + 1] for i in range(min(len(text), 300)))) in [
            (expected[0], b""),
            ("bad", b""),  # one that is cut short
        ]

    run(scenario())


@pytest.mark.parametrize("said", [b"EHLO a\r\n", b"PROXY nonsense\r\n", b"\x16\x03\x01\x00", b""])
@pytest.mark.parametrize("mode", ["none", "implicit"])
def test_a_proxy_has_to_say_for_whom_it_speaks(
    said: bytes, mode: str, certificate: Certificate
) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode=mode, proxy_networks=HERE) as server:
            client = await connect(server, said)
            client.writer.write_eof()
            assert await ended(client) == b""
            await until(lambda: not server.service.sessions._expected)
            assert not server.service.sessions._per_client

    run(scenario())


def test_a_proxy_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(opening, "HEADER_SECONDS", 0.01)
        async with serving(proxy_networks=HERE) as server:
            client = await connect(server, V1[:-1])
            assert await ended(client) == b""

    run(scenario())


@pytest.mark.parametrize("networks", [(), ELSEWHERE])
@pytest.mark.parametrize("header", [V1, v2()])
def test_from_others_a_header_is_not_believed(header: bytes, networks: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=networks) as server:
            early = await connect(server, header)
            assert await early.reply() in ("554 5.5.0", "220")
            await early.close()
            await until(lambda: not len(server.service.sessions))
            client = await server.connect()
            assert await client.reply() == "220"
            assert server.session.client == "127.0.0.1"
            client.writer.write(header)
            assert await client.reply() in ("500 5.5.1", "500 5.5.2")
            assert server.memory.arrivals == []

    run(scenario())


def test_from_others_implicit_tls_begins_at_once(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode="implicit", proxy_networks=ELSEWHERE) as server:
            client = await server.greeted(ssl=trusting())
            assert server.session.client == "127.0.0.1"
            assert await client.say("NOOP") == "250 2.0.0"
            other = await connect(server, V1)  # no handshake
            rest = await ended(other)
            assert rest[:1] in (b"", b"\x15")

    run(scenario())


def test_talking_behind_the_header_is_talking_too_soon() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE) as server:
            client = await connect(server, V1 + b"EHLO a\r\n")
            assert [await client.reply(), await client.reply()] == ["554 5.5.0", ""]

    run(scenario())


# Bounds


def test_threat_08_handshakes_count_as_sessions(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(
            certificate, mode="implicit", max_sessions=3, relay_networks=()
        ) as server:
            sessions, refused = server.service.sessions, smtp_session.REFUSED.value
            session = await server.greeted(ssl=trusting())
            silent = [await server.connect() for _ in range(2)]
            await until(lambda: len(sessions._expected) == 2)
            assert sessions.is_full
            late = await server.connect()
            assert await ended(late) == b""  # closed without a handshake
            assert smtp_session.REFUSED.value == refused + 1
            for client in silent:
                client.reset()
            await until(lambda: not sessions._expected)
            await server.greeted(ssl=trusting())
            assert await session.say("NOOP") == "250 2.0.0"

    run(scenario())


def test_threat_08_handshakes_of_a_client(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(
            certificate, mode="implicit", max_sessions_per_client=1, relay_networks=()
        ) as server:
            await server.connect()
            await until(lambda: len(server.service.sessions._expected) == 1)
            late = await server.connect()
            assert await ended(late) == b""

    run(scenario())


def test_threat_08_the_last_session_has_room_for_itself(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(
            certificate, mode="implicit", max_sessions=1, max_sessions_per_client=1,
            relay_networks=(),
        ) as server:  # fmt: skip
            for _ in range(3):
                client = await server.greeted(ssl=trusting())
                await client.close()
                await until(lambda: not len(server.service.sessions))

    run(scenario())


def test_threat_08_proxies_that_say_nothing_are_bounded() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE, max_sessions=2) as server:
            silent = [await server.connect() for _ in range(2)]
            await until(lambda: len(server.service.sessions._expected) == 2)
            late = await connect(server, V1)
            assert await ended(late) == b""
            silent[0].reset()
            silent[1].writer.write(V1)
            assert await silent[1].reply() == "220"

    run(scenario())


def test_when_all_are_in_use_a_proxied_client_is_told() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE, max_sessions=1) as server:
            first = await connect(server, V1)
            assert await first.reply() == "220"
            second = await connect(server, V1)
            assert [await second.reply(), await second.reply()] == ["421 4.3.2", ""]

    run(scenario())


def test_a_handshake_that_fails_or_takes_too_long(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode="implicit") as server:
            failed, sessions = tls.FAILED.value, server.service.sessions
            client = await connect(server, b"EHLO a\r\n")
            await ended(client)
            await until(lambda: tls.FAILED.value == failed + 1)
            monkeypatch.setattr(opening, "HANDSHAKE_SECONDS", 0.01)
            client = await connect(server, b"\x16\x03\x01")
            await ended(client)
            await until(lambda: tls.FAILED.value == failed + 2)
            await until(lambda: not sessions._expected)
            assert not sessions._per_client

    run(scenario())


# The port


def test_a_port_changes_between_plain_and_what_comes_first(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode="starttls") as server:
            [only] = server.service._ports.values()
            networks = (ip_network("127.0.0.0/8"),)
            for tls_now, proxies in ((None, networks), (None, ()), (certificate.context, ())) * 2:
                await only.serve(tls_now, proxies)
                header = V1 if proxies else b""
                client = await connect(server, header, tls_now is not None)
                assert await client.reply() == "220"
                await client.close()

    run(scenario())


def test_without_descriptors_it_waits_and_then_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A listening socket with which nothing can be accepted."""

        def __init__(self, real: socket.socket) -> None:
            self.fileno, self.getsockname, self.tries = real.fileno, real.getsockname, 0
            self.close = real.close

        def accept(self) -> None:
            self.tries += 1
            raise OSError(errno.EMFILE, "Too many open files")

    async def scenario() -> None:
        monkeypatch.setattr(port, "_PAUSE", 0.01)
        async with serving(proxy_networks=HERE) as server:
            [only] = server.service._ports.values()
            real, full = only._listening, Full(only._listening)
            only._listening = full  # type: ignore[assignment]
            client = await connect(server, V1)
            await until(lambda: full.tries >= 2)
            assert len(caplog.records) == full.tries
            only._listening = real
            assert await client.reply() == "220"

    run(scenario())


def test_who_waits_when_a_port_closes_is_served() -> None:
    async def scenario() -> None:
        async with serving(proxy_networks=HERE) as server:
            waiting = [socket.create_connection(server.address) for _ in range(3)]
            for each in waiting:
                each.sendall(V1)
                each.setblocking(False)
            [only] = server.service._ports.values()
            await only.close()
            for each in waiting:
                client = Client(*await asyncio.open_connection(sock=each))
                assert await client.reply() == "220"
                await client.close()
            server.service._ports.clear()

    run(scenario())


def test_a_port_that_is_closed_before_it_served_any() -> None:
    async def scenario() -> None:
        sessions = Sessions(1, 1)
        only = Port(Endpoint("127.0.0.1", 0), lambda: pytest.fail("no session"), lambda _: True)
        await only.serve(None, (ip_network("127.0.0.0/8"),))
        await only.close()
        assert not sessions.is_full

    run(scenario())
