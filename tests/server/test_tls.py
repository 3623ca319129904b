"""TLS in: certificates by name, tickets that are bound to a service, settings, counters."""

import asyncio
import gc
import ssl
from pathlib import Path
from typing import Any

import pytest

from fastmta import metrics
from fastmta.config import Tls, TlsHost
from fastmta.server import tls as server_tls
from fastmta.server.smtp_session import SmtpSession
from fastmta.server.tls import CIPHERS, ServerTls, agreed, show_expiry
from tests.certificates import Certificate, make_certificate
from tests.server.test_smtp import _time_stands_still, serving, trusting
from tests.support import run, until

__all__ = ["_time_stands_still"]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> dict[str, Certificate]:
    names = {
        "default": ["DNS:relay.test", "DNS:mail.example.test"],
        "one": ["DNS:one.test", "DNS:*.example.test"],
        "two": ["DNS:two.test"],
    }
    return {name: make_certificate(folder / name, *of) for name, of in names.items()}


@pytest.fixture(scope="module")
def tls(certificates: dict[str, Certificate]) -> Tls:
    hosts = [TlsHost(certificate=c, key=k) for c, k in list(certificates.values())[1:]]
    hosts[1] = TlsHost(
        certificate=hosts[1].certificate, key=hosts[1].key, names=("two.test", "2.test")
    )
    default = certificates["default"]
    return Tls(certificate=default.certificate, key=default.key, host=tuple(hosts))


def shake_hands(
    server: ssl.SSLContext,
    name: str | None = "relay.test",
    client: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake in memory, with the session's ticket at the client."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = (client or trusting()).wrap_bio(
        to_client, to_server, server_hostname=name, session=session
    )
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in (theirs, ours):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    ours.write(b"220 \r\n")
    assert theirs.read() == b"220 \r\n"  # with the tickets of TLS 1.3 in front of it
    return ours, theirs


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.certificate.read_text())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("one.test", "one"),
        ("ONE.test", "one"),
        ("any.example.test", "one"),
        ("mail.example.test", "default"),  # its own name is nearer than the pattern of another
        ("a.b.example.test", "default"),
        ("example.test", "default"),
        ("two.test", "two"),
        ("2.test", "two"),
        ("sub.two.test", "default"),
        ("relay.test", "default"),
        ("unknown.test", "default"),
        (None, "default"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_certificate_is_the_one_that_is_asked_for(
    name: str | None, shown: str, version: ssl.TLSVersion, tls: Tls,
    certificates: dict[str, Certificate],
) -> None:  # fmt: skip
    client = trusting()
    client.maximum_version = version
    _, theirs = shake_hands(ServerTls(tls).context("smtp"), name, client)
    assert theirs.getpeercert(binary_form=True) == der(certificates[shown])


@pytest.mark.parametrize("name", ["relay.test", "one.test"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_is_good_for_its_service_alone(
    name: str, version: ssl.TLSVersion, tls: Tls
) -> None:
    ours = ServerTls(tls, ["smtp", "submission"])
    client = trusting()
    client.maximum_version = version
    for service in ("smtp", "submission"):
        _, first = shake_hands(ours.context(service), name, client)
        assert not first.session_reused
        assert first.session is not None
        for other in ("smtp", "submission", "pop3"):
            _, second = shake_hands(ours.context(other), name, client, first.session)
            assert second.session_reused == (other == service)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_ends_with_the_configuration_that_gave_it(
    version: ssl.TLSVersion, tls: Tls
) -> None:
    client = trusting()
    client.maximum_version = version
    _, first = shake_hands(ServerTls(tls).context("smtp"), client=client)
    _, second = shake_hands(ServerTls(tls).context("smtp"), client=client, session=first.session)
    assert not second.session_reused


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions_and_ciphers(tls: Tls) -> None:
    context = ServerTls(tls).context("smtp")
    assert {each["name"] for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"} == (
        set(CIPHERS)
    )
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    old = trusting()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(context, client=old)
    weak = trusting()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384")
    with pytest.raises(ssl.SSLError):
        shake_hands(context, client=weak)


def test_files_are_read_when_it_is_made(tls: Tls, tmp_path: Path) -> None:
    """Who has given up root could not read them later."""
    pair = make_certificate(tmp_path, "DNS:a.test")
    ours = ServerTls(Tls(certificate=pair.certificate, key=pair.key), ["smtp"])
    pair.key.unlink()
    shake_hands(ours.context("smtp"))
    with pytest.raises(OSError, match="No such file"):
        ServerTls(Tls(certificate=pair.certificate, key=pair.key), ["smtp"])


# The service


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("version", "told", "clause"),
    [
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3 TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        (
            ssl.TLSVersion.TLSv1_2,
            "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        ),
    ],
)
def test_received_and_arrival_tell_what_was_agreed(
    mode: str, version: ssl.TLSVersion, told: str, clause: str,
    certificates: dict[str, Certificate],
) -> None:  # fmt: skip
    async def scenario() -> None:
        context = trusting()
        context.maximum_version = version
        async with serving(certificates["default"], mode=mode) as server:
            counted = server_tls.HANDSHAKES.value
            client = await server.greeted(**{"ssl": context} if mode == "implicit" else {})
            if mode == "starttls":
                assert await client.say("STARTTLS") == "220 2.0.0"
                await client.writer.start_tls(context)
            said = "EHLO a", "MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", "."
            assert await client.say(*said) == "250 2.0.0"
            [arrival] = server.memory.arrivals
            assert arrival.tls == told
            assert f" with ESMTPS ({told[:7]}) id " in arrival.parts[0].decode()
            assert f"\r\n\ttls {clause};\r\n" in arrival.parts[0].decode()
            assert server_tls.HANDSHAKES.value == counted + 1

    run(scenario())


def test_failed_and_resumed_handshakes_are_counted(certificates: dict[str, Certificate]) -> None:
    async def scenario() -> None:
        async with serving(certificates["default"], mode="starttls") as server:
            failed = server_tls.FAILED.value
            client = await server.greeted()
            assert await client.say("STARTTLS") == "220 2.0.0"
            client.writer.write(b"no handshake at all\r\n")
            await until(lambda: server_tls.FAILED.value == failed + 1)

    run(scenario())
    resumed = server_tls.RESUMED.value
    context, client = ServerTls(_plain(certificates)).context("smtp"), trusting()
    _, first = shake_hands(context, client=client)
    again, _ = shake_hands(context, client=client, session=first.session)
    assert agreed(_Agreed(again)).startswith("TLSv1.3 ")  # type: ignore[arg-type]
    assert server_tls.RESUMED.value == resumed + 1


def _plain(certificates: dict[str, Certificate]) -> Tls:
    return Tls(certificate=certificates["default"].certificate, key=certificates["default"].key)


class _Agreed:
    """A transport under TLS."""

    def __init__(self, session: ssl.SSLObject) -> None:
        self._session = session

    def get_extra_info(self, name: str) -> Any:
        return {"ssl_object": self._session}[name]


def test_the_metric_tells_when_certificates_end(tls: Tls) -> None:
    def rows() -> list[metrics.Row]:
        [sample] = [s for s in metrics.snapshot() if s.name == server_tls.EXPIRY.name]
        return sample.rows

    show_expiry(tls)
    named = {path: ends for (path,), (ends,) in rows()}
    assert named.keys() == {str(each.certificate) for each in (tls, *tls.host)}
    info = ssl._ssl._test_decode_cert(str(tls.certificate))  # type: ignore[attr-defined]
    assert named[str(tls.certificate)] == ssl.cert_time_to_seconds(info["notAfter"])
    show_expiry(None)
    assert rows() == []


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_a_session_that_has_ended_is_freed_at_once(
    mode: str, certificates: dict[str, Certificate]
) -> None:
    """Its buffers are large; they must not wait for the garbage collector."""

    def sessions() -> int:
        return sum(isinstance(each, SmtpSession) for each in gc.get_objects())

    async def scenario() -> None:
        async with serving(certificates["default"], mode=mode) as server:
            client = await server.greeted(**{"ssl": trusting()} if mode == "implicit" else {})
            if mode == "starttls":
                assert await client.say("STARTTLS") == "220 2.0.0"
                await client.writer.start_tls(trusting())
            gc.collect()
            gc.disable()
            assert sessions() == 1
            await client.close()
            await until(lambda: not len(server.service.sessions))
            for _ in range(10):  # what the loop still holds to call it
                await asyncio.sleep(0)
            assert sessions() == 0

    try:
        run(scenario())
    finally:
        gc.enable()


def test_a_handshake_does_not_hold_up_the_others(certificates: dict[str, Certificate]) -> None:
    async def scenario() -> None:
        async with serving(certificates["default"], mode="implicit") as server:
            stuck = [await server.connect() for _ in range(20)]
            assert len(stuck) == 20
            clients = await asyncio.gather(*(server.greeted(ssl=trusting()) for _ in range(5)))
            assert [await client.say("NOOP") for client in clients] == ["250 2.0.0"] * 5

    run(scenario())
