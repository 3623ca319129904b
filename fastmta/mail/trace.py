"""The trace field that each relay puts in front of a message (RFC 5321 section 4.4)."""

from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

# A line may have 998 octets (RFC 5322 section 2.1.1); a longer path is left out, as it may be.
_LONGEST_FOR = 900

# What OpenSSL calls differently than the registry of TLS; the suites of TLS 1.3 have one name.
_REGISTERED = {
    f"ECDHE-{proof}-{name}": f"TLS_ECDHE_{proof}_WITH_{registered}"
    for proof in ("ECDSA", "RSA")
    for name, registered in {
        "AES128-GCM-SHA256": "AES_128_GCM_SHA256",
        "AES256-GCM-SHA384": "AES_256_GCM_SHA384",
        "CHACHA20-POLY1305": "CHACHA20_POLY1305_SHA256",
    }.items()
}


def protocol_name(*, extended: bool, tls: bool, utf8: bool, login: bool = False) -> str:
    """What stands behind "with" (RFC 3848; RFC 6531 section 4.3 for SMTPUTF8)."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if utf8 else "ESMTP") + ("S" if tls else "") + ("A" if login else "")


def address_literal(address: str) -> str:
    """An IP address as RFC 5321 section 4.1.3 writes it; "" is one that nobody knows."""
    if not address:
        return "[unknown]"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


@lru_cache(maxsize=8)
def format_date(second: int) -> str:
    """date-time (RFC 5322 section 3.3) in UTC, of a second since the epoch."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


def received_field(
    *,
    helo: str,
    client: str,
    by: str,
    protocol: str,
    tls: str,
    id: str,
    recipient: str,
    time: float,
) -> bytes:
    """A Received field with its CRLF.

    `helo` is a checked domain or address literal, `client` the peer's address literal, `tls` the
    version and cipher ("TLSv1.3 TLS_AES_256_GCM_SHA384") or "", `recipient` the only one or "":
    several would show them to each other (RFC 5321 section 7.2). The date stands on a line of its
    own, as RFC 5322 folds.
    """
    version, clause = _agreed(tls) if tls else ("", "")
    whom = f"\r\n\tfor <{recipient}>" if recipient and len(recipient) < _LONGEST_FOR else ""
    return (
        f"Received: from {helo} ({client})\r\n\tby {by} with {protocol}{version} id {id}"
        f"{whom}{clause};\r\n\t{format_date(int(time))}\r\n"
    ).encode()


@lru_cache(maxsize=32)
def _agreed(tls: str) -> tuple[str, str]:
    """The version as a comment, and the clause of RFC 8314 section 4.3."""
    version, _, cipher = tls.partition(" ")
    return f" ({version})", f"\r\n\ttls {_REGISTERED.get(cipher, cipher)}"
