"""Counting what waits, and for what."""

from typing import cast

from fastmta.config import Duration, Retry
from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue import census
from fastmta.queue.census import count_held, count_waiting
from fastmta.queue.requests import Kept, Waiting
from tests.queue.mail import MemorySpool, envelope
from tests.support import run

NOW = 2000.0
POLICY = Retry(first=Duration(60), give_up_after=Duration(10_000))


class Shard:
    def __init__(self, *envelopes: Envelope) -> None:
        self.memory = MemorySpool(*envelopes)
        self.spool = self.memory


def shards(*all_shards: Shard) -> list[census.Shard]:
    return [cast(census.Shard, each) for each in all_shards]


def last(code: int, time: float) -> Disposition:
    return Disposition(Kind.DEFERRED, Reply(code, "", "why"), "", time)


def test_what_a_domain_waits_for() -> None:
    async def scenario() -> None:
        moving = envelope(5, due=1000.0)
        one = Shard(
            envelope(1, due=1000.0, received=500.0),
            envelope(2, due=3000.0, attempts=3, last=last(450, 1200.0)),
            envelope(3, due=2500.0, attempts=1, last=last(451, 1300.0)),
            envelope(4, held="7: no"),
            moving,
            envelope(6, domain="b.test", received=1.0),
        )
        one.memory.out.add((moving.message, 0))
        other = Shard(envelope(8, held="7: no"))
        start = Waiting(0, site="mx.a.test", out=1)
        found = await count_waiting(start, shards(one, other), "a.test", POLICY, NOW)
        assert (found.site, found.is_all) == ("mx.a.test", True)
        assert (found.out, found.due, found.later, found.held) == (2, 1, 2, {7: 2})
        assert (found.next, found.attempts) == (2500.0, 3)
        assert (found.oldest, found.gives_up) == (500.0, 10_500.0)
        assert (found.last, found.last_time) == ("451 why", 1300.0)
        assert found.replies == {"450 why": 1, "451 why": 1}
        assert (found.first, found.longest) == (60.0, 4 * 3600.0)

    run(scenario())


def test_nothing_is_for_it() -> None:
    async def scenario() -> None:
        found = await count_waiting(Waiting(0), shards(Shard()), "a.test", POLICY, NOW)
        assert (found.oldest, found.gives_up, found.next) == (0.0, 0.0, 0.0)

    run(scenario())


def test_a_count_that_takes_too_long_says_so() -> None:

    async def scenario() -> None:
        many = Shard(*(envelope(number, held="7") for number in range(1, 20)))
        late = census.Census(shards(many), seconds=-1)
        assert [each async for each in late.batches()] == []
        assert not late.is_all

    run(scenario())


def test_how_much_each_hold_keeps() -> None:
    async def scenario() -> None:
        one = Shard(envelope(1, held="7: a"), envelope(2, held="8"), envelope(3, held="7: a"))
        assert await count_held(3, shards(one, Shard(envelope(4)))) == Kept(3, {7: 2, 8: 1}, True)

    run(scenario())


def test_mail_that_was_rerouted_is_told_by_its_next_hop() -> None:
    async def scenario() -> None:
        one = Shard(
            envelope(1, next_hop="192.0.2.7:25"),
            envelope(2, next_hop="192.0.2.7:25", held="7"),
            envelope(3),
        )
        found = await count_waiting(Waiting(0), shards(one), "a.test", POLICY, NOW)
        assert found.rerouted == {"192.0.2.7:25": 2}

    run(scenario())
