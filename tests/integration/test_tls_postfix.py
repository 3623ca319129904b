"""TLS with Postfix on the other side, both ways, and what its posttls-finger says of us."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from smtplib import SMTP

import pytest

from bench.peers import postfix
from bench.processes import free_port
from tests.certificates import Certificate, make_certificate
from tests.integration.servers import (
    LIMIT,
    Event,
    Relay,
    destination,
    program,
    relay,
    route,
    wait_until,
)

pytestmark = pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())

MESSAGE = b"Subject: hidden\r\n\r\nHello.\r\n"
NAME = "relay.example.test"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: Postfix gives up its privileges, and could not enter it."""
    with tempfile.TemporaryDirectory(prefix="tls-postfix-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def certificate(folder: Path) -> Certificate:
    return make_certificate(folder, f"DNS:{NAME}", "IP:127.0.0.1")


@pytest.fixture
def stranger(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, f"DNS:{NAME}", "IP:127.0.0.1")


def send(port: int) -> None:
    with SMTP("127.0.0.1", port, timeout=LIMIT) as client:
        client.sendmail("alice@sender.test", ["bob@example.test"], MESSAGE)


def tls(certificate: Certificate) -> str:
    return f'[tls]\ncertificate = "{certificate.certificate}"\nkey = "{certificate.key}"\n'


# Postfix to us


VERIFIED = "Verified TLS connection established to"
UNTRUSTED = "Untrusted TLS connection established to"


@contextmanager
def postfix_to(
    folder: Path, port: int, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """Postfix that relays to this port; gives its own."""
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    monkeypatch.setattr(postfix, "MAIN", f"{postfix.MAIN}smtp_tls_loglevel = 1\n{lines}")
    own = free_port()
    with postfix.running(folder, own, port, 1):
        yield own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"level": "verify", "verify_cert_match": NAME}, VERIFIED),
        ({"level": "secure", "secure_cert_match": NAME}, VERIFIED),
        ({"level": "encrypt"}, VERIFIED.replace("Verified", "Trusted")),
        # There is no TLSA record: as "may" does it (RFC 7672 section 2.2).
        ({"level": "dane"}, VERIFIED.replace("Verified", "Trusted")),
        ({"level": "dane", "CAfile": ""}, UNTRUSTED),
    ],
    ids=["verify", "secure", "encrypt", "dane", "dane of a stranger"],
)
def test_postfix_relays_to_us(
    certificate: Certificate,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    said: str,
) -> None:
    settings = {"CAfile": str(certificate.certificate)} | settings
    lines = {f"smtp_tls_{name}": value for name, value in settings.items()}
    lines["smtp_tls_security_level"] = lines.pop("smtp_tls_level")
    lines["smtp_dns_support_level"] = "dnssec"
    with (
        destination() as sink,
        relay(tmp_path, tls(certificate), route(sink.port)) as running,
        postfix_to(folder, running.smtp, lines, monkeypatch) as port,
    ):
        send(port)
        content = sink.mail_for("bob@example.test").content
        assert re.search(rb"\r\n\tby relay.example.test with ESMTPS \(TLSv1.3", content)
        assert f"{said} 127.0.0.1[127.0.0.1]:{running.smtp}: TLSv1.3 with cipher" in (
            (folder / "maillog").read_text()
        )


def test_postfix_keeps_its_mail_from_a_stranger(
    certificate: Certificate,
    stranger: Certificate,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "smtp_tls_CAfile": str(certificate.certificate),
        "smtp_tls_security_level": "secure",
        "smtp_tls_secure_cert_match": NAME,
    }
    with (
        destination() as sink,
        relay(tmp_path, tls(stranger), route(sink.port)) as running,
        postfix_to(folder, running.smtp, settings, monkeypatch) as port,
    ):
        send(port)
        wait_until(lambda: "status=deferred" in (folder / "maillog").read_text())
        assert "(Server certificate not verified)" in (folder / "maillog").read_text()
        assert running.events() == []


# We to Postfix


@contextmanager
def to_postfix(
    folder: Path,
    certificate: Certificate,
    tables: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *settings: str,
) -> Iterator[tuple[Relay, int]]:
    """The relay in front of a Postfix that wants TLS; gives it and Postfix' port."""
    offering = (
        f"smtpd_tls_cert_file = {certificate.certificate}",
        f"smtpd_tls_key_file = {certificate.key}",
        "smtpd_tls_security_level = encrypt",  # in the clear it takes nothing
        "smtpd_tls_received_header = yes",
        *settings,
    )
    monkeypatch.setattr(postfix, "MAIN", "\n".join([postfix.MAIN, *offering, ""]))
    port = free_port()
    with destination() as behind, postfix.running(folder, port, behind.port, 1):
        with relay(tmp_path, *tables, route(port)) as running:
            yield running, port
        content = b"".join(mail.content for mail in behind.mail)
        (folder / "behind").write_bytes(content)


def outcome(running: Relay) -> Event:
    before = len(running.events())
    send(running.smtp)
    events = running.wait(lambda told: told[before + 1 :])
    return events[0]


@pytest.mark.parametrize("policy", ["opportunistic", "required", "verified"])
def test_we_relay_to_postfix(
    certificate: Certificate,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
) -> None:
    """With sessions resumed, each message on a connection of its own."""
    shaping = f'[shaping]\ntls = "{policy}"\nmessages_per_connection = 1\n'
    trust = f'[delivery]\nca_file = "{certificate.certificate}"\n' * (policy == "verified")
    with to_postfix(folder, certificate, (shaping, trust), tmp_path, monkeypatch) as (running, _):
        for _ in range(4):
            event = outcome(running)
            assert event["event"] == "delivered"
            assert event["tls"].startswith("TLSv1.3 TLS_")
            assert event["tls"].endswith(" verified") is (policy == "verified")
        _, text = running.get("/metrics")
        counted = dict(re.findall(r'fastmta_delivery_tls_total\{result="(\w+)"\} (\d+)', text))
        assert counted == {
            "full": "2",
            "resumed": "2",
            "untrusted": "0",
            "failed": "0",
            "absent": "0",
        }


def test_we_keep_our_mail_from_a_stranger(
    certificate: Certificate,
    stranger: Certificate,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = f'[delivery]\nca_file = "{stranger.certificate}"\n', '[shaping]\ntls = "verified"\n'
    with to_postfix(folder, certificate, tables, tmp_path, monkeypatch) as (running, _):
        event = outcome(running)
        assert (event["event"], event["code"], event["enhanced"]) == ("deferred", 451, "4.7.5")
        assert "the certificate is not good: self-signed certificate" in event["reply"]
        assert event["category"] == "tls"
    assert (folder / "behind").read_bytes() == b""


def test_postfix_is_shown_who_we_are(
    certificate: Certificate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = (
        f'[delivery]\nclient_certificate = "{certificate.certificate}"\n'
        f'client_key = "{certificate.key}"\n'
    )
    asking = "smtpd_tls_req_ccert = yes", f"smtpd_tls_CAfile = {certificate.certificate}"
    with to_postfix(folder, certificate, (ours,), tmp_path, monkeypatch, *asking) as (running, _):
        assert outcome(running)["event"] == "delivered"
        wait_until(lambda: "status=sent" in (folder / "maillog").read_text())
    assert b'(Client CN "test", Issuer "test" (verified OK))' in (folder / "behind").read_bytes()


# posttls-finger


def finger(port: int, folder: Path, *options: str) -> str:
    command = [program("posttls-finger"), "-c", "-t", "10", *options]
    done = subprocess.run(
        [*command, f"[127.0.0.1]:{port}", NAME],
        env=os.environ | {"MAIL_CONFIG": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return done.stdout + done.stderr


def test_posttls_finger_verifies_us(
    certificate: Certificate, stranger: Certificate, folder: Path, tmp_path: Path
) -> None:
    (folder / "main.cf").write_text("compatibility_level = 3.6\n")
    with destination() as sink, relay(tmp_path, tls(certificate), route(sink.port)) as running:
        for level in ("verify", "secure"):
            said = finger(running.smtp, folder, "-l", level, "-F", str(certificate.certificate))
            assert f"{VERIFIED} 127.0.0.1[127.0.0.1]:{running.smtp}: TLSv1.3" in said
        said = finger(running.smtp, folder, "-l", "secure", "-F", str(stranger.certificate))
        assert f"{UNTRUSTED} 127.0.0.1[127.0.0.1]:{running.smtp}: TLSv1.3" in said
