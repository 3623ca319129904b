"""The spool's rows as bytes: keys that sort as they are read, values that name their version.

    fresh      id                 -> version, length, envelope, body (or none: it is in chunks)
    chunks     id, number         -> octets of a body
    envelopes  id, index          -> version, envelope
    due        time, id, index    -> nothing
    aside      database, key      -> a row that could not be read

A message that leaves at the first try is one put and one delete in `fresh`. Whatever waits is an
`envelopes` row with its `due` row, and its body is in `chunks`.
"""

from math import inf
from struct import Struct as Layout

import msgspec

from fastmta.mail.envelope import Envelope

DATABASES = ("fresh", "chunks", "envelopes", "due", "aside")
VERSION = 1

# LMDB keeps a value above half a page in pages of its own, and large ones fragment the file: eight
# pages less their header.
CHUNK = 8 * 4096 - 16

_ID = Layout(">Q")
_CHUNK_KEY = Layout(">QI")
_ENVELOPE_KEY = Layout(">QH")
_DUE_KEY = Layout(">QQH")
_FRESH_HEAD = Layout(">BI")

_LAST = (1 << 64) - 1

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)

message_key = _ID.pack
chunk_key = _CHUNK_KEY.pack


class Unreadable(Exception):
    """A row that is not what this release or an older one wrote."""


def envelope_key(envelope: Envelope) -> bytes:
    return _ENVELOPE_KEY.pack(envelope.message, envelope.index)


def due_key(envelope: Envelope) -> bytes:
    """Sorts by time, in milliseconds since the epoch."""
    return _DUE_KEY.pack(int(envelope.due * 1000), envelope.message, envelope.index)


def due_prefix(time: float) -> bytes:
    """What the keys of rows that are due at `time` or later do not sort before."""
    return (_LAST if time == inf else int(time * 1000)).to_bytes(8)


def due_time(key: bytes) -> float:
    return int.from_bytes(key[:8]) / 1000


def due_envelope(key: bytes) -> bytes:
    """The key of the envelope that a `due` row speaks of."""
    return key[8:]


def message_of(key: bytes) -> int:
    """The message's id, of a row in `fresh`, `chunks` or `envelopes`."""
    return int.from_bytes(key[:8])


def pack_fresh(envelope: Envelope, body: list[bytes]) -> bytes:
    head = _encoder.encode(envelope)
    return b"".join([_FRESH_HEAD.pack(VERSION, len(head)), head, *body])


def unpack_fresh(row: bytes) -> tuple[Envelope, bytes]:
    """The envelope, and the body where it is in the row."""
    if len(row) < _FRESH_HEAD.size:
        raise Unreadable(f"{len(row)} octets are too few for a row")
    version, length = _FRESH_HEAD.unpack_from(row)
    start = _FRESH_HEAD.size
    return _decode(version, row[start : start + length]), row[start + length :]


def pack_envelope(envelope: Envelope) -> bytes:
    return bytes([VERSION]) + _encoder.encode(envelope)


def unpack_envelope(row: bytes) -> Envelope:
    return _decode(row[0] if row else 0, row[1:])


def unpack(database: str, row: bytes) -> Envelope:
    """The envelope in a row of `fresh` or `envelopes`."""
    return unpack_fresh(row)[0] if database == "fresh" else unpack_envelope(row)


def _decode(version: int, encoded: bytes) -> Envelope:
    if version != VERSION:
        raise Unreadable(f"version {version} is not known to this release")
    try:
        return _decoder.decode(encoded)
    except msgspec.MsgspecError as error:
        raise Unreadable(str(error)) from error
