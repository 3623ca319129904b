"""A delivery status (RFC 3464 section 2) once more, in plain Python."""

from fastmta.mail import charset
from tests.core import message_oracles as messages

Fields = dict[str, str]


def read_status(body: bytes) -> tuple[Fields, list[Fields]]:
    """What is told of the message, and of each recipient; by names in lower case."""
    blocks = [_fields(block) for block in _blocks(body)]
    about, recipients = (blocks or [{}])[0], blocks[1:]
    if {"final-recipient", "original-recipient"} & set(about):
        recipients = blocks
    return about, recipients


def _blocks(body: bytes) -> list[bytes]:
    """Between empty lines."""
    blocks = [b""]
    for start, end in messages.lines_of(body, 0, len(body)):
        line = body[start:end]
        if messages.is_empty(line):
            blocks.append(b"")
        else:
            blocks[-1] += line
    return [block for block in blocks if block]


def _fields(block: bytes) -> Fields:
    """The last of each name counts."""
    return {
        block[start:name].decode("latin-1").lower(): charset.decode(
            messages.unfold(block, value, end), "utf-8"
        )
        for start, name, value, end in messages.ranges(block, 0, len(block))
    }


def behind_type(value: str) -> str:
    """`dns; mail.example.test`."""
    return value.split(";", 1)[-1].strip()


def word(value: str) -> str:
    return value.lower().split(" ", 1)[0]
