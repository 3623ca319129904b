"""Resumed sessions, client certificates, TLS from the first octet, and hosts with poor TLS."""

import asyncio
import ssl
from pathlib import Path

import pytest

from fastmta import metrics
from fastmta.delivery import tls as tls_module
from fastmta.delivery.site import Host
from fastmta.delivery.tls import HANDSHAKES, SESSION_SECONDS, Tls
from fastmta.mail.disposition import Kind
from fastmta.protocol.smtp_client import TlsPolicy
from fastmta.sink.session import Session
from tests.certificates import Certificate, expire, make_certificate
from tests.delivery.relay import Relay, site
from tests.delivery.test_dns import Clock
from tests.delivery.test_tls import MUST, WANTED, Liar, Receiver, one, relay
from tests.support import run


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mx.test", "DNS:mx2.test")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("ours"), "DNS:me.test")


class Counted:
    """How often each result came within the block."""

    def __enter__(self) -> dict[str, int]:
        self._before = dict(HANDSHAKES.counts)
        self.results: dict[str, int] = {}
        return self.results

    def __exit__(self, *exc: object) -> None:
        for result, before in self._before.items():
            if HANDSHAKES.counts[result] != before:
                self.results[result] = HANDSHAKES.counts[result] - before


# Resumption


@pytest.mark.parametrize("policy", WANTED)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_next_connections_resume_the_session(
    certificate: Certificate, policy: TlsPolicy, version: ssl.TLSVersion
) -> None:
    async def scenario() -> None:
        context = certificate.context
        context.maximum_version = version
        async with Receiver(context) as sink:
            tls = Tls(certificate.certificate)
            with Counted() as results:
                ends = [await one(relay(policy, tls), sink.host()) for _ in range(4)]
            assert results == {"full": 2, "resumed": 2}
            assert len({end.tls for end in ends}) == 1
            assert ends[0].tls.endswith(" verified") is (policy == "verified")

    run(scenario())


def test_a_session_is_for_one_name_and_one_policy(certificate: Certificate) -> None:
    """What was not verified is not resumed where it has to be, nor under another name."""

    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            tls = Tls(certificate.certificate)
            with Counted() as results:
                for _ in range(2):
                    await one(relay("required", tls), sink.host())
                for _ in range(2):
                    await one(relay("verified", tls), sink.host())
                await one(relay("verified", tls), sink.host("mx2.test"))
                end = await one(relay("verified", tls), sink.host("other.test"))
            assert results == {"full": 5, "untrusted": 1}
            assert end.kind is Kind.DEFERRED

    run(scenario())


def test_a_session_has_its_time_even_if_it_is_used(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            clock = Clock()
            tls = Tls(certificate.certificate, clock)
            with Counted() as results:
                for minutes in (0, 10, 30, 19, 12):  # between this one and the one before
                    clock.now += minutes * 60
                    await one(relay("verified", tls), sink.host())
            assert SESSION_SECONDS == 3600
            assert results == {"full": 3, "resumed": 2}

    run(scenario())


def test_sessions_are_bounded(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "MAX_SESSIONS", 2)

    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            tls = Tls()
            with Counted() as results:
                for name in "aabbcccba":
                    await one(relay("required", tls), sink.host(f"{name}.test"))
            assert results == {"full": 7, "resumed": 2}

    run(scenario())


def test_a_host_that_has_forgotten_is_none_the_worse(certificate: Certificate) -> None:
    """Another host of the same name, or the same one after a restart."""

    async def scenario() -> None:
        tls = Tls()
        with Counted() as results:
            for _ in range(2):
                async with Receiver(certificate.context) as sink:
                    for _ in range(3):
                        end = await one(relay("required", tls), sink.host())
                        assert end.kind is Kind.DELIVERED
        # The one that was refused is replaced at once.
        assert results == {"full": 3, "resumed": 3}

    run(scenario())


def test_a_reload_forgets_sessions_and_leaves_connections_alone(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context) as sink:
            tls = Tls(certificate.certificate)
            with Counted() as results:
                sender = relay("verified", tls)
                await sender.send(site(sink.host()))
                tls.reload(certificate.certificate)
                await sender.send(site(sink.host()))
                assert sink.totals.connections == 1
                await sender.dispatcher.drain(5)
                assert (await one(relay("verified", tls), sink.host())).kind is Kind.DELIVERED
                tls.reload(None)
                end = await one(relay("verified", tls), sink.host())
            assert results == {"full": 2, "untrusted": 1}
            assert end.kind is Kind.DEFERRED

    run(scenario())


# Client certificates


def showing(ours: Certificate, policy: TlsPolicy, tls: Tls) -> Relay:
    paths = f'client_certificate = "{ours.certificate}"\nclient_key = "{ours.key}"\n'
    return relay(policy, tls, sources=f"[delivery]\n{paths}")


@pytest.mark.parametrize("policy", WANTED)
def test_a_host_that_asks_is_shown_who_we_are(
    certificate: Certificate, ours: Certificate, policy: TlsPolicy
) -> None:
    async def scenario() -> None:
        context = certificate.context
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ours.certificate)
        async with Receiver(context) as sink:
            tls = Tls(certificate.certificate)
            assert (await one(showing(ours, policy, tls), sink.host())).kind is Kind.DELIVERED
            end = await one(relay("required", tls), sink.host("mx2.test"))
            assert (end.kind, sink.totals.messages) == (Kind.DEFERRED, 1)

    run(scenario())


# TLS from the first octet


class Implicit(Receiver):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._context = context

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        make = lambda: Session(self)  # noqa: E731
        self._server = await self.loop.create_server(make, host, port, ssl=self._context)

    def host(self, name: str = "mx.test") -> Host:
        return Host(name, ("127.0.0.1",), self.endpoint[1], "smtps")


@pytest.mark.parametrize("policy", ["none", *WANTED])
def test_smtps_speaks_tls_before_the_greeting(certificate: Certificate, policy: TlsPolicy) -> None:
    async def scenario() -> None:
        async with Implicit(certificate.context) as sink:
            tls = Tls(certificate.certificate)
            with Counted() as results:
                ends = [await one(relay(policy, tls), sink.host()) for _ in range(3)]
            assert [end.kind for end in ends] == [Kind.DELIVERED] * 3
            assert ends[0].tls.startswith("TLSv1.3 TLS_")
            assert ends[0].tls.endswith(" verified") is (policy == "verified")
            assert results == {"full": 2, "resumed": 1}

    run(scenario())


def test_smtps_is_verified(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Implicit(certificate.context) as sink:
            end = await one(relay("verified", Tls()), sink.host())
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")

    run(scenario())


@pytest.mark.parametrize("policy", WANTED)
def test_smtps_never_falls_back(policy: TlsPolicy) -> None:
    """A host that speaks SMTP in the clear: nothing is said to it."""

    async def scenario() -> None:
        liar = Liar(b"")
        async with liar.running() as host:
            implicit = Host(host.name, host.addresses, host.port, "smtps")
            end = await one(relay(policy), implicit)
            assert end.kind is Kind.DEFERRED
            assert len(liar.heard) == 1
            assert b"EHLO" not in liar.heard[0]

    run(scenario())


# Hosts with poor TLS


def make(folder: Path) -> Certificate:
    folder.mkdir()
    return make_certificate(folder, "DNS:mx.test")


@pytest.mark.parametrize("policy", WANTED)
def test_tls_1_1_is_none(certificate: Certificate, policy: TlsPolicy) -> None:
    """RFC 8996: mail that must have TLS waits, other mail goes in the clear."""

    async def scenario() -> None:
        context = certificate.context
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with Receiver(context) as sink:
            with Counted() as results:
                end = await one(relay(policy, Tls(certificate.certificate)), sink.host())
            assert results == {"failed": 1}
            if policy in MUST:
                assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")
                assert "no TLS with mx.test [127.0.0.1]: the handshake failed" in end.reply.text
                assert sink.mail == []
            else:
                assert (end.kind, end.tls) == (Kind.DELIVERED, "")

    run(scenario())


def test_a_certificate_of_yesterday_is_not_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        expired = expire(make(tmp_path / "expired"))
        async with Receiver(expired.context) as sink:
            tls = Tls(expired.certificate)
            end = await one(relay("verified", tls), sink.host())
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.7.5")
            assert end.reply.text.endswith("the certificate is not good: certificate has expired")
            assert sink.mail == []
            assert (await one(relay("required", tls), sink.host())).kind is Kind.DELIVERED

    run(scenario())


def test_what_came_of_tls_is_counted(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver() as sink:
            with Counted() as results:
                for policy in WANTED:
                    await one(relay(policy), sink.host())
                await one(relay("none"), sink.host())
            assert results == {"absent": 3}

    run(scenario())
    [sample] = [each for each in metrics.snapshot() if each.name == "fastmta_delivery_tls_total"]
    assert tuple(values[0] for values, _ in sample.rows) == tls_module.RESULTS
