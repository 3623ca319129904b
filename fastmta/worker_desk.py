"""A worker's part in what operators order and ask."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from msgspec import structs

from fastmta import control
from fastmta.delivery.numbers import PathNumbers
from fastmta.delivery.site import Site
from fastmta.delivery.ways import Ways
from fastmta.mail.reply import Reply
from fastmta.queue import retry, steward
from fastmta.queue.census import count_held, count_waiting
from fastmta.queue.orders import Order, Orders
from fastmta.queue.ready import Job
from fastmta.queue.requests import (
    Carry,
    Holds,
    HostPause,
    PathNow,
    Paths,
    Place,
    Places,
    Result,
    Show,
    Stand,
    Top,
    ToWorker,
    Waiting,
    Why,
)
from fastmta.queue.scheduler import Scheduler
from fastmta.queue.steward import Steward

MAX_PATHS = 500  # of an answer; the busiest first
Resolve = Callable[[str], Awaitable[Site | Reply]]


class Rules(NamedTuple):
    """What the configuration says of a domain, and where."""

    route: str  # the [[route]], "" where DNS says where it goes
    retry: str  # the [[retry.domain]], "" where [retry] applies
    policy: retry.Policy


class Shard(steward.Shard, Protocol):
    @property
    def scheduler(self) -> Scheduler[Site]: ...


class WorkerDesk:
    """Speaks for all shards and paths of the worker."""

    def __init__(
        self,
        worker: int,
        orders: Orders,
        shards: Mapping[int, Shard],
        ways: Ways,
        resolve: Resolve,
        rules_for: Callable[[str], Rules],
    ) -> None:
        self._worker, self._orders, self._shards = worker, orders, shards
        self._ways, self._resolve, self._rules_for = ways, resolve, rules_for
        memory = Memory(shards, ways)
        self._steward = Steward(worker, orders, shards, memory, self._site_name)

    def stand(self, holds: list[Order]) -> None:
        self._orders.stand([hold for hold in holds if hold.concerns(self._worker)])

    async def answer(self, request: ToWorker) -> AsyncIterator[Any]:
        """See worker_main.Worker.command."""
        match request:
            case Carry(order, holds):
                self.stand(holds)
                async for each in self._steward.carry_out(order):
                    yield each if isinstance(each, Result) else _progress(each)
            case Stand(holds):
                self.stand(holds)
            case Holds():
                yield await count_held(self._worker, self._shards.values())
            case Why(domain):
                yield await self._why(domain)
            case Top():
                yield self._top()
            case Show(message, sites):
                yield self._places(message, sites)

    async def _site_name(self, domain: str) -> str:
        found = await self._resolve(domain)
        return "" if isinstance(found, Reply) else found.name

    async def _why(self, domain: str) -> Waiting:
        found = await self._resolve(domain)
        name, problem = ("", str(found)) if isinstance(found, Reply) else (found.name, "")
        rules = self._rules_for(domain)
        start = Waiting(
            self._worker,
            name,
            problem,
            route=rules.route,
            retry=rules.retry,
            # What has waited before is met in the spool.
            out=sum(
                job.envelope.domain == domain and not job.envelope.due
                for job, _, _ in self._ways.jobs()
            ),
        )
        counted = await count_waiting(
            start, self._shards.values(), domain, rules.policy, time.time()
        )
        sites = {name, *[await self._site_name(hop) for hop in counted.rerouted]} - {""}
        paths = [self._path(each) for each in self._ways.paths() if each.site in sites]
        return structs.replace(counted, paths=paths[:MAX_PATHS], pauses=self._pauses(sites))

    def _pauses(self, sites: set[str]) -> list[HostPause]:
        """The hosts that sites have met, and that are left alone."""
        past = time.time() - time.monotonic()
        return [
            HostPause(trouble.host, past + trouble.until, str(trouble.reply))
            for trouble in self._ways.paused()
            if not sites.isdisjoint(trouble.sites)
        ]

    def _top(self) -> Paths:
        numbers = sorted(
            self._ways.paths(),
            key=lambda each: (each.busy + each.waiting + each.delivered, each.name),
            reverse=True,
        )
        spools = [shard.spool.statistics() for shard in self._shards.values()]
        return Paths(
            self._worker,
            envelopes=sum(each.envelopes for each in spools),
            held=sum(each.held for each in spools),
            out=self._ways.active_jobs(),
            paths=[self._path(each) for each in numbers[:MAX_PATHS]],
        )

    def _places(self, message: int, sites: tuple[str, ...]) -> Places:
        """Where those envelopes of a message are that are not simply waiting."""
        places = [
            Place(job.envelope.index, "sending" if is_begun else "ready", path.name)
            for job, path, is_begun in self._ways.jobs()
            if job.envelope.message == message
        ]
        names = {place.path for place in places}
        paths = [
            self._path(each)
            for each in self._ways.paths()
            if each.name in names or each.site in sites
        ]
        return Places(self._worker, places, paths)

    def _path(self, numbers: PathNumbers) -> PathNow:
        shape = self._ways.shape_of(numbers.name)
        limits = structs.asdict(shape.limits) if shape is not None else {}
        return PathNow(
            name=numbers.name,
            site=numbers.site,
            source=numbers.source,
            waiting=numbers.waiting,
            busy=numbers.busy,
            idle=numbers.idle,
            opening=numbers.opening,
            capacity=numbers.capacity,
            delivered=round(numbers.delivered, 2),
            deferred=round(numbers.deferred, 2),
            last=str(numbers.last) if numbers.last is not None else "",
            last_time=numbers.last_time,
            waits_for=numbers.waits_for,
            until=numbers.until,
            limits={name: str(value) for name, value in limits.items() if value is not None},
            origins=shape.origins if shape is not None else {},
        )


class Memory:
    """The jobs in memory, as the steward sees them."""

    def __init__(self, shards: Mapping[int, Shard], ways: Ways) -> None:
        self._shards, self._ways = shards, ways
        self.retry_now = ways.retry_now

    def withdraw(self, meant: steward.Meant) -> list[Job]:
        jobs = self._ways.withdraw(meant)
        for shard in self._shards.values():
            jobs += shard.scheduler.withdraw(meant)
        return jobs

    def under_way(self, meant: steward.Meant) -> int:
        return sum(
            is_begun and meant(job, path.site.name) for job, path, is_begun in self._ways.jobs()
        )


def _progress(step: steward.Step) -> control.Progress:
    return control.Progress(0, step.seen, step.total)
