"""A message that has arrived whole and waits to be made safe."""

from msgspec import Struct

from fastmta._core.dkim import IncomingBody
from fastmta.mail.envelope import Priority, Recipient, TlsDemand


class Arrival(Struct):
    """What a listener hands to the spool; recipients may be of many domains."""

    message: int  # id, from Spool.new_id
    sender: str
    recipients: list[Recipient]
    parts: list[bytes]  # the octets in order, our Received field first; CRLF line ends
    size: int  # octets in `parts`
    received: float  # seconds since the epoch
    eight_bit: bool = False
    utf8: bool = False
    ret: str = ""
    envid: str = ""
    client: str = ""  # "helo.name [192.0.2.1]"
    account: str = ""  # who had logged in
    protocol: str = ""  # "ESMTP", as in the Received field (RFC 3848)
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384"
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    campaign: str = ""
    pool: str = ""
    demand: TlsDemand = TlsDemand.NONE
    sending_on: int = 0  # recipients whose accounts forward
    forwarded_by: str = ""  # the account that sends it on
    body: IncomingBody | None = None  # has seen the body of what is to be signed (see mail.dkim)
