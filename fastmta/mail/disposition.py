"""What an attempt at delivery ended in."""

from enum import StrEnum

from msgspec import Struct

from fastmta.mail.delivery_status import Action
from fastmta.mail.reply import Reply


class Kind(StrEnum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class Disposition(Struct, frozen=True, array_like=True):
    """The end of one attempt for one recipient: what, by whose word, from which host, when.

    `host` is the remote's name and address, "mx1.example.test [192.0.2.1]", or empty where no
    host was reached (a DNS answer, an expiry): then the reply is our own.
    `success` is what a report of a delivery calls it, None where the host makes that report.
    """

    kind: Kind
    reply: Reply
    host: str
    time: float  # seconds since the epoch
    success: Action | None = None
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384", " verified" behind it; "" in the clear
    by_operator: bool = False  # an order, which says nothing of the address

    @classmethod
    def of_reply(
        cls, reply: Reply, host: str, time: float, success: Action | None = None, tls: str = ""
    ) -> "Disposition":
        """2xx is delivered, 5xx failed, anything else deferred (RFC 5321 section 4.2.1)."""
        code = reply.code
        if 200 <= code < 300:
            kind = Kind.DELIVERED
        elif 500 <= code < 600:
            kind = Kind.FAILED
        else:
            kind = Kind.DEFERRED
        return cls(kind, reply, host, time, success, tls)
