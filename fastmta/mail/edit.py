"""Changes to the header section of a message that is held in pieces (RFC 5322 section 2.2)."""

import re

from fastmta._core.headers import find, unfold

_NAME = re.compile(r"[!-9;-~]{1,76}")
_EMPTY_LINE = b"\r\n\r\n"
_LONGEST = 998  # octets of a line, RFC 5322 section 2.1.1

Range = tuple[int, int]


def header_of(parts: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The parts in two: what holds the header section, joined, and the rest."""
    count, head = 1, parts[0] if parts else b""
    while not head.startswith(b"\r\n") and _EMPTY_LINE not in head and count < len(parts):
        head += parts[count]
        count += 1
    return head, parts[count:]


def end_of_section(head: bytes) -> int:
    """Where the empty line behind the header section begins, or all ends."""
    end = 0 if head.startswith(b"\r\n") else head.find(_EMPTY_LINE)
    return end + 2 if end >= 0 else len(head)


def find_fields(head: bytes, name: str) -> list[Range]:
    """Where the values of all fields with this name are, in the header section of `head`."""
    return find(head, 0, end_of_section(head), name.lower().encode())


def value_at(head: bytes, place: Range) -> bytes:
    """The value of a field, unfolded."""
    return unfold(head, *place)


def whole_fields(head: bytes, values: list[Range]) -> list[Range]:
    """Where the fields are whose values these are, name and line end included."""
    return [(head.rfind(b"\n", 0, start) + 1, stop + 2) for start, stop in values]


def without(head: bytes, fields: list[Range]) -> list[bytes]:
    """What is left, in pieces, when these fields are taken out."""
    kept, at = [], 0
    for start, stop in sorted(fields):
        kept.append(head[at:start])
        at = stop
    return [part for part in (*kept, head[at:]) if part]


def make_field(name: str, value: str) -> bytes:
    """A field on one line; ValueError where that is not one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header field")
    if not value.isprintable():
        raise ValueError(f"{name}: control characters and line ends cannot be in a field")
    field = f"{name}: {value}".encode()
    if len(field) > _LONGEST:
        raise ValueError(f"{name}: {len(field)} octets are too many for a line")
    return field + b"\r\n"
