"""Header fields written: encoded, quoted and folded (RFC 5322 section 2.2.3, RFC 2047)."""

import re
from collections.abc import Sequence
from datetime import datetime

from fastmta.mail import encoded_words
from fastmta.mail.address import normal_domain
from fastmta.mail.date_time import format_date
from fastmta.mail.email_address import (
    EmailAddress,
    EmailAddressGroup,
    quote_local,
    quote_phrase,
)

FieldValue = str | datetime | Sequence[EmailAddress | EmailAddressGroup]

_COLUMNS = 78  # RFC 5322 section 2.1.1: should
_MOST_COLUMNS = 998  # and must
_NAME = re.compile(r"[!-9;-~]+")
_WORD = re.compile(r"[ \t]*[^ \t]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def write_field(name: str, value: FieldValue, utf8: bool = False) -> bytes:
    """A field with its CRLF; ValueError for what cannot be written without changing it.

    `utf8` writes UTF-8 as it is (RFC 6532); else text becomes encoded words and domains A-labels.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a header field: {name!r}")
    if isinstance(value, str):
        text = _unstructured(value.strip(" \t"), utf8)
    elif isinstance(value, datetime):
        text = format_date(value)
    else:
        text = ", ".join(_entry(entry, utf8) for entry in value)
    if _CONTROLS.search(text):
        raise ValueError(f"control characters in the field {name}: {text!r}")
    return _fold(f"{name}:", text).encode("utf-8")


def _unstructured(text: str, utf8: bool) -> str:
    longest = max((len(word.encode()) for word in text.split()), default=0)
    if (utf8 or text.isascii()) and longest < _MOST_COLUMNS - _COLUMNS:
        return text
    # A word that no fold could bring below the limit is cut into encoded words.
    return encoded_words.encode(text)


def _entry(entry: EmailAddress | EmailAddressGroup, utf8: bool) -> str:
    if isinstance(entry, EmailAddress):
        return _mailbox(entry, utf8)
    members = ", ".join(_mailbox(member, utf8) for member in entry.addresses)
    return f"{_phrase(entry.name, utf8)}: {members};"


def _mailbox(entry: EmailAddress, utf8: bool) -> str:
    local, domain = quote_local(entry.local), entry.domain
    if not utf8:
        if not local.isascii():
            raise ValueError(f"only UTF-8 header fields (RFC 6532) can hold {entry.address!r}")
        domain = domain if domain.isascii() else normal_domain(domain)
    address = f"{local}@{domain}" if domain else local
    return f"{_phrase(entry.name, utf8)} <{address}>" if entry.name else address


def _phrase(name: str, utf8: bool) -> str:
    return quote_phrase(name) if utf8 or name.isascii() else encoded_words.encode(name)


def _fold(line: str, text: str) -> str:
    """Break before white space, so that lines stay within 78 octets where words allow it."""
    lines = []
    for word in _WORD.findall(" " + text.strip()):
        if len(line.encode()) + len(word.encode()) > _COLUMNS and line.strip():
            lines.append(line)
            line = ""
        line += word
    return "\r\n".join([*lines, line]) + "\r\n"
