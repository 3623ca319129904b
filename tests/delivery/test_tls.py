"""TLS to other hosts over real sockets: with it, without it, and not at all."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastmta.delivery import tls as tls_module
from fastmta.delivery.site import Host
from fastmta.delivery.tls import AVOID_SECONDS, Tls
from fastmta.mail.disposition import Disposition, Kind
from fastmta.protocol.smtp_client import TlsPolicy
from fastmta.protocol.smtp_steps import Timeouts
from fastmta.queue.limits import Limits
from fastmta.sink import Behaviour, Mail, Sink
from tests.certificates import Certificate, make_certificate
from tests.delivery.relay import Relay, site
from tests.delivery.test_dispatcher import quick_sweep
from tests.delivery.test_dns import Clock
from tests.support import run, until

__all__ = ["quick_sweep"]

MUST: list[TlsPolicy] = ["required", "verified"]
WANTED: list[TlsPolicy] = ["opportunistic", *MUST]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mx.test", "IP:127.0.0.1")


class Receiver(Sink):
    """A sink with what it took; `host` leads to it by any name."""

    def __init__(self, tls: ssl.SSLContext | None = None, **behaviour: object) -> None:
        self.mail: list[Mail] = []
        super().__init__(Behaviour(**behaviour), take=self.mail.append, tls=tls)  # type: ignore[arg-type]

    def host(self, name: str = "mx.test") -> Host:
        protocol = "lmtp" if self.behaviour.lmtp else "smtp"
        return Host(name, ("127.0.0.1",), self.endpoint[1], protocol)  # type: ignore[arg-type]


def relay(
    policy: TlsPolicy,
    tls: Tls | None = None,
    timeouts: Timeouts | None = None,
    sources: str = "",
) -> Relay:
    return Relay(Limits(tls=policy, connections=1), timeouts=timeouts, tls=tls, sources=sources)


async def one(relay: Relay, *hosts: Host, **changes: object) -> Disposition:
    """What becomes of one message; nothing is left open."""
    [end] = await relay.send(site(*hosts), **changes)
    await relay.dispatcher.drain(5)
    return end


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("policy", WANTED)
def test_mail_goes_under_tls(certificate: Certificate, policy: TlsPolicy, lmtp: bool) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context, lmtp=lmtp) as sink:
            sender = relay(policy, Tls(certificate.certificate))
            ends = await sender.send(site(sink.host()), 3)
            assert [end.kind for end in ends] == [Kind.DELIVERED] * 3
            version, cipher, *verified = ends[0].tls.split()
            assert (version, cipher[:3]) == ("TLSv1.3", "TLS")
            assert verified == (["verified"] if policy == "verified" else [])
            await sender.dispatcher.drain(5)
            assert len(sink.mail) == 3
            assert sink.totals.tls == sink.totals.connections == 1
            assert sink.totals.protocol_errors == 0

    run(scenario())


def test_a_large_message_goes_under_tls(certificate: Certificate) -> None:
    """Streamed, with the peer's back-pressure, over another transport than at the beginning."""
    content = b"x" * 70 + b"\r\n"
    content *= 100_000

    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            end = await one(relay("required"), sink.host(), content=content)
            assert end.kind is Kind.DELIVERED
            assert sink.mail[0].content == content

    run(scenario())


def test_none_speaks_in_the_clear(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            end = await one(relay("none"), sink.host())
            assert (end.kind, end.tls, sink.totals.tls) == (Kind.DELIVERED, "", 0)

    run(scenario())


@pytest.mark.parametrize("policy", MUST)
def test_threat_16_a_stripped_starttls_defers(policy: TlsPolicy) -> None:
    async def scenario() -> None:
        async with Receiver() as sink:
            end = await one(relay(policy), sink.host())
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.4")
            assert end.reply.text == (
                "TLS is required for mx.test [127.0.0.1], but STARTTLS was not offered"
            )
            assert sink.mail == []

    run(scenario())


def test_another_host_may_have_what_the_first_has_not(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver() as stripped, Receiver(certificate.context) as good:
            end = await one(relay("required"), stripped.host("mx1.test"), good.host("mx2.test"))
            assert (end.kind, end.host) == (Kind.DELIVERED, "mx2.test [127.0.0.1]")

    run(scenario())


@pytest.mark.parametrize(
    ("name", "trusted", "why"),
    [
        ("other.test", True, "Hostname mismatch"),
        ("mx.test", False, "self-signed certificate"),
    ],
)
def test_verified_refuses_a_wrong_name_and_a_stranger(
    certificate: Certificate, name: str, trusted: bool, why: str
) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            tls = Tls(certificate.certificate if trusted else None)
            end = await one(relay("verified", tls), sink.host(name))
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")
            assert f"no TLS with {name} [127.0.0.1]: the certificate is not good: {why}" in (
                end.reply.text
            )
            assert sink.mail == []
            assert (await one(relay("required"), sink.host(name))).kind is Kind.DELIVERED

    run(scenario())


@pytest.mark.parametrize("name", ["127.0.0.1", "[127.0.0.1]"])
def test_an_address_is_verified_as_one(certificate: Certificate, name: str) -> None:
    """Of a smarthost, and of an address literal."""

    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            end = await one(relay("verified", Tls(certificate.certificate)), sink.host(name))
            assert end.kind is Kind.DELIVERED

    run(scenario())


# Handshakes that fail


class Liar:
    """Offers STARTTLS, says `said` to it, and then no TLS; in the clear it takes mail."""

    def __init__(self, said: bytes, *, then_closes: bool = True) -> None:
        self.said, self.then_closes = said, then_closes
        self.heard: list[bytes] = []  # everything, by connection
        self.offers = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Host]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield Host("liar.test", ("127.0.0.1",), server.sockets[0].getsockname()[1])
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.heard)
        self.heard.append(b"")
        writer.write(b"220 liar.test\r\n")
        try:
            await self._talk(number, reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _talk(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while line := await reader.readline():
            self.heard[number] += line
            if line == b"STARTTLS\r\n":
                writer.write(self.said)
                if self.then_closes:
                    self.heard[number] += await reader.read(1)  # the first of the handshake
                    return
                while rest := await reader.read(1000):
                    self.heard[number] += rest
                return
            writer.write(
                {b"EHLO": b"250-liar.test\r\n250 STARTTLS\r\n", b"DATA": b"354 go\r\n"}.get(
                    line[:4], b"" if number and line not in COMMANDS else b"250 ok\r\n"
                )
            )


COMMANDS = {
    b"MAIL FROM:<s@a.test>\r\n",
    b"RCPT TO:<r@b.test>\r\n",
    b".\r\n",
    b"QUIT\r\n",
    b"RSET\r\n",
}


def test_opportunistic_goes_on_in_the_clear_at_once_and_remembers() -> None:
    async def scenario() -> None:
        clock = Clock()
        tls = Tls(clock=clock)
        liar = Liar(b"220 go\r\n")
        async with liar.running() as host:
            for connections in (2, 3):
                end = await one(relay("opportunistic", tls), host)
                assert (end.kind, end.tls) == (Kind.DELIVERED, "")
                assert len(liar.heard) == connections
            assert b"STARTTLS" in liar.heard[0]
            assert b"MAIL" not in liar.heard[0]
            assert b"STARTTLS" not in liar.heard[1] + liar.heard[2]
            clock.now += AVOID_SECONDS
            await one(relay("opportunistic", tls), host)
            assert b"STARTTLS" in liar.heard[3]

    run(scenario())


@pytest.mark.parametrize("policy", MUST)
def test_threat_16_a_failed_handshake_defers(policy: TlsPolicy) -> None:
    async def scenario() -> None:
        liar = Liar(b"220 go\r\n")
        async with liar.running() as host:
            tls = Tls()
            end = await one(relay(policy, tls), host)
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")
            assert end.reply.text.startswith("no TLS with liar.test [127.0.0.1]: the handshake")
            assert len(liar.heard) == 1
            assert not tls.avoids("liar.test [127.0.0.1]")

    run(scenario())


@pytest.mark.parametrize("policy", WANTED)
@pytest.mark.parametrize("injected", [b"250 liar.test\r\n", b"250-liar", b"\0"])
def test_threat_16_plaintext_before_the_handshake_ends_the_connection(
    policy: TlsPolicy, injected: bytes
) -> None:
    async def scenario() -> None:
        liar = Liar(b"220 go\r\n" + injected, then_closes=False)
        async with liar.running() as host:
            end = await one(relay(policy), host)
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.5.0")
            assert len(liar.heard) == 1
            assert liar.heard[0] == b"EHLO me.test\r\nSTARTTLS\r\n"

    run(scenario())


@pytest.mark.parametrize("policy", WANTED)
def test_a_handshake_has_its_time(policy: TlsPolicy, quick_sweep: None) -> None:
    async def scenario() -> None:
        liar = Liar(b"220 go\r\n", then_closes=False)  # takes it all and says nothing
        async with liar.running() as host:
            end = await one(relay(policy, timeouts=Timeouts(tls=0.05)), host)
            if policy == "opportunistic":
                assert end.kind is Kind.DELIVERED
            else:
                assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")
                assert "taking longer than" in end.reply.text

    run(scenario())


def test_a_drain_does_not_wait_for_a_handshake() -> None:
    async def scenario() -> None:
        liar = Liar(b"220 go\r\n", then_closes=False)
        async with liar.running() as host:
            sender = relay("opportunistic")
            assert sender.submit(site(host))
            await until(lambda: liar.heard and liar.heard[0].count(b"\n") >= 2)
            await sender.dispatcher.drain(5)
            assert not sender.dispatcher.connections

    run(scenario())


def test_the_hosts_to_avoid_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "MAX_AVOIDED", 2)
    tls = Tls()
    for host in ("a", "b", "a", "c"):
        tls.avoid(host)
    assert [tls.avoids(host) for host in "abc"] == [True, False, True]


def test_a_context_is_made_once(certificate: Certificate) -> None:
    tls = Tls(certificate.certificate)
    for policy in WANTED:
        assert tls.context(policy) is tls.context(policy)
        assert tls.context(policy).minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls.context("verified").check_hostname
    assert tls.context("verified").verify_mode is ssl.CERT_REQUIRED


def test_the_authority_is_a_file_of_its_own(tmp_path: Path, certificate: Certificate) -> None:
    assert len(Tls(certificate.certificate).context("verified").get_ca_certs()) == 1
