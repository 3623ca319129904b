"""All ways out of the queue, to hosts and to mailboxes, as scheduler and operators see them."""

from collections.abc import Callable, Iterator
from typing import Protocol

from fastmta.delivery.dispatcher import Dispatcher
from fastmta.delivery.hosts import Trouble
from fastmta.delivery.local import LocalDelivery
from fastmta.delivery.numbers import PathNumbers
from fastmta.delivery.site import LOCAL, Site
from fastmta.queue.limits import Shape
from fastmta.queue.ready import Job


class Way(Protocol):
    """A path, or the mailboxes."""

    @property
    def name(self) -> str: ...
    @property
    def site(self) -> Site: ...


class Ways:
    """The dispatcher, and beside it the mailboxes where there are any."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._hosts = dispatcher
        self.local: LocalDelivery | None = None
        self.shape_of: Callable[[str], Shape | None] = dispatcher.shape_of
        self.retry_now = dispatcher.retry_now

    @property
    def submit(self) -> Callable[[Site, Job], str]:
        """Takes a job for a site, or says who has no room for it; "" is taken.

        Where there are no mailboxes, nothing is asked on the way.
        """
        return self._hosts.submit if self.local is None else self._submit

    def _submit(self, site: Site, job: Job) -> str:
        if site is LOCAL and self.local is not None:
            return self.local.submit(site, job)
        return self._hosts.submit(site, job)

    def paused(self) -> list[Trouble]:
        return self._hosts.hosts.paused()

    def active_jobs(self) -> int:
        return sum(each.active_jobs() for each in self._all)

    def jobs(self) -> Iterator[tuple[Job, Way, bool]]:
        """What was submitted and is not settled, its way, and whether it has been begun."""
        for each in self._all:
            yield from each.jobs()

    def paths(self) -> list[PathNumbers]:
        return [path for each in self._all for path in each.paths()]

    def withdraw(self, matches: Callable[[Job, str], bool]) -> list[Job]:
        """Give back, unsettled, what waits and matches: `matches(job, site_name)`."""
        return [job for each in self._all for job in each.withdraw(matches)]

    async def drain(self, seconds: float) -> None:
        """Finish what is under way; each way has so many seconds."""
        for each in self._all:
            await each.drain(seconds)

    @property
    def _all(self) -> list[Dispatcher | LocalDelivery]:
        return [self._hosts] if self.local is None else [self._hosts, self.local]
