"""Feedback reports (RFC 5965): who complained, and of what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.complaint import Complaint, read_complaint
from fastmta.mail.message import parse

# As in RFC 5965 appendix B.2.
REPORT = (
    b"From: <abusedesk@example.test>\r\nSubject: FW: Earn money\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nThis is an email abuse report.\r\n"
    b"--b\r\nContent-Type: message/feedback-report\r\n\r\n%b\r\n"
    b"--b\r\nContent-Type: %b\r\n\r\n%b\r\n--b--\r\n"
)
FIELDS = (
    b"Feedback-Type: %b\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\nSource-IP: 192.0.2.1\r\n"
)
ORIGINAL = b"From: a@relay.example.test\r\n%bMessage-ID: <one@relay.example.test>\r\n\r\nSpam\r\n"


def complaint(fields: bytes, header: bytes = b"", kind: bytes = b"message/rfc822") -> Complaint:
    told = read_complaint(parse(REPORT % (fields, kind, ORIGINAL % header)))
    assert told is not None
    return told


def test_a_report_of_the_rfc() -> None:
    told = complaint(FIELDS % b"abuse" + b"Original-Rcpt-To: <bob@example.test>\r\n")
    assert told == Complaint(
        kind="abuse",
        recipients=["bob@example.test"],
        reporter="abusedesk@example.test",
        source="192.0.2.1",
        original="one@relay.example.test",
    )
    assert told.counts


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (b"abuse", True),
        (b"Fraud", True),
        (b"opt-out", True),
        (b"virus", True),
        (b"other", True),
        (b"not-spam", False),
        (b"auth-failure", False),  # RFC 6591
    ],
)
def test_what_is_a_complaint(kind: bytes, counts: bool) -> None:
    told = complaint(FIELDS % kind)
    assert (told.kind, told.counts) == (kind.decode().lower(), counts)


@pytest.mark.parametrize("kind", [b"message/rfc822", b"text/rfc822-headers"])
@pytest.mark.parametrize(
    ("fields", "header", "recipients"),
    [
        (b"Removal-Recipient: bob@example.test\r\n", b"", ["bob@example.test"]),
        (b"Original-Rcpt-To: a@b.t\r\nOriginal-Rcpt-To: c@b.t\r\n", b"", ["a@b.t", "c@b.t"]),
        (b"Original-Rcpt-To: a@b.test\r\n", b"To: x@b.test\r\n", ["a@b.test"]),
        (b"", b"To: Bob <bob@b.test>\r\n", ["bob@b.test"]),
        (b"", b"To: list@b.test\r\nX-HmXmrOriginalRecipient: bob@b.test\r\n", ["bob@b.test"]),
        (b"", b"To: a@b.test, c@b.test\r\n", []),  # nobody knows which of them
        (b"", b"To: undisclosed-recipients:;\r\n", []),
    ],
)  # fmt: skip
def test_who_complained(fields: bytes, header: bytes, recipients: list[str], kind: bytes) -> None:
    assert complaint(FIELDS % b"abuse" + fields, header, kind).recipients == recipients


def test_other_messages_are_no_complaints() -> None:
    assert read_complaint(parse(b"From: a@b.test\r\n\r\nI do not want your mail.\r\n")) is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_octets_can_be_read(fields: bytes, header: bytes) -> None:
    told = read_complaint(parse(REPORT % (fields, b"message/rfc822", header)))
    assert told is None or all("@" in one for one in told.recipients)
    read_complaint(parse(fields + header))
