"""TLS in, with real clients and a real proxy in front: Postfix, openssl, haproxy."""

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from smtplib import SMTP, SMTP_SSL
from typing import Any

import pytest

from bench.peers import postfix
from bench.processes import free_port
from fastmta.config_tls import read_leaf
from tests.certificates import Certificate, make_certificate, make_expired
from tests.integration.servers import (
    LIMIT,
    Relay,
    destination,
    program,
    relay,
    route,
    wait_until,
)
from tests.integration.test_starttls import MESSAGE, folder

__all__ = ["folder"]
TLS = '[tls]\ncertificate = "{}"\nkey = "{}"\n'
SENT = ("alice@sender.test", ["bob@example.test"], MESSAGE)


def implicit(port: int, more: str = "") -> str:
    bind = f'[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:{port}"\n'
    return f'{bind}tls = "implicit"\n{more}\n'


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate.certificate)


def connect(running: Relay, trusted: Certificate, name: str) -> ssl.SSLSocket:
    """Under TLS with a certificate of this name; ssl.SSLError where another is shown."""
    client = SMTP("127.0.0.1", running.smtp, timeout=LIMIT)
    client.ehlo()
    assert client.docmd("STARTTLS")[0] == 220
    plain = client.sock
    assert plain is not None
    return trusting(trusted).wrap_socket(plain, server_hostname=name)


def say(under_tls: ssl.SSLSocket, line: bytes) -> bytes:
    under_tls.sendall(line + b"\r\n")
    return under_tls.recv(4096)


def test_certificates_by_name_and_another_after_sighup(tmp_path: Path) -> None:
    one = make_certificate(tmp_path / "one", "DNS:one.test")
    two = make_certificate(tmp_path / "two", "DNS:two.test")
    three = make_certificate(tmp_path / "three", "DNS:one.test")
    host = '[[tls.host]]\ncertificate = "two/certificate.pem"\nkey = "two/key.pem"\n'
    with relay(tmp_path, TLS.format(*one), host, workers=2) as running:
        with connect(running, one, "one.test") as first, connect(running, two, "two.test") as other:
            told = running.get("/metrics")[1]
            assert told.count("fastmta_tls_certificate_expiry_timestamp_seconds{") == 2
            running.reload(str(tmp_path / "one"), str(tmp_path / "three"))
            for name, certificate in (("one.test", three), ("two.test", two)):
                with connect(running, certificate, name) as later:
                    assert say(later, b"NOOP").startswith(b"250 ")
            with pytest.raises(ssl.SSLError):
                connect(running, one, "one.test")
            assert say(first, b"NOOP").startswith(b"250 ")  # as it began
            assert say(other, b"NOOP").startswith(b"250 ")
        metrics = running.get("/metrics")[1]
        for path in (three.certificate, "two/certificate.pem"):
            found = re.search(
                rf'expiry_timestamp_seconds{{certificate="\S*{path}"}} (\S+)', metrics
            )
            assert found, metrics
            assert float(found[1]) > time.time() + 86000
        assert float(found[1]) == read_leaf(two.certificate).ends
        assert running.metric("fastmta_tls_in_handshakes_total") >= 4
        assert running.metric("fastmta_tls_in_failed_total") >= 1


def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    one = make_certificate(tmp_path / "one", "DNS:one.test")
    other = make_certificate(tmp_path / "other", "DNS:one.test")
    with relay(tmp_path, TLS.format(*one)) as running:
        key, text = one.key.read_text(), (tmp_path / "fastmta.toml").read_text()
        one.key.write_text(other.key.read_text())
        running.process.send_signal(1)
        wait_until(lambda: "nothing is reloaded" in running.stderr())
        assert f"tls.key: {one.key} is not the key of" in running.stderr()
        with connect(running, one, "one.test") as client:
            assert say(client, b"NOOP").startswith(b"250 ")
        one.key.write_text(key)
        assert (tmp_path / "fastmta.toml").read_text() == text


def test_a_certificate_that_has_expired_is_logged_and_shown(tmp_path: Path) -> None:
    made = make_expired(tmp_path / "tls", 12)
    with relay(tmp_path, TLS.format(*made)) as running:
        text = f"ERROR supervisor fastmta.supervisor: tls.certificate: {made.certificate} expired"
        assert text in running.stderr()
        with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
            assert client.starttls(context=trusting_any())[0] == 220


def test_the_log_and_the_trace_field_tell_what_was_agreed(tmp_path: Path) -> None:
    certificate, port = make_certificate(tmp_path / "tls", "DNS:localhost"), free_port()
    with (
        destination() as sink,
        relay(tmp_path, implicit(port), TLS.format(*certificate), route(sink.port)) as running,
    ):
        with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
            client.sendmail(*SENT)
        context = trusting(certificate)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with SMTP_SSL("localhost", port, context=context, timeout=LIMIT) as client:
            client.sendmail(*SENT)
        told = [event["tls"] for event in running.wait_for(2, event="received")]
        assert told == ["", "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384"]
        wait_until(lambda: len(sink.mail) == 2)
        [field] = [m.content for m in sink.mail if b"\ttls " in m.content]
        assert b" with ESMTPS (TLSv1.2) id " in field
        assert b"\r\n\ttls TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;\r\n" in field


@pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())
def test_postfix_relays_to_us_and_verifies_who_we_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(folder / "tls", "DNS:relay.example.test")
    verifying = (
        "smtp_tls_security_level = secure\nsmtp_tls_loglevel = 1\n"
        f"smtp_tls_CAfile = {certificate.certificate}\n"
        "smtp_tls_secure_cert_match = relay.example.test\n"
    )
    monkeypatch.setattr(postfix, "MAIN", postfix.MAIN + verifying)
    port = free_port()
    with (
        destination() as sink,
        relay(tmp_path, TLS.format(*certificate), route(sink.port)) as running,
        postfix.running(folder, port, running.smtp, 1),
    ):
        with SMTP("127.0.0.1", port, timeout=LIMIT) as client:
            client.sendmail(*SENT)
        [event] = running.wait_for(1, event="received")
        assert event["tls"] == "TLSv1.3 TLS_AES_256_GCM_SHA384"
        assert b"\r\n\ttls TLS_AES_256_GCM_SHA384;\r\n" in sink.mail_for("bob@example.test").content
        assert "Verified TLS connection established" in (folder / "maillog").read_text()


@pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())
def test_posttls_finger_finds_what_is_there(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls", "DNS:relay.example.test")
    with relay(tmp_path, TLS.format(*certificate)) as running:
        command = [program("posttls-finger"), "-l", "secure", "-F", str(certificate.certificate)]
        target = ["-t", "30", f"[127.0.0.1]:{running.smtp}", "relay.example.test"]
        done = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert "Verified TLS connection established" in said
        assert "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384" in said


# Behind a proxy

HAPROXY = """
defaults
  mode tcp
  timeout connect 30s
  timeout client 60s
  timeout server 60s
listen smtp
  bind 127.0.0.1:{front}
  server one 127.0.0.1:{back} {how}
"""


@contextmanager
def haproxy(folder: Path, back: int, how: str) -> Iterator[int]:
    """The port that it listens on."""
    front, configuration = free_port(), folder / f"{how}.cfg"
    configuration.write_text(HAPROXY.format(front=front, back=back, how=how))
    process = subprocess.Popen([program("haproxy"), "-q", "-f", str(configuration)])

    def is_there() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", front)) == 0

    try:
        wait_until(is_there, lambda: process.poll() is None)
        yield front
    finally:
        process.terminate()
        process.wait(LIMIT)


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
def test_behind_haproxy(how: str, tmp_path: Path) -> None:
    certificate, port = make_certificate(tmp_path / "tls", "DNS:localhost"), free_port()
    trusted = 'proxy_networks = ["127.0.0.1/32"]'
    first = f"[smtp]\nrelay_networks = ['127.0.0.2/32']\n{TLS.format(*certificate)}"
    with (
        destination() as sink,
        relay(tmp_path, first, implicit(port, trusted), route(sink.port)) as running,
    ):
        running.reload(f'"127.0.0.1:{running.smtp}"', f'"127.0.0.1:{running.smtp}"\n{trusted}')
        options: dict[str, Any] = {"timeout": LIMIT, "source_address": ("127.0.0.2", 0)}
        with (
            haproxy(tmp_path, running.smtp, how) as front,
            SMTP("127.0.0.1", front, **options) as client,
        ):
            client.starttls(context=trusting_any())
            client.sendmail(*SENT)
        options["context"] = trusting_any()
        with (
            haproxy(tmp_path, port, how) as front,
            SMTP_SSL("127.0.0.1", front, **options) as client,
        ):
            client.sendmail(*SENT)
        clients = [event["client"] for event in running.wait_for(2, event="received")]
        assert all(client.endswith(" [127.0.0.2]") for client in clients)
        assert b"([127.0.0.2])" in sink.mail_for("bob@example.test").content


def trusting_any() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
