"""What only a running server shows: limits over the wire, files on the disk, the trace field."""

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.processes import free_port
from fastmta.mail.dsn import parse_report
from fastmta.mail.message import parse
from tests.integration.clients import BdatClient, Post
from tests.integration.servers import (
    LIMIT,
    Destination,
    Relay,
    assert_same,
    destination,
    relay,
    route,
    split_trace,
)

MAX_SIZE = 10_000
SENDER, RECIPIENT = "alice@sender.test", "bob@example.test"


class Pair(NamedTuple):
    relay: Relay
    sink: Destination


@contextmanager
def pair(folder: Path, *tables: str) -> Iterator[Pair]:
    with destination() as sink, relay(folder, *tables, route(sink.port)) as running:
        yield Pair(running, sink)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A relay that takes messages of up to MAX_SIZE octets."""
    folder = tmp_path_factory.mktemp("edges")
    with pair(folder, f"[smtp]\nmax_message_size = {MAX_SIZE}\n") as both:
        yield both


def connect(running: Relay) -> BdatClient:
    return BdatClient("127.0.0.1", running.smtp, timeout=LIMIT)


def of_size(octets: int, line: bytes) -> bytes:
    """Lines like this one, the last as long as it takes, of so many octets in all."""
    whole = (line + b"\r\n") * (octets // (len(line) + 2) - 1)
    return whole + b"x" * (octets - len(whole) - 2) + b"\r\n"


def by_data(client: BdatClient, recipient: str, content: bytes) -> tuple[int, bytes]:
    client.ehlo()
    client.mail(SENDER)
    client.rcpt(recipient)
    return client.data(content)


def by_bdat(client: BdatClient, recipient: str, content: bytes) -> tuple[int, bytes]:
    client.ehlo()
    client.mail(SENDER)
    client.rcpt(recipient)
    client.send(b"BDAT %d LAST\r\n%b" % (len(content), content))
    return client.getreply()


# Doubled dots are not counted (RFC 1870 section 3); our own trace field is not either.
@pytest.mark.parametrize("line", [b"y" * 78, b".." + b"y" * 76, b"."], ids=["text", "dots", "dot"])
@pytest.mark.parametrize("send", [by_data, by_bdat])
def test_the_largest_message(
    small: Pair, send: Callable[[BdatClient, str, bytes], tuple[int, bytes]], line: bytes
) -> None:
    content = of_size(MAX_SIZE, line)
    recipient = f"{send.__name__}+{len(line)}{line[:1].hex()}{line[1:2].hex()}@example.test"
    with connect(small.relay) as client:
        code, text = send(client, recipient, content)
        assert code == 250, text
        assert_same(small.sink.mail_for(recipient).content, content)
        code, text = send(client, "none@example.test", of_size(MAX_SIZE + 1, line))
        assert (code, text[:6]) == (552, b"5.3.4 ")
        assert send(client, "next@example.test", b"one more\r\n")[0] == 250


def test_the_largest_declared_size(small: Pair) -> None:
    with connect(small.relay) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == str(MAX_SIZE)
        assert client.mail(SENDER, [f"SIZE={MAX_SIZE}"])[0] == 250
        client.rset()
        code, text = client.mail(SENDER, [f"SIZE={MAX_SIZE + 1}"])
        assert (code, text[:6]) == (552, b"5.3.4 ")


def test_the_largest_message_in_many_chunks(small: Pair, tmp_path: Path) -> None:
    with connect(small.relay) as client:
        content = of_size(MAX_SIZE, b"y" * 78)
        client.bdat(Post(SENDER, "many@example.test", content, tmp_path), lambda number: 997)
    assert_same(small.sink.mail_for("many@example.test").content, content)


def test_a_last_line_without_crlf(small: Pair, tmp_path: Path) -> None:
    """Only BDAT can send it, and it goes on as it came."""
    content = b"Subject: x\r\n\r\n.the end"
    with connect(small.relay) as client:
        client.bdat(Post(SENDER, "open@example.test", content, tmp_path), lambda number: 5)
    assert_same(small.sink.mail_for("open@example.test").content, content)


def test_relaying_is_denied_elsewhere(tmp_path: Path) -> None:
    with pair(tmp_path, '[smtp]\nrelay_networks = ["10.0.0.0/8"]\n') as (running, sink):
        with connect(running) as client:
            client.ehlo()
            assert client.mail(SENDER)[0] == 250
            for recipient in (RECIPIENT, "<bob%example.test@relay.example.test>"):
                code, text = client.rcpt(recipient)
                assert (code, text[:6]) == (550, b"5.7.1 ")
            assert client.docmd("DATA")[0] == 503
        assert running.events() == [] and sink.mail == []


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}


def test_nobody_else_may_read_the_queue(tmp_path: Path) -> None:
    """With a deferred message in it, whatever the umask is."""
    unreachable = route(free_port())
    with relay(tmp_path, unreachable, umask=0) as running:
        with connect(running) as client:
            client.sendmail(SENDER, [RECIPIENT], b"Subject: secret\r\n\r\n" + b"x" * 100_000)
        running.wait_for(1, event="deferred")
        found = modes(running.data)
    assert any(name.endswith(".mdb") for name in found)
    wrong = {
        name: oct(mode)
        for name, mode in found.items()
        if mode != (0o700 if Path(name).is_dir() else 0o600)
    }
    assert wrong == {}


# RFC 5321 section 4.4, as far as we write it.
RECEIVED = re.compile(
    r"Received: from (?P<helo>\S+) \((?P<client>\[[0-9A-Fa-f.:]+\])\)\r\n"
    r"\tby (?P<by>\S+) with (?P<protocol>\S+)(?: \((?P<tls>TLSv1\.[23])\))? id (?P<id>\w{13})"
    r"(?:\r\n\tfor <(?P<for>[^>]+)>)?;\r\n"
    r"\t(?P<date>[^\r\n]+)\r\n"
)


def trace_of(both: Pair, recipient: str) -> dict[str, str | None]:
    trace, _ = split_trace(both.sink.mail_for(recipient).content)
    match = RECEIVED.fullmatch(trace.decode())
    assert match, trace
    return match.groupdict()


@pytest.mark.parametrize("hello, protocol", [("ehlo", "ESMTP"), ("helo", "SMTP")])
def test_the_trace_field(small: Pair, hello: str, protocol: str) -> None:
    recipient = f"{hello}@example.test"
    with connect(small.relay) as client:
        getattr(client, hello)("client.example.test")
        client.sendmail(SENDER, [recipient], b"Subject: x\r\n\r\n")
    trace = trace_of(small, recipient)
    date = parsedate_to_datetime(trace.pop("date") or "")
    (received,) = small.relay.wait_for(1, recipients=[recipient])
    assert date.timestamp() == int(received["time"])
    assert trace == {
        "helo": "client.example.test",
        "client": "[127.0.0.1]",
        "by": "relay.example.test",
        "protocol": protocol,
        "tls": None,
        "id": received["id"],
        "for": recipient,
    }


def test_the_trace_field_names_no_recipient_of_several(small: Pair) -> None:
    with connect(small.relay) as client:
        client.sendmail(SENDER, ["c@example.test", "d@example.test"], b"Subject: x\r\n\r\n")
    assert trace_of(small, "c@example.test")["for"] is None


def test_messages_to_a_host_without_8bitmime(tmp_path: Path) -> None:
    """They are converted (RFC 6152 section 3), reports too; what cannot be is returned."""
    without = frozenset({"8BITMIME", "SMTPUTF8"})
    signed = (
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xc3\xa4\r\n"
        b"--b\r\nContent-Type: application/pgp-signature\r\n\r\nx\r\n--b--\r\n"
    )
    with destination(without=without) as sink, relay(tmp_path, route(sink.port)) as running:
        with connect(running) as client:
            client.ehlo()
            options = ["BODY=8BITMIME"]
            client.sendmail(SENDER, ["ascii@example.test"], b"Subject: x\r\n\r\n", options)
            client.sendmail(SENDER, ["eight@example.test"], b"\r\n\xc3\xa4\r\n", options)
            client.sendmail("signer@sender.test", ["signed@example.test"], signed, options)
            client.sendmail(SENDER, ["utf8@exämple.test"], b"\r\n", ["SMTPUTF8"])
        failed = {"signed@example.test": "5.6.3", "utf8@exämple.test": "5.6.7"}
        bounced = running.wait_for(2, event="bounced")
        assert {event["recipient"]: event["enhanced"] for event in bounced} == failed
        assert sink.mail_for("ascii@example.test").content.endswith(b"Subject: x\r\n\r\n")
        converted = sink.mail_for("eight@example.test").content
        assert converted.isascii() and parse(converted).text() == "ä\r\n"
        for sender, recipient in zip(("signer@sender.test", SENDER), failed, strict=True):
            report = sink.mail_for(sender).content
            assert report.isascii()
            told = parse_report(parse(report))
            assert told is not None and told.status.recipients[0].final == recipient
