"""Delivery status notifications read (RFC 3464, RFC 6533): who was told what about whom."""

import re
from datetime import datetime

from msgspec import Struct

from fastmta._core.headers import end_of_header
from fastmta.mail.headers import Headers
from fastmta.mail.message import Part, parse

_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
_RETURNED_TYPES = (
    "message/rfc822",
    "message/global",
    "text/rfc822-headers",
    "message/global-headers",
)
_MOST_RECIPIENTS = 10_000
# RFC 6533 section 3: the utf-8-addr-xtext and utf-8-addr-unitext forms.
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")


class RecipientReport(Struct, frozen=True):
    """The fields about one recipient (RFC 3464 section 2.3); what is not told is empty."""

    final: str  # address, without its type
    action: str  # failed, delayed, delivered, relayed, expanded; lower case
    status: str  # enhanced code (RFC 3463): "5.1.1"
    original: str = ""  # address, without its type
    diagnostic: str = ""  # "smtp; 550 no such user"
    remote_mta: str = ""  # name, without its type
    last_attempt: datetime | None = None
    will_retry_until: datetime | None = None


class DeliveryReport(Struct, frozen=True):
    """The fields about the message (RFC 3464 section 2.2), its recipients, and what came back."""

    reporting_mta: str  # name, without its type
    recipients: list[RecipientReport]
    envelope_id: str = ""
    arrival: datetime | None = None
    returned: Part | None = None  # the message, or its header section alone


def parse_report(message: Part) -> DeliveryReport | None:
    """What a message says as a delivery status notification; None if it is none."""
    parts = message.walk()
    status = next((part for part in parts if str(part.content_type) in _STATUS_TYPES), None)
    if status is None:
        return None
    about, *recipients = _blocks(status.decode()) or [Headers(b"", 0, 0)]
    if "Final-Recipient" in about or "Original-Recipient" in about:
        # Some leave the first block out.
        recipients.insert(0, about)
    behind = parts[parts.index(status) + 1 :]
    returned = next((part for part in behind if str(part.content_type) in _RETURNED_TYPES), None)
    return DeliveryReport(
        reporting_mta=_typed(about.text("Reporting-MTA")),
        recipients=[_recipient(block) for block in recipients if len(bytes(block)) > 0],
        envelope_id=about.text("Original-Envelope-Id"),
        arrival=about.date("Arrival-Date"),
        returned=returned and _returned(returned),
    )


def _blocks(body: bytes) -> list[Headers]:
    """Groups of fields with empty lines between them (RFC 3464 section 2.1)."""
    blocks: list[Headers] = []
    at = 0
    while at < len(body) and len(blocks) <= _MOST_RECIPIENTS:
        end = end_of_header(body, at)
        if end > at:
            blocks.append(Headers(body, at, end))
        line = body.find(b"\n", end)
        at = line + 1 if line >= 0 else len(body)
    return blocks


def _recipient(block: Headers) -> RecipientReport:
    return RecipientReport(
        final=_address(block.text("Final-Recipient")),
        action=block.text("Action").lower().partition(" ")[0],
        status=block.text("Status").partition(" ")[0],
        original=_address(block.text("Original-Recipient")),
        diagnostic=block.text("Diagnostic-Code"),
        remote_mta=_typed(block.text("Remote-MTA")),
        last_attempt=block.date("Last-Attempt-Date"),
        will_retry_until=block.date("Will-Retry-Until"),
    )


def _typed(value: str) -> str:
    """What stands behind the type: `dns; mail.example.test`."""
    kind, semicolon, rest = value.partition(";")
    return (rest if semicolon else kind).strip()


def _address(value: str) -> str:
    address = _typed(value)
    if value.lower().startswith("utf-8"):
        address = _EMBEDDED.sub(_embedded, address)
    return address.removeprefix("<").removesuffix(">")


def _embedded(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return chr(number) if number < 0xD800 or 0xDFFF < number <= 0x10FFFF else match[0]


def _returned(part: Part) -> Part:
    """The message that came back; of header fields alone, a message without a body."""
    return part.message() or parse(part.decode())
