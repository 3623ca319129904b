"""Delivery status notifications (RFC 3461, 3464): how the sender hears that it cannot be done."""

import email.utils
import textwrap

from msgspec import Struct

from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Recipient, format_id

MAX_HEADERS = 64 * 1024  # octets of the original's header section that are given back
_CRLF = "\r\n"
_WIDTH = 72  # characters of a line of what a host said


class Report(Struct, frozen=True):
    """What a failure report is made of."""

    number: int  # id of the report as a message
    hostname: str  # the reporting MTA
    time: float  # seconds since the epoch
    envelope: Envelope
    failed: list[tuple[Recipient, Disposition]]
    original: bytes  # the beginning of the message, at least its header section


def build_failure(report: Report) -> bytes:
    """A multipart/report (RFC 6522) to the reverse-path; lines end in CRLF."""
    boundary = f"=_{format_id(report.number)}"
    headers = header_section(report.original)
    # RFC 6533 section 3: the types for messages and addresses beyond ASCII.
    international = report.envelope.utf8 or not headers.isascii()
    status_type = "message/global-delivery-status" if international else "message/delivery-status"
    headers_type = "message/global-headers" if international else "text/rfc822-headers"
    encoding = "8bit" if international else "7bit"
    parts = [
        _part("text/plain; charset=utf-8", encoding, _text(report, international).encode()),
        _part(status_type, encoding, _status(report, international).encode()),
        _part(headers_type, encoding, headers),
    ]
    delimiter = f"--{boundary}\r\n".encode()
    body = b"".join(delimiter + part for part in parts) + f"--{boundary}--\r\n".encode()
    return _header(report, boundary).encode() + body


def header_section(original: bytes) -> bytes:
    """The message's header section with the last CRLF, cut at a line where it is too long."""
    end = original.find(b"\r\n\r\n", 0, MAX_HEADERS)
    if end < 0:
        end = original.rfind(b"\r\n", 0, MAX_HEADERS)
    return original[: end + 2] if end >= 0 else b""


def _part(content_type: str, encoding: str, content: bytes) -> bytes:
    head = f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def _header(report: Report, boundary: str) -> str:
    fields = [
        f"From: Mail Delivery System <MAILER-DAEMON@{report.hostname}>",
        f"To: <{report.envelope.sender}>",
        "Subject: Undelivered Mail Returned to Sender",
        f"Date: {email.utils.formatdate(report.time)}",
        f"Message-ID: <{format_id(report.number)}@{report.hostname}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 section 3.1.7
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
    ]
    return _CRLF.join(fields) + _CRLF * 2


def _text(report: Report, international: bool) -> str:
    lines = [
        f"This is the mail system at {report.hostname}.",
        "",
        "Your message could not be delivered to one or more recipients. It will not be",
        "tried again. What follows is each address, and what was answered for it.",
        "",
    ]
    for recipient, end in report.failed:
        about = f"{end.host}: " if end.host else ""  # not "said": the reply may be ours
        said = _folded(f"{about}{end.reply}", international)
        lines += [f"<{recipient.address}>", *(f"    {line}" for line in said), ""]
    return _CRLF.join(lines)


def _folded(text: str, international: bool) -> list[str]:
    """What a stranger said, in lines of a bearable length and in octets that the part may hold."""
    if not international:
        text = text.encode("ascii", "replace").decode()
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False)


def _status(report: Report, international: bool) -> str:
    """RFC 3464 section 2: the fields of the message, then those of each recipient."""
    envelope = report.envelope
    fields = [
        f"Reporting-MTA: dns; {report.hostname}",
        f"X-Queue-ID: {envelope.id}",
        f"Arrival-Date: {email.utils.formatdate(envelope.received)}",
    ]
    if envelope.envid:
        fields.insert(0, f"Original-Envelope-ID: {envelope.envid}")
    for recipient, end in report.failed:
        fields += ["", *_recipient_fields(recipient, end, international)]
    return _CRLF.join(fields) + _CRLF


def _recipient_fields(recipient: Recipient, end: Disposition, international: bool) -> list[str]:
    # RFC 6533 section 3: an address beyond ASCII has the type utf-8.
    kind = "rfc822" if recipient.address.isascii() or not international else "utf-8"
    fields = [f"Original-Recipient: {recipient.orcpt}"] if recipient.orcpt else []
    fields += [
        f"Final-Recipient: {kind}; {recipient.address}",
        "Action: failed",
        f"Status: {end.reply.enhanced or '5.0.0'}",
    ]
    if end.host:
        fields.append(f"Remote-MTA: dns; {end.host.split(' ')[0]}")
    said = _folded(str(end.reply), international)
    fields += [
        f"Diagnostic-Code: smtp; {f'{_CRLF} '.join(said)}",
        f"Last-Attempt-Date: {email.utils.formatdate(end.time)}",
    ]
    return fields
