"""Whose mail stays here: addresses of the local domains, and the accounts that they belong to.

Each look is some gets in LMDB, a few microseconds, so a changed account counts at once.
lmdb.Error and records.Unreadable where it cannot be told now.
"""

from collections import deque
from functools import lru_cache
from typing import NamedTuple

from fastmta.config import Config
from fastmta.mail.address import domain_of
from fastmta.mail.reply import Reply
from fastmta.store.accounts import Account, Accounts, name_of

MAX_EXPANDED = 100  # accounts and addresses that one address may lead to

UNKNOWN = Reply(550, "5.1.1", "No such user here")
DISABLED = Reply(550, "5.2.1", "The mailbox is disabled")
TOO_BIG = Reply(552, "5.2.3", "The message is larger than the mailbox takes")
FULL = Reply(452, "4.2.2", "The mailbox is full")

_name_of = lru_cache(maxsize=4096)(name_of)


class Onward(NamedTuple):
    """One way on."""

    account: str  # that sends it on
    address: str  # by which that was reached
    target: str  # elsewhere


class Expansion(NamedTuple):
    """Where mail for an account that forwards goes."""

    kept: list[str]  # addresses of local domains whose mailboxes get it
    sent: list[Onward]


class Directory:
    """The configuration's domains over the accounts."""

    def __init__(self, config: Config, accounts: Accounts) -> None:
        self.domains = frozenset[str](config.domains)
        self.settings = config.mailboxes
        self._catch_all: dict[str, str] = {
            name: one.catch_all for name, one in config.domains.items()
        }
        # RFC 5321 section 4.5.1: `postmaster` without a domain, which is read as this.
        self._postmaster_here = f"postmaster@{config.hostname}"
        self._accounts = accounts

    def is_local(self, address: str) -> bool:
        try:
            domain = domain_of(address)
        except ValueError:
            return False
        return domain in self.domains or self.is_bare_postmaster(address)

    def is_bare_postmaster(self, address: str) -> bool:
        """Whether it is the postmaster of this host, where its name is no local domain."""
        return (
            len(address) == len(self._postmaster_here)
            and address.lower() == self._postmaster_here
            and bool(self.settings.postmaster)
            and domain_of(address) not in self.domains
        )

    def owner(self, address: str) -> Account | None:
        """The account that mail for an address of a local domain belongs to."""
        if account := self._owner(address):
            return account
        local, _, domain = address.rpartition("@")
        if local.startswith('"'):
            local = _unquoted(local)
            if account := self._owner(f"{local}@{domain}"):
                return account
        separator = self.settings.separator
        if separator and (at := local.find(separator)) > 0:
            base = f"{local[:at]}@{domain}"
            if account := self._owner(base):
                return account
            local = local[:at]
        if local.lower() == "postmaster" and self.settings.postmaster:
            return self._owner(self.settings.postmaster)
        if not self.is_local(address):  # nor may its domain have a normal form
            return None
        catch_all = self._catch_all.get(domain_of(address), "")
        return self._owner(catch_all) if catch_all else None

    def resolve(self, address: str, size: int) -> Account | Reply:
        """Who gets a message of so many octets, or why it can never be delivered."""
        account = self.owner(address)
        if account is None:
            return UNKNOWN
        if account.disabled:
            return DISABLED
        most = self.settings.max_message_size
        quota = self.quota_of(account)
        if account.keeps and ((most and size > most) or (quota and size > quota)):
            return TOO_BIG
        return account

    def quota_of(self, account: Account) -> int:
        """Octets; 0: none."""
        return account.quota or self.settings.quota

    def quota_of_name(self, name: str) -> int:
        """The same by the name of an account, 0 where it is gone."""
        account = self._accounts.get(name)
        return self.quota_of(account) if account is not None else 0

    def expand(self, address: str) -> Expansion | None:
        """Where mail for an address of a local domain goes; None: into its mailbox.

        An account that forwarding comes back to is not forwarded again: who would send it there
        has it.
        """
        first = self.owner(address)
        if first is None or not first.forward or first.disabled:
            return None
        found = Expansion([], [])
        seen, waiting = {first.name}, deque([(first, address, {first.name})])
        while waiting:
            account, address, way = waiting.popleft()
            if account.keeps or any(self._leads_to(target, way) for target in account.forward):
                found.kept.append(address)
            for target in account.forward:
                if len(seen) >= MAX_EXPANDED:
                    break
                is_local = self.is_local(target)
                owner = self.owner(target) if is_local else None
                if (name := owner.name if owner else target) in seen:
                    continue
                seen.add(name)
                if not is_local:
                    found.sent.append(Onward(account.name, address, target))
                elif owner is None or not owner.forward or owner.disabled:
                    found.kept.append(target)  # who cannot have it is told of at the delivery
                else:
                    waiting.append((owner, target, way | {owner.name}))
        return found

    def _leads_to(self, target: str, accounts: set[str]) -> bool:
        """Whether it is an address of one of them."""
        owner = self.owner(target) if self.is_local(target) else None
        return owner is not None and owner.name in accounts

    def _owner(self, address: str) -> Account | None:
        try:
            name = _name_of(address)
        except ValueError:
            return None
        return self._accounts.owner_of_name(name)


def _unquoted(local: str) -> str:
    """What a quoted string means; equal to the same without quotes (RFC 5321 section 4.1.2)."""
    text, at = "", 1
    while at < len(local) - 1:
        at += local[at] == "\\"
        text += local[at]
        at += 1
    return text
