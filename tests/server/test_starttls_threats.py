"""STARTTLS injection over real sockets on uvloop: what comes in the clear is never executed."""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from fastmta.server.smtp_session import SmtpSession
from tests.certificates import Certificate, make_certificate
from tests.server.test_smtp import Server, _time_stands_still, serving, trusting
from tests.support import run, until

__all__ = ["_time_stands_still"]
EVIL = b"EHLO evil.test\r\nMAIL FROM:<evil@b.test>\r\nRCPT TO:<a@b.test>\r\nDATA\r\nevil\r\n.\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:relay.test")


@pytest.fixture
def helos(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each session after each read, so that no command goes unseen."""
    seen: list[str] = []

    class Observed(SmtpSession):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            seen.append(self._machine.helo)

    monkeypatch.setattr("fastmta.server.smtp.SmtpSession", Observed)
    return seen


class Raw:
    """A client that decides itself what goes into which segment."""

    def __init__(self, server: Server) -> None:
        self.server, self.loop = server, asyncio.get_running_loop()
        self.socket = socket.create_connection(server.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    async def greeted(self) -> "Raw":
        await self.until(b"220 ")
        await self.send(b"EHLO client.test\r\n")
        await self.until(b"250 ")
        return self

    async def until(self, code: bytes) -> None:
        said = b""
        while not (said.endswith(b"\r\n") and said.splitlines()[-1].startswith(code)):
            said += (data := await self.loop.sock_recv(self.socket, 4096))
            assert data, said

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def send_and_see_read(self, data: bytes) -> None:
        """The next octets go into a read of their own."""
        session = self.server.session
        octets = session._octets + len(data)
        await self.send(data)
        await until(lambda: session._octets >= octets)

    async def rest(self) -> bytes:
        """All that is said until the connection ends."""
        said = b""
        with suppress(ConnectionError):
            while data := await self.loop.sock_recv(self.socket, 4096):
                said += data
        self.socket.close()
        return said


def judged(server: Server, said: bytes, helos: list[str]) -> None:
    """Nothing in the clear was executed: whatever was said, and whatever came of it."""
    assert not [line for line in said.splitlines() if line.startswith((b"250", b"354", b"221"))]
    assert said.startswith((b"220 ", b"554 ")), said
    assert set(helos) <= {"client.test"}
    assert server.memory.arrivals == []


def test_threat_02_split_at_every_octet(certificate: Certificate, helos: list[str]) -> None:
    async def scenario() -> None:
        data = b"STARTTLS\r\n" + EVIL
        async with serving(certificate) as server:
            for cut in range(len(data)):
                client = await Raw(server).greeted()
                if cut:
                    await client.send_and_see_read(data[:cut])
                await client.send(data[cut:])
                judged(server, await client.rest(), helos)
                await until(lambda: not len(server.service.sessions))

    run(scenario())


@pytest.mark.parametrize("between", [False, True])
def test_threat_02_in_front_of_a_good_handshake(
    between: bool, certificate: Certificate, helos: list[str]
) -> None:
    """In the segment of the ClientHello, or in one of its own before it; the handshake fails."""

    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await Raw(server).greeted()
            await client.send(b"STARTTLS\r\n")
            await client.until(b"220 ")
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            if between:
                await client.send(EVIL)
                await client.send(hello)
            else:
                await client.send(EVIL + hello)
            judged(server, b"220 " + await client.rest(), helos)
            await until(lambda: not len(server.service.sessions))

    run(scenario())


def test_threat_02_before_the_220_was_read(certificate: Certificate, helos: list[str]) -> None:
    """In the segment behind STARTTLS, sent without waiting: the race that an attacker has."""

    async def scenario() -> None:
        async with serving(certificate) as server:
            for _ in range(50):
                client = await Raw(server).greeted()
                await client.send(b"STARTTLS\r\n")
                await client.send(EVIL)
                judged(server, await client.rest(), helos)
                await until(lambda: not len(server.service.sessions))

    run(scenario())


def test_threat_02_state_is_forgotten(certificate: tuple[Path, Path], helos: list[str]) -> None:
    async def scenario() -> None:
        async with serving(certificate) as server:
            client = await server.greeted()
            said = await client.say("MAIL FROM:<a@b.test>", "RCPT TO:<c@b.test>", "RSET")
            assert said == "250 2.0.0"
            assert await client.say("STARTTLS") == "220 2.0.0"
            await client.writer.start_tls(trusting())
            assert await client.say("MAIL FROM:<a@b.test>") == "503 5.5.1"
            assert await client.say("DATA") == "503 5.5.1"
            assert await client.say("EHLO again.test", "RCPT TO:<c@b.test>") == "503 5.5.1"
            assert helos[-1] == "again.test"

    run(scenario())
