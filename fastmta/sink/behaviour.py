"""What the sink is told to do to its clients."""

from hashlib import blake2b
from typing import Literal, get_args

from msgspec import Struct

Step = Literal["connect", "mail", "rcpt", "data", "body", "end"]
STEPS: tuple[Step, ...] = get_args(Step)
KEYWORDS = (
    *("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "DSN"),
    "REQUIRETLS",  # under TLS alone
)
FATES = frozenset({"tempfail", "permfail", "slow", "421", "drop", "busy", "full"})


class Behaviour(Struct, frozen=True, kw_only=True):
    """What the sink does to its clients; the default is to take everything at once.

    Shares are of 1. Times are seconds. A recipient whose local part is one of `FATES`, alone or
    before a "+", chooses its fate itself: at RCPT, or behind the message where it is busy (451)
    or full (552), over LMTP for itself alone.
    """

    hostname: str = "sink.example.test"
    lmtp: bool = False  # RFC 2033 instead of SMTP
    tempfail: float = 0.0  # share of RCPTs answered 451
    permfail: float = 0.0  # share of RCPTs answered 550
    drop: float = 0.0  # share of transactions whose connection is dropped
    drop_at: Step = "body"
    seed: int = 0
    delay: float = 0.0  # before each reply
    slow: float = 5.0  # before the reply to RCPT TO:<slow@...>
    close_after: int = 0  # 421 after so many messages on one connection; 0: never
    max_connections: int = 0  # 0: no limit
    max_recipients: int = 0  # 452 to the RCPTs over so many in a transaction; 0: no limit
    max_size: int = 1 << 30  # octets
    without: frozenset[str] = frozenset()  # of KEYWORDS

    def fate(self, address: str, attempt: int = 0) -> str:
        """What becomes of the RCPT that names this address for the nth time, from 0.

        It is the same in each run with the same seed, whatever the order of clients, and drawn
        anew for each attempt, so that a retry can end otherwise.
        """
        local = address[: address.rfind("@")].partition("+")[0].lower()
        if local in FATES:
            return local
        if not (self.tempfail or self.permfail):
            return "accept"
        digest = blake2b(f"{self.seed} {attempt} {address}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest) / 2**64
        if draw < self.tempfail:
            return "tempfail"
        return "permfail" if draw < self.tempfail + self.permfail else "accept"
