"""What is ready to leave now: jobs in memory, one bounded queue for each path."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from fastmta.mail.envelope import Envelope
from fastmta.store.turns import Turns, alike

LEAST = 4  # jobs that each tenant may have waiting, or all of them share what room there is
ALL = "*"  # the tenants that share it

# Who hears of room: a priority and a tenant, or ALL of them.
Line = tuple[int, str]


class Job:
    """An envelope on its way out, with its message where memory still has it."""

    __slots__ = ("envelope", "parts")

    def __init__(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        self.envelope = envelope
        self.parts = parts  # None: read it from the spool


class ReadyQueue:
    """The jobs of one path that wait for a connection, bounded for each priority.

    Priorities take turns by weight, and the tenants of one priority by `weight_of`; the jobs of
    one tenant are first in, first out. Each tenant has its share of the room by weight, so none
    fills what another is about to need; only where there are too many for that, first come is
    first served.
    """

    __slots__ = ("_jobs", "_refused", "_turns", "_weight_of", "limit")

    def __init__(self, limit: int, weight_of: Callable[[Hashable], int] = alike) -> None:
        self.limit = limit  # jobs of one priority: bulk mail leaves the room of urgent mail alone
        self._weight_of = weight_of
        # While all jobs are of one priority and tenant, nobody takes turns.
        self._jobs: deque[Job] = deque()
        self._turns: Turns[Job] | None = None
        self._refused: set[Line] = set()  # that were told that there is no room

    def __len__(self) -> int:
        return len(self._jobs) if self._turns is None else len(self._turns)

    def put(self, job: Job) -> bool:
        """False: full, the job stays with the caller."""
        if self._turns is None:
            jobs = self._jobs
            if not jobs or _are_alike(jobs[-1].envelope, job.envelope):
                if len(jobs) >= self.limit:
                    self._refused.add((job.envelope.priority, job.envelope.tenant))
                    return False
                jobs.append(job)
                return True
            self._turns = self._take_turns(jobs)
        line = self.line_of(job)
        waiting, room = self._waiting(line)
        if waiting >= room:
            self._refused.add(line)
            return False
        self._turns.put(line[0], job.envelope.tenant, job)
        return True

    def line_of(self, job: Job) -> Line:
        """Whose room it needs, and waits for where it was refused."""
        priority, tenant = job.envelope.priority, job.envelope.tenant
        # While others wait for the room of all, nobody has his own: it would never become free.
        if (priority, ALL) in self._refused or self._share(priority, tenant) is None:
            return priority, ALL
        return priority, tenant

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

    def regained(self, job: Job | None = None) -> set[Line]:
        """Who was refused and has more than half of its room free since; said once.

        Of those who may have by this job, which has left, or of all.
        """
        among = self._refused
        if job is not None:
            priority = job.envelope.priority
            among = among & {(priority, job.envelope.tenant), (priority, ALL)}
        found = {line for line in among if self._has_regained(line)}
        self._refused -= found
        return found

    @property
    def has_refused(self) -> bool:
        """Somebody waits to hear of `regained`."""
        return bool(self._refused)

    def _has_regained(self, line: Line) -> bool:
        if line[1] == ALL and self._share(*line) is not None:
            return True  # there are fewer by now: each has its own
        waiting, room = self._waiting(line)
        return waiting * 2 < room

    def _waiting(self, line: Line) -> tuple[int, int]:
        """How many are in line, and how many may be."""
        priority, tenant = line
        if self._turns is None:
            is_empty = not self._jobs or self._jobs[0].envelope.priority != priority
            return (0 if is_empty else len(self._jobs)), self.limit
        if tenant == ALL:
            return self._turns.of(priority), self.limit
        return self._turns.waiting(priority, tenant), self._share(priority, tenant) or LEAST

    def _share(self, priority: int, tenant: str) -> int | None:
        """None: it has none of its own, there are too many."""
        if self._turns is None:
            return self.limit
        return self._turns.share(priority, tenant, self.limit, LEAST)

    def _take_turns(self, jobs: Iterable[Job]) -> Turns[Job]:
        turns: Turns[Job] = Turns(self._weight_of)
        for job in jobs:
            turns.put(job.envelope.priority, job.envelope.tenant, job)
        self._jobs = deque()
        return turns


def _are_alike(one: Envelope, other: Envelope) -> bool:
    return one.priority == other.priority and one.tenant == other.tenant
