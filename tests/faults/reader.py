"""Somebody who reads mail: what came into the mailboxes goes into the ledger."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastmta.store.mailboxes import Mailboxes, folder_of
from tests.integration.ledger import Ledger
from tests.integration.mailboxes import add_account

LOCAL = ("one.test", "two.test")  # the third of the ledger's domains is elsewhere
DOMAINS = "\n".join(f'[domains."{name}"]\ncatch_all = "all@{name}"' for name in LOCAL)


def add_accounts(data: Path) -> None:
    for domain in LOCAL:
        add_account(data, f"all@{domain}")


class Reader:
    """Looks into the mailboxes as another process than the server, and takes messages away.

    What is always true: a uid belongs to one message for ever (RFC 9051 section 2.3.1.1), and
    each message is in a mailbox under one uid.
    """

    def __init__(self, ledger: Ledger, data: Path, dice: random.Random) -> None:
        self._ledger, self._dice = ledger, dice
        self._mailboxes = Mailboxes(folder_of(data), lambda _: 0)
        self._numbers: dict[tuple[int, int, int], int] = {}  # mailbox, uidvalidity, uid
        self._known: set[tuple[int, str]] = set()

    async def read(self, share: float = 0.0) -> None:
        """Read all, and take away this share of it, the newest among them."""
        for domain in LOCAL:
            found = await self._mailboxes.open(f"all@{domain}")
            place = found.mailbox, found.uidvalidity
            contents = await self._mailboxes.read_several(found.mailbox, found.uids)
            for uid, content in zip(found.uids, contents, strict=True):
                assert isinstance(content, bytes), content
                self._note((*place, uid), self._ledger.check(content), domain)
            gone = [uid for uid in found.uids[:-1] if self._dice.random() < share]
            if share and found.uids:
                await self._mailboxes.expunge(found.mailbox, [*gone, found.uids[-1]])

    def _note(self, place: tuple[int, int, int], number: int, domain: str) -> None:
        if place in self._numbers:
            assert self._numbers[place] == number, f"uid {place[-1]} is used again"
            return
        self._numbers[place] = number
        assert (number, domain) not in self._known, f"message {number} is there twice"
        self._known.add((number, domain))
        self._ledger.arrives(number, self._ledger.recipients(number, domain))

    async def close(self) -> None:
        await self._mailboxes.close()


@asynccontextmanager
async def reader(ledger: Ledger, data: Path, dice: random.Random) -> AsyncIterator[Reader]:
    one = Reader(ledger, data, dice)
    try:
        yield one
    finally:
        await one.close()
