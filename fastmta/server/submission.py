"""What is done for who has logged in: RFC 6409 sections 6 and 8."""

from collections.abc import Iterator

import re2

from fastmta._core.address_list import address_list
from fastmta._core.headers import Section, find, unfold
from fastmta.config import Submission
from fastmta.mail.arrival import Arrival
from fastmta.mail.edit import end_of_section, header_of
from fastmta.mail.email_address import EmailAddress
from fastmta.mail.envelope import format_id
from fastmta.mail.reply import Reply
from fastmta.mail.trace import format_date
from fastmta.protocol import smtp_replies as reply
from fastmta.server.labels import Unfit
from fastmta.store.accounts import Account

_NO_FROM = Reply(554, "5.6.0", "The message has no From field with an address")
_NOT_OWNED = Reply(550, "5.7.1", "From and Sender may have your addresses alone")
_UNCLEAR = Reply(554, "5.6.0", "Who the author is can be read in several ways; write a <a@b.test>")
_LONGEST = 1 << 15  # octets of From, and so of Sender: they are read in the loop

# RFC 5322 section 3.4 without what mail readers disagree about: nested comments, routes, white
# space in an addr-spec, an "@" in a phrase, a second address before or behind the first. By RE2: it
# takes a time in proportion to what the client has sent.
_ATOM = rb'[^\0- ()<>\[\]:;@\\,"\x7f]+'
_QUOTED = rb'"(?:[^"\\\0-\x08\n-\x1f\x7f]|\\[\t -~])*"'
_CFWS = rb"(?:[ \t]|\((?:[^()\\\0-\x08\n-\x1f\x7f]|\\[\t -~])*\))*"
_WORDS = rb"(?:(?:%b|%b)%b)+" % (_ATOM, _QUOTED, _CFWS)
_SPEC = rb"(?:%b|%b)@(?:%b|\[[0-9A-Za-z.:]+\])" % (_ATOM, _QUOTED, _ATOM)
_MAILBOX = rb"%b(?:%b|(?:%b)?<%b>)%b" % (_CFWS, _SPEC, _WORDS, _SPEC, _CFWS)
_MAILBOXES = rb"%b(?:,%b)*" % (_MAILBOX, _MAILBOX)
_GROUP = rb"%b%b:(?:%b|%b);%b" % (_CFWS, _WORDS, _MAILBOXES, _CFWS, _CFWS)
_OCTETS = re2.Options()
_OCTETS.encoding = re2.Options.Encoding.LATIN1  # names are in any charset
_CLEAR = re2.compile(rb"%b|%b" % (_MAILBOXES, _GROUP), _OCTETS)


def tenant_of(account: Account, rules: Submission) -> str:
    """Whose the account's mail is; "" where the message says."""
    if rules.tenant == "header":
        return ""
    return account.name if rules.tenant == "account" else account.name.rpartition("@")[2]


def why_not_from(account: Account, sender: str) -> bytes:
    """Why an account may not send with this reverse-path, or nothing (RFC 6409 section 6.1).

    Nobody owns the null one, which notifications of clients need (RFC 8098 section 2.1).
    """
    return b"" if not sender or account.owns(sender) else reply.NOT_YOURS


def add_missing(arrival: Arrival, hostname: str) -> None:
    head, _ = header_of(arrival.parts)
    if missing := _missing(arrival, head, end_of_section(head), hostname):
        arrival.parts.insert(0, missing)
        arrival.size += len(missing)


def _missing(arrival: Arrival, head: bytes, end: int, hostname: str) -> bytes:
    """RFC 6409 sections 8.2 and 8.3."""
    added = ""
    if not find(head, 0, end, b"date"):
        added += f"Date: {format_date(int(arrival.received))}\r\n"
    if not find(head, 0, end, b"message-id"):
        added += f"Message-ID: <{format_id(arrival.message)}@{hostname}>\r\n"
    return added.encode()


def check_from(arrival: Arrival, account: Account) -> None:
    """Whom it is from, to everyone who reads it; Unfit."""
    head, _ = header_of(arrival.parts)
    end = end_of_section(head)
    # Some readers take " From: x", or the same with a NUL, for a field.
    if not all(name for name, _ in Section(head, 0, end)):
        raise Unfit(_UNCLEAR)
    authors = _authors(head, end, b"from")
    if not authors:
        raise Unfit(_NO_FROM)
    if not all(map(account.owns, authors + _authors(head, end, b"sender"))):
        raise Unfit(_NOT_OWNED)


def _authors(head: bytes, end: int, name: bytes) -> list[str]:
    """Of a field that there is once at the most (RFC 5322 section 3.6)."""
    places = find(head, 0, end, name)
    if not places:
        return []
    start, stop = places[0]
    if len(places) > 1 or stop - start > _LONGEST:
        raise Unfit(_UNCLEAR)
    value = unfold(head, start, stop)
    if not _CLEAR.fullmatch(value):
        raise Unfit(_UNCLEAR)
    return list(_addresses(value))


def _addresses(value: bytes) -> Iterator[str]:
    for entry in address_list(value):
        members = [entry] if len(entry) == 3 else entry[1]
        yield from (EmailAddress(*member).address for member in members)
