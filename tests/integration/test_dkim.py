"""DKIM between real processes: what comes out at the other end is signed, and verifies."""

import smtplib
import subprocess
from pathlib import Path

import dkim
import pytest

from fastmta.config_dkim import read_key
from tests.integration.servers import PROGRAM, Relay, destination, relay, route

MESSAGE = b"From: A <a@example.test>\r\nSubject: hello\r\n\r\nHello \t there\r\n\r\n"


def table(domain: str, kind: str, more: str = "") -> str:
    return (
        f'[[dkim]]\ndomain = "{domain}"\nselector = "{kind}"\nkey = "{domain}.{kind}.pem"\n{more}\n'
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for domain in ("example.test", "relay.example.test", "other.test"):
        for kind in ("rsa2048", "ed25519"):
            file = tmp_path / f"{domain}.{kind}.pem"
            command = [str(PROGRAM), "dkim", "generate", domain, "--type", kind, "--out", str(file)]
            subprocess.run(command, check=True, capture_output=True)
    return tmp_path


def send(one: Relay, recipient: str, content: bytes = MESSAGE, sender: str = "a@b.test") -> None:
    with smtplib.SMTP("127.0.0.1", one.smtp) as client:
        client.sendmail(sender, [recipient], content)


def good(content: bytes, folder: Path) -> list[tuple[str, str]]:
    """The domain and selector of each signature, all of which have to be good."""
    found = []

    def dns(name: bytes, timeout: int = 5) -> bytes:
        selector, _, domain = name.decode().rstrip(".").partition("._domainkey.")
        found.append((domain, selector))
        return read_key(folder / f"{domain}.{selector}.pem").record.encode()

    count = content.lower().count(b"dkim-signature:")
    assert all(dkim.DKIM(content).verify(idx=index, dnsfunc=dns) for index in range(count))
    return found


def test_mail_is_signed_on_its_way(folder: Path) -> None:
    tables = [
        table("example.test", "rsa2048", "subdomains = true"),
        table("example.test", "ed25519", 'canonicalization = "simple/simple"\nexpire_after = "7d"'),
    ]
    with destination() as sink, relay(folder, route(sink.port), *tables) as one:
        send(one, "plain@dest.test")
        send(one, "below@dest.test", MESSAGE.replace(b"@example", b"@sub.example"))
        send(one, "other@dest.test", MESSAGE.replace(b"@example", b"@other"))
        send(one, "long@dest.test", MESSAGE + b"line of text\r\n" * 100_000)
        both = [("example.test", "rsa2048"), ("example.test", "ed25519")]
        assert good(sink.mail_for("plain@dest.test").content, folder) == both
        assert good(sink.mail_for("below@dest.test").content, folder) == both[:1]
        assert good(sink.mail_for("other@dest.test").content, folder) == []
        assert good(sink.mail_for("long@dest.test").content, folder) == both
        assert one.get("/metrics")[1].count("fastmta_dkim_signatures_total{") == 2


def test_pipelined_messages_are_answered_in_their_order(folder: Path) -> None:
    wire = b"".join(
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<r%d@dest.test>\r\nBDAT %d LAST\r\n%b"
        % (number, len(content), content)
        for number in range(30)
        # every third has no key and is not waited for
        for content in [MESSAGE.replace(b"@example", b"@other") if number % 3 else MESSAGE]
    )
    with (
        destination() as sink,
        relay(folder, route(sink.port), table("example.test", "rsa2048")) as one,
        smtplib.SMTP("127.0.0.1", one.smtp) as client,
    ):
        client.ehlo("client.test")
        client.send(wire)
        replies = [client.getreply() for _ in range(90)]
        assert {code for code, _ in replies} == {250}
        ids = [text.split()[-1] for _, text in replies[2::3]]
        assert ids == sorted(ids)
        assert len(set(ids)) == 30
        for number in range(30):
            content = sink.mail_for(f"r{number}@dest.test").content
            assert len(good(content, folder)) == (number % 3 == 0)


def test_reports_are_signed(folder: Path) -> None:
    with (
        destination(permfail=1.0) as bad,
        destination() as sink,
        relay(
            folder,
            route(bad.port, "bad.test"),
            route(sink.port),
            table("relay.example.test", "rsa2048"),
        ) as one,
    ):
        send(one, "nobody@bad.test", sender="author@dest.test")
        report = sink.mail_for("author@dest.test").content
        assert b"\r\nFrom: Mail Delivery System" in report
        assert good(report, folder) == [("relay.example.test", "rsa2048")]


def test_a_reload_brings_new_keys(folder: Path) -> None:
    first, second = table("example.test", "rsa2048"), table("example.test", "ed25519")
    with destination() as sink, relay(folder, route(sink.port), "[log]\n") as one:
        send(one, "a@dest.test")
        assert good(sink.mail_for("a@dest.test").content, folder) == []
        one.reload("[log]\n", first + "[log]\n")
        send(one, "b@dest.test")
        assert good(sink.mail_for("b@dest.test").content, folder) == [("example.test", "rsa2048")]
        one.reload(first, second)
        send(one, "c@dest.test")
        assert good(sink.mail_for("c@dest.test").content, folder) == [("example.test", "ed25519")]


def test_a_stranger_gets_no_signature(folder: Path) -> None:
    """Whoever may not relay reaches only the addresses of [bounces], which are not queued; and
    where a network may relay no longer, its mail is refused."""
    with relay(
        folder,
        '[smtp]\nrelay_networks = ["192.0.2.0/24"]\n',
        table("example.test", "rsa2048"),
    ) as one:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(one, "a@dest.test")
        assert one.metric("fastmta_smtp_in_messages_total") == 0
