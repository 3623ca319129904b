"""An envelope whose recipients need several transactions: sent in portions, settled once."""

from collections.abc import Iterable

import msgspec

from fastmta.mail.disposition import Disposition
from fastmta.mail.reply import Reply
from fastmta.queue.ready import Job


class Whole:
    """Gathers how it ended for each recipient of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._ends: dict[int, Disposition] = {}  # by the recipient's place

    def record(self, indexes: Iterable[int], ends: Iterable[Disposition]) -> None:
        self._ends.update(zip(indexes, ends, strict=True))

    @property
    def ends(self) -> list[Disposition] | None:
        """One for each recipient, in order; None: some are still to come."""
        count = len(self.job.envelope.recipients)
        return [self._ends[i] for i in range(count)] if len(self._ends) == count else None


class Portion(Job):
    """Some of a job's recipients."""

    __slots__ = ("indexes", "whole")

    def __init__(self, whole: Whole, indexes: list[int]) -> None:
        envelope = whole.job.envelope
        recipients = [envelope.recipients[i] for i in indexes]
        super().__init__(msgspec.structs.replace(envelope, recipients=recipients), whole.job.parts)
        self.whole, self.indexes = whole, indexes


def split(job: Job, limit: int) -> list[Portion]:
    """At most so many recipients in each."""
    whole, count = Whole(job), len(job.envelope.recipients)
    starts = range(0, count, limit)
    return [Portion(whole, list(range(at, min(at + limit, count)))) for at in starts]


def left_over(replies: list[Reply]) -> list[int]:
    """Whom the host wants in a transaction of their own, as it delivered to others in this one.

    RFC 5321 section 4.5.3.1.10: 452 is "too many recipients". With an enhanced code other than
    4.5.3 it says something of the mailbox, as 4.2.2 does.
    """
    left = [i for i, reply in enumerate(replies) if _is_too_many(reply)]
    return left if left and any(reply.is_positive for reply in replies) else []


def most_telling(replies: list[Reply]) -> Reply:
    """Of several recipients' replies the one that asks us to slow down, if any does."""
    return next((reply for reply in replies if 400 <= reply.code < 500), replies[-1])


def places_of(job: Job) -> tuple[Whole, list[int]]:
    """Whom a transaction was for: which recipients of which whole."""
    if isinstance(job, Portion):
        return job.whole, job.indexes
    return Whole(job), list(range(len(job.envelope.recipients)))


def _is_too_many(reply: Reply) -> bool:
    return reply.code == 452 and reply.enhanced in ("", "4.5.3")
