"""What is ready to leave now: jobs in memory, one bounded queue for each path."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from fastmta.mail.envelope import Envelope
from fastmta.store.turns import Turns, alike


class Job:
    """An envelope on its way out, with its message where memory still has it."""

    __slots__ = ("envelope", "parts")

    def __init__(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        self.envelope = envelope
        self.parts = parts  # None: read it from the spool


class ReadyQueue:
    """The jobs of one path that wait for a connection, bounded for each priority.

    Priorities take turns by weight, and the tenants of one priority by `weight_of`; the jobs of
    one tenant are first in, first out.
    """

    __slots__ = ("_jobs", "_refused", "_turns", "_weight_of", "limit")

    def __init__(self, limit: int, weight_of: Callable[[Hashable], int] = alike) -> None:
        self.limit = limit  # jobs of one priority: bulk mail leaves the room of urgent mail alone
        self._weight_of = weight_of
        # While all jobs are of one priority and tenant, nobody takes turns.
        self._jobs: deque[Job] = deque()
        self._turns: Turns[Job] | None = None
        self._refused: set[int] = set()  # priorities that were told that they are full

    def __len__(self) -> int:
        return len(self._jobs) if self._turns is None else len(self._turns)

    def put(self, job: Job) -> bool:
        """False: full, the job stays with the caller."""
        if self._turns is None:
            jobs = self._jobs
            if not jobs or _are_alike(jobs[-1].envelope, job.envelope):
                if len(jobs) >= self.limit:
                    return self._refuse(job)
                jobs.append(job)
                return True
            self._turns = self._take_turns(jobs)
        envelope = job.envelope
        if self._turns.of(envelope.priority) >= self.limit:
            return self._refuse(job)
        self._turns.put(envelope.priority, envelope.tenant, job)
        return True

    def take(self) -> Job | None:
        if self._turns is None:
            return self._jobs.popleft() if self._jobs else None
        job = self._turns.take()
        if not self._turns:
            self._turns = None
        return job

    def jobs(self) -> list[Job]:
        """What waits, for whoever wants to look."""
        return list(self._jobs) if self._turns is None else [job for _, _, job in self._turns]

    def take_all(self) -> list[Job]:
        return self.take_matching(lambda _: True)

    def take_matching(self, matches: Callable[[Job], bool]) -> list[Job]:
        """Remove the jobs that match, for an operator's order; the others keep their order.

        They stay also where the limit has been lowered since they came.
        """
        taken: list[Job] = []
        left: list[Job] = []
        for job in self.jobs():
            (taken if matches(job) else left).append(job)
        if self._turns is None or not left:
            self._jobs, self._turns = deque(left), None
        else:
            self._turns = self._take_turns(left)
        return taken

    def has_regained(self) -> bool:
        """Whether a priority that was full is below half its room since; said once for each."""
        regained = {one for one in self._refused if self._waiting(one) * 2 < self.limit}
        self._refused -= regained
        return bool(regained)

    @property
    def has_refused(self) -> bool:
        """Somebody waits to hear of `has_regained`."""
        return bool(self._refused)

    def _waiting(self, priority: int) -> int:
        if self._turns is not None:
            return self._turns.of(priority)
        return len(self._jobs) if self._jobs and self._jobs[0].envelope.priority == priority else 0

    def _refuse(self, job: Job) -> bool:
        self._refused.add(job.envelope.priority)
        return False

    def _take_turns(self, jobs: Iterable[Job]) -> Turns[Job]:
        turns: Turns[Job] = Turns(self._weight_of)
        for job in jobs:
            turns.put(job.envelope.priority, job.envelope.tenant, job)
        self._jobs = deque()
        return turns


def _are_alike(one: Envelope, other: Envelope) -> bool:
    return one.priority == other.priority and one.tenant == other.tenant
