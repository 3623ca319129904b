"""[domains.*] and [mailboxes]: whose mail stays here, and what holds for all mailboxes."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from fastmta.config_reader import MailAddress, Problem, Table
from fastmta.mail.address import domain_of

if TYPE_CHECKING:
    from fastmta.config import Config

# One character of an atom (RFC 5322 section 3.2.3) that names have no other use for.
_SEPARATOR = re.compile(r"[!#$%&'*+/=?^_`{|}~.-]?")

Octets = Annotated[int, Meta(ge=0, le=1 << 60)]


class Domain(Table, frozen=True, kw_only=True):
    """Mail for it goes into the mailboxes of accounts."""

    # Who gets what is for nobody; "": it is refused.
    catch_all: MailAddress = MailAddress("")


class Mailboxes(Table, frozen=True, kw_only=True):
    """What holds for the mailboxes of all domains; 0: no limit."""

    separator: str = "+"  # bob+anything@ is bob@; "": it is not
    postmaster: MailAddress = MailAddress("")  # gets the mail for postmaster@ of all domains
    quota: Octets = 0  # octets, for accounts without one of their own
    max_message_size: Octets = 0  # octets; 0: as [smtp] has it
    # The reverse-path of what an account forwards: as it came, or the account's own.
    forward_as: Literal["sender", "account"] = "sender"


def check_mailboxes(config: "Config") -> Iterator[Problem]:
    settings, usual = config.mailboxes, Mailboxes()
    if not config.domains:
        if settings != usual:
            text = 'is without effect: there is no [domains."example.test"]'
            yield Problem("mailboxes", text)
        return
    if not _SEPARATOR.fullmatch(settings.separator):
        text = f'{settings.separator!r} cannot separate; write one character such as "+", or ""'
        yield Problem("mailboxes.separator", text)
    if settings.max_message_size >= config.smtp.max_message_size:
        text = f"is without effect: smtp.max_message_size is {config.smtp.max_message_size}"
        yield Problem("mailboxes.max_message_size", text)
    yield from _check_address(config, "mailboxes.postmaster", settings.postmaster)
    for name, domain in config.domains.items():
        yield from _check_address(config, f'domains."{name}".catch_all', domain.catch_all)
    names = set[str](config.domains)
    for i, route in enumerate(config.route):
        if route.domain in names:
            text = f'"{route.domain}" can never match: [domains."{route.domain}"] has its mail'
            yield Problem(f"route[{i}].domain", text)


def _check_address(config: "Config", key: str, address: MailAddress) -> Iterator[Problem]:
    """Whether it is of a domain here. Whether somebody has it is asked as mail comes in."""
    if not address:
        return
    try:
        domain = domain_of(address)
    except ValueError:
        domain = ""
    if domain not in config.domains:
        yield Problem(key, f'"{address}" has no mailbox here; write one of a [domains.*]')
