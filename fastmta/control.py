"""What the supervisor and a worker say to each other, over a socket pair.

The worker sends one snapshot when it is ready, and one for each octet that it is sent. When the
other end closes, a worker knows that its supervisor is gone, and drains.
"""

import asyncio
from typing import Final

import msgspec

from fastmta.metrics import Sample

ASK: Final = b"?"
_LENGTH = 4  # octets before a snapshot
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Sample])


def pack_snapshot(samples: list[Sample]) -> bytes:
    encoded = _encoder.encode(samples)
    return len(encoded).to_bytes(_LENGTH) + encoded


async def read_snapshot(reader: asyncio.StreamReader) -> list[Sample]:
    """The next snapshot; asyncio.IncompleteReadError when the worker is gone."""
    length = int.from_bytes(await reader.readexactly(_LENGTH))
    return _decoder.decode(await reader.readexactly(length))
