"""TLS to next hops, told by the disposition log."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from smtplib import SMTP

import pytest

from bench.peers import postfix
from bench.processes import free_port
from tests.certificates import Certificate, make_certificate
from tests.integration.servers import (
    LIMIT,
    Relay,
    destination,
    relay,
    route,
    split_trace,
)

MESSAGE = b"Subject: hidden\r\n\r\nHello.\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: Postfix gives up its privileges, and could not enter it."""
    with tempfile.TemporaryDirectory(prefix="starttls-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def certificate(folder: Path) -> Certificate:
    return make_certificate(folder, "DNS:mx.test")


def tls_of_delivery(running: Relay) -> str:
    """What the log tells of one message."""
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        client.sendmail("alice@sender.test", ["bob@example.test"], MESSAGE)
    [event] = running.wait_for(1, event="delivered")
    tls: str = event["tls"]
    return tls


def test_the_log_tells_of_tls_and_its_absence(certificate: Certificate, tmp_path: Path) -> None:
    for context, versions in ((certificate.context, ("TLSv1.3",)), (None, ())):
        with destination(tls=context) as sink, relay(tmp_path, route(sink.port)) as running:
            assert tuple(tls_of_delivery(running).split()[:1]) == versions
            assert split_trace(sink.mail_for("bob@example.test").content)[1] == MESSAGE
        (tmp_path / "data" / "dispositions.jsonl").unlink()


@pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())
def test_postfix_takes_mail_under_tls(
    certificate: Certificate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offering = (
        f"smtpd_tls_cert_file = {certificate.certificate}\n"
        f"smtpd_tls_key_file = {certificate.key}\n"
        "smtpd_tls_security_level = encrypt\n"  # in the clear it takes nothing
    )
    monkeypatch.setattr(postfix, "MAIN", postfix.MAIN + offering)
    port = free_port()
    with (
        destination() as behind,
        postfix.running(folder, port, behind.port, 1),
        relay(tmp_path, route(port)) as running,
    ):
        assert tls_of_delivery(running).startswith("TLSv1.3 TLS_")
        assert b" with ESMTPS id " in behind.mail_for("bob@example.test").content
