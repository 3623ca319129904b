"""Bounces in words: whom a text without fields for programs says it could not reach.

Three tables know the words. What they do not know is nobody's bounce: a guess could keep mail from
an address that is well.
"""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

_MOST_LINES = 1000  # of a body part
_MOST_COLUMNS = 500  # characters of a line that are looked at
_MOST_FOUND = 100  # addresses
_LINES_OF_REASON = 8

_ADDRESS = r"([^\s<>()\[\]:;,\"'|=@]{1,128}@[^\s<>()\[\]:;,\"'|=@]{1,255})"
# Alone at the start of a line, or with what belongs to a list: a sentence may begin with one too.
_AT_START = (
    rf"[\s>*\-\"'<\[]{{0,40}}(?:c=.{{0,200}}smtp=|recipient: \[smtp:)?{_ADDRESS}"
    r"(?=[>\"'\])]{0,4}\s*(?:$|[:;,(<]|\.\.\.|on\s))"
)


class Failure(NamedTuple):
    """One address with what was said of it; only the local part where no more was said."""

    address: str
    reason: str


class Section(NamedTuple):
    """Below a line that `begin` is found in, each line that `item` matches begins an address."""

    begin: re.Pattern[str]
    item: re.Pattern[str]


def _section(begin: str, item: str = _AT_START) -> Section:
    return Section(re.compile(begin, re.I), re.compile(item, re.I))


SECTIONS = (
    # AOL named its own users without a domain.
    _section("recipients could not be delivered because they are not", r"\s+([\w.+-]{1,64})\s*$"),
    _section("able to deliver the following message", rf"to: *<?{_ADDRESS}"),
    _section(
        r"(?:unable|not able|wasn't able|failed) to deliver"
        r"|(?:could|can) ?not (?:be|deliver)"
        r"|did not (?:receive|reach)"
        r"|not (?:yet )?(?:been )?(?:be )?delivered"
        r"|fail\w* (?:recipients|addresses)"
        r"|(?:address|recipient).{0,60}(?:fail|fatal error|error)"
        r"|(?:delivery|delevery) (?:to|of) .{0,60}(?:fail|abort|delay|address)"
        r"|delivery has failed to these"
        r"|delivery failure notification"
        r"|awaiting delivery"
        r"|your message to:?\s*$"
        r"|has a problem|problem with the e-?mail address"
        r"|n'a pas pu etre delivre"
        r"|could not be reached"
    ),
)

# What tells the address in a line of its own.
SENTENCES = tuple(
    re.compile(pattern.replace("ADDRESS", _ADDRESS), re.I)
    for pattern in (
        r"^<ADDRESS>:",  # qmail's format, which many took over (QSBMF)
        r"\b(?:intended|failed) recipient: *<?ADDRESS",
        r"\bundeliverable +(?:address:|to) *<?ADDRESS",
        r"\bmailbox is full: *<?ADDRESS",
        r"^(?:unknown user|error-for|invalid final delivery userid): *<?ADDRESS",
        r"^delivery failed \d+ attempts: *<?ADDRESS",
        r"\baddressed(?: to|,) ['<]?ADDRESS",
        r"\b(?:your|unable to deliver) message to <?ADDRESS",
        r"\bdid not reach .{0,40}: *<?ADDRESS",
        r"\bquota violation for <?ADDRESS",
        r"\((?:generated|expanded) from:? <?ADDRESS",
        r"\bmailbox <?ADDRESS>? is unavailable",
        r"^<?ADDRESS>? - no such user",
    )
)

# Behind it stands the message that came back, or what two hosts said to each other.
END = re.compile(
    r"^[\s\-*|=>.]*(?:(?:the )?original message(?! was)|(?:here|this|included|attachment) is a copy"
    r"|(?:a )?copy of the |below (?:this|the next) line|the header (?:of|and)|the first \d+ lines"
    r"|message (?:header|text|body)s? follow|header of the source|returned (?:mail|message)"
    r"|start of returned|(?:unsent|forwarded|old) message|a summary of the undelivered"
    r"|your message reads|mensaje original|(?:session )?transcript\b|received:|return-path:)",
    re.I,
)

# The sender goes on trying: it is no failure yet.
LATER = re.compile(
    r"not yet been delivered|has been (?:delayed|postponed)|message delayed"
    r"|warning (?:message )?only|just a warning|(?:attempts will|will) continue|will be retried",
    re.I,
)


def readable(text: str, is_html: bool) -> list[str]:
    """Lines up to the message that came back."""
    if is_html:
        text = html.unescape(re.sub(r"<(?:br|p|/p|div|/div|tr)\b[^>]{0,200}>", "\n", text))
        text = re.sub(r"<[/!a-z][^>@]{0,500}>", "", text)
    lines: list[str] = []
    for line in text.splitlines()[:_MOST_LINES]:
        if END.match(line):
            break
        lines.append(line[:_MOST_COLUMNS].replace("\xa0", " "))
    return lines


def is_delay(lines: list[str]) -> bool:
    return LATER.search("\n".join(lines)) is not None


def failures(lines: list[str]) -> list[Failure]:
    """Whom the lines say something of, each once, in their order."""
    found: dict[str, Failure] = {}
    for number, address in _addresses(lines):
        if len(found) >= _MOST_FOUND:
            break
        reason = reason_of(lines, number)
        found.setdefault(address.lower(), Failure(address, reason))
    return list(found.values())


def reason_of(lines: list[str], number: int) -> str:
    """What is said from a line on, up to the next paragraph that begins with an address."""
    taken = [lines[number]]
    for line in lines[number + 1 : number + _LINES_OF_REASON]:
        if _ITEM.match(line):
            break
        taken.append(line.strip())
    return " ".join(filter(None, taken))


def _addresses(lines: list[str]) -> Iterator[tuple[int, str]]:
    section: Section | None = None
    for number, line in enumerate(lines):
        section = next((one for one in SECTIONS if one.begin.search(line)), section)
        for address in _told(line, section):
            yield number, address.rstrip(".!?")


def _told(line: str, section: Section | None) -> Iterator[str]:
    for sentence in SENTENCES:
        yield from sentence.findall(line)
    if section and (match := section.item.match(line)):
        yield match[1]


_ITEM = re.compile(_AT_START, re.I)
