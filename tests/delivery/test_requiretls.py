"""REQUIRETLS on the way out (RFC 8689 section 4.2.1): who is given such mail, and who is not."""

from pathlib import Path

import pytest

from fastmta.delivery.site import Host
from fastmta.delivery.tls import Tls
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import TlsDemand
from tests.certificates import Certificate, make_certificate
from tests.delivery.relay import Relay, refusing
from tests.delivery.test_tls import Liar, Receiver, one, relay
from tests.support import run

WITHOUT = frozenset({"REQUIRETLS"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mx.test", "DNS:mx2.test")


def sender(certificate: Certificate) -> Relay:
    return relay("requiretls", Tls(certificate.certificate))


async def send(relay: Relay, *hosts: Host) -> Disposition:
    return await one(relay, *hosts, tls=TlsDemand.REQUIRED)


@pytest.mark.parametrize("lmtp", [False, True])
def test_it_is_asked_of_the_next_host_too(certificate: Certificate, lmtp: bool) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context, lmtp=lmtp) as sink:
            end = await send(sender(certificate), sink.host())
            assert end.kind is Kind.DELIVERED
            assert end.tls.endswith(" verified")
            assert "REQUIRETLS" in sink.mail[0].parameters.split()
            assert sink.totals.protocol_errors == 0
            assert (await one(relay("required"), sink.host())).kind is Kind.DELIVERED
            assert "REQUIRETLS" not in sink.mail[1].parameters

    run(scenario())


def test_a_host_that_does_not_offer_it_gets_no_octet(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver(certificate.context, without=WITHOUT) as sink:
            end = await send(sender(certificate), sink.host())
            assert str(end.reply) == (
                "550 5.7.30 the message needs REQUIRETLS, which mx.test [127.0.0.1] does not offer"
            )
            assert end.kind is Kind.FAILED
            assert sink.mail == []
            # There is nothing wrong with the host.
            assert (await one(relay("required"), sink.host())).kind is Kind.DELIVERED

    run(scenario())


@pytest.mark.parametrize("tiers", [1, 2])
def test_another_host_of_the_domain_may_offer_it(certificate: Certificate, tiers: int) -> None:
    async def scenario() -> None:
        async with (
            Receiver(certificate.context, without=WITHOUT) as lacks,
            Receiver() as clear,
            Receiver(certificate.context) as good,
        ):
            hosts = [lacks.host(), clear.host("mx1.test"), good.host("mx2.test")]
            end = await send(sender(certificate), *hosts[-tiers - 1 :])
            assert (end.kind, end.host) == (Kind.DELIVERED, "mx2.test [127.0.0.1]")

    run(scenario())


def test_no_tls_and_no_good_certificate_fail_at_once(certificate: Certificate) -> None:
    async def scenario() -> None:
        async with Receiver() as clear, Receiver(certificate.context) as wrong:
            end = await send(sender(certificate), clear.host())
            assert (end.kind, end.reply.enhanced) == (Kind.FAILED, "5.7.10")
            assert "STARTTLS was not offered" in end.reply.text
            end = await send(sender(certificate), wrong.host("other.test"))
            assert (end.kind, end.reply.enhanced) == (Kind.FAILED, "5.7.10")
            assert "Hostname mismatch" in end.reply.text
            assert clear.mail == wrong.mail == []

    run(scenario())


@pytest.mark.parametrize("first", [True, False])
def test_a_host_that_is_down_may_yet_do_it(certificate: Certificate, first: bool) -> None:
    """RFC 5321 section 4.5.4.1: what did not answer is tried again."""

    async def scenario() -> None:
        async with Receiver(certificate.context, without=WITHOUT) as sink:
            hosts = [refusing(), sink.host()]
            end = await send(sender(certificate), *(hosts if first else reversed(hosts)))
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.4.1")

    run(scenario())


@pytest.mark.parametrize("said", [b"220 go\r\n", b"220 go\r\n250 ok\r\n"])
def test_threat_16_nothing_falls_back(certificate: Certificate, said: bytes) -> None:
    """To a broken handshake, and to octets in the clear behind the 220."""

    async def scenario() -> None:
        liar = Liar(said)
        async with liar.running() as host:
            end = await send(sender(certificate), host)
            assert end.kind in (Kind.FAILED, Kind.DEFERRED)
            assert len(liar.heard) == 1
            assert b"MAIL" not in liar.heard[0]

    run(scenario())


def test_a_socket_of_this_machine_needs_no_tls(certificate: Certificate, tmp_path: Path) -> None:
    async def scenario() -> None:
        sink = Receiver(lmtp=True)
        await sink.start(f"unix:{tmp_path}/lmtp")
        try:
            name = f"unix:{tmp_path}/lmtp"
            end = await send(sender(certificate), Host(name, (name,), 0, "lmtp"))
            assert (end.kind, end.tls) == (Kind.DELIVERED, "")
            assert "REQUIRETLS" not in sink.mail[0].parameters
        finally:
            await sink.stop()

    run(scenario())
