"""What lies in a mailbox comes out of real POP3 clients byte for byte."""

from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from tests.integration import clients, pop3_clients
from tests.integration.pop3_clients import Fetcher
from tests.integration.pop3_servers import Server, contents, pop3_server
from tests.integration.servers import assert_same
from tests.integration.test_clients import HEADER, _large


def _with_attachments() -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"] = "Alice <alice@sender.test>", "Bob <bob@example.test>"
    message["Subject"], message["Date"] = "papers", "Mon, 23 Nov 2026 05:00:00 +0000"
    message["Message-ID"] = "<2@sender.test>"
    message.set_content("Here they are.\n")
    draw = Random(3)
    for size in (10, 1000, 100_000):
        message.add_attachment(
            draw.randbytes(size), maintype="application", subtype="pdf", filename=f"{size}.pdf"
        )
    return message.as_bytes()


DOTS = b".\r\n..\r\n...\r\n.a\r\n..b.\r\n. \r\n\r\n.\r\nend\r\n.\r\n"
MESSAGES = [
    HEADER + b"Hello,\r\n\r\nthis is all.\r\n",
    HEADER + DOTS,
    HEADER + b"x" * 998 + b"\r\n." + b"y" * 997 + b"\r\n",
    HEADER + "Grüße, 例え\r\n".encode() * 3,
    _with_attachments(),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    users = [f"{client.__name__}-{kind}" for client in pop3_clients.ALL for kind in "mls"]
    tables = '[pop3]\nplaintext_networks = ["127.0.0.0/8"]\n[domains."example.test"]\n'
    with pop3_server(tmp_path_factory.mktemp("pop3"), users, tables, workers=2) as running:
        yield running


def by_name(client: Fetcher) -> str:
    return client.__name__


@pytest.mark.parametrize("client", pop3_clients.ALL, ids=by_name)
def test_download_and_keep_then_download_and_delete(
    server: Server, client: Fetcher, tmp_path: Path
) -> None:
    user = f"{client.__name__}-m"
    server.deliver(user, *MESSAGES)
    for keep in (True, False):
        folder = tmp_path / str(keep)
        folder.mkdir()
        assert client(server.maildrop(user, folder), keep=keep) == MESSAGES
        assert contents(server.relay.data, user) == ([1, 2, 3, 4, 5] if keep else [])


@pytest.mark.parametrize("client", pop3_clients.LARGE, ids=by_name)
def test_a_message_of_25_MB(server: Server, client: Fetcher, tmp_path: Path) -> None:
    user, large = f"{client.__name__}-l", _large()
    server.deliver(user, large)
    (fetched,) = client(server.maildrop(user, tmp_path), keep=False)
    assert len(fetched) == len(large)
    assert sha256(fetched).digest() == sha256(large).digest()
    assert contents(server.relay.data, user) == []


@pytest.mark.parametrize("client", pop3_clients.ALL, ids=by_name)
def test_what_swaks_sent(server: Server, client: Fetcher, tmp_path: Path) -> None:
    """Over SMTP into the spool, from there into the mailbox, and out again."""
    drop = server.maildrop(f"{client.__name__}-s", tmp_path)
    sent = _with_attachments() + DOTS
    where = clients.Server(server.relay.smtp, 0, server.certificate)
    clients.swaks(where, clients.Post("alice@sender.test", drop.name, sent, tmp_path))
    server.relay.wait_for(1, event="delivered", recipient=drop.name)
    (fetched,) = client(drop, keep=False)
    front = f"Return-Path: <alice@sender.test>\r\nDelivered-To: {drop.name}\r\n".encode()
    assert fetched.startswith(front)
    assert_same(fetched.removeprefix(front), sent)
