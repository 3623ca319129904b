"""Failure reports, read back by Python's email package."""

import email
import email.policy
from email.message import EmailMessage, Message

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fastmta.mail.disposition import Disposition
from fastmta.mail.dsn import MAX_HEADERS, Report, build_report, header_section, parse_report
from fastmta.mail.envelope import Envelope, Recipient, format_id
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply

ORIGINAL = b"Received: from x\r\n\tby y\r\nSubject: Hello\r\n\r\nThe secret body\r\n"


def report(
    address: str = "bob@to.test",
    reply: Reply = Reply(550, "5.1.1", "No such user"),  # noqa: B008
    original: bytes = ORIGINAL,
    **changes: object,
) -> Report:
    recipient = Recipient(address, orcpt="rfc822;Bob@to.test")
    envelope = Envelope(
        5 << 40, 0, "alice@from.test", "to.test", [recipient], 1e9, len(original), **changes
    )
    end = Disposition.of_reply(reply, "mx.to.test [192.0.2.1]", 1e9 + 60)
    return Report(6 << 40, "relay.test", 1e9 + 61, envelope, [(recipient, end)], original)


def parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.SMTPUTF8)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk()] == [[]] * len(list(message.walk()))
    return message


def fields(part: Message) -> list[dict[str, str]]:
    groups = part.get_payload()
    assert isinstance(groups, list)
    return [dict(group.items()) for group in groups]


def test_a_report_says_who_failed_and_why() -> None:
    message = parsed(build_report(report(envid="abc")))
    assert message["To"] == "alice@from.test"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.test>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    text, status, headers = message.iter_parts()
    assert "<bob@to.test>" in text.get_content()
    assert "550 5.1.1 No such user" in text.get_content()
    about, recipient = fields(status)
    assert about["Reporting-MTA"] == "dns; relay.test"
    assert about["Original-Envelope-Id"] == "abc"
    assert recipient == {
        "Original-Recipient": "rfc822;Bob@to.test",
        "Final-Recipient": "rfc822; bob@to.test",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.to.test",
        "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
        "Last-Attempt-Date": "Sun, 9 Sep 2001 01:47:40 +0000",
    }
    assert headers.get_content_type() == "text/rfc822-headers"
    assert "Subject: Hello" in headers.get_payload()
    assert "secret" not in headers.get_payload()


@pytest.mark.parametrize(
    ("original", "utf8", "kind", "encoding"),
    [
        (ORIGINAL, False, "message/rfc822", "7bit"),
        (ORIGINAL + b"\xc3\xa4\r\n", False, "message/rfc822", "8bit"),
        (ORIGINAL + b"no end", True, "message/global", "7bit"),
    ],
)
def test_a_whole_message_comes_back_as_it_was(
    original: bytes, utf8: bool, kind: str, encoding: str
) -> None:
    content = build_report(replace(report(original=original, utf8=utf8), whole=True))
    message = parsed(content)
    assert message["Content-Transfer-Encoding"] == encoding
    returned = list(message.iter_parts())[2]
    assert returned.get_content_type() == kind
    assert returned["Content-Transfer-Encoding"] == encoding
    assert b"\r\n\r\n" + original + b"\r\n--=_" in content
    ours = parse_report(parse(content))
    assert ours is not None and ours.returned is not None
    assert ours.returned.text().startswith("The secret body")


def test_a_message_that_foresaw_our_boundary_stays_in_its_part() -> None:
    foreseen = f"=_{format_id(6 << 40)}"
    original = ORIGINAL + f"--{foreseen}--\r\n--{foreseen}_\r\n".encode()
    message = parsed(build_report(replace(report(original=original), whole=True)))
    assert len(list(message.iter_parts())) == 3
    assert message.get_boundary() == foreseen + "__"


def test_a_report_without_its_original_has_two_parts() -> None:
    message = parsed(build_report(report(original=b"")))
    types = [part.get_content_type() for part in message.iter_parts()]
    assert types == ["text/plain", "message/delivery-status"]


def test_the_postmaster_is_told_what_has_no_sender() -> None:
    about = report()
    about.envelope.sender = ""
    message = parsed(build_report(replace(about, postmaster="post@our.test")))
    assert (message["To"], message["Subject"]) == ("post@our.test", "Undeliverable Report")


def test_addresses_beyond_ascii_have_the_types_of_rfc_6533() -> None:
    message = parsed(build_report(report("bjørn@to.test", utf8=True)))
    types = [part.get_content_type() for part in message.iter_parts()]
    assert types == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    assert (
        "Final-Recipient: utf-8; bjørn@to.test"
        in build_report(report("bjørn@to.test", utf8=True)).decode()
    )


@pytest.mark.parametrize("said", ["word " * 199 + "end", "x" * 1000, "\ufffd" * 1000, "caf\xe9"])
def test_a_long_or_foreign_answer_is_folded_and_made_ascii(said: str) -> None:
    """RFC 3464 section 2.1.1: message/delivery-status is US-ASCII; RFC 5322 section 2.1.1."""
    content = build_report(report(reply=Reply(550, "5.0.0", said)))
    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 998
    _, recipient = fields(list(parsed(content).iter_parts())[1])
    told = recipient["Diagnostic-Code"].removeprefix("smtp; 550 5.0.0 ")
    wanted = said.encode("ascii", "replace").decode()
    assert "".join(told.split()) == "".join(wanted.split())


def test_a_foreign_answer_stays_as_it_is_where_utf_8_is_allowed() -> None:
    content = build_report(report("bjørn@to.test", Reply(550, "5.1.1", "Ukendt: bjørn"), utf8=True))
    assert "Diagnostic-Code: smtp; 550 5.1.1 Ukendt: bjørn\r\n" in content.decode()


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1\r\nB: 2\r\n", b"A: 1\r\nB: 2\r\n"),
        (b"A: 1", b""),
        (b"", b""),
        (b"A: 1\r\n" * 20_000, (b"A: 1\r\n" * 20_000)[: MAX_HEADERS // 6 * 6]),
    ],
)
def test_the_header_section_is_cut_at_a_line(original: bytes, expected: bytes) -> None:
    assert header_section(original) == expected


@given(original=st.binary(max_size=300), text=st.text(max_size=2000))
def test_every_line_that_we_write_is_within_the_limit_and_ends_in_crlf(
    original: bytes, text: str
) -> None:
    """What the remote said is bounded and printable before it gets here, but not short."""
    said = "".join(c for c in text if c.isprintable())
    content = build_report(
        report(reply=Reply(550, "5.0.0", said), original=b"S: x\r\n\r\n" + original)
    )
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert max(map(len, content.split(b"\r\n"))) <= 998
