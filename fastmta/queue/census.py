"""Counting what lies in a shard, a batch at a time and not for long."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from msgspec.structs import replace

from fastmta.mail.envelope import Envelope
from fastmta.queue import retry
from fastmta.queue.orders import held_by
from fastmta.queue.requests import Kept, Waiting
from fastmta.store.spool import Spool

SECONDS = 2.0  # that an operator waits for a count
BATCH = 500
MAX_REPLIES = 1000  # different ones that are told apart
MAX_HOPS = 20


class Shard(Protocol):
    @property
    def spool(self) -> Spool: ...


class Census:
    """Envelopes of some shards, until the time is over."""

    def __init__(self, shards: Iterable[Shard], seconds: float = SECONDS) -> None:
        self._shards = shards
        self._end = asyncio.get_running_loop().time() + seconds
        self.is_all = True

    async def batches(self) -> AsyncIterator[tuple[Spool, list[Envelope]]]:
        loop = asyncio.get_running_loop()
        for shard in self._shards:
            key: bytes | None = b""
            while key is not None:
                if loop.time() > self._end:
                    self.is_all = False
                    return
                envelopes, key = await shard.spool.scan(key, BATCH)
                yield shard.spool, envelopes


async def count_held(worker: int, shards: Iterable[Shard]) -> Kept:
    census, found = Census(shards), Counter[int]()
    async for _, envelopes in census.batches():
        found.update(held_by(each) for each in envelopes if each.held)
    return Kept(worker, dict(found), census.is_all)


async def count_waiting(
    start: Waiting, shards: Iterable[Shard], domain: str, policy: retry.Policy, now: float
) -> Waiting:
    """What `start` says, with the numbers of a domain's envelopes."""
    census, tally = Census(shards), Tally(policy, now)
    async for spool, envelopes in census.batches():
        for envelope in envelopes:
            if envelope.domain == domain:
                tally.add(envelope, is_out=spool.is_out(envelope))
    return replace(tally.on(start), is_all=census.is_all)


class Tally:
    """The envelopes of one domain, by what they wait for."""

    def __init__(self, policy: retry.Policy, now: float) -> None:
        self._policy, self._now = policy, now
        self._out = self._due = self._later = self._attempts = 0
        self._next = self._oldest = 0.0
        self._held, self._replies = Counter[int](), Counter[str]()
        self._rerouted = Counter[str]()
        self._last, self._last_time = "", 0.0

    def add(self, envelope: Envelope, *, is_out: bool) -> None:
        self._attempts = max(self._attempts, envelope.attempts)
        self._oldest = min(self._oldest or envelope.received, envelope.received)
        if envelope.last is not None:
            self._hear(str(envelope.last.reply), envelope.last.time)
        if envelope.next_hop and (
            envelope.next_hop in self._rerouted or len(self._rerouted) < MAX_HOPS
        ):
            self._rerouted[envelope.next_hop] += 1
        if envelope.held:
            self._held[held_by(envelope)] += 1
        elif is_out:
            self._out += 1
        elif envelope.due > self._now:
            self._later += 1
            self._next = min(self._next or envelope.due, envelope.due)
        else:
            self._due += 1

    def _hear(self, reply: str, time: float) -> None:
        if reply in self._replies or len(self._replies) < MAX_REPLIES:
            self._replies[reply] += 1
        if time >= self._last_time:
            self._last, self._last_time = reply, time

    def on(self, start: Waiting) -> Waiting:
        """Added to what is known already."""
        return replace(
            start,
            out=start.out + self._out,
            due=self._due,
            later=self._later,
            next=self._next,
            first=float(self._policy.first),
            longest=float(self._policy.max_interval),
            attempts=self._attempts,
            oldest=self._oldest,
            gives_up=self._oldest and float(self._oldest + self._policy.give_up_after),
            held=dict(self._held),
            rerouted=dict(self._rerouted),
            replies=dict(self._replies.most_common(3)),
            last=self._last,
            last_time=self._last_time,
        )
