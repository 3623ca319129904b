"""What is ready to leave now: jobs in memory, one bounded queue for each path."""

from collections import deque

from fastmta.mail.envelope import Envelope


class Job:
    """An envelope on its way out, with its message where memory still has it."""

    __slots__ = ("envelope", "parts")

    def __init__(self, envelope: Envelope, parts: list[bytes] | None = None) -> None:
        self.envelope = envelope
        self.parts = parts  # None: read it from the spool


class ReadyQueue:
    """The jobs of one path that wait for a connection: first in, first out, and bounded."""

    __slots__ = ("_jobs", "_limit")

    def __init__(self, limit: int) -> None:
        self._jobs: deque[Job] = deque()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> bool:
        """False: full, the job stays with the caller."""
        if len(self._jobs) >= self._limit:
            return False
        self._jobs.append(job)
        return True

    def take(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None

    def take_all(self) -> list[Job]:
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs
