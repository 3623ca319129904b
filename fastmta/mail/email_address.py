"""Addresses of header fields: what they say, and how they are written (RFC 5322 section 3.4)."""

from __future__ import annotations

import re
from enum import IntEnum

from msgspec import Struct

from fastmta._core import addrspec
from fastmta._core.address_list import address_list
from fastmta.mail import encoded_words
from fastmta.mail.address import normal_domain

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_PHRASE = re.compile(rf"{_ATOM}(?: {_ATOM})*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")


class Syntax(IntEnum):
    """By which rules an addr-spec is one; each class takes what the ones before it take."""

    VALID = addrspec.VALID
    RFC5321 = addrspec.RFC5321  # fit for SMTP, with a quoted string, literal or lone label
    CFWS = addrspec.CFWS  # with comments or white space: in header fields only
    DEPRECATED = addrspec.DEPRECATED  # obsolete forms (RFC 5322 section 4)
    RFC5322 = addrspec.RFC5322  # the grammar of RFC 5322 alone takes it
    INVALID = addrspec.INVALID


class EmailAddress(Struct, frozen=True, gc=False):
    """A mailbox of RFC 5322 section 3.4, decoded; parts that are missing are empty."""

    name: str  # display-name, or else the comment
    local: str  # without quotes
    domain: str  # as written; "[192.0.2.1]" for a literal

    @property
    def address(self) -> str:
        """The addr-spec, with quotes where it needs them; "" if there is none."""
        if not self.domain:
            return self.local
        return f"{quote_local(self.local)}@{self.domain}"

    @property
    def normal(self) -> str:
        """The addr-spec with its domain in normal form: lower case, A-labels (RFC 5890).

        ValueError for a domain that has none. The local part is the receiver's to judge.
        """
        return f"{quote_local(self.local)}@{normal_domain(self.domain)}"

    def __str__(self) -> str:
        return f"{quote_phrase(self.name)} <{self.address}>" if self.name else self.address


class EmailAddressGroup(Struct, frozen=True):
    """A group of RFC 5322 section 3.4."""

    name: str
    addresses: list[EmailAddress]

    def __str__(self) -> str:
        return f"{quote_phrase(self.name)}: {', '.join(map(str, self.addresses))};"


def syntax_of(address: str, utf8: bool = False) -> Syntax:
    """The class of an addr-spec; `utf8` allows what RFC 6531 and RFC 6532 add."""
    return Syntax(addrspec.classify(address.encode("utf-8", "surrogateescape"), utf8))


def quote_local(local: str) -> str:
    """A local part as it is written: a dot-atom, or else a quoted-string."""
    return local if _DOT_ATOM.fullmatch(local) else quoted_string(local)


def quote_phrase(name: str) -> str:
    """A display-name as it is written, without encoded words."""
    return name if _PHRASE.fullmatch(name) else quoted_string(name)


def quoted_string(text: str) -> str:
    """RFC 5322 section 3.2.4; controls, which would need an obsolete form, become spaces."""
    text = _CONTROLS.sub(" ", text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_addresses(value: bytes) -> list[EmailAddress | EmailAddressGroup]:
    """The mailboxes and groups of a field value, folded or not; at most 10,000 of them."""
    return [
        _address(*entry) if len(entry) == 3 else _group(*entry) for entry in address_list(value)
    ]


def mailboxes(entries: list[EmailAddress | EmailAddressGroup]) -> list[EmailAddress]:
    """All addresses, those of groups in their place."""
    result: list[EmailAddress] = []
    for entry in entries:
        if isinstance(entry, EmailAddressGroup):
            result += entry.addresses
        else:
            result.append(entry)
    return result


def _address(name: str, local: str, domain: str) -> EmailAddress:
    return EmailAddress(encoded_words.decode(name) if "=?" in name else name, local, domain)


def _group(name: str, members: list[tuple[str, str, str]]) -> EmailAddressGroup:
    name = encoded_words.decode(name) if "=?" in name else name
    return EmailAddressGroup(name, [_address(*member) for member in members])
