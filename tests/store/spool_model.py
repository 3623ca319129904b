"""What the model of the spool knows, and the rows of a file read and checked as a whole."""

import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from hypothesis import strategies as st

from fastmta.mail.envelope import Envelope
from fastmta.store import env as store_env
from fastmta.store import records

Key = tuple[int, int]  # message, index

# What a program consists of: a verb and two numbers that it makes of what it wants. They are
# drawn without a look at the spool, for how far it is depends on its threads.
VERBS = (
    *("accept",) * 5,
    *("deliver",) * 4,
    *("defer", "defer_some", "bounce", "bounce_some", "postpone", "hold"),
    *("put_back", "put_back", "room", "scan", "change", "change"),
    *("lease", "lease", "lease", "read", "pause", "pause", "rest"),
)
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(VERBS), st.integers(0, 255), st.integers(0, 255)), max_size=25
)
CLOCK = st.sampled_from([0.0, 0.0, -3000.0, -5.0, 2000.0])  # seconds that it jumps
Program = list[tuple[str, int, int]]


class Pending(NamedTuple):
    """A settlement that may be durable or not."""

    remaining: Envelope | None
    bounce: Key | None


class Mail:
    """What the model knows of an envelope."""

    def __init__(self, envelope: Envelope, message: "Message") -> None:
        # As it was handed over last.
        self.envelope = msgspec.structs.replace(envelope, checksum=zlib.crc32(message.body))
        self.message = message
        self.is_out = False
        self.is_gone = False
        self.has_appeared = False
        self.pending: Pending | None = None

    @property
    def has_to_stay(self) -> bool:
        """What was refused may be there all the same, and goes its way from when it appears."""
        return bool(self.has_appeared or self.message.acknowledged) and not self.is_gone


class Message:
    """One arrival: acknowledged (True), refused (False), or neither yet (None)."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.acknowledged: bool | None = None


class Disk(NamedTuple):
    """Envelopes and their bodies, as they were read from the file."""

    fresh: dict[Key, Envelope]
    waiting: dict[Key, Envelope]
    bodies: dict[int, bytes]

    @property
    def stored(self) -> dict[Key, Envelope]:
        return self.fresh | self.waiting


def key_of(envelope: Envelope) -> Key:
    return envelope.message, envelope.index


def inspect(folder: Path) -> Disk:
    """Read all rows, and check that they belong together."""
    env, db = store_env.open_environment(folder, records.DATABASES)
    with env, env.begin() as txn:
        rows = {name: dict(txn.cursor(handle)) for name, handle in db.items()}
    assert not rows["aside"]
    fresh, bodies = _inspect_fresh(rows)
    waiting = {}
    for name, row in rows["envelopes"].items():
        envelope = records.unpack_envelope(row)
        assert records.envelope_key(envelope) == name
        waiting[key_of(envelope)] = envelope
    assert rows["waiting"] == {
        records.waiting_key(envelope): records.mark_of(envelope)
        for envelope in waiting.values()
        if not envelope.held
    }
    assert not fresh.keys() & waiting.keys()
    chunked: dict[int, list[bytes]] = {}
    for name, chunk in rows["chunks"].items():  # in the order of their numbers
        message = records.message_of(name)
        assert message not in bodies, "a body is stored twice"
        assert int.from_bytes(name[8:]) == len(chunked.setdefault(message, []))
        chunked[message].append(chunk)
    bodies |= {message: b"".join(chunks) for message, chunks in chunked.items()}
    assert bodies.keys() == {message for message, _ in (*fresh, *waiting)}, "a body without owner"
    return Disk(fresh, waiting, bodies)


def _inspect_fresh(
    rows: dict[str, dict[bytes, bytes]],
) -> tuple[dict[Key, Envelope], dict[int, bytes]]:
    fresh, bodies = {}, {}
    assert rows["settled"].keys() <= rows["fresh"].keys()
    for name, row in rows["fresh"].items():
        settled = records.unpack_ids(rows["settled"].get(name, records.NO_IDS))
        entries = list(records.unpack_segment(row))
        assert settled < {entry.message for entry in entries}, "a row of which nothing is left"
        for entry in entries:
            if entry.message not in settled:
                envelope = records.unpack_envelope(entry.envelope)
                assert key_of(envelope) not in fresh
                fresh[key_of(envelope)] = envelope
                if envelope.size <= records.CHUNK:
                    bodies[entry.message] = entry.body
    return fresh, bodies


@contextmanager
def no_file_grows(size: int) -> Iterator[None]:
    """What a full disk is to LMDB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
