"""The SMTP listener over real sockets, with a backend that keeps what it is given in memory."""

import asyncio
import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import pytest

from fastmta.config import Config, Duration, Endpoint, Headers, Listener, Smtp, Submission, Tls
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Priority
from fastmta.mail.reply import Reply
from fastmta.queue import flow
from fastmta.server import session, smtp, smtp_session
from fastmta.server.access import Access
from fastmta.server.judges import Judges
from fastmta.server.smtp import SmtpService
from fastmta.server.smtp_session import SmtpSession
from fastmta.server.tls import ServerTls
from tests.support import run, until

MESSAGE = b"Subject: a\r\n\r\nhello\r\n"


class Memory:
    """A backend. Answers at once, or when `answer` is called."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.waiting: list[Callable[[Reply | None], None]] = []
        self.answers = True
        self.error: Exception | None = None

    def new_id(self) -> int:
        return len(self.arrivals) + 1

    def refusal(self) -> Reply | None:
        return None

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        if self.error is not None:
            raise self.error
        self.arrivals.append(arrival)
        if self.answers:
            done(None)
        else:
            self.waiting.append(done)

    def answer(self, refusal: Reply | None = None) -> None:
        self.waiting.pop(0)(refusal)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        """The next reply's code and enhanced code, without its text; "" at the end."""
        while line := (await self.reader.readline()).decode():
            if line[3] == " ":
                match = re.match(r"\d{3}( \d\.\d\.\d)?", line)
                assert match is not None, line
                return match[0]
        return ""

    async def say(self, *lines: str) -> str:
        """The reply to the last of these lines, sent one by one."""
        answer = ""
        for line in lines:
            self.writer.write(line.encode(errors="surrogateescape") + b"\r\n")
            answer = await self.reply()
        return answer

    async def say_data(self, content: str) -> str:
        """The reply to the end of data."""
        return await self.say(f"{content}\r\n.")

    def reset(self) -> None:
        """Go away without a word: RST, not FIN."""
        connection = self.writer.get_extra_info("socket")
        linger_not = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


class Server:
    """A service with one listener on loopback; its clock stands still but for `pass_time`."""

    def __init__(self, service: SmtpService, memory: Memory, address: tuple[str, int]) -> None:
        self.service, self.memory, self.address = service, memory, address
        self.clients: list[Client] = []

    async def connect(self, **options: object) -> Client:
        """After the greeting has been asked for, not yet read."""
        reader, writer = await asyncio.open_connection(*self.address, **options)  # type: ignore[arg-type]
        self.clients.append(client := Client(reader, writer))
        return client

    async def greeted(self, **options: object) -> Client:
        client = await self.connect(**options)
        assert await client.reply() == "220"
        assert await client.say("EHLO client.example.test") == "250"
        return client

    async def in_data(self) -> Client:
        client = await self.greeted()
        said = await client.say("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>", "DATA")
        assert said == "354"
        return client

    @property
    def session(self) -> SmtpSession:
        [only] = self.service.sessions._open
        assert isinstance(only, SmtpSession)
        return only

    def pass_time(self, seconds: float) -> None:
        sessions = self.service.sessions
        sessions.now += seconds
        self.service._note_stress()
        for each in tuple(sessions._open):
            each.sweep(sessions.now)


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SWEEP", 1e6)


@asynccontextmanager
async def serving(
    tls: tuple[Path, Path] | None = None,
    bind: str = "127.0.0.1",
    mode: str = "",
    proxy_networks: tuple[str, ...] = (),
    headers: Headers | None = None,
    judges: Judges | None = None,
    access: Access | None = None,
    service: Literal["smtp", "submission"] = "smtp",
    submission: Submission | None = None,
    **settings: object,
) -> AsyncIterator[Server]:
    config = Config(
        hostname="relay.example.test",
        data_dir=Path(),
        listener=(),
        tls=tls and Tls(certificate=tls[0], key=tls[1]),
        smtp=Smtp(**settings),  # type: ignore[arg-type]
        headers=headers or Headers(),
        submission=submission or Submission(),
    )
    memory = Memory()
    mail = SmtpService(
        config, memory, config.tls and ServerTls(config.tls), judges=judges, access=access
    )
    options: dict[str, Any] = {"tls": mode} if mode else {}
    options["proxy_networks"] = tuple(map(ip_network, proxy_networks))
    listener = Listener(service=service, bind=Endpoint(bind, 0), **options)
    server = Server(mail, memory, await mail.start(listener))
    try:
        yield server
        for client in server.clients:
            await client.close()
    finally:
        await mail.drain(0.0)
    assert mail.load.held == 0
    assert len(mail.sessions) == 0


def make_certificate(folder: Path, name: str) -> Tls:
    files = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls(certificate=files[0], key=files[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = make_certificate(tmp_path_factory.mktemp("tls"), "server")
    return made.certificate, made.key


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_a_message_with_its_trace_field() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.in_data()
            client.writer.write(MESSAGE + b".\r\n")
            assert await client.reader.readline() == b"250 2.0.0 Ok: queued as 0000000000001\r\n"
            assert await client.say("QUIT") == "221 2.0.0"
            assert await client.reply() == ""
            [arrival] = server.memory.arrivals
            assert re.fullmatch(
                rb"Received: from client\.example\.test \(\[127\.0\.0\.1\]\)\r\n"
                rb"\tby relay\.example\.test with ESMTP id 0000000000001\r\n"
                rb"\tfor <b@example\.test>;\r\n"
                rb"\t\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\r\n",
                arrival.parts[0],
            )
            assert b"".join(arrival.parts[1:]) == MESSAGE
            assert arrival.size == len(b"".join(arrival.parts))
            assert arrival.client == "client.example.test [127.0.0.1]"
            assert arrival.protocol == "ESMTP"

    run(scenario())


def test_several_recipients_are_not_shown_to_each_other() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.greeted()
            await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "RCPT TO:<c@d.test>", "DATA")
            assert await client.say(".") == "250 2.0.0"
            assert b"for" not in server.memory.arrivals[0].parts[0]

    run(scenario())


def test_ipv6() -> None:
    async def scenario() -> None:
        async with serving(bind="::1") as server:
            client = await server.in_data()
            await client.say(".")
            assert b"([IPv6:::1])" in server.memory.arrivals[0].parts[0]
            assert server.memory.arrivals[0].client == "client.example.test [::1]"

    run(scenario())


def test_helo_is_smtp() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.connect()
            await client.reply()
            said = "HELO a", "MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", "."
            assert await client.say(*said) == "250 2.0.0"
            assert server.memory.arrivals[0].protocol == "SMTP"

    run(scenario())


def test_a_crowd_may_knock_at_once() -> None:
    """Who finds the kernel's queue full comes again a second later, or three, or seven."""
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())

    async def scenario() -> None:
        async with serving() as server:
            [port] = server.service._ports.values()
            facts = port._listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            # Of a socket that listens, what is elsewhere `tcpi_sacked` (linux/tcp.h).
            assert int.from_bytes(facts[28:32], sys.byteorder) == min(4096, longest)

    run(scenario())


def test_two_workers_share_a_port() -> None:
    async def scenario() -> None:
        async with serving() as server:
            other = SmtpService(server.service._config, server.memory, None)
            bind = Endpoint(*server.address)
            assert await other.start(Listener(service="smtp", bind=bind)) == server.address
            await other.drain(0.0)

    run(scenario())


def test_a_client_pauses_while_a_quick_path_is_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "PATIENCE", 1e6)
    envelope = b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nDATA\r\n"

    async def scenario() -> None:
        async with serving() as server:
            client = await server.in_data()
            paths, pauses, paused = server.service.flow, flow.PAUSES.value, server.session
            paths.crowd("b.test")
            assert await client.say(".") == "250 2.0.0"  # who is safe is told at once
            assert flow.PAUSES.value == pauses + 1
            octets = paused._octets
            client.writer.write(envelope)
            await server.greeted()  # so the loop has seen what came before
            assert paused._octets == octets
            paths.ease("b.test")
            assert [await client.reply() for _ in range(3)] == ["250 2.1.0", "250 2.1.5", "354"]
            assert await client.say(".") == "250 2.0.0"
            assert flow.PAUSES.value == pauses + 1

    run(scenario())


def test_what_is_counted() -> None:
    async def scenario() -> None:
        metrics = (
            smtp_session.SESSIONS,
            smtp_session.RECEIVED,
            smtp_session.OCTETS,
            smtp_session.REJECTED,
        )
        before = [metric.value for metric in metrics]
        observed = sum(smtp_session.SECONDS.counts)
        async with serving() as server:
            client = await server.in_data()
            assert smtp.OPEN.read is not None
            assert smtp.OPEN.read() == 1
            await client.say(".", "FROB")
            size = server.memory.arrivals[0].size
        after = [metric.value for metric in metrics]
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, size, 1]
        assert sum(smtp_session.SECONDS.counts) == observed + 1

    run(scenario())


def test_pending_accepts_keep_the_order() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.answers = False
            client = await server.greeted()
            transaction = b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nBDAT 3 LAST\r\na\r\n"
            client.writer.write(transaction * 2 + b"NOOP\r\n")
            for _ in range(2):
                assert [await client.reply(), await client.reply()] == ["250 2.1.0", "250 2.1.5"]
                await until(lambda: server.memory.waiting)
                server.memory.answer()
                assert await client.reply() == "250 2.0.0"
            assert await client.reply() == "250 2.0.0"

    run(scenario())


def test_what_is_sent_while_an_accept_is_pending_is_bounded() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.answers = False
            client = await server.greeted()
            client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nBDAT 3 LAST\r\na\r\n")
            await until(lambda: server.memory.waiting)
            client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\n")
            client.writer.write(b"BDAT 9000002 LAST\r\n\r\n" + b"x" * 9_000_000)
            await until(lambda: server.session._hold)
            held = server.session._machine.buffered
            for _ in range(20):
                await asyncio.sleep(0)
            assert server.session._machine.buffered == held < 1_000_000
            server.memory.answer()
            await until(lambda: server.memory.waiting)
            server.memory.answer()
            assert [await client.reply() for _ in range(6)][-1] == "250 2.0.0"
            assert server.memory.arrivals[1].size > 9_000_000

    run(scenario())


def test_a_message_is_kept_though_its_client_has_gone() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.answers = False
            client = await server.in_data()
            client.writer.write(b".\r\n")
            await until(lambda: server.memory.waiting)
            client.reset()
            await until(lambda: not len(server.service.sessions))
            before = smtp_session.RECEIVED.value
            server.memory.answer()
            assert smtp_session.RECEIVED.value == before + 1

    run(scenario())


def test_a_client_that_half_closes_gets_its_250() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.answers = False
            client = await server.in_data()
            client.writer.write(b"a\r\n.\r\n")
            await until(lambda: server.memory.waiting)
            client.writer.write_eof()
            await until(lambda: server.session._half_closed)
            server.memory.answer()
            assert await client.reply() == "250 2.0.0"
            assert await client.reply() == ""

    run(scenario())


def test_a_backend_that_fails_is_451(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.error = RuntimeError("broken")
            client = await server.in_data()
            assert await client.say(".") == "451 4.3.0"
            assert await client.say("NOOP") == "250 2.0.0"

    run(scenario())
    assert "broken" in caplog.text


def test_a_message_says_whose_it_is() -> None:
    async def scenario() -> None:
        async with serving(headers=Headers(tenant="X-Tenant", priority="X-Priority")) as server:
            client = await server.in_data()
            assert await client.say_data("X-Priority: soon\r\n\r\nhello") == "554 5.6.0"
            await client.say("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>", "DATA")
            assert await client.say_data("X-Priority: bulk\r\nX-Tenant: a\r\n\r\nx") == "250 2.0.0"
            (arrival,) = server.memory.arrivals
            assert (arrival.tenant, arrival.priority) == ("a", Priority.BULK)
            assert b"X-" not in b"".join(arrival.parts)
            assert arrival.size == sum(map(len, arrival.parts))

    run(scenario())


def test_relaying_is_for_relay_networks_alone() -> None:
    async def scenario() -> None:
        for networks, code in (("192.0.2.0/24", "550 5.7.1"), ("127.0.0.0/8", "250 2.1.5")):
            async with serving(relay_networks=(ip_network(networks),)) as server:
                client = await server.greeted()
                assert await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>") == code

    run(scenario())


def test_a_client_that_does_not_read_is_not_read() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.greeted()
            await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>")
            connection = client.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
            chunks = 300_000  # 8 MB of replies, more than the kernel takes on both sides
            client.writer.write(b"BDAT 0\r\n" * chunks)
            await until(lambda: server.session.is_write_held)
            for _ in range(chunks):
                assert await client.reader.readline() == b"250 2.0.0 Chunk received\r\n"
            assert not server.session.is_write_held

    run(scenario())


# STARTTLS


def test_starttls(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await server.greeted()
            assert await client.say("STARTTLS") == "220 2.0.0"
            await client.writer.start_tls(trusting())
            assert await client.say("MAIL FROM:<>") == "503 5.5.1"
            said = "EHLO a", "MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", "."
            assert await client.say(*said) == "250 2.0.0"
            assert b" with ESMTPS (TLSv1.3) id " in server.memory.arrivals[0].parts[0]
            assert await client.say("EHLO a", "STARTTLS") == "502 5.5.1"

    run(scenario())


def test_implicit_tls(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(certificate, mode="implicit") as server:
            client = await server.greeted(ssl=trusting())
            await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", ".")
            assert server.memory.arrivals[0].protocol == "ESMTPS"
            assert await client.say("STARTTLS") == "502 5.5.1"

    run(scenario())


def test_octets_in_one_flight_with_the_end_of_the_handshake(certificate: tuple[Path, Path]) -> None:
    """They must not reach the session before it knows of TLS (uvloop issue 707)."""

    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await server.greeted()
            await client.say("STARTTLS")
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            while True:
                client.writer.write(outgoing.read())
                incoming.write(await client.reader.read(65536))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    pass
            tls.write(b"EHLO a\r\n")
            client.writer.write(outgoing.read())  # Finished and EHLO together
            said = b""
            while not said.endswith(b"250 REQUIRETLS\r\n"):
                incoming.write(await client.reader.read(65536))
                try:
                    said += tls.read()
                except ssl.SSLWantReadError:
                    pass
            assert said.startswith(b"250-relay.example.test\r\n")

    run(scenario())


def test_threat_02_nothing_is_read_in_the_clear_once_the_220_is_out(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(certificate) as server:
            reading: list[bool] = []
            start = server.service.run

            def observed(work: Coroutine[None, None, None]) -> None:
                reading.append(server.session.transport.is_reading())
                start(work)

            monkeypatch.setattr(server.service, "run", observed)
            client = await server.greeted()
            await client.say("STARTTLS")
            assert reading == [False]

    run(scenario())


def test_threat_02_plaintext_behind_starttls_in_one_segment(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await server.greeted()
            client.writer.write(b"STARTTLS\r\nMAIL FROM:<evil@b.test>\r\n")
            assert await client.reply() == "554 5.5.0"
            assert await client.reply() == ""

    run(scenario())


def test_threat_02_plaintext_behind_the_220_breaks_the_handshake(
    certificate: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await server.greeted()
            assert await client.say("STARTTLS") == "220 2.0.0"
            client.writer.write(b"EHLO evil\r\nMAIL FROM:<evil@b.test>\r\n")
            rest = await client.reader.read()
            assert b"250" not in rest
            await until(lambda: not len(server.service.sessions))

    run(scenario())


# Out of turn


@pytest.mark.parametrize("early", [b"EHLO a\r\n", b"x", b"GET / HTTP/1.1\r\n\r\n"])
def test_threat_06_talking_before_the_greeting(early: bytes) -> None:
    async def scenario() -> None:
        async with serving() as server:
            with socket.create_connection(server.address) as client:  # not accepted yet
                client.send(early)
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                assert (await loop.sock_recv(client, 100)).startswith(b"554 5.5.0 ")
                assert await loop.sock_recv(client, 100) == b""

    run(scenario())


# Slow clients


def test_threat_07_a_silent_client_is_told_and_closed() -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.greeted()
            server.pass_time(60)
            assert await client.say("NOOP") == "250 2.0.0"
            server.pass_time(60)
            server.pass_time(1)
            assert await client.reply() == "421 4.4.2"
            assert await client.reply() == ""

    run(scenario())


def test_threat_07_single_octets_do_not_renew_a_commands_time() -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.greeted()
            for octet in b"NOOP":
                read = server.session._octets
                client.writer.write(bytes([octet]))
                await until(lambda read=read: server.session._octets > read)  # type: ignore[misc]
                server.pass_time(16)
            assert await client.reply() == "421 4.4.2"

    run(scenario())


async def drip(server: Server, client: Client, octets: int, seconds: int) -> int:
    """Send so many octets of content each second; how many seconds the server bears it."""
    for second in range(seconds):
        if server.session.transport.is_closing():
            return second
        seen = server.session._octets
        client.writer.write(b"x" * octets)
        await until(lambda seen=seen: server.session._octets >= seen + octets)  # type: ignore[misc]
        server.pass_time(1)
    return seconds


@pytest.mark.parametrize(("octets", "least", "most"), [(1, 60, 63), (499, 60, 63), (510, 300, 300)])
def test_threat_07_a_least_rate_in_data(octets: int, least: int, most: int) -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.in_data()
            assert least <= await drip(server, client, octets, 300) <= most
            if most < 300:
                assert await client.reply() == "421 4.4.2"

    run(scenario())


def test_threat_07_a_good_start_does_not_buy_silence() -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.in_data()
            assert await drip(server, client, 10_000, 20) == 20
            server.pass_time(59)
            assert not server.session.transport.is_closing()
            server.pass_time(3)
            assert await client.reply() == "421 4.4.2"

    run(scenario())


def test_threat_07_chunks_share_one_budget() -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.greeted()
            await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>")
            answers = []
            while answers[-1:] != ["421 4.4.2"]:
                assert len(answers) < 100
                client.writer.write(b"BDAT 1\r\nx")
                answers.append(await client.reply())
                server.pass_time(1)
            assert len(answers) > 55

    run(scenario())


def test_each_message_has_its_own_time() -> None:
    async def scenario() -> None:
        async with serving(command_timeout=Duration(60)) as server:
            client = await server.in_data()
            await drip(server, client, 10, 5)
            assert await client.say_data("bare\nnewline") == "554 5.6.0"
            for _ in range(3):
                server.pass_time(30)
                assert await client.say("NOOP") == "250 2.0.0"
            assert await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA") == "354"
            assert await drip(server, client, 10, 5) == 5
            assert await client.say_data("") == "250 2.0.0"

    run(scenario())


def test_threat_07_under_stress_deadlines_are_shorter() -> None:
    async def scenario() -> None:
        async with serving(max_sessions=10) as server:
            clients = [await server.greeted() for _ in range(8)]
            server.pass_time(11)
            clients.append(await server.greeted())
            server.pass_time(0)
            for client in clients[:8]:
                assert await client.reply() == "421 4.4.2"
            assert await clients[8].say("FROB") == "500 5.5.1"

    run(scenario())


def test_threat_07_a_reply_to_an_error_is_held_back() -> None:
    async def scenario() -> None:
        async with serving(max_errors=4) as server:
            client = await server.greeted()
            assert await client.say("FROB", "FROB") == "500 5.5.1"
            before = asyncio.get_running_loop().time()
            client.writer.write(b"FROB\r\nNOOP\r\n")
            await until(lambda: server.session._delayed_until)
            assert server.session._delayed_until >= before + 1
            assert server.session._machine.buffered == len(b"NOOP\r\n")
            server.pass_time(server.session._delayed_until - server.service.sessions.now)
            assert [await client.reply(), await client.reply()] == ["500 5.5.1", "250 2.0.0"]

    run(scenario())


# Limits of sessions


def test_threat_08_sessions_in_all() -> None:
    async def scenario() -> None:
        async with serving(max_sessions=3) as server:
            refused = smtp_session.REFUSED.value
            clients = [await server.greeted() for _ in range(3)]
            late = await server.connect()
            assert [await late.reply(), await late.reply()] == ["421 4.3.2", ""]
            assert smtp_session.REFUSED.value == refused + 1
            await clients[0].close()
            await until(lambda: len(server.service.sessions) < 3)
            await server.greeted()

    run(scenario())


def test_threat_08_sessions_of_a_client() -> None:
    async def scenario() -> None:
        async with serving(max_sessions_per_client=2, relay_networks=()) as server:
            clients = [await server.greeted() for _ in range(2)]
            late = await server.connect()
            assert [await late.reply(), await late.reply()] == ["421 4.7.0", ""]
            await clients[0].close()
            await until(lambda: len(server.service.sessions) < 2)
            await server.greeted()

    run(scenario())


def test_relay_networks_may_have_more_sessions() -> None:
    async def scenario() -> None:
        async with serving(max_sessions_per_client=2) as server:
            for _ in range(5):
                await server.greeted()

    run(scenario())


# The end


def test_draining_lets_messages_end_and_closes_the_rest() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.memory.answers = False
            idle, busy = await server.greeted(), await server.in_data()
            drained = asyncio.ensure_future(server.service.drain(30))
            assert [await idle.reply(), await idle.reply()] == ["421 4.3.2", ""]
            with pytest.raises(ConnectionRefusedError):
                await server.connect()
            busy.writer.write(b"a\r\n.\r\n")
            await until(lambda: server.memory.waiting)
            assert not drained.done()
            server.memory.answer()
            assert [await busy.reply(), await busy.reply()] == ["250 2.0.0", "421 4.3.2"]
            await drained

    run(scenario())


def test_draining_closes_what_becomes_idle() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.greeted()
            await client.say("MAIL FROM:<>")
            drained = asyncio.ensure_future(server.service.drain(30))
            await until(lambda: server.service.load.draining)
            server.pass_time(1)
            assert await client.say("RSET") == "250 2.0.0"
            server.pass_time(1)
            assert [await client.reply(), await client.reply()] == ["421 4.3.2", ""]
            await drained

    run(scenario())


def test_draining_has_an_end() -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.in_data()
            await server.service.drain(0.01)
            assert await client.reader.read() == b""

    run(scenario())
