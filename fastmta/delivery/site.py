"""Where a domain's mail goes: the hosts of its MX records, by preference."""

from msgspec import Struct

from fastmta.config import HopProtocol, TlsPolicy
from fastmta.mail.reply import Reply


class Host(Struct, frozen=True):
    """One mail exchanger with the addresses that may be tried, in order."""

    name: str
    addresses: tuple[str, ...]  # "192.0.2.1", "2001:db8::1", "unix:/run/lmtp"
    port: int  # 0 where it is a unix socket
    protocol: HopProtocol = "smtp"


class Site(Struct, frozen=True):
    """A destination as its hosts define it; domains with the same hosts share one site.

    `name` is what people and metrics see, and equal names mean the same site. `tiers` are the
    hosts of one preference each, lowest preference first (RFC 5321 section 5.1); within a tier
    the order is drawn anew for each connection.
    """

    name: str
    tiers: tuple[tuple[Host, ...], ...]
    tls: TlsPolicy | None = None  # as its [[route]] has it; None: as [shaping] has it

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host.name for tier in self.tiers for host in tier)


# Mailboxes on this machine; what has no hosts is no other site.
LOCAL = Site("local", ())


class RoutingError(Exception):
    """No host to send to; the reply says why, and by its code whether to try again later."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply
