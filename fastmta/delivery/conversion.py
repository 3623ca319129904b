"""What a host without 8BITMIME is given: the message in seven bits, within limits of memory."""

import asyncio

from msgspec.structs import replace

from fastmta import metrics
from fastmta.mail.downgrade import Unconvertible, to_seven_bit
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply
from fastmta.queue.ready import Job

CONVERTED = metrics.counter(
    "fastmta_delivery_converted_total", "Messages converted for a host without 8BITMIME"
)

# A larger message is returned: it has to be in memory as a whole, more than twice.
LARGEST = 64 << 20
# Up to this size the loop converts it faster than a thread would be asked to (0.1 ms).
_AT_ONCE = 16 << 10
_BLOCK = 256 << 10  # octets that are handed to the connection at a time


class CannotConvert(Exception):
    """The message cannot go to this host; `reply` says why."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        text = f"message has 8-bit content, the host offers no 8BITMIME, and {why}"
        # RFC 3463 section 3.7, X.6.3: conversion required but not supported.
        self.reply = Reply(554, "5.6.3", text)


def check(envelope: Envelope) -> None:
    """Before the message is read; raises CannotConvert."""
    if envelope.size > LARGEST:
        raise CannotConvert(f"it is too large to be converted: {envelope.size} octets")


async def seven_bit(envelope: Envelope, parts: list[bytes]) -> Job:
    """What to send instead, and how large it is; raises CannotConvert."""
    try:
        if envelope.size <= _AT_ONCE:
            blocks = _convert(parts)
        else:
            blocks = await asyncio.get_running_loop().run_in_executor(None, _convert, parts)
    except Unconvertible as error:
        raise CannotConvert(str(error)) from None
    CONVERTED.value += 1
    return Job(replace(envelope, size=sum(map(len, blocks)), eight_bit=False), blocks)


def _convert(parts: list[bytes]) -> list[bytes]:
    content = to_seven_bit(b"".join(parts))
    return [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)]
