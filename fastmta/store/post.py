"""What is put into mailboxes or changed there, and what becomes of it."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from fastmta.store.mail_records import INBOX, Entry


class Drop(Struct):
    """One mailbox that a post goes into. INBOX is made where there is none, others too."""

    account: str
    mailbox: str = INBOX
    front: bytes = b""  # put before the message: Return-Path, Delivered-To; at most 65,535 octets
    flags: int = 0  # see Flags
    keywords: tuple[str, ...] = ()


class Post(Struct):
    """One envelope's delivery: a message and all its local recipients, no two of them equal."""

    receipt: bytes  # shard, message, index: 2 to 255 octets; empty where there is none
    parts: list[bytes]  # the message's octets
    size: int  # of them
    received: float  # internal date, seconds since the epoch
    to: list[Drop]


class Stored(NamedTuple):
    """A drop is in its mailbox, or was there already by its receipt."""

    uid: int
    uidvalidity: int


class Refused(Enum):
    """Why a drop is not stored; nothing of it is."""

    OVER_QUOTA = "the mailbox is full"  # RFC 3463: X.2.2
    NO_ROOM = "there are too many mailboxes, or no uids are left"


Outcome = Stored | Refused
Done = Callable[[list[Outcome] | Exception], None]


class Step(NamedTuple):
    """How far an import is with a message, stored with it: so it goes in once, in its turn."""

    source: bytes  # the key of the import
    before: bytes | None  # what is stored of it, or the message is not; None for nothing
    after: bytes


class OutOfStep(Exception):
    """An import is not where it should be: something before failed, or another one runs."""


ANY = (1 << 64) - 1  # every modseq is lower


class Flagging(Struct, frozen=True):
    """How flags and keywords are to change (RFC 9051 section 6.4.6)."""

    set: int = 0  # see Flags
    clear: int = 0
    set_keywords: tuple[str, ...] = ()
    clear_keywords: tuple[str, ...] = ()
    replace: bool = False  # first, all that is there goes
    unchanged_since: int = (
        ANY  # a modseq; what was changed behind it stays (RFC 7162 section 3.1.3)
    )

    def change(self, entry: Entry) -> bool:
        """Whether that makes an entry another."""
        before = entry.flags, entry.keywords
        flags, keywords = (0, []) if self.replace else before
        entry.flags = flags & ~self.clear | self.set
        kept = dict.fromkeys([*keywords, *self.set_keywords])
        entry.keywords = [each for each in kept if each not in self.clear_keywords]
        return before != (entry.flags, entry.keywords)


class FlagResult(NamedTuple):
    modseq: int  # of the mailbox, and of what was changed
    modified: list[int]  # uids that were changed behind `unchanged_since`, and are left as they are
