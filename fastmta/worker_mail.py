"""Mail that comes in and mail that stays: a worker's part in local mailboxes.

`Intake` is where messages come in, whoever takes them; `LocalMail` is there where [domains] is
set.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import compress
from operator import not_

import lmdb

from fastmta import log
from fastmta.config import Config
from fastmta.delivery.dispatcher import Settle
from fastmta.delivery.local import LocalDelivery, envelope_of
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import format_id
from fastmta.mail.reply import Reply
from fastmta.queue.ready import ReadyQueue
from fastmta.server.residents import Residents
from fastmta.store.accounts import Accounts
from fastmta.store.directory import Directory
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.records import Unreadable
from fastmta.store.spool import Spool

logger = logging.getLogger(__name__)

_NOT_NOW = Reply(451, "4.3.0", "Accounts cannot be looked up now, try again later")


class Intake:
    """What listeners hand messages to: the worker's own shard, and a line in the log."""

    def __init__(self, spool: Spool, journal: log.DispositionLog) -> None:
        self._spool, self._journal = spool, journal
        self.residents: Residents | None = None  # where [domains] is set
        self.new_id = spool.new_id
        self.refusal = spool.refusal

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        arrivals: list[Arrival] = []  # instead of it
        if self.residents is not None:
            try:
                refusal = self.residents.refusal(arrival)
                arrivals = [] if refusal else self.residents.expand(arrival, self.new_id)
            except (lmdb.Error, Unreadable):
                logger.exception("%s: accounts cannot be looked up", format_id(arrival.message))
                refusal = _NOT_NOW
            if refusal is not None:
                return done(refusal)

        def stored(refusal: Reply | None) -> None:
            if refusal is None:
                self._journal.write(_received(arrival))
                if arrivals:
                    self._note_forwarded(arrival, arrivals)
            done(refusal)

        if arrivals:
            return self._spool.accept_all(arrivals, stored)
        self._spool.accept(arrival, stored)
        return None

    def expanded(self, report: Arrival) -> list[Arrival]:
        """A report of ours, to where its recipient forwards it."""
        if self.residents is None:
            return [report]
        try:
            arrivals = self.residents.expand(report, self.new_id) or [report]
        except (lmdb.Error, Unreadable):
            logger.exception("%s: accounts cannot be looked up", format_id(report.message))
            return [report]
        self._note_forwarded(report, arrivals)
        return arrivals

    def _note_forwarded(self, arrival: Arrival, arrivals: list[Arrival]) -> None:
        for one in arrivals:
            if one.forwarded_by:
                self._journal.write(_forwarded(arrival, one))


def _received(arrival: Arrival) -> log.Received:
    return log.Received(
        time=arrival.received,
        id=format_id(arrival.message),
        sender=arrival.sender,
        recipients=[recipient.address for recipient in arrival.recipients],
        size=arrival.size,
        client=arrival.client,
        account=arrival.account,
        protocol=arrival.protocol,
        tls=arrival.tls,
    )


def _forwarded(arrival: Arrival, one: Arrival) -> log.Forwarded:
    return log.Forwarded(
        time=arrival.received,
        id=format_id(one.message),
        sender=one.sender,
        recipients=[recipient.address for recipient in one.recipients],
        account=one.forwarded_by,
        original=format_id(arrival.message),
    )


class LocalMail:
    """The mailboxes with what fills them."""

    def __init__(
        self,
        config: Config,
        accounts: Accounts,
        mailboxes: Mailboxes,
        shards: Iterable[int],
        settle: Settle,
        read: Callable[[int, int], Awaitable[list[bytes]]],
        written: Callable[[], Awaitable[None]],
        *,
        room: Callable[[str], None],
        queue: Callable[[int], ReadyQueue],
    ) -> None:
        """`shards` are those that mail is delivered from; the others are as for LocalDelivery."""
        self._accounts = accounts
        self._directory = Directory(config, accounts)
        self.mailboxes = mailboxes
        # Before anything is delivered: what a crash has left, by shard.
        self._left = {number: self.mailboxes.receipts(number) for number in shards}
        self.residents = Residents(self._directory, self.mailboxes.usage)
        self.delivery = LocalDelivery(
            self.mailboxes, self._directory, settle, read, written, room=room, queue=queue
        )

    def quota_of(self, account: str) -> int:
        return self._directory.quota_of_name(account)

    def reload(self, config: Config) -> None:
        """What is under way ends as it began."""
        self._directory = Directory(config, self._accounts)
        self.residents = Residents(self._directory, self.mailboxes.usage)
        self.delivery.directory = self._directory

    async def clear_receipts(self, spools: Mapping[int, Spool]) -> None:
        """Of envelopes that the shards do not have any more; these have been started."""
        left, self._left = self._left, {}
        for number, receipts in left.items():
            held = await spools[number].holds([envelope_of(receipt) for receipt in receipts])
            self.delivery.forget_later(compress(receipts, map(not_, held)))

    def tell_postmasters(self) -> None:
        """RFC 5321 section 4.5.1 wants one for each domain."""
        for domain in sorted(self._directory.domains):
            if self._directory.owner(f"postmaster@{domain}") is None:
                logger.warning(
                    "nobody gets mail for postmaster@%s: make an account or alias, or set"
                    " mailboxes.postmaster",
                    domain,
                )

    async def close(self, *, settled: bool) -> None:
        """After the spools; `settled` as in LocalDelivery.finish."""
        await self.delivery.finish(settled=settled)
