"""What is ready to leave now: jobs in memory, one bounded queue for each path."""

from collections import deque
from collections.abc import Callable

from fastmta.mail.envelope import Envelope


class Job:
    """An envelope on its way out, with its message where memory still has it."""

    __slots__ = ("envelope", "parts")

    def __init__(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        self.envelope = envelope
        self.parts = parts  # None: read it from the spool


class ReadyQueue:
    """The jobs of one path that wait for a connection: first in, first out, and bounded."""

    __slots__ = ("_has_refused", "_jobs", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[Job] = deque()
        self._has_refused = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> bool:
        """False: full, the job stays with the caller."""
        if len(self._jobs) >= self.limit:
            self._has_refused = True
            return False
        self._jobs.append(job)
        return True

    def take(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None

    def take_all(self) -> list[Job]:
        return self.take_matching(lambda _: True)

    def take_matching(self, matches: Callable[[Job], bool]) -> list[Job]:
        """Remove the jobs that match, for an operator's order; the others keep their order."""
        jobs = list(self._jobs)
        taken = [job for job in jobs if matches(job)]
        if taken:
            out = set(taken)
            self._jobs = deque(job for job in jobs if job not in out)
        return taken

    def has_regained(self) -> bool:
        """Whether it was full and is below half its limit since; said once."""
        if self._has_refused and len(self._jobs) * 2 < self.limit:
            self._has_refused = False
            return True
        return False
