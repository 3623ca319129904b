"""What is delivered into mailboxes, and what becomes of it."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from fastmta.store.mail_records import INBOX


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
