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
from fastmta.queue.requests import Result
from fastmta.queue.selector import Selector
from fastmta.queue.settlement import Settlement
from fastmta.store.spool import Spool

BATCH = 250  # envelopes that are read at a time
TURN = 50  # that are changed in one turn of the loop
UNWRITTEN = 500  # changes that may wait for the disk
LOOK = 0.01  # seconds between looks at what is under way
STEP = 0.1  # seconds between words on how far a command is
PATIENCE = 30.0  # seconds that a command waits for them
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
            self._clear_memory(order)  # what had to be looked up when the order came
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
        """Wait for transactions that the order came too late for; how many have not ended.

        One that meets a dead connection has not begun: its job is ready to leave again.
        """
        deadline = asyncio.get_running_loop().time() + PATIENCE
        meant = _meant(order)
        while order.stops and self._paths.under_way(meant):
            while count := self._paths.under_way(meant):
                if asyncio.get_running_loop().time() > deadline:
                    return count
                await asyncio.sleep(LOOK)
            self._clear_memory(order)
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
        self._unwritten = 0  # changes that may not be on the disk yet
        self.seen = 0
        self.kept = 0

    async def run(self, key: bytes | None = b"") -> AsyncIterator[None]:
        """From a key on, b"" is the first; gives after each batch."""
        await self._settled()  # what was before the order came is not to be missed
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
        if not self._order.stops:
            return
        if self._missed is None:
            await self._settled()  # what was taken out of memory
        else:
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
            await self._obey(await spool.claim(wanted), found)

    async def _obey(
        self, claimed: list[Envelope], found: dict[tuple[int, int], tuple[Order, str]]
    ) -> None:
        """Do with each what was found to be done; nothing stays claimed, also where that ends."""
        done = 0
        try:
            for envelope in claimed:
                order, site = found[envelope.message, envelope.index]
                done += 1
                if self._orders.is_over(order):  # another hold that was to keep it on
                    order = self._order
                if self._orders.is_over(order):  # it would keep what nobody releases any more
                    self._shard.spool.unclaim([envelope])
                    continue
                if order.action is Action.RETRY:
                    self._retried.add(site)
                self._shard.settlement.obey(order, Job(envelope), site)
                if done % TURN == 0:
                    await asyncio.sleep(0)
        finally:
            self._unwritten += done
            self._shard.spool.unclaim(claimed[done:])

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
        """Return when no more than so many changes are still to be written.

        Whether they are out says nothing: what was released may be in a ready queue already.
        """
        if self._unwritten > most:
            await self._settled()
            self._unwritten = 0

    async def _settled(self) -> None:
        """Return when all that has ended by now is on the disk."""
        await self._shard.settlement.begun()
        await self._shard.spool.written()
