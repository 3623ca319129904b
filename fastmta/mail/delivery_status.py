"""Delivery status fields (RFC 3464 section 2, RFC 6533 section 3): one table to write and read."""

import re
import textwrap
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from fastmta._core.headers import end_of_header
from fastmta.mail import charset
from fastmta.mail.date_time import format_date, parse_date
from fastmta.mail.headers import Headers
from fastmta.mail.transfer import MAX_LINE

WIDTH = 72  # characters of a line of what a host said
_MOST_RECIPIENTS = 10_000
_CRLF = "\r\n"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# RFC 6533 section 3: EmbeddedUnicodeChar, and what may not stand for itself beside it.
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
_TO_EMBED = {False: re.compile(r"[^!-*,-<>-\[\]-~]"), True: re.compile(r"[\x00- +=\\\x7f]")}

T = TypeVar("T", bound=Struct)


class Action(StrEnum):
    """What the reporting MTA did (RFC 3464 section 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"  # to a host that does not promise such reports
    EXPANDED = "expanded"  # to several addresses


class RecipientStatus(Struct, frozen=True):
    """The fields about one recipient (RFC 3464 section 2.3); what is not told is empty."""

    final: str  # address, without its type
    action: str  # an Action, where it is one; lower case
    status: str  # enhanced code (RFC 3463): "5.1.1"
    original: str = ""  # with its type: "rfc822;bob@example.test"
    diagnostic: str = ""  # "smtp; 550 no such user"
    remote_mta: str = ""  # name, without its type
    last_attempt: datetime | None = None
    will_retry_until: datetime | None = None

    @property
    def original_address(self) -> str:
        return _read_address(self.original)


class DeliveryStatus(Struct, frozen=True):
    """The fields about the message (RFC 3464 section 2.2), and its recipients."""

    reporting_mta: str  # name, without its type
    recipients: list[RecipientStatus]
    envelope_id: str = ""
    queue_id: str = ""
    arrival: datetime | None = None


class _Field(NamedTuple):
    name: str
    attribute: str
    write: Callable[[Any, bool], str]  # the value, and whether beyond ASCII is allowed
    read: Callable[[str], Any]


def write_status(status: DeliveryStatus, international: bool) -> bytes:
    """The body of a message/delivery-status, or if international, of a
    message/global-delivery-status."""
    blocks = [_write(_OF_MESSAGE, status, international)]
    blocks += [_write(_OF_RECIPIENT, each, international) for each in status.recipients]
    return _CRLF.join(blocks).encode()


def read_status(body: bytes) -> DeliveryStatus:
    """Whatever can be read of such a body, well formed or not."""
    about, *recipients = _blocks(body) or [Headers(b"", 0, 0)]
    if "Final-Recipient" in about or "Original-Recipient" in about:
        # Some leave the first block out.
        recipients.insert(0, about)
    told = [_read(_OF_RECIPIENT, block, RecipientStatus) for block in recipients]
    return _read(_OF_MESSAGE, about, DeliveryStatus, recipients=told)


def _write(fields: tuple[_Field, ...], values: Struct, international: bool) -> str:
    lines = ""
    for field in fields:
        value = getattr(values, field.attribute)
        if value:
            # What comes from outside never becomes a field of its own.
            text = _CONTROLS.sub("?", field.write(value, international))
            if not international:
                text = text.encode("ascii", "replace").decode()
            lines += _fold(f"{field.name}: {text}") + _CRLF
    return lines


def _fold(line: str) -> str:
    """Between words, so that it reads back as it was; within one only where the line must end."""
    if len(line) <= WIDTH:
        return line
    lines = _wrap(line, break_long_words=False)
    if max(len(each.encode()) for each in lines) > MAX_LINE:
        lines = _wrap(line, break_long_words=True)
    return _CRLF.join(lines)


def _wrap(line: str, *, break_long_words: bool) -> list[str]:
    return textwrap.wrap(
        line,
        WIDTH,
        subsequent_indent=" ",
        break_on_hyphens=False,
        break_long_words=break_long_words,
    )


def _read(fields: tuple[_Field, ...], block: Headers, kind: type[T], **values: Any) -> T:
    for field in fields:
        value = field.read(charset.decode(block.get(field.name), "utf-8"))
        values[field.attribute] = value
    return kind(**values)


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


# The forms of values.


def _write_text(value: str, international: bool) -> str:
    return value


def _read_word(value: str) -> str:
    return value.lower().partition(" ")[0]


def _write_mta(value: str, international: bool) -> str:
    return f"dns; {value}"


def _read_typed(value: str) -> str:
    """What stands behind the type: `dns; mail.example.test`."""
    kind, semicolon, rest = value.partition(";")
    return (rest if semicolon else kind).strip()


def _write_address(value: str, international: bool) -> str:
    """RFC 6533 section 3: an address beyond ASCII has the type utf-8, and two forms."""
    if value.isascii():
        return f"rfc822; {value}"
    return f"utf-8; {_TO_EMBED[international].sub(_embed, value)}"


def _read_address(value: str) -> str:
    address = _read_typed(value)
    if value.lower().startswith("utf-8"):
        address = _EMBEDDED.sub(_unembed, address)
    return address.removeprefix("<").removesuffix(">")


def _embed(match: re.Match[str]) -> str:
    return f"\\x{{{ord(match[0]):02X}}}"


def _unembed(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return chr(number) if number < 0xD800 or 0xDFFF < number <= 0x10FFFF else match[0]


def _write_date(value: datetime, international: bool) -> str:
    return format_date(value)


def _read_date(value: str) -> datetime | None:
    return parse_date(value.encode())


_OF_MESSAGE = (
    _Field("Original-Envelope-Id", "envelope_id", _write_text, str),
    _Field("Reporting-MTA", "reporting_mta", _write_mta, _read_typed),
    _Field("X-Queue-ID", "queue_id", _write_text, str),
    _Field("Arrival-Date", "arrival", _write_date, _read_date),
)
_OF_RECIPIENT = (
    _Field("Original-Recipient", "original", _write_text, str),
    _Field("Final-Recipient", "final", _write_address, _read_address),
    _Field("Action", "action", _write_text, _read_word),
    _Field("Status", "status", _write_text, _read_word),
    _Field("Remote-MTA", "remote_mta", _write_mta, _read_typed),
    _Field("Diagnostic-Code", "diagnostic", _write_text, str),
    _Field("Last-Attempt-Date", "last_attempt", _write_date, _read_date),
    _Field("Will-Retry-Until", "will_retry_until", _write_date, _read_date),
)
