"""What is done for who has logged in: RFC 6409 sections 6 and 8."""

from collections.abc import Iterator

from fastmta._core.address_list import address_list
from fastmta._core.headers import find, unfold
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
_NOT_OWNED = Reply(550, "5.7.1", "The From field has an address that is not yours")


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


def finish(arrival: Arrival, rules: Submission, account: Account, hostname: str) -> None:
    """Add what is missing, and check whom it is from; Unfit."""
    if not (rules.add_missing or rules.check_from):
        return
    head, _ = header_of(arrival.parts)
    end = end_of_section(head)
    if rules.check_from:
        _check_from(head, end, account)
    if rules.add_missing and (missing := _missing(arrival, head, end, hostname)):
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


def _check_from(head: bytes, end: int, account: Account) -> None:
    found = [unfold(head, *place) for place in find(head, 0, end, b"from")]
    authors = [each for value in found for each in _addresses(value)]
    if not authors:
        raise Unfit(_NO_FROM)
    if not all(map(account.owns, authors)):
        raise Unfit(_NOT_OWNED)


def _addresses(value: bytes) -> Iterator[str]:
    for entry in address_list(value):
        members = [entry] if len(entry) == 3 else entry[1]
        yield from (EmailAddress(*member).address for member in members)
