"""Logins in a running server with two workers: accounts that change, bound channels, tokens."""

import json
import smtplib
import ssl
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from scramp import ScramClient

from bench.processes import free_port
from tests.certificates import make_certificate
from tests.integration.clients import HOST
from tests.integration.servers import LIMIT, PROGRAM, Relay, destination, relay, route

NAME, PASSWORD = "bob@a.test", "pass word"
KEY = ec.generate_private_key(ec.SECP256R1())
AUTH = """
[auth]
mechanisms = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
[auth.oauth]
jwks = "{jwks}"
issuer = "https://login.test"
audience = "mail.test"
"""


class Server(NamedTuple):
    relay: Relay
    port: int
    certificate: Path

    def client(self, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> smtplib.SMTP_SSL:
        context = ssl.create_default_context(cafile=self.certificate)
        context.maximum_version = most
        return smtplib.SMTP_SSL(HOST, self.port, timeout=LIMIT, context=context)

    def login(self, password: str) -> int:
        """The code of the answer, over a connection of its own and so to either worker."""
        with self.client() as client:
            client.ehlo()
            client.user, client.password = NAME, password
            try:
                return client.auth("PLAIN", client.auth_plain)[0]
            except smtplib.SMTPAuthenticationError as error:
                return error.smtp_code

    def account(self, command: str, *words: str, text: str = "") -> None:
        configuration = self.relay.folder / "fastmta.toml"
        line = [PROGRAM, "account", command, "-c", configuration, *words]
        subprocess.run(line, input=text.encode(), check=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("logins"), free_port()
    made = make_certificate(folder, f"IP:{HOST}")
    keys = folder / "keys.json"
    key = ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    keys.write_text(json.dumps({"keys": [{**key, "kid": "one"}]}))
    tables = [
        f'[[listener]]\nservice = "submission"\nbind = "{HOST}:{port}"\ntls = "implicit"\n',
        f'[tls]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\n',
        AUTH.format(jwks=keys.as_uri()),
    ]
    with (
        destination() as sink,
        relay(folder, *tables, route(sink.port), workers=2) as running,
    ):
        one = Server(running, port, made.certificate)
        one.account("add", NAME, "--password-stdin", text=PASSWORD)
        yield one


def test_a_change_counts_at_once_in_every_worker(server: Server) -> None:
    assert {server.login(PASSWORD) for _ in range(8)} == {235}
    server.account("passwd", NAME, "--password-stdin", text="new")
    assert server.login(PASSWORD) == 535
    assert {server.login("new") for _ in range(8)} == {235}
    server.account("set", NAME, "--disable")
    assert server.login("new") == 535
    server.account("set", NAME, "--enable")
    server.account("passwd", NAME, "--password-stdin", text=PASSWORD)
    assert {server.login(PASSWORD) for _ in range(4)} == {235}
    assert PASSWORD not in server.relay.stderr()


def prove(client: smtplib.SMTP, scram: ScramClient) -> tuple[int, bytes]:
    def encoded(text: str) -> str:
        return b64encode(text.encode()).decode()

    mechanism = "SCRAM-SHA-256-PLUS"
    code, text = client.docmd("AUTH", f"{mechanism} {encoded(scram.get_client_first())}")
    assert code == 334, text
    scram.set_server_first(decoded(text))
    code, text = client.docmd(encoded(scram.get_client_final()))
    if code == 334:
        scram.set_server_final(decoded(text))
        code, text = client.docmd("")
    return code, text


def decoded(text: bytes) -> str:
    return b64decode(text).decode()


def test_a_login_is_bound_to_its_connection(server: Server) -> None:
    with server.client(ssl.TLSVersion.TLSv1_2) as client:
        client.ehlo()
        assert "SCRAM-SHA-256-PLUS" in client.esmtp_features["auth"]
        assert isinstance(client.sock, ssl.SSLSocket)
        data = client.sock.get_channel_binding("tls-unique")
        for known, code in ((b"another channel", 535), (data, 235)):
            binding = ("tls-unique", known)
            scram = ScramClient(["SCRAM-SHA-256-PLUS"], NAME, PASSWORD, channel_binding=binding)
            assert prove(client, scram)[0] == code


def test_no_binding_is_offered_that_clients_would_not_know(server: Server) -> None:
    with server.client(ssl.TLSVersion.TLSv1_3) as client:
        client.ehlo()
        assert client.esmtp_features["auth"].split() == [
            *("SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN")
        ]


def token(name: str) -> str:
    claims = {"iss": "https://login.test", "aud": "mail.test", "exp": time.time() + 300}
    return jwt.encode({**claims, "email": name}, KEY, "ES256", headers={"kid": "one"})


def xoauth2(name: str) -> str:
    return f"user={name}\1auth=Bearer {token(name)}\1\1"


def oauthbearer(name: str) -> str:
    return f"n,a={name},\1host={HOST}\1auth=Bearer {token(name)}\1\1"


@pytest.mark.parametrize("form", [xoauth2, oauthbearer])
def test_a_token_opens_an_account(server: Server, form: Callable[[str], str]) -> None:
    with server.client() as client:
        client.ehlo()
        mechanism = form.__name__.upper()
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.auth(mechanism, lambda _=None: form("nobody@a.test"))
        assert caught.value.smtp_code == 535
        assert client.auth(mechanism, lambda _=None: form(NAME))[0] == 235
        assert client.mail(NAME)[0] == 250


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_curl_brings_a_token(server: Server, mechanism: str, tmp_path: Path) -> None:
    recipient = f"{mechanism.lower()}@example.test"
    content = tmp_path / "message"
    content.write_bytes(b"From: bob@a.test\r\nTo: you\r\n\r\nHello\r\n")
    command = [
        *("curl", "--silent", "--show-error", "--cacert", str(server.certificate)),
        *("--login-options", f"AUTH={mechanism}", "--user", NAME),
        *("--oauth2-bearer", token(NAME), "--upload-file", str(content)),
        *("--mail-from", NAME, "--mail-rcpt", recipient),
        f"smtps://{HOST}:{server.port}/client.example.test",
    ]
    subprocess.run(command, check=True, timeout=LIMIT)
    server.relay.wait_for(1, event="received", account=NAME, recipients=[recipient])
