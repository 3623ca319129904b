"""The Received field (RFC 5321 section 4.4), as far as it can be understood."""

from datetime import datetime

from msgspec import Struct

from fastmta._core.headers import words
from fastmta.mail.date_time import parse_date

_MOST_OCTETS = 16 * 1024  # of a value that is looked at
_CLAUSES = {b"from": "from_", b"by": "by", b"via": "via", b"with": "with_", b"id": "id"}
_CLAUSES |= {b"for": "for_", b"tls": "tls"}


class Received(Struct, frozen=True):
    """The clauses by their names; a clause that is missing is empty."""

    from_: str = ""  # the name that the client gave
    from_info: str = ""  # the comment behind it: "mail.example.test [192.0.2.1]"
    by: str = ""
    via: str = ""
    with_: str = ""
    id: str = ""  # with the angle brackets of an msg-id, if it has them
    for_: str = ""  # without angle brackets
    tls: str = ""  # the cipher suite (RFC 8314 section 4.3)
    date: datetime | None = None

    @property
    def from_ip(self) -> str:
        """The address literal that the receiver added (TCP-info, RFC 5321 section 4.4)."""
        literal = self.from_info.partition("[")[2].partition("]")[0]
        return literal[5:] if literal[:5].lower() == "ipv6:" else literal


def parse_received(value: bytes) -> Received:
    found: dict[str, str] = {}
    clauses, _, date = value[:_MOST_OCTETS].rpartition(b";")
    clause = ""
    for word in words(clauses or date):
        if word.startswith(b"("):
            if clause == "from_":
                found.setdefault("from_info", _text(word[1:-1]))
        elif (name := _CLAUSES.get(word.lower())) and name not in found and clause != name:
            clause = name
        elif clause:
            found.setdefault(clause, _text(word))
    if found.get("for_", "").startswith("<"):
        found["for_"] = found["for_"].strip("<>")
    return Received(**found, date=parse_date(date) if clauses else None)


def _text(word: bytes) -> str:
    return word.decode("utf-8", "replace").strip()
