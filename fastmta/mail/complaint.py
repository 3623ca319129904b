"""Complaints: reports in the Abuse Reporting Format (RFC 5965) that mailbox hosts send."""

from collections.abc import Iterator

from msgspec import Struct

from fastmta.mail import charset
from fastmta.mail.bounce import author, original_headers, original_id, outside
from fastmta.mail.email_address import EmailAddress
from fastmta.mail.headers import Headers
from fastmta.mail.message import Part, parse

_MOST_RECIPIENTS = 100  # of one report
_FEEDBACK = "message/feedback-report"
# Not about mail that somebody did not want: RFC 6591 section 3.1 tells the sender's domain that a
# signature failed, RFC 6430 section 3 that mail was taken for spam by mistake.
_NO_COMPLAINTS = ("auth-failure", "not-spam")
# Who complained, where the report keeps it back; the first that is there. The last of these counts
# only where it names one alone.
_RECIPIENT_FIELDS = ("X-HmXmrOriginalRecipient", "X-Original-To", "Delivered-To", "To")


class Complaint(Struct, frozen=True):
    """What a feedback report says (RFC 5965 section 3)."""

    kind: str  # Feedback-Type in lower case: "abuse", "fraud", "opt-out", "virus", "other"
    recipients: list[str]  # who complained; empty where that is kept back
    reporter: str = ""  # who says to have written it
    source: str = ""  # Source-IP: the address that sent the message
    original: str = ""  # Message-ID of the message that is complained about

    @property
    def counts(self) -> bool:
        """Whether somebody did not want the mail."""
        return self.kind not in _NO_COMPLAINTS


def read_complaint(root: Part) -> Complaint | None:
    """None for what is no feedback report."""
    parts = list(outside(root))
    report = next((part for part in parts if str(part.content_type) == _FEEDBACK), None)
    if report is None:
        return None
    fields = parse(report.decode()).headers
    original = original_headers(parts)
    return Complaint(
        kind=_text(fields, "Feedback-Type").lower() or "other",
        recipients=_recipients(fields, original),
        reporter=author(root.headers),
        source=_text(fields, "Source-IP"),
        original=original_id(parts),
    )


def _recipients(fields: Headers, original: Headers | None) -> list[str]:
    """RFC 5965 section 3.2: Original-Rcpt-To may stand more than once; Removal-Recipient too."""
    told = [*_addresses(fields, "Original-Rcpt-To"), *_addresses(fields, "Removal-Recipient")]
    if not told and original:
        of_fields = ([*_addresses(original, name)] for name in _RECIPIENT_FIELDS)
        first: list[str] = next((found for found in of_fields if found), [])
        told = first if len(first) == 1 else []
    return list({address.lower(): address for address in told}.values())[:_MOST_RECIPIENTS]


def _addresses(headers: Headers, name: str) -> Iterator[str]:
    for one in headers.addresses(name):
        if isinstance(one, EmailAddress) and one.local and one.domain:
            yield one.address


def _text(headers: Headers, name: str) -> str:
    return charset.decode(headers.get(name), "utf-8")
