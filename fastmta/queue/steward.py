"""Carries out an operator's orders in one worker, over all that is in the queue.

An order meets mail in three places: where it is about to be given to a ready queue (scheduler),
where an attempt has ended (settlement), and here, where it lies still. While the command runs the
order is in force in all of them, so that nothing passes from one to the other unseen.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from fastmta.mail.envelope import Envelope
from fastmta.queue.orders import Action, Order, Orders, held_by
from fastmta.queue.ready import Job
from fastmta.queue.selector import Selector
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool

BATCH = 250  # envelopes that are read at a time
TURN = 50  # that are changed in one turn of the loop
UNWRITTEN = 500  # changes that may wait for the disk
LOOK = 0.01  # seconds between looks at what is under way
STEP = 0.1  # seconds between words on how far a command is
PATIENCE = 30.0  # seconds that a command waits for them
# What is due now may be out again at once, and wait there for as long as its path has to.
GO_ON = (Action.RELEASE, Action.RETRY, Action.REROUTE)
MAX_SITES = 50_000  # names of sites that a scan remembers

Meant = Callable[[Job, str], bool]  # a job, and the name of its site


class Shard(Protocol):
    """One spool, with what ends attempts on its envelopes."""

    @property
    def spool(self) -> Spool: ...
    @property
    def settlement(self) -> Settlement: ...


class Paths(Protocol):
    """Jobs in memory, of all shards."""

    def withdraw(self, meant: Meant) -> list[Job]:
        """Take back what waits in ready queues, and for DNS."""

    def under_way(self, meant: Meant) -> int:
        """How many are in a transaction now."""

    def retry_now(self, site: str) -> None:
        """Try hosts of a site again that were left alone."""


class Step(Struct, frozen=True):
    """How far a command is in one worker, in envelopes."""

    worker: int
    seen: int
    total: int


class Result(Struct, frozen=True, tag="result"):
    """What a command did in one worker."""

    worker: int
    envelopes: int
    recipients: int
    kept: int = 0  # left alone, because they are held
    under_way: int = 0  # in a transaction that did not end in time: they may be delivered


class Steward:
    """Knows the worker's shards, by number, and its jobs in memory."""

    def __init__(
        self,
        worker: int,
        orders: Orders,
        shards: Mapping[int, Shard],
        paths: Paths,
        resolve: Callable[[str], Awaitable[str]],
    ) -> None:
        """`resolve` gives the name of a domain's site, "" where it has none now."""
        self._worker, self._orders = worker, orders
        self._shards, self._paths, self._resolve = shards, paths, resolve

    async def carry_out(self, order: Order) -> AsyncIterator[Step | Result]:
        """Do it everywhere: a Step now and then, and the Result."""
        tally = self._orders.begin(order)
        try:
            self._clear_memory(order)
            sites, pace = Sites(order.selector, self._resolve), Pace()
            retried = Retried(self._paths)
            scans = [
                Scan(shard, order, self._orders, sites, retried) for shard in self._shards.values()
            ]
            total = sum(shard.spool.statistics().envelopes for shard in self._shards.values())
            for scan in scans:
                async for _ in scan.run():
                    if pace.is_time():
                        seen = min(sum(each.seen for each in scans), total)
                        yield Step(self._worker, seen, total)
            under_way = await self._quiet(order)
            for scan in scans:
                await scan.run_again()
            kept = sum(scan.kept for scan in scans)
            yield Result(self._worker, tally.envelopes, tally.recipients, kept, under_way)
        finally:
            self._orders.end(order)

    def _clear_memory(self, order: Order) -> None:
        """What is ready to leave does not."""
        if order.stops:
            for job in self._paths.withdraw(_meant(order)):
                shard = self._shards[job.envelope.message & 0xFF]  # see Spool.new_id
                shard.settlement.obey(order, job, job.envelope.site)

    async def _quiet(self, order: Order) -> int:
        """Wait for transactions that the order came too late for; how many have not ended."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while order.stops and (count := self._paths.under_way(_meant(order))):
            if asyncio.get_running_loop().time() > deadline:
                return count
            await asyncio.sleep(LOOK)
        return 0


def _meant(order: Order) -> Meant:
    def meant(job: Job, site: str) -> bool:
        return order.changes(job.envelope) and order.selector.matches(job.envelope, site)

    return meant


class Pace:
    """Not more often than somebody wants to look."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.time()

    def is_time(self) -> bool:
        if (now := self._loop.time()) < self._next:
            return False
        self._next = now + STEP
        return True


class Sites:
    """Where envelopes go, for a selector that asks: as they were tried, else as DNS says now."""

    def __init__(self, selector: Selector, resolve: Callable[[str], Awaitable[str]]) -> None:
        self._is_asked = bool(selector.site)
        self._resolve = resolve
        self._known: dict[str, str] = {}

    async def of(self, envelopes: list[Envelope]) -> list[str]:
        """The name of each one's site; its domains are looked up all at once."""
        if self._is_asked:
            unknown = {one.domain for one in envelopes if not one.site} - self._known.keys()
            if len(self._known) > MAX_SITES:
                self._known.clear()
            found = await asyncio.gather(*map(self._resolve, unknown))
            self._known.update(zip(unknown, found, strict=True))
        return [one.site or self._known.get(one.domain, "") for one in envelopes]


class Retried:
    """Sites whose hosts are tried again, each told once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._told: set[str] = set()

    def add(self, site: str) -> None:
        if site and site not in self._told and len(self._told) < MAX_SITES:
            self._told.add(site)
            self._paths.retry_now(site)


class Scan:
    """One shard's envelopes, a batch at a time, and no faster than they are written."""

    def __init__(
        self, shard: Shard, order: Order, orders: Orders, sites: Sites, retried: "Retried"
    ) -> None:
        self._shard, self._order, self._orders, self._sites = shard, order, orders, sites
        self._retried = retried
        self._missed: bytes | None = None  # where the first was that was out when it was met
        self._unwritten: list[Envelope] = []
        self.seen = 0
        self.kept = 0

    async def run(self, key: bytes | None = b"") -> AsyncIterator[None]:
        """From a key on, b"" is the first; gives after each batch."""
        # What was settled before the order came is not to be missed.
        await self._shard.settlement.begun()
        await self._shard.spool.written()
        while key is not None:
            envelopes, following = await self._shard.spool.scan(key, BATCH)
            await self._change(envelopes, key)
            await self._written(UNWRITTEN)
            self.seen += len(envelopes)
            key = following
            yield
        await self._written(0)

    async def run_again(self) -> None:
        """What was on its way from one place in memory to another lies still by now."""
        if self._missed is not None and self._order.stops:
            seen, kept = self.seen, self.kept
            async for _ in self.run(self._missed):
                pass
            self.seen, self.kept = seen, kept

    async def _change(self, envelopes: list[Envelope], key: bytes) -> None:
        spool = self._shard.spool
        sites = await self._sites.of(envelopes)
        found: dict[tuple[int, int], tuple[Order, str]] = {}
        wanted: list[Envelope] = []
        for envelope, site in zip(envelopes, sites, strict=True):
            order = self._order_for(envelope, site)
            if order is None:
                continue
            if spool.is_out(envelope):
                self._missed = key if self._missed is None else self._missed
                continue
            found[envelope.message, envelope.index] = order, site
            wanted.append(envelope)
        if wanted:
            self._unwritten += (claimed := await spool.claim(wanted))
            for count, envelope in enumerate(claimed, 1):
                order, site = found[envelope.message, envelope.index]
                if order.action is Action.RETRY:
                    self._retried.add(site)
                self._shard.settlement.obey(order, Job(envelope), site)
                if count % TURN == 0:
                    await asyncio.sleep(0)

    def _order_for(self, envelope: Envelope, site: str) -> Order | None:
        """What is to be done with it: what was ordered, or what another hold wants."""
        order = self._order
        if not self._is_meant(envelope, site):
            return None
        if order.action is Action.RETRY and envelope.held:
            self.kept += 1
        if not order.changes(envelope):
            return None
        if order.action is Action.RELEASE:
            free = replace(envelope, held="")
            if other := self._orders.hold_for(free, site):
                self.kept += 1
                return None if held_by(envelope) == other.number else other
        return order

    def _is_meant(self, envelope: Envelope, site: str) -> bool:
        if self._order.ends and held_by(envelope) in self._order.ends:
            return True
        return not self._order.hold and self._order.selector.matches(envelope, site)

    async def _written(self, most: int) -> None:
        """Return when no more than so many changes are still to be written."""
        if self._order.action in GO_ON and len(self._unwritten) > most:
            await self._shard.spool.written()
            self._unwritten.clear()
        is_out = self._shard.spool.is_out
        while len(self._unwritten) > most:
            self._unwritten = [each for each in self._unwritten if is_out(each)]
            if len(self._unwritten) > most:
                await asyncio.sleep(LOOK)
