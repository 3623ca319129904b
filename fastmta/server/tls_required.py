"""What a message says of TLS on its way: the field TLS-Required (RFC 8689 section 3)."""

from fastmta._core.headers import find, unfold
from fastmta.mail.arrival import Arrival
from fastmta.mail.edit import header_of
from fastmta.mail.envelope import TlsDemand


def read_tls_required(arrival: Arrival) -> None:
    """Note in the arrival that it is to go rather in the clear than not at all.

    REQUIRETLS weighs more, and what is there twice, or says anything but "No", says nothing.
    """
    if arrival.demand is not TlsDemand.NONE:
        return
    head, _ = header_of(arrival.parts)
    end = 0 if head.startswith(b"\r\n") else head.find(b"\r\n\r\n")
    found = find(head, 0, end + 2 if end >= 0 else len(head), b"tls-required")
    if len(found) == 1 and unfold(head, *found[0]).strip().lower() == b"no":
        arrival.demand = TlsDemand.OPTIONAL
