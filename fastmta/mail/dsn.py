"""Delivery status notifications (RFC 3461, 3464): how a sender hears what became of a message."""

import textwrap
from datetime import UTC, datetime

from msgspec import Struct

from fastmta.mail.date_time import format_date
from fastmta.mail.delivery_status import (
    WIDTH,
    Action,
    DeliveryStatus,
    RecipientStatus,
    read_status,
    write_status,
)
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Recipient, format_id
from fastmta.mail.message import Part, parse
from fastmta.mail.xtext import decode

MAX_HEADERS = 64 * 1024  # octets of the original's header section that are given back
_CRLF = "\r\n"
_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
_HEADERS_TYPES = ("text/rfc822-headers", "message/global-headers")
_MESSAGE_TYPES = ("message/rfc822", "message/global")
_RETURNED_TYPES = (*_MESSAGE_TYPES, *_HEADERS_TYPES)


class Report(Struct, frozen=True):
    """What a notification is made of; it tells of one action."""

    number: int  # id of the report as a message
    hostname: str  # the reporting MTA
    time: float  # seconds since the epoch
    envelope: Envelope
    ends: list[tuple[Recipient, Disposition]]
    original: bytes  # the beginning of the message, at least its header section; b"": unknown
    action: Action = Action.FAILED
    retry_until: float = 0.0  # seconds since the epoch, of a message that is delayed
    whole: bool = False  # `original` is all of the message, and goes back so
    postmaster: str = ""  # whom it tells instead of the sender


class Notification(Struct, frozen=True):
    """What a notification that was read says."""

    status: DeliveryStatus
    returned: Part | None = None  # the message that it is about, or its header section alone


class _Words(Struct, frozen=True):
    """What a person is told of an action."""

    subject: str
    text: tuple[str, ...]
    unnamed: str  # the enhanced status code where the host gave none (RFC 3463 section 2)


_WORDS = {
    Action.FAILED: _Words(
        "Undelivered Mail Returned to Sender",
        (
            "Your message could not be delivered to one or more recipients. It will not be",
            "tried again. What follows is each address, and what was answered for it.",
        ),
        "5.0.0",
    ),
    Action.DELAYED: _Words(
        "Delayed Mail (still being tried)",
        (
            "Your message could not be delivered yet to one or more recipients. You need not",
            "send it again: it will be tried until it is delivered or too old. What follows",
            "is each address, and what was answered for it the last time.",
        ),
        "4.0.0",
    ),
    Action.DELIVERED: _Words(
        "Successful Mail Delivery Report",
        ("Your message was delivered to these recipients, as you asked to be told.",),
        "2.0.0",
    ),
    Action.RELAYED: _Words(
        "Mail Was Sent On",
        (
            "Your message was sent on to systems that do not promise to report its delivery.",
            "You will hear of these recipients again only if something goes wrong.",
        ),
        "2.0.0",
    ),
    Action.EXPANDED: _Words(
        "Mail Was Sent On to Several Addresses",
        (
            "Your message was delivered to these addresses, which stand for several others.",
            "You will not be told about those.",
        ),
        "2.0.0",
    ),
}

_TO_POSTMASTER = _Words(
    "Undeliverable Report",
    (
        "A message that has no sender who could be told was not delivered to one or more",
        "recipients. What follows is each address, and what was answered for it.",
    ),
    "5.0.0",
)


def build_report(report: Report) -> bytes:
    """A multipart/report (RFC 6522) to the reverse-path; lines end in CRLF."""
    headers = header_section(report.original)
    # RFC 6533 section 3: the types for messages and addresses beyond ASCII.
    international = report.envelope.utf8 or not headers.isascii()
    parts = [
        _part("text/plain; charset=utf-8", _text(report, international).encode()),
        _part(_STATUS_TYPES[international], write_status(_status(report), international)),
    ]
    if report.whole:
        parts.append(_part(_MESSAGE_TYPES[international], report.original))
    elif headers:
        parts.append(_part(_HEADERS_TYPES[international], headers))
    boundary = _boundary(report)
    delimiter = f"--{boundary}\r\n".encode()
    body = b"".join(delimiter + part for part in parts) + f"--{boundary}--\r\n".encode()
    return _header(report, boundary, _encoding(body)).encode() + body


def _boundary(report: Report) -> str:
    """One that the original does not have, whoever foresaw it."""
    boundary = f"=_{format_id(report.number)}"
    while boundary.encode() in report.original:
        boundary += "_"
    return boundary


def parse_report(message: Part) -> Notification | None:
    """What a message says as a delivery status notification; None if it is none."""
    parts = message.walk()
    status = next((part for part in parts if str(part.content_type) in _STATUS_TYPES), None)
    if status is None:
        return None
    behind = parts[parts.index(status) + 1 :]
    returned = next((part for part in behind if str(part.content_type) in _RETURNED_TYPES), None)
    return Notification(read_status(status.decode()), returned and _returned(returned))


def header_section(original: bytes) -> bytes:
    """The message's header section with the last CRLF, cut at a line where it is too long."""
    end = original.find(b"\r\n\r\n", 0, MAX_HEADERS)
    if end < 0:
        end = original.rfind(b"\r\n", 0, MAX_HEADERS)
    return original[: end + 2] if end >= 0 else b""


def _returned(part: Part) -> Part:
    """The message that came back; of header fields alone, a message without a body."""
    return part.message() or parse(part.decode())


def _encoding(content: bytes) -> str:
    return "7bit" if content.isascii() else "8bit"


def _part(content_type: str, content: bytes) -> bytes:
    encoding = _encoding(content)
    head = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def _words(report: Report) -> _Words:
    return _TO_POSTMASTER if report.postmaster else _WORDS[report.action]


def _header(report: Report, boundary: str, encoding: str) -> str:
    fields = [
        f"From: Mail Delivery System <MAILER-DAEMON@{report.hostname}>",
        f"To: <{report.postmaster or report.envelope.sender}>",
        f"Subject: {_words(report).subject}",
        f"Date: {format_date(_moment(report.time))}",
        f"Message-ID: <{format_id(report.number)}@{report.hostname}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 section 3.1.7
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        f"Content-Transfer-Encoding: {encoding}",
    ]
    return _CRLF.join(fields) + _CRLF * 2


def _text(report: Report, international: bool) -> str:
    opening = _words(report).text
    lines = [f"This is the mail system at {report.hostname}.", "", *opening, ""]
    for recipient, end in report.ends:
        about = f"{end.host}: " if end.host else ""  # not "said": the reply may be ours
        said = f"{about}{end.reply}"
        if not international:
            said = said.encode("ascii", "replace").decode()
        told = textwrap.wrap(said, WIDTH, break_on_hyphens=False)
        lines += [f"<{recipient.address}>", *(f"    {line}" for line in told), ""]
    return _CRLF.join(lines)


def _status(report: Report) -> DeliveryStatus:
    envelope = report.envelope
    return DeliveryStatus(
        reporting_mta=report.hostname,
        recipients=[_recipient(report, *each) for each in report.ends],
        envelope_id=_plain(envelope.envid),
        queue_id=envelope.id,
        arrival=_moment(envelope.received),
    )


def _recipient(report: Report, recipient: Recipient, end: Disposition) -> RecipientStatus:
    return RecipientStatus(
        final=recipient.address,
        action=report.action,
        status=end.reply.enhanced or _words(report).unnamed,
        original=_plain(recipient.orcpt),
        diagnostic=f"smtp; {end.reply}",
        remote_mta=end.host.partition(" ")[0],
        last_attempt=_moment(end.time),
        will_retry_until=_moment(report.retry_until) if report.retry_until else None,
    )


def _plain(xtext: str) -> str:
    """RFC 3461 section 6.3: reports hold ENVID and ORCPT without the xtext around them."""
    if xtext[:6].lower() == "utf-8;":
        return xtext  # RFC 6533 section 3: its own form, in ORCPT and here
    plain = decode(xtext)
    # Section 4: what is in it has to be printable ASCII; if not, it stays as it was sent.
    return plain if plain.isascii() and plain.isprintable() else xtext


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
