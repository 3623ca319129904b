"""Bounces that came in as messages: whom they are about, whether for good, and why.

Reports of RFC 3464 are read by their fields. What comes in words only (`bounce_text`) is read so
far as its words are known. Any octets at all can be read; who sent them is not proven.
"""

import re
from collections.abc import Iterator

from msgspec import Struct

from fastmta._core.mime import MESSAGE
from fastmta.mail import bounce_text
from fastmta.mail.classification import Category, classify
from fastmta.mail.delivery_status import RecipientStatus, read_status
from fastmta.mail.email_address import EmailAddress
from fastmta.mail.headers import Headers
from fastmta.mail.message import Part, parse
from fastmta.mail.reply import Reply

_MOST_BOUNCES = 100  # of one report
_MOST_TEXT = 1 << 16  # characters of all body parts that are read as text
_MOST_REASON = 1000  # characters
_STATUS = ("message/delivery-status", "message/global-delivery-status")
_HEADERS = ("text/rfc822-headers", "message/rfc822-headers", "message/global-headers")
# RFC 3464 section 2.3.3, and what some write instead.
_FAILED, _DELAYED = ("failed", "failure", "error", "fail"), ("delayed", "delay")
_SAID = re.compile(r"(?<![\d.])([45]\d\d)(?:[ -]#?([45]\.\d{1,3}\.\d{1,3}))?(?![\d.])")
_ENHANCED = re.compile(r"(?<![\d.])([45]\.\d{1,3}\.\d{1,3})(?![\d.])")
_NEXT_LINE = re.compile(r"\s[245]\d\d-(?:[245]\.\d{1,3}\.\d{1,3}\s)?")


class Bounce(Struct, frozen=True):
    """What is reported of one address."""

    address: str
    permanent: bool  # else it is tried again
    reply: Reply  # of the host that refused; 550 or 450 where none is told
    category: Category


class BounceReport(Struct, frozen=True):
    """What could be read of a bounce; without bounces, nothing was recognised."""

    bounces: list[Bounce]
    reporter: str = ""  # the host that reports, or who says to have written it
    original: str = ""  # Message-ID of the message that is reported on


def read_bounce(root: Part) -> BounceReport:
    """Of any message; an autoreply or a report of success has no bounces."""
    parts = list(outside(root))
    lines = _lines(parts)
    statuses = [read_status(part.decode()) for part in parts if str(part.content_type) in _STATUS]
    told = [each for status in statuses for each in status.recipients]
    bounces = _of_fields(told, lines) if told else _of_words(root, lines)
    if not told and not bounces and (inside := _forwarded(parts)):
        return read_bounce(inside)
    reporter = next((each.reporting_mta for each in statuses if each.reporting_mta), "")
    return BounceReport(bounces, reporter or author(root.headers), original_id(parts))


def outside(root: Part) -> Iterator[Part]:
    """The parts in their order, without those of a message inside."""
    waiting = [root]
    while waiting:
        part = waiting.pop()
        yield part
        if part.kind != MESSAGE:
            waiting.extend(reversed(part.parts))


def _forwarded(parts: list[Part]) -> Part | None:
    """A report that somebody passed on inside a message of his own."""
    for part in parts:
        if part.kind == MESSAGE and "report" in part.parts[0].content_type.subtype:
            return part.parts[0]
    return None


def author(headers: Headers) -> str:
    """The first address of From."""
    for one in headers.addresses("From"):
        if isinstance(one, EmailAddress):
            return one.address
    return ""


def original_headers(parts: list[Part]) -> Headers | None:
    """The header section that came back, with or without its message."""
    for part in parts:
        if part.kind == MESSAGE:
            return part.parts[0].headers
        if str(part.content_type) in _HEADERS:
            return parse(part.decode()).headers
    return None


def original_id(parts: list[Part]) -> str:
    headers = original_headers(parts)
    return next(iter(headers.message_ids("Message-ID")), "") if headers else ""


# By fields.


def _of_fields(told: list[RecipientStatus], lines: list[str]) -> list[Bounce]:
    found: dict[str, Bounce] = {}
    text = _said_to_people(lines)
    for each in told[:_MOST_BOUNCES]:
        address = next((a for a in (each.original_address, each.final) if "@" in a), "")
        permanent = _is_permanent(each)
        if address and permanent is not None:
            bounce = _bounce(address, permanent, each.diagnostic, each.status, text)
            found.setdefault(address.lower(), bounce)
    return list(found.values())


def _is_permanent(status: RecipientStatus) -> bool | None:
    """None for what is no bounce: delivered, relayed, expanded."""
    if status.action in _FAILED:
        return True
    if status.action in _DELAYED:
        return False
    if status.action or status.status[:1] not in ("4", "5"):
        return None
    return status.status[:1] == "5"


# By words.


def _lines(parts: list[Part]) -> list[str]:
    """Of the text for people: what is plain, or else what is HTML."""
    for kind in ("text/plain", "text/html"):
        lines: list[str] = []
        room = _MOST_TEXT
        for part in parts:
            if room > 0 and not part.parts and str(part.content_type) == kind:
                text = part.text()[:room]
                room -= len(text)
                lines += bounce_text.readable(text, kind == "text/html")
        if any(map(str.strip, lines)):
            return lines
    return []


def _of_words(root: Part, lines: list[str]) -> list[Bounce]:
    permanent = not bounce_text.is_delay(lines)
    text = _said_to_people(lines)
    found = {
        address.lower(): _bounce(address, permanent, reason, "", text)
        for address, reason in _complete(root, bounce_text.failures(lines))
    }
    for address in _failed_recipients(root.headers):
        if address.lower() not in found:
            found[address.lower()] = _bounce(address, permanent, "", "", text)
    return list(found.values())


def _complete(root: Part, failures: list[bounce_text.Failure]) -> Iterator[bounce_text.Failure]:
    """A host that leaves its domain out means its own."""
    for address, reason in failures:
        if "@" not in address:
            address += f"@{author(root.headers).rpartition('@')[2].lower()}"
        yield bounce_text.Failure(address, reason)


def _failed_recipients(headers: Headers) -> Iterator[str]:
    """What Exim and Google add."""
    for one in headers.addresses("X-Failed-Recipients")[:_MOST_BOUNCES]:
        if isinstance(one, EmailAddress) and "@" in one.address:
            yield one.address


# What was said.


def _said_to_people(lines: list[str]) -> str:
    return " ".join(lines)[: 2 * _MOST_REASON]


def _bounce(address: str, permanent: bool, said: str, status: str, text: str) -> Bounce:
    reply = _reply(said, status, permanent)
    category = _meaning(reply, address)
    if category is Category.OTHER:  # the text for people may know more
        category = _meaning(_reply(text, status, permanent), address)
    return Bounce(address, permanent, reply, category)


def _meaning(reply: Reply, address: str) -> Category:
    """Without the address: it may be spam@ or full@."""
    text = reply.text.lower().replace(address.lower(), "")
    return classify(Reply(reply.code, reply.enhanced, text))


def _reply(said: str, status: str, permanent: bool) -> Reply:
    """From "smtp; 550 5.1.1 no such user", or from whatever else was said."""
    text = said.partition(";")[2] if re.match(r"[\w-]{1,20} *;", said) else said
    text = _NEXT_LINE.sub(" ", f" {text}"[: 2 * _MOST_REASON]).strip()
    match, code, enhanced = _SAID.search(text), 550 if permanent else 450, ""
    if match:
        code, enhanced = int(match[1]), match[2] or ""
        text = text[match.end() :].strip() if match.start() == 0 else text
    elif bare := _ENHANCED.search(text):
        enhanced = bare[1]
    if not enhanced and (bare := _ENHANCED.fullmatch(status)):
        enhanced = bare[1]
    return Reply(code, enhanced, text[:_MOST_REASON])
