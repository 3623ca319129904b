"""The spool's rows as bytes: keys that sort as they are read, values that name their version.

    fresh      id of the first -> version, then of each message: id, lengths, sealed envelope, body
    settled    id of the first -> version, ids of the messages in that row that are no longer there
    chunks     id, number      -> octets of a body
    envelopes  id, index       -> version, sealed envelope
    waiting    lane, time, id, index -> mark: hashes of the tenant, and of tenant and domain
    aside      database, key   -> what could not be read

Messages that come together and leave at the first try share a row in `fresh`, a segment: one put
and one delete for all of them. Whatever waits is an `envelopes` row with its `waiting` row, and
its body is in `chunks`. What an operator holds back has no `waiting` row: nobody comes across it.

Behind a sealed envelope stands its checksum, and in it that of its message's octets.

A lane is a priority and a hash of tenant and domain: what waits for one destination lies together,
in the order of its time, and one destination's mail is passed over without reading it.
"""

from collections.abc import Iterable, Iterator
from struct import Struct as Layout
from typing import NamedTuple
from zlib import crc32

import msgspec

from fastmta.mail.envelope import Envelope

DATABASES = ("fresh", "settled", "chunks", "envelopes", "waiting", "aside")
RETIRED = ("due",)  # of older releases: see `upgrade`
# LMDB keeps a value above half a page in pages of its own, and large ones fragment the file: eight
# pages less their header.
CHUNK = 8 * 4096 - 16

_ID = Layout(">Q")
_CHUNK_KEY = Layout(">QI")
_ENVELOPE_KEY = Layout(">QH")
_LANE = Layout(">BH")  # priority, hash of tenant and domain
_MARK = Layout(">HH")  # hashes of the tenant, and of tenant and domain
_POSITION = Layout(">QQH")  # milliseconds, message id, index
_ENTRY = Layout(">QII")  # message id, octets of the envelope, octets of the body
_SINGLE = Layout(">BI")  # of older releases: version, octets of the envelope
_SEAL = Layout(">I")  # CRC-32 of what stands before it

_PLAIN = NO_IDS = b"\1"  # version of `settled`, and of older releases, whose envelopes have no seal
_SEALED = EMPTY_SEGMENT = b"\2"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)

LANE_SIZE = _LANE.size

message_key = _ID.pack
chunk_key = _CHUNK_KEY.pack


# What a decoder raises; text that is not UTF-8 is told apart from all else.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError)


class Unreadable(Exception):
    """A row that is not what this release or an older one wrote."""


class Entry(NamedTuple):
    """One message of a segment, its envelope still encoded."""

    message: int
    envelope: bytes  # as a row of `envelopes`
    body: bytes  # empty where it is in `chunks`


def envelope_key(envelope: Envelope) -> bytes:
    return _ENVELOPE_KEY.pack(envelope.message, envelope.index)


def lane_of(envelope: Envelope) -> bytes:
    """The lane that it waits in; the same in every process and release."""
    return _LANE.pack(envelope.priority, _hash_of(envelope) & 0xFFFF)


def next_lane(lane: bytes) -> bytes | None:
    """What the keys of all lanes after this one do not sort before; None after the last."""
    number = int.from_bytes(lane) + 1
    return None if number >> 8 * LANE_SIZE else number.to_bytes(LANE_SIZE)


def mark_of(envelope: Envelope) -> bytes:
    """What tells apart what shares a lane: the bits of the hash that the lane leaves out.

    And before them what tells the tenants of lanes apart, so that they can take turns.
    """
    return _MARK.pack(crc32(envelope.tenant.encode()) & 0xFFFF, _hash_of(envelope) >> 16)


def tenant_of(mark: bytes) -> bytes:
    return mark[:2]


def _hash_of(envelope: Envelope) -> int:
    return crc32(f"{envelope.tenant}\0{envelope.domain}".encode())


def position_of(envelope: Envelope) -> bytes:
    """Its place in its lane: sorts by time, in milliseconds since the epoch."""
    return _POSITION.pack(int(envelope.due * 1000), envelope.message, envelope.index)


def waiting_key(envelope: Envelope) -> bytes:
    return lane_of(envelope) + position_of(envelope)


def position_time(position: bytes) -> float:
    return int.from_bytes(position[:8]) / 1000


def position_after(time: float) -> bytes:
    """Where the places begin that are after this time."""
    return (int(time * 1000) + 1).to_bytes(8)


def position_envelope(position: bytes) -> bytes:
    """The key of the envelope that lies there."""
    return position[8:]


def message_of(key: bytes) -> int:
    """The message's id, of a row in `fresh`, `chunks` or `envelopes`."""
    return int.from_bytes(key[:8])


def checksum_of(octets: Iterable[bytes], checksum: int = 0) -> int:
    """CRC-32 of pieces, behind others that have this one."""
    for piece in octets:
        checksum = crc32(piece, checksum)
    return checksum


def pack_entry(envelope: Envelope, body: list[bytes]) -> list[bytes]:
    """One message of a segment, in pieces; `body` is empty where it goes into `chunks`."""
    sealed = _seal(_encoder.encode(envelope))
    return [_ENTRY.pack(envelope.message, len(sealed), sum(map(len, body))), sealed, *body]


def pack_segment(pieces: list[bytes]) -> bytes:
    """A row of `fresh`, of what `pack_entry` gave for each of its messages."""
    return _SEALED + b"".join(pieces)


def first_of(pieces: list[bytes]) -> int:
    """The id of the first message in them."""
    return message_of(pieces[0])


def unpack_segment(row: bytes) -> Iterator[Entry]:
    """The messages of a segment; Unreadable where its framing is broken."""
    version = _version_of(row)
    # No id begins so: its first 16 bits count three days each, from 1970 on.
    if version == _PLAIN and row[1:3] == b"\0\0" and (single := _unpack_single(row)):
        yield single
        return
    at, end = 1, len(row)
    while at < end:
        if at + _ENTRY.size > end:
            raise Unreadable("a segment ends in the middle of a message")
        message, head, body = _ENTRY.unpack_from(row, at)
        start = at + _ENTRY.size
        at = start + head + body
        if at > end:
            raise Unreadable("a segment ends in the middle of a message")
        yield Entry(message, version + row[start : start + head], row[start + head : at])


def _unpack_single(row: bytes) -> Entry | None:
    """The one message of a row, as it was before segments; None where it is not that."""
    if len(row) < _SINGLE.size:
        return None
    _, length = _SINGLE.unpack_from(row)
    body = _SINGLE.size + length
    envelope = _PLAIN + row[_SINGLE.size : body]
    try:
        return Entry(unpack_envelope(envelope).message, envelope, row[body:])
    except Unreadable:
        return None


def pack_ids(ids: Iterable[int]) -> bytes:
    """A row of `settled`."""
    return _PLAIN + b"".join(map(_ID.pack, ids))


def unpack_ids(row: bytes) -> set[int]:
    if _version_of(row) != _PLAIN or len(row) % _ID.size != 1:
        raise Unreadable(f"{len(row)} octets are no list of ids")
    return {number for (number,) in _ID.iter_unpack(row[1:])}


def pack_envelope(envelope: Envelope) -> bytes:
    return _SEALED + _seal(_encoder.encode(envelope))


def unpack_envelope(row: bytes) -> Envelope:
    encoded = row[1:] if _version_of(row) == _PLAIN else _unseal(row[1:])
    try:
        return _decoder.decode(encoded)
    except UNDECODABLE as error:
        raise Unreadable(str(error)) from error


def _seal(octets: bytes) -> bytes:
    return octets + _SEAL.pack(crc32(octets))


def _unseal(sealed: bytes) -> bytes:
    octets, seal = sealed[: -_SEAL.size], sealed[-_SEAL.size :]
    if seal != _SEAL.pack(crc32(octets)):
        raise Unreadable("its checksum is that of other octets")
    return octets


def _version_of(row: bytes) -> bytes:
    version = row[:1]
    if version not in (_PLAIN, _SEALED):
        raise Unreadable(f"version {row[0] if row else 'none'} is not known to this release")
    return version
