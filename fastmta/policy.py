"""What an operator's policy module works with: facts, messages that it may change, and answers.

    from fastmta.policy import Message, Reject, Session

    def on_rcpt(session: Session, recipient: str) -> Reject | None:
        if recipient.startswith("noreply@"):
            return Reject(550, "5.1.1", "nobody reads this")

A module may define the functions of `HOOKS`, plain or `async`. None is "go on".
"""

import re
from typing import Final

from msgspec import Struct

from fastmta.log import Bounced, Deferred, Delivered
from fastmta.mail import edit
from fastmta.mail.address import domain_of, is_mailbox
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Priority, Recipient
from fastmta.mail.message import Part, parse
from fastmta.mail.reply import Reply

__all__ = [
    "HOOKS",
    "Bounced",
    "Defer",
    "Deferred",
    "Delivered",
    "Envelope",
    "Message",
    "Part",
    "Reject",
    "Route",
    "Session",
]

# Function of a policy -> what it is called with.
HOOKS: Final = {
    "on_connect": ("session",),
    "on_ehlo": ("session",),
    "on_mail": ("session", "sender"),
    "on_rcpt": ("session", "recipient"),
    "on_message": ("session", "message"),
    "choose_route": ("envelope",),
    "on_disposition": ("event",),
}

MAX_RECIPIENTS: Final = 10_000  # of one message, after `on_message`
_ENHANCED = re.compile(r"([245])\.\d{1,3}\.\d{1,3}", re.ASCII)  # RFC 3463 section 2
_LABEL = re.compile(r"[!-~]{1,100}")
_LONGEST_TEXT = 450  # octets; a reply line has 512 at the most, RFC 5321 section 4.5.3.1.5


class _Answer(Struct, frozen=True):
    code: int
    enhanced: str
    text: str

    def __post_init__(self) -> None:
        found = _ENHANCED.fullmatch(self.enhanced)
        if not found or found[1] != str(self.code)[0]:
            raise ValueError(f"{self.enhanced!r} is no enhanced status code of a {self.code}")
        if not (self.text.isprintable() and 0 < len(self.text.encode()) <= _LONGEST_TEXT):
            raise ValueError(f"a text is one line of at most {_LONGEST_TEXT} octets")

    @property
    def reply(self) -> Reply:
        return Reply(self.code, self.enhanced, self.text)


class Reject(_Answer, frozen=True):
    """No, for good: 5xx. ValueError for what is no reply."""

    code: int = 550
    enhanced: str = "5.7.1"
    text: str = "Refused by policy"

    def __post_init__(self) -> None:
        if not 500 <= self.code <= 599:
            raise ValueError(f"a Reject has a code from 500 to 599, not {self.code}")
        super().__post_init__()


class Defer(_Answer, frozen=True):
    """Not now: 4xx. 421 ends the session. ValueError for what is no reply."""

    code: int = 451
    enhanced: str = "4.7.1"
    text: str = "Try again later"

    def __post_init__(self) -> None:
        if not 400 <= self.code <= 499:
            raise ValueError(f"a Defer has a code from 400 to 499, not {self.code}")
        super().__post_init__()


class Route(Struct, frozen=True):
    """Where mail goes instead: a host ("192.0.2.1:25", "lmtp:unix:/run/lmtp"), or a domain whose
    [[route]] or MX hosts are taken."""

    next_hop: str


class Session(Struct, frozen=True):
    """What is known of a session at this moment."""

    client: str  # IP address
    service: str  # of the listener: "smtp" or "submission"
    helo: str = ""  # what EHLO or HELO gave
    tls: str = ""  # the version, "TLSv1.3", and what else is known of it, or ""
    account: str = ""  # whom AUTH has proven, or ""
    may_relay: bool = False  # whether mail for any domain is taken


class Envelope(Struct, frozen=True):
    """One sender, and the recipients of one destination domain."""

    id: str
    sender: str  # "" is the null reverse-path
    domain: str  # lower case, A-labels
    recipients: tuple[str, ...]
    size: int  # octets
    received: float  # seconds since the epoch
    attempts: int  # before this one
    priority: str  # "urgent", "normal" or "bulk"
    tenant: str
    campaign: str
    pool: str


class Message:
    """A message that has come in whole. What is changed here takes effect when `on_message`
    returns None; our own Received field is not part of it."""

    def __init__(self, arrival: Arrival) -> None:
        self.sender = arrival.sender
        self.recipients = [each.address for each in arrival.recipients]
        self.priority = arrival.priority.name.lower()  # "urgent", "normal" or "bulk"
        self.tenant, self.campaign, self.pool = arrival.tenant, arrival.campaign, arrival.pool
        self._trace, *parts = arrival.parts
        self._head, self._rest = edit.header_of(parts)
        self._added: list[bytes] = []  # fields, the newest first
        self._utf8 = arrival.utf8
        self._asked = {each.address: each for each in arrival.recipients}

    @property
    def content(self) -> bytes:
        """The whole message as it stands now; this copies it."""
        return b"".join([*self._added, self._head, *self._rest])

    @property
    def size(self) -> int:
        """Octets of `content`."""
        return sum(map(len, (*self._added, self._head, *self._rest)))

    def parse(self) -> Part:
        """The tree of its parts. That takes some 10 ms for 10 MB: not in an `async` hook."""
        return parse(self.content)

    # The header section.

    def header(self, name: str) -> str:
        """The value of the first such field, unfolded; "" where there is none."""
        return next(iter(self.headers(name)), "")

    def headers(self, name: str) -> list[str]:
        """The values of all such fields from the top."""
        head = b"".join([*self._added, self._head])
        found = [edit.value_at(head, place) for place in edit.find_fields(head, name)]
        return [value.decode("utf-8", "replace") for value in found]

    def add_header(self, name: str, value: str) -> None:
        """Put a field on top; ValueError where that is none, or not ASCII without SMTPUTF8."""
        self._added.insert(0, self._field(name, value))

    def remove_header(self, name: str) -> None:
        """Take all such fields out."""
        head = b"".join([*self._added, self._head])
        fields = edit.whole_fields(head, edit.find_fields(head, name))
        self._added, self._head = [], b"".join(edit.without(head, fields))

    def replace_header(self, name: str, value: str) -> None:
        """All such fields go, and one is put on top."""
        field = self._field(name, value)  # before anything is lost
        self.remove_header(name)
        self._added.insert(0, field)

    def _field(self, name: str, value: str) -> bytes:
        if not (value.isascii() or self._utf8):
            raise ValueError(f"{name}: the message has not come with SMTPUTF8, so write ASCII")
        return edit.make_field(name, value)

    # What the server does with it.

    def apply(self, arrival: Arrival, pools: frozenset[str]) -> None:
        """Take the changes over; ValueError where they make no sense, and nothing is changed."""
        recipients = self._new_recipients()
        priority = Priority[self.priority.upper()]
        for label in (self.tenant, self.campaign):
            if label and not _LABEL.fullmatch(label):
                raise ValueError(f"{label!r}: write 1 to 100 printable ASCII characters")
        if self.pool and self.pool not in pools:
            raise ValueError(f"there is no pool {self.pool!r}")
        arrival.recipients, arrival.priority = recipients, priority
        arrival.tenant, arrival.campaign, arrival.pool = self.tenant, self.campaign, self.pool
        arrival.parts = [self._trace, *self._added, self._head, *self._rest]

    def _new_recipients(self) -> list[Recipient]:
        """What a client asked for one that stays is kept."""
        if len(self.recipients) > MAX_RECIPIENTS:
            raise ValueError(f"{len(self.recipients)} recipients are too many")
        return [self._recipient(address) for address in dict.fromkeys(self.recipients)]

    def _recipient(self, address: str) -> Recipient:
        if known := self._asked.get(address):
            return known
        if not is_mailbox(address) or not (address.isascii() or self._utf8):
            raise ValueError(f"{address!r} is no address of a recipient")
        domain_of(address)
        return Recipient(address)
