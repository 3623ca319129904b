"""Recipients who have their mailboxes here: who is refused at RCPT, and where mail goes on to.

Whoever sends, mail for the local domains is taken; who may send on to others is asked elsewhere.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import lmdb
from msgspec import structs

from fastmta import metrics
from fastmta.mail.arrival import Arrival
from fastmta.mail.edit import find_fields, header_of, value_at
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.mail.xtext import original_recipient
from fastmta.protocol import smtp_replies
from fastmta.store.accounts import Account
from fastmta.store.directory import FULL, TOO_BIG, UNKNOWN, Directory
from fastmta.store.records import Unreadable

log = logging.getLogger(__name__)

UNKNOWN_RECIPIENTS = metrics.counter(
    "fastmta_unknown_recipients_total", "Recipients of local domains that are nobody's"
)
FORWARDED = metrics.counter(
    "fastmta_forwarded_total", "Addresses elsewhere that mail of accounts was sent on to"
)
LOOPS = metrics.counter(
    "fastmta_forwarding_loops_total", "Messages that came back to an account that forwards them"
)

MAX_SENDING_ON = 10  # recipients of one message whose accounts forward: each is a copy of its own
_NOT_NOW = Reply(451, "4.3.0", "Accounts cannot be looked up now, try again later")
_TOO_MANY = bytes(Reply(452, "4.5.3", "Too many recipients who forward; send the rest in another"))


class Usage(Protocol):
    """How full a mailbox is."""

    @property
    def octets(self) -> int: ...


class Residents:
    """What the directory means for mail that comes in."""

    def __init__(self, directory: Directory, usage: Callable[[str], Usage]) -> None:
        """`usage` of an account's name; lmdb.Error where that cannot be told now."""
        self._directory, self._usage = directory, usage

    # At RCPT.

    def vet(self, address: str, may_relay: bool, arrival: Arrival) -> bytes:
        """Why an address is refused, or nothing; where nothing else has a say."""
        refusal = self.verdict(address, arrival)
        if refusal is None:
            return b"" if may_relay else smtp_replies.RELAY_DENIED
        return refusal

    def verdict(self, address: str, arrival: Arrival) -> bytes | None:
        """The same for an address of a local domain; None: it is of another.

        The size of `arrival` is the declared one, 0 where there is none (RFC 1870 section 6.1).
        """
        directory = self._directory
        if not directory.is_local(address):
            return None
        try:
            found = directory.resolve(address, arrival.size)
            if isinstance(found, Reply):
                UNKNOWN_RECIPIENTS.value += found is UNKNOWN
                return bytes(found)
            if found.forward:
                if arrival.sending_on == MAX_SENDING_ON:
                    return _TOO_MANY
                arrival.sending_on += 1
            return bytes(FULL) if self._is_full(found, arrival.size) else b""
        except (lmdb.Error, Unreadable):
            log.exception("cannot look up %s", address)
            return bytes(_NOT_NOW)

    def is_local(self, address: str) -> bool:
        return self._directory.is_local(address)

    def _is_full(self, account: Account, size: int) -> bool:
        """Whether it has no room now; once some of it is deleted, it has."""
        quota = self._directory.quota_of(account)
        if not (quota and account.keeps):
            return False
        used = self._usage(account.name).octets
        return used >= quota or used + size > quota

    # Behind the end of data.

    def refusal(self, arrival: Arrival) -> Reply | None:
        """Why nobody at all can get a message, by its size (RFC 5321 section 4.2.3: 452, 552).

        Where one recipient can, it is taken, and the others' fate is told by reports.
        """
        worst: Reply | None = None
        for recipient in arrival.recipients:
            if not self._directory.is_local(recipient.address):
                return None
            found = self._directory.resolve(recipient.address, arrival.size)
            if isinstance(found, Account) and self._is_full(found, arrival.size):
                found = FULL
            if found not in (FULL, TOO_BIG):
                return None
            worst = FULL if FULL in (worst, found) else TOO_BIG
        return worst

    def expand(self, arrival: Arrival, new_id: Callable[[], int]) -> list[Arrival]:
        """The messages that are queued instead, where somebody forwards; []: it stays as it is.

        What goes on to addresses elsewhere is a message of its own for each account that sends
        it: its Delivered-To finds it again if it comes back, and is not for other recipients.
        """
        return Spread(self._directory, arrival).arrivals(new_id)


class Spread:
    """Where the recipients of one message lead, each address once."""

    def __init__(self, directory: Directory, arrival: Arrival) -> None:
        self._directory, self._arrival = directory, arrival
        self._rewrites = directory.settings.forward_as == "account"
        self._passed: set[str] | None = None  # whom it has been delivered to before
        self._kept: dict[str, Recipient] = {}
        self._sent: dict[str, list[Recipient]] = {}  # by the account that sends it on
        for recipient in arrival.recipients:
            self._add(recipient)

    def arrivals(self, new_id: Callable[[], int]) -> list[Arrival]:
        """See Residents.expand."""
        arrival, kept = self._arrival, list(self._kept.values())
        if not self._sent and kept == arrival.recipients:
            return []
        found = [structs.replace(arrival, recipients=kept)] if kept else []
        known = set(self._kept)
        for account, recipients in self._sent.items():
            fresh = {one.address: one for one in recipients if one.address not in known}
            known |= fresh.keys()
            if fresh:
                number = new_id() if found else arrival.message
                found.append(self._copy(number, account, list(fresh.values())))
        return found

    def _add(self, recipient: Recipient) -> None:
        directory, address = self._directory, recipient.address
        if not directory.is_local(address):
            return self._keep(recipient)
        if directory.is_bare_postmaster(address):
            address = directory.settings.postmaster
        expansion = directory.expand(address)
        if expansion is None:
            return self._keep(_readdressed(recipient, address))
        goes = [one for one in expansion.sent if self._goes_on(one.account)]
        stays = [one.address for one in expansion.sent if one not in goes]
        kept = list(dict.fromkeys(expansion.kept + stays))
        if not (kept or goes):
            kept = [address]
        told = _told(recipient, len(kept) + len(goes))
        for each in kept:
            self._keep(told(each))
        for one in goes:
            self._sent.setdefault(one.account, []).append(told(one.target))
        return None

    def _keep(self, recipient: Recipient) -> None:
        self._kept.setdefault(recipient.address, recipient)

    def _goes_on(self, account: str) -> bool:
        """Not what the account has sent on before: that has come back (RFC 5321 section 6.3).

        Under its own name it sends no reports on: one of mail that it sent on would come back to
        it for ever.
        """
        if self._rewrites and not self._arrival.sender:
            return False
        if self._passed is None:
            self._passed = _delivered_to(self._arrival)
        LOOPS.value += account in self._passed
        return account not in self._passed

    def _copy(self, number: int, account: str, recipients: list[Recipient]) -> Arrival:
        FORWARDED.value += len(recipients)
        arrival, mark = self._arrival, f"Delivered-To: {account}\r\n".encode()
        return structs.replace(
            arrival,
            message=number,
            sender=account if self._rewrites else arrival.sender,
            recipients=recipients,
            parts=[mark, *arrival.parts],
            size=arrival.size + len(mark),
            forwarded_by=account,
        )


def _readdressed(recipient: Recipient, address: str) -> Recipient:
    """An alias of one address passes on all that was asked for (RFC 3461 section 5.2.7.2)."""
    if recipient.address == address:
        return recipient
    orcpt = recipient.orcpt or original_recipient(recipient.address)
    return structs.replace(recipient, address=address, orcpt=orcpt)


def _told(recipient: Recipient, count: int) -> Callable[[str], Recipient]:
    """How each of the addresses that a recipient stands for is told of (RFC 3461 section 5.2.7).

    A report of success is for exactly one of several: the first.
    """
    asked = recipient.notify.split(",")
    later = recipient
    if count > 1 and "SUCCESS" in asked:
        rest = ",".join(one for one in asked if one != "SUCCESS")
        later = structs.replace(recipient, notify=rest or "NEVER")
    given = iter([recipient])

    def tell(address: str) -> Recipient:
        return _readdressed(next(given, later), address)

    return tell


def _delivered_to(arrival: Arrival) -> set[str]:
    """Whom the message names as one that it was delivered to."""
    head, _ = header_of(arrival.parts)
    fields = find_fields(head, "Delivered-To")
    values = (value_at(head, place).strip() for place in fields)
    return {value.decode("utf-8", "replace").lower() for value in values}
