"""A maildrop that one session has for itself: its lock, its messages, and what is read ahead.

Messages come out of the store some at a time, in one look off the loop. A client that goes
through them in order finds the next in memory, so that a thousand small ones cost a dozen looks
and not a thousand.
"""

from collections.abc import Callable, Sequence

from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_maildrop import Maildrop
from fastmta.protocol.smtp_limits import Load
from fastmta.store.mail_reading import Snapshot
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.records import Unreadable

AHEAD = 1 << 19  # octets that are read at a time, of messages that are no larger
MOST_AHEAD = 1000  # messages
PIECE, SMALL_PIECE = 1 << 20, 1 << 16  # octets of larger ones, and where memory is short

# Notes that a mailbox, by its id, is opened now; False where that is too soon.
Pace = Callable[[int], bool]


class NotNow(Exception):
    """The maildrop cannot be had; what the client hears is `reply`."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.reply = answer


class LockedMaildrop:
    """From the login to the end of a session; `close` it then."""

    def __init__(self, mailboxes: Mailboxes, account: str, snapshot: Snapshot, load: Load) -> None:
        self._mailboxes, self._account, self._load = mailboxes, account, load
        self._mailbox = snapshot.mailbox
        self.drop = Maildrop(snapshot.uidvalidity, snapshot.uids, snapshot.sizes)
        self.ahead: dict[int, bytes] = {}  # number -> message, the same dictionary all the time
        self._held = 0  # octets of them, as they are counted in `load`
        self._damaged: dict[int, Unreadable] = {}  # that the store has moved aside
        self._next = range(1, 2)  # numbers of which one is asked for by who goes on in order

    @classmethod
    async def open(
        cls, mailboxes: Mailboxes, account: str, load: Load, pace: Pace
    ) -> "LockedMaildrop":
        """NotNow where another session has it, or where it is opened too often."""
        if not mailboxes.lock.take(account):
            raise NotNow(reply.IN_USE)
        try:
            snapshot = await mailboxes.open(account)
            if not pace(snapshot.mailbox):
                raise NotNow(reply.TOO_OFTEN)
            return cls(mailboxes, account, snapshot, load)
        except BaseException:  # that the client has gone, too
            mailboxes.lock.release(account)
            raise

    def close(self) -> None:
        self.forget()
        self._mailboxes.lock.release(self._account)

    async def delete(self, uids: Sequence[int]) -> None:
        """All or none, and on disk when it returns."""
        if uids:
            await self._mailboxes.expunge(self._mailbox, uids)

    # Messages: KeyError where one is gone, Unreadable where it is damaged.

    def is_small(self, number: int) -> bool:
        return self.drop.size(number) <= AHEAD

    async def read_small(self, number: int) -> bytes:
        """A message whole; where the client goes through them in order, the next ones too."""
        if number in self._damaged:
            raise self._damaged[number]
        in_order = number == 1 or number in self._next
        room = min(AHEAD, self._load.max_held - self._load.held) if in_order else 0
        numbers, uids = self.drop.run(number, room, MOST_AHEAD)
        self._next = range(number + 1, numbers[-1] + 2)
        found = await self._mailboxes.read_several(self._mailbox, uids)
        self.forget()
        for each, message in zip(numbers, found, strict=True):
            if isinstance(message, Unreadable):
                self._damaged[each] = message
            elif not isinstance(message, Exception):
                self.ahead[each] = message
        self._held = sum(map(self.drop.size, self.ahead))
        self._load.held += self._held
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    async def read_large(self, number: int, first: int) -> list[bytes]:
        """A message in order, from piece `first` on, about a mebibyte; [] at the end."""
        self._next = range(number + 1, number + 2)
        octets = PIECE if self._load.held < self._load.max_held else SMALL_PIECE
        self._load.held += octets
        try:
            return await self._mailboxes.read(self._mailbox, self.drop.uid(number), first, octets)
        finally:
            self._load.held -= octets

    def forget(self) -> None:
        """Let go of what was read ahead."""
        self.ahead.clear()
        self._load.held -= self._held
        self._held = 0
