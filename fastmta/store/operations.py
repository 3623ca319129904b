"""What changes in the spool: each operation in its transaction, and what follows from its commit.

Whatever failed is made again, also where its commit came through after all: so the second time of
a `Settle` or `Delivered` changes nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastmta.mail.address import domain_of
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.store import records, rows, segment
from fastmta.store.env import Databases, Operation, Transaction
from fastmta.store.segment import Segment

if TYPE_CHECKING:
    from fastmta.store.spool import Spool

Done = Callable[[Reply | None], None]


def number_of(envelope: Envelope) -> int:
    """An envelope as one integer: its key in `envelopes`, read as a number."""
    return envelope.message << 16 | envelope.index


def envelopes_of(arrival: Arrival) -> list[Envelope]:
    """One envelope for each destination domain."""
    recipients = arrival.recipients
    if len(recipients) == 1:  # mostly
        return [_envelope(arrival, 0, domain_of(recipients[0].address), recipients)]
    by_domain: dict[str, list[Recipient]] = {}
    for recipient in recipients:
        by_domain.setdefault(domain_of(recipient.address), []).append(recipient)
    return [_envelope(arrival, index, *each) for index, each in enumerate(by_domain.items())]


def _envelope(arrival: Arrival, index: int, domain: str, recipients: list[Recipient]) -> Envelope:
    # The first ones by their places: names cost more than all else here.
    return Envelope(
        arrival.message,
        index,
        arrival.sender,
        domain,
        recipients,
        arrival.received,
        arrival.size,
        arrival.eight_bit,
        arrival.utf8,
        arrival.ret,
        arrival.envid,
        arrival.client,
        priority=arrival.priority,
        tenant=arrival.tenant,
        campaign=arrival.campaign,
        pool=arrival.pool,
        tls=arrival.demand,
    )


class Accept:
    """Store a message with its envelopes."""

    __slots__ = ("body", "done", "entry", "envelopes", "has_room", "is_fresh", "segment", "spool")

    def __init__(
        self,
        spool: "Spool",
        envelopes: list[Envelope],
        body: list[bytes],
        has_room: bool,
        done: Done,
    ) -> None:
        self.spool, self.envelopes, self.body, self.done = spool, envelopes, body, done
        self.has_room = has_room  # to go out at once
        first = envelopes[0]
        self.is_fresh = first.due == 0
        self.entry: list[bytes] = []  # for a segment, if it is fresh
        self.segment: Segment | None = None  # where it was put
        if self.is_fresh and first.size <= records.CHUNK:
            # Here and not in `apply`: the writer's thread has to wait for the GIL again and again.
            first.checksum = records.checksum_of(body)
            self.entry = records.pack_entry(first, body)

    def apply(self, txn: Transaction, db: Databases) -> None:
        """All of what is no entry of a segment, which others may share."""
        first = self.envelopes[0]
        checksum = records.checksum_of(self.body)  # of a large one it keeps no loop waiting
        for envelope in self.envelopes:
            envelope.checksum = checksum
            if envelope.due:
                rows.put_envelope(txn, db, envelope)
        if self.is_fresh:
            self.entry = records.pack_entry(first, [])
        rows.put_body(txn, db, first.message, self.body)

    def finished(self, error: Exception | None) -> None:
        if error is not None:
            for envelope in self.envelopes:
                self.spool.take_back(envelope)
            self.done(self.spool.failure())
            return
        if self.segment is not None:
            self.spool.fresh[self.envelopes[0].message] = self.segment
        try:
            self.done(None)
        finally:  # whatever becomes of the answer, the message goes its way
            for envelope in self.envelopes:
                if self.has_room:
                    self.spool.hand_over(envelope, self.body)
                else:
                    self.spool.take_back(envelope)
                    self.spool.note_waiting(envelope)


class AcceptAll:
    """Store several messages, all or none."""

    __slots__ = ("accepts",)

    def __init__(self, accepts: list[Accept]) -> None:
        self.accepts = accepts

    def apply(self, txn: Transaction, db: Databases) -> None:
        apply(self.accepts, txn, db)

    def finished(self, error: Exception | None) -> None:
        for accept in self.accepts:
            accept.finished(error)


class Settle:
    """Record how an attempt ended: the envelope goes or waits anew, its reports come in."""

    __slots__ = ("envelope", "remaining", "reports", "segment", "spool")

    def __init__(
        self,
        spool: "Spool",
        envelope: Envelope,
        remaining: Envelope | None,
        reports: list[Accept],
    ) -> None:
        self.spool, self.envelope, self.remaining = spool, envelope, remaining
        self.reports = reports
        self.segment = spool.fresh.pop(envelope.message) if envelope.due == 0 else None
        spool.unsettled += 1

    def apply(self, txn: Transaction, db: Databases) -> None:
        if self.segment is not None:
            self._leave(self.segment, txn, db)
        else:
            rows.delete_envelope(txn, db, self.envelope)
        if self.remaining is not None:
            rows.put_envelope(txn, db, self.remaining)
        elif not rows.has_envelopes(txn, db, self.envelope.message):
            rows.delete_body(txn, db, self.envelope.message)
        if self.reports:
            apply(self.reports, txn, db)

    def _leave(self, leaving: Segment, txn: Transaction, db: Databases) -> None:
        """The message is in its segment no more; one that waits on takes its body along."""
        message = self.envelope.message
        if self.remaining is not None and self.envelope.size <= records.CHUNK:
            body = segment.find_body(txn, db, leaving.key, message)
            if body is not None:  # else a commit that was said to have failed has moved it already
                rows.put_body(txn, db, message, [body])
        segment.mark(txn, db, leaving, [message])

    def finished(self, error: Exception | None) -> None:
        if error is not None:  # it stays out, so that nobody delivers it again before this is safe
            self.spool.settle_later(self, error)
            return
        self.spool.settled(self)
        self.spool.take_back(self.envelope)
        if self.segment is not None:
            self.spool.leave(self.segment)
        if self.remaining is not None:
            self.spool.note_waiting(self.remaining)
        for report in self.reports:
            report.finished(None)


class Barrier:
    """Changes nothing; ends after all that was submitted before it."""

    __slots__ = ("passed",)

    def __init__(self, passed: asyncio.Future[None]) -> None:
        self.passed = passed

    def apply(self, txn: Transaction, db: Databases) -> None:
        pass

    def finished(self, error: Exception | None) -> None:
        if not self.passed.done():  # or nobody waits any longer
            self.passed.set_result(None)


class Delivered:
    """Write down which messages of a segment were delivered, or remove it when all are gone."""

    __slots__ = ("is_last", "messages", "segment", "spool")

    def __init__(self, spool: "Spool", of: Segment) -> None:
        self.spool, self.segment = spool, of
        self.messages, of.delivered = of.delivered, []
        self.is_last = of.left == 0
        spool.unsettled += 1

    def apply(self, txn: Transaction, db: Databases) -> None:
        if self.is_last:
            segment.drop(txn, db, self.segment)
        else:
            segment.mark(txn, db, self.segment, self.messages)

    def finished(self, error: Exception | None) -> None:
        if error is not None:
            self.spool.settle_later(self, error)
            return
        self.spool.settled(self)


def apply(operations: Sequence[Operation], txn: Transaction, db: Databases) -> None:
    """Make the changes of a batch; messages that come together share a row of `fresh`."""
    fresh: list[Accept] = []
    for operation in operations:
        if type(operation) is Accept and operation.is_fresh:
            fresh.append(operation)
            if operation.envelopes[0].size <= records.CHUNK:
                continue
        operation.apply(txn, db)
    placed = segment.put(txn, db, [accept.entry for accept in fresh])
    for accept, where in zip(fresh, placed, strict=True):
        accept.segment = where
