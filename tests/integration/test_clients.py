"""What real clients send arrives byte for byte as it was sent, but for the Received field."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.processes import free_port
from tests.integration import clients
from tests.integration.clients import Client, Post, Server
from tests.integration.servers import (
    Destination,
    Relay,
    assert_same,
    destination,
    relay,
    route,
)

HEADER = (
    b"From: Alice <alice@sender.test>\r\n"
    b"To: Bob <bob@example.test>\r\n"
    b"Subject: as it was sent\r\n"
    b"Date: Mon, 23 Nov 2026 05:00:00 +0000\r\n"
    b"Message-ID: <1@sender.test>\r\n"
    b"\r\n"
)
MiB = 1 << 20


def _large() -> bytes:
    """25 MB of lines of all lengths, some of which begin with dots."""
    draw = random.Random(25)
    octets = bytes(range(33, 127)) * 11
    lines = (b"." * (draw.random() < 0.1) + octets[: draw.randrange(900)] for _ in range(5_000))
    block = b"\r\n".join(lines) + b"\r\n"
    return HEADER + block * (25 * MiB // len(block) + 1)


CONTENTS = {
    "plain": HEADER + b"Hello,\r\n\r\nthis is all.\r\n",
    "leading dots": HEADER + b".\r\n..\r\n...\r\n.a\r\n..b.\r\n. \r\n\r\n.\r\nend\r\n.\r\n",
    "998 octets": HEADER + b"x" * 998 + b"\r\n." + b"y" * 997 + b"\r\n" + b"z" * 997 + b".\r\n",
    "8-bit": HEADER + b"\r\n".join(bytes([n]) * 3 for n in range(128, 256)) + b"\r\n",
    "no header": b"\r\nJust a body.\r\n",
    "empty": b"",
    "one line": b"x\r\n",
    "25 MB": _large(),
}
ALL: list[Client] = [
    clients.swaks,
    clients.msmtp,
    clients.msmtp_starttls,
    clients.msmtp_tls,
    clients.curl,
    clients.curl_starttls,
    clients.curl_tls,
    clients.python_smtplib,
    clients.python_smtplib_starttls,
    clients.aiosmtplib_plain,
    clients.aiosmtplib_starttls,
    clients.aiosmtplib_tls,
    clients.nc,
    clients.openssl_starttls,
    clients.openssl_tls,
    clients.bdat,
]


def name(client: Client) -> str:
    return client.__name__


class Bench(NamedTuple):
    server: Server
    relay: Relay
    chunked: Destination  # offers all that fastmta speaks
    plain: Destination  # *@data.test; offers no CHUNKING


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("clients")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(certificate, key)
    smtps = free_port()
    implicit = f'[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:{smtps}"\ntls = "implicit"\n'
    tls = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    with destination() as chunked, destination(without=frozenset({"CHUNKING"})) as plain:
        routes = route(plain.port, "data.test"), route(chunked.port)
        with relay(folder, implicit, tls, *routes) as running:
            yield Bench(Server(running.smtp, smtps, certificate), running, chunked, plain)


def make_certificate(certificate: Path, key: Path) -> None:
    new_key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        str(key),
    ]
    names = ["-subj", "/CN=relay.example.test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-days", "2", *new_key, *names, "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)


def addresses(client: Client, what: str, domain: str) -> tuple[str, str]:
    tag = f"{client.__name__}+{what.replace(' ', '')}"
    return "alice@sender.test", f"{tag}@{domain}"


def send(bench: Bench, client: Client, what: str, folder: Path, domain: str) -> None:
    sender, recipient = addresses(client, what, domain)
    sink = bench.plain if domain == "data.test" else bench.chunked
    client(bench.server, Post(sender, recipient, CONTENTS[what], folder))
    mail = sink.mail_for(recipient)
    assert (mail.sender, mail.recipients) == (sender, [recipient])
    assert mail.chunked is (sink is bench.chunked)
    assert_same(mail.content, CONTENTS[what])


@pytest.mark.parametrize("what", ["plain", "leading dots", "998 octets", "8-bit"])
@pytest.mark.parametrize("client", ALL, ids=name)
def test_every_client(bench: Bench, client: Client, what: str, tmp_path: Path) -> None:
    send(bench, client, what, tmp_path, "example.test")


# swaks and msmtp make a header where there is none.
EXACT = [client for client in ALL if client.__name__[:5] not in ("swaks", "msmtp")]
# Python's clients send an empty line for nothing at all.
ABLE_TO_SEND_NOTHING = [
    clients.curl,
    clients.curl_tls,
    clients.nc,
    clients.openssl_starttls,
    clients.openssl_tls,
    clients.bdat,
]


@pytest.mark.parametrize("what", ["no header", "one line"])
@pytest.mark.parametrize("client", EXACT, ids=name)
def test_little(bench: Bench, client: Client, what: str, tmp_path: Path) -> None:
    send(bench, client, what, tmp_path, "example.test")


@pytest.mark.parametrize("client", ABLE_TO_SEND_NOTHING, ids=name)
def test_nothing(bench: Bench, client: Client, tmp_path: Path) -> None:
    send(bench, client, "empty", tmp_path, "example.test")


# One of each kind: others differ from these in how they begin only.
FOR_MUCH = [
    clients.swaks,
    clients.msmtp,
    clients.curl,
    clients.curl_tls,
    clients.python_smtplib,
    clients.aiosmtplib_starttls,
    clients.nc,
    clients.openssl_starttls,
    clients.openssl_tls,
    clients.bdat,
]


@pytest.mark.parametrize("client", FOR_MUCH, ids=name)
def test_much(bench: Bench, client: Client, tmp_path: Path) -> None:
    send(bench, client, "25 MB", tmp_path, "example.test")


@pytest.mark.parametrize("what", CONTENTS)
def test_to_a_host_without_chunking(bench: Bench, what: str, tmp_path: Path) -> None:
    send(bench, clients.bdat, what, tmp_path, "data.test")


def test_a_last_line_without_crlf_to_a_host_without_chunking(bench: Bench, tmp_path: Path) -> None:
    """DATA has no way to send it: the CRLF before the dot belongs to it (RFC 5321, 4.1.1.4)."""
    post = Post("alice@sender.test", "open@data.test", HEADER + b".the end", tmp_path)
    clients.bdat(bench.server, post)
    assert_same(bench.plain.mail_for(post.recipient).content, post.content + b"\r\n")


@pytest.mark.parametrize("domain", ["example.test", "data.test"])
def test_chunks_of_one_octet(bench: Bench, domain: str, tmp_path: Path) -> None:
    send(bench, clients.bdat_bytewise, "leading dots", tmp_path, domain)


# swaks and msmtp do not know SMTPUTF8: they send such addresses without asking for it.
@pytest.mark.parametrize("client", EXACT, ids=name)
def test_utf8_addresses(bench: Bench, client: Client, tmp_path: Path) -> None:
    sender, recipient = "jürgen@sender.test", f"δοκιμή+{client.__name__}@παράδειγμα.test"
    content = "Subject: Grüße an 用户\r\n".encode() + CONTENTS["8-bit"]
    client(bench.server, Post(sender, recipient, content, tmp_path))
    mail = bench.chunked.mail_for(recipient)
    assert (mail.sender, len(mail.recipients)) == (sender, 1)
    assert "SMTPUTF8" in mail.parameters.split()
    assert_same(mail.content, content)
