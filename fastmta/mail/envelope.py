"""The envelope: one sender, the recipients of one destination domain, and the retry state."""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from fastmta._core.ids import format_id as format_id  # what parse_id reads
from fastmta.mail.disposition import Disposition

# Crockford's base 32: no letter that a person reads as a digit.
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID_LENGTH = 13  # 64 bits at 5 bits a digit


def parse_id(text: str) -> int:
    """The number behind `format_id`; ValueError for anything else."""
    if len(text) != _ID_LENGTH:
        raise ValueError(f"a message id has {_ID_LENGTH} characters, not {len(text)}: {text!r}")
    number = 0
    for character in text.upper():
        digit = _DIGITS.find(character)
        if digit < 0:
            raise ValueError(f"{character!r} is no character of a message id: {text!r}")
        number = number << 5 | digit
    if number >> 64:
        raise ValueError(f"no message id: {text!r}")
    return number


def id_time(number: int) -> float:
    """When the id was given, in seconds since the epoch: its first 44 bits are milliseconds."""
    return (number >> 20) / 1000


class Priority(IntEnum):
    """Which mail goes first where there is more than can go; lower is sooner."""

    URGENT = 0
    NORMAL = 1
    BULK = 2


class TlsDemand(IntEnum):
    """What a sender says of TLS on the way (RFC 8689)."""

    NONE = 0  # the policy of the path says what is done
    REQUIRED = 1  # MAIL had REQUIRETLS: never without it, and never to a host that does not know it
    OPTIONAL = 2  # "TLS-Required: No": rather in the clear than not at all


class Recipient(Struct, array_like=True):
    """One forward-path and what the sender asked to be told about it (RFC 3461 section 4)."""

    address: str
    notify: str = ""  # NOTIFY as sent, upper case: "NEVER", "SUCCESS,FAILURE,DELAY"
    orcpt: str = ""  # ORCPT as sent: "rfc822;bob@example.test"


class Envelope(Struct, array_like=True):
    """What is needed to deliver, retry, list and bounce without reading the message."""

    message: Annotated[int, Meta(ge=0)]  # id of the message, shared by its envelopes
    index: Annotated[int, Meta(ge=0, lt=1 << 16)]  # which of the message's envelopes
    sender: str  # reverse-path; "" is the null reverse-path
    domain: str  # destination, lower case, A-labels or an address literal in brackets
    recipients: list[Recipient]
    received: float  # seconds since the epoch
    size: int  # octets of the message, our Received field included
    eight_bit: bool = False  # BODY=8BITMIME was declared (RFC 6152)
    utf8: bool = False  # SMTPUTF8 was asked for (RFC 6531)
    ret: str = ""  # RET as sent: "FULL", "HDRS" or "" (RFC 3461 section 4.3)
    envid: str = ""  # ENVID as sent, xtext (RFC 3461 section 4.4)
    client: str = ""  # who handed it to us, for log and DSN: "helo.name [192.0.2.1]"
    attempts: int = 0
    due: float = 0.0  # seconds since the epoch; 0: not deferred yet
    last: Disposition | None = None
    priority: Priority = Priority.NORMAL
    tenant: str = ""  # whose mail it is: what fairness is between; "" where nobody said
    campaign: str = ""  # what the sender calls this mailing, for selectors
    pool: str = ""  # the sources that it leaves from, where the sender chose them
    site: str = ""  # of the last attempt
    held: str = ""  # why an operator keeps it back; "" where nobody does
    next_hop: str = ""  # where an operator sends it instead of the site: "192.0.2.1:25"
    delays: int = 0  # reports of delay that were made
    tls: TlsDemand = TlsDemand.NONE
    checksum: int = 0  # CRC-32 of the message's octets; 0 where nobody has counted it

    @property
    def id(self) -> str:
        """What people call it: the message's id, and which envelope where there are several."""
        return format_id(self.message) + (f".{self.index}" if self.index else "")
