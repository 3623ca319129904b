"""What an SMTP server allows: one session by its policy, all sessions together by their load."""

from typing import Protocol

from msgspec import Struct

from fastmta.protocol.sasl import Exchange

MAX_LOGIN_LINE = 12288  # octets with CRLF, RFC 4954 section 4


class Policy(Struct, frozen=True, kw_only=True):
    """What the session may do; the same for all sessions of a listener."""

    hostname: str
    starttls: bool = False
    needs_login: bool = False  # before MAIL, and TLS before that (RFC 6409 section 4.3)
    max_message_size: int = 50 << 20  # octets
    max_header_size: int = 1 << 20  # octets
    max_recipients: int = 1000
    max_hops: int = 50
    max_errors: int = 20  # from half of it on, replies to errors are delayed
    max_junk: int = 100  # commands other than MAIL, RCPT, DATA and BDAT between two messages
    max_line: int = 2048  # octets; RFC 5321 section 4.5.3.1.4 asks for 512
    normalise: bool = False  # a bare CR or LF in a message becomes CRLF; else it is refused


class Door(Protocol):
    """How the client of one connection may log in, under TLS."""

    def mechanisms(self) -> tuple[str, ...]:
        """What is offered."""

    def exchange(self, mechanism: str) -> Exchange | None:
        """Begin; None for what is not offered, in whatever case."""


class Tally(Protocol):
    """A number that others read."""

    value: int


class Load:
    """What all sessions of a process share: how much they hold, and how pressed they are."""

    __slots__ = ("draining", "held", "max_held", "rejected", "stressed")

    def __init__(self, max_held: int, rejected: Tally) -> None:
        self.max_held = max_held  # octets of content, of all messages not yet answered
        self.held = 0
        self.rejected = rejected  # replies that refuse something
        self.stressed = False  # fewer errors are allowed
        self.draining = False
