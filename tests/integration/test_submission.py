"""Real clients log in and send; what they send arrives, and nobody else's mail does."""

import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import astuple
from scramp import ScramClient

from bench.processes import free_port
from tests.integration import submission_clients
from tests.integration.clients import HOST, Post, Server, _context
from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Destination,
    Relay,
    assert_same,
    destination,
    relay,
    route,
)
from tests.integration.submission_clients import Login, Submitter
from tests.integration.test_clients import make_certificate

LOGIN = Login("alice@sender.test", "pass word/1")
CONTENT = (
    b"From: Alice <alice@sender.test>\r\nTo: Bob <bob@example.test>\r\nSubject: a\r\n"
    b"Date: Mon, 23 Nov 2026 05:00:00 +0000\r\nMessage-ID: <1@sender.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHello,\r\n..\r\nthis is all.\r\n"
)


class Bench(NamedTuple):
    server: Server
    relay: Relay
    sink: Destination


def fastmta(folder: Path, *arguments: str, stdin: str = "") -> None:
    command = [str(PROGRAM), *arguments]
    subprocess.run(command, input=stdin.encode(), cwd=folder, check=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("submission")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(certificate, key)
    starttls, implicit = free_port(), free_port()
    tables = [
        f'[[listener]]\nservice = "submission"\nbind = "127.0.0.1:{starttls}"\n',
        f'[[listener]]\nservice = "submission"\nbind = "127.0.0.1:{implicit}"\ntls = "implicit"\n',
        f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n',
        '[auth]\nmechanisms = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]\n',
    ]
    with destination() as sink, relay(folder, *tables, route(sink.port)) as running:
        configured = "-c", str(folder / "fastmta.toml")
        line = f"{LOGIN.password}\n"
        fastmta(folder, "account", "add", *configured, "--password-stdin", LOGIN.name, stdin=line)
        yield Bench(Server(starttls, implicit, certificate), running, sink)


def _post(recipient: str, folder: Path, sender: str = LOGIN.name) -> Post:
    return Post(sender, recipient, CONTENT, folder)


@pytest.mark.parametrize("submit", submission_clients.ALL, ids=lambda each: each.__name__)
def test_every_client_logs_in_and_sends(bench: Bench, submit: Submitter, tmp_path: Path) -> None:
    recipient = f"{submit.__name__}@example.test"
    submit(bench.server, LOGIN, _post(recipient, tmp_path))
    mail = bench.sink.mail_for(recipient)
    assert (mail.sender, mail.recipients) == (LOGIN.name, [recipient])
    assert_same(mail.content, CONTENT)
    [event] = bench.relay.wait_for(1, event="received", recipients=[recipient])
    assert (event["account"], event["protocol"]) == (LOGIN.name, "ESMTPSA")


def test_threat_11_a_wrong_password_and_no_password(bench: Bench) -> None:
    with smtplib.SMTP(HOST, bench.server.smtp, timeout=LIMIT) as client:
        assert client.mail("alice@sender.test")[0] == 503
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.mail("alice@sender.test")[0] == 530
        assert client.docmd("AUTH PLAIN AGEAYg==")[0] == 538
        client.starttls(context=_context(bench.server))
        for name in (LOGIN.name, "nobody@sender.test"):
            with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
                client.login(name, "wrong")
            assert caught.value.smtp_code == 535
        assert client.mail("alice@sender.test")[0] == 530
        client.login(LOGIN.name, LOGIN.password)
        assert client.mail("bob@sender.test")[0] == 550
        assert client.mail("alice@sender.test")[0] == 250
    assert LOGIN.password not in bench.relay.stderr()


def test_a_login_is_bound_to_the_certificate(bench: Bench) -> None:
    der = ssl.PEM_cert_to_DER_cert(bench.server.certificate.read_text())
    for end_point, code in ((sha256(der).digest(), 235), (sha256(b"another").digest(), 535)):
        binding = "tls-server-end-point", end_point
        scram = ScramClient(["SCRAM-SHA-256-PLUS"], *astuple(LOGIN), channel_binding=binding)

        def answer(challenge: bytes | None = None, scram: ScramClient = scram) -> str:
            if challenge is None:
                return scram.get_client_first()
            if challenge.startswith(b"r="):
                scram.set_server_first(challenge.decode())
                return scram.get_client_final()
            scram.set_server_final(challenge.decode())
            return ""

        context = _context(bench.server)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with smtplib.SMTP_SSL(HOST, bench.server.smtps, context=context, timeout=LIMIT) as client:
            client.ehlo()
            try:
                assert client.auth("SCRAM-SHA-256-PLUS", answer)[0] == code
            except smtplib.SMTPAuthenticationError as error:
                assert error.smtp_code == code
