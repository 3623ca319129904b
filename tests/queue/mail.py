"""Envelopes and a spool in memory for tests of what moves them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastmta.log import Event
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Envelope, Recipient


def envelope(number: int, **fields: Any) -> Envelope:
    """Deferred once, unless said otherwise."""
    standard: dict[str, Any] = {
        "message": number << 8,
        "index": 0,
        "sender": "news@lists.test",
        "domain": "a.test",
        "recipients": [Recipient(f"bob{number}@a.test")],
        "received": 1000.0,
        "size": 100,
        "due": 5000.0,
    }
    return Envelope(**standard | fields)


class Statistics(NamedTuple):
    envelopes: int


class MemorySpool:
    """Keeps envelopes in a dict. What is in `out` is on its way."""

    def __init__(self, *envelopes: Envelope) -> None:
        self.kept = {(each.message, each.index): each for each in envelopes}
        self.out: set[tuple[int, int]] = set()
        self.reports: list[Arrival] = []
        self.scanned: Counter[int] = Counter()
        self.commits = 0
        self._last = 1 << 30

    def new_id(self) -> int:
        self._last += 1
        return self._last << 8

    def statistics(self) -> Statistics:
        return Statistics(len(self.kept))

    async def read(self, message: int, first: int) -> list[bytes]:
        return [b"Subject: original\r\n\r\nbody\r\n"]

    async def written(self) -> None:
        self.commits += 1

    async def scan(self, key: bytes, count: int) -> tuple[list[Envelope], bytes | None]:
        first = int.from_bytes(key) if key else 0
        found = sorted(number for number in self.kept if number[0] >= first)[: count + 1]
        envelopes = [self.kept[number] for number in found[:count]]
        self.scanned.update(each.message for each in envelopes)
        following = found[count][0].to_bytes(8) if len(found) > count else None
        return envelopes, following

    def is_out(self, envelope: Envelope) -> bool:
        return (envelope.message, envelope.index) in self.out

    async def claim(self, envelopes: list[Envelope]) -> list[Envelope]:
        numbers = {(each.message, each.index): each for each in envelopes}
        free = {n: each for n, each in numbers.items() if n not in self.out}
        claimed = [each for number, each in free.items() if self.kept.get(number) == each]
        self.out.update((each.message, each.index) for each in claimed)
        return claimed

    def unclaim(self, claimed: Sequence[Envelope]) -> None:
        self.out.difference_update((each.message, each.index) for each in claimed)

    def settle(
        self,
        envelope: Envelope,
        remaining: Envelope | None,
        *reports: Arrival,
        done: Callable[[None], None] = lambda _: None,
    ) -> None:
        number = envelope.message, envelope.index
        self.out.discard(number)
        self._put(number, remaining, *reports)
        done(None)

    def _put(self, number: tuple[int, int], remaining: Envelope | None, *reports: Arrival) -> None:
        if remaining is None:
            del self.kept[number]
        else:
            self.kept[number] = remaining
        self.reports += reports


class MemoryLog:
    """A disposition log that keeps what is written."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)
