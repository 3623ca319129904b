"""Each kind of damage, made by hand in real files, is found, named and repaired."""

import gzip
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from zlib import crc32

import lmdb
import pytest

from fastmta.mail.envelope import Envelope, Recipient, format_id
from fastmta.store import env as store_env
from fastmta.store import records, rows, segment, verify
from fastmta.store.env import Databases, Transaction
from fastmta.store.findings import Look, Part
from fastmta.store.spool import Spool
from fastmta.store.spool_verify import check_spool
from tests.store.backlog import BODY, waiting
from tests.support import run

# FASTMTA_DAMAGE_SEEDS=1000 is what a release wants.
SEEDS = int(os.environ.get("FASTMTA_DAMAGE_SEEDS", "20"))

LARGE = os.urandom(100_000).hex().encode()
FRESH = [901 << 20, 902 << 20, 903 << 20]
LARGE_FRESH = 904 << 20
WAITING = [number << 20 for number in (1, 2, 3)]
HELD = 4 << 20
ALL = {*FRESH, LARGE_FRESH, *WAITING, HELD}


def fresh(message: int, body: bytes = BODY) -> Envelope:
    to, now = [Recipient(f"u{message >> 20}@fresh.test")], time.time()
    return of(body, Envelope(message, 0, "a@b.test", "fresh.test", to, now, len(body)))


def of(body: bytes, envelope: Envelope) -> Envelope:
    envelope.checksum = crc32(body)
    return envelope


def nothing(part: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A shard with mail in each state that there is."""
    folder = tmp_path / "data" / "spool" / "0"
    folder.mkdir(parents=True)
    env, db = store_env.open_environment(folder, records.DATABASES)
    with env, env.begin(write=True) as txn:
        entries = [records.pack_entry(fresh(message), [BODY]) for message in FRESH]
        segment.put(txn, db, entries)
        segment.put(txn, db, [records.pack_entry(fresh(LARGE_FRESH, LARGE), [])])
        rows.put_body(txn, db, LARGE_FRESH, [LARGE])
        for message in WAITING:
            one = waiting(message >> 20, "wait.test", time.time() + 60)
            rows.put_envelope(txn, db, of(BODY, one))
            rows.put_body(txn, db, message, [BODY])
        held = waiting(4, "held.test", time.time() + 60, held="1: x")
        rows.put_envelope(txn, db, of(BODY, held))
        rows.put_body(txn, db, HELD, [BODY])
    return tmp_path / "data"


def change(data: Path, how: Callable[[Transaction, Databases], object]) -> None:
    env, db = store_env.open_environment(data / "spool" / "0", records.DATABASES)
    with env, env.begin(write=True) as txn:
        how(txn, db)


def look(data: Path) -> Part:
    (part,) = verify.verify(data, nothing)
    return part


def mend(data: Path) -> Part:
    (part,) = verify.repair(data, nothing)
    return part


def delivered(data: Path) -> set[int]:
    """The messages that a server would send, now or later, each with its octets."""
    found: set[int] = set()

    async def scenario() -> None:
        spool = Spool(data / "spool" / "0", 0, 0)
        out: list[Envelope] = []
        await spool.start(lambda envelope, body: out.append(envelope))
        later, _ = await spool.scan(b"", 1000)
        for envelope in [*out, *later]:
            pieces: list[bytes] = []
            while more := await spool.read(envelope.message, len(pieces)):
                pieces += more
            assert len(b"".join(pieces)) == envelope.size
            found.add(envelope.message)
        await spool.close()

    run(scenario())
    return found


def taken_out(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "aside").rglob("*") if path.is_file()}


def test_what_is_whole_is_found_whole(data: Path) -> None:
    part = look(data)
    assert part.problems == []
    assert part.counts == {
        "envelopes": 8,
        "messages": 8,
        "octets": 7 * len(BODY) + len(LARGE),
    }
    assert mend(data).mended == []
    assert not (data / "aside").exists()
    assert delivered(data) == ALL


def add(envelope: Envelope, txn: Transaction, db: Databases) -> None:
    envelope.size = 10_000
    rows.put_envelope(txn, db, envelope)
    rows.put_body(txn, db, envelope.message, [bytes(10_000)])


Change = Callable[[Transaction, Databases], object]
KEY = records.message_key
ENVELOPE = KEY(WAITING[0]) + bytes(2)


def row_of(database: str, key: bytes, edit: Callable[[bytes], bytes | None]) -> Change:
    """Change one row, or take it away."""

    def how(txn: Transaction, db: Databases) -> None:
        row = txn.get(key, db=db[database])
        after = edit(row or b"")
        if after is None:
            assert txn.delete(key, db=db[database])
        else:
            txn.put(key, after, db=db[database])

    return how


def gone(row: bytes) -> None:
    return None


def flip(at: int, bits: int = 0xFF) -> Callable[[bytes], bytes]:
    def edit(row: bytes) -> bytes:
        return row[:at] + bytes([row[at] ^ bits]) + row[at + 1 :]

    return edit


def never(row: bytes) -> bytes:
    envelope = records.unpack_envelope(row)
    envelope.due = math.nan
    return records.pack_envelope(envelope)


def minus(row: bytes) -> bytes:
    envelope = records.unpack_envelope(row)
    envelope.index = -1
    return records.pack_envelope(envelope)


def turn(change: Callable[[bytes, bytes], tuple[bytes, bytes] | None]) -> Change:
    """Change the first row of `waiting`, or take it away."""

    def how(txn: Transaction, db: Databases) -> None:
        with txn.cursor(db["waiting"]) as cursor:
            cursor.first()
            key, mark = cursor.item()
            cursor.delete()
        if after := change(key, mark):
            txn.put(*after, db=db["waiting"])

    return how


# Octets of a row of `fresh`: version, then of the first entry its id, two lengths, the envelope.
LENGTH, INSIDE = 1 + 8 + 3, 1 + 16
FIRST = format_id(FRESH[0])
W = format_id(WAITING[0])

DAMAGE: dict[str, tuple[Change, str, set[int], set[str]]] = {
    # what is done: how, what is told, which messages are taken out, files that are kept
    "a segment's framing": (
        row_of("fresh", KEY(FRESH[0]), flip(LENGTH)),
        f"segment {FIRST} cannot be read",
        {*FRESH},
        {f"spool-0-segment-{FIRST}.row"},
    ),
    "a segment is cut": (
        row_of("fresh", KEY(FRESH[0]), lambda row: row[:-5]),
        f"segment {FIRST} cannot be read",
        {*FRESH},
        {f"spool-0-segment-{FIRST}.row", f"spool-0-{FIRST}.eml", f"spool-0-{FIRST}.json"},
    ),
    "a segment of another release": (
        row_of("fresh", KEY(FRESH[0]), flip(0)),
        "version 253 is not known",
        {*FRESH},
        {f"spool-0-segment-{FIRST}.row"},
    ),
    "an envelope in a segment": (
        row_of("fresh", KEY(FRESH[0]), flip(INSIDE)),
        f"message {FIRST}: its envelope cannot be read",
        {FRESH[0]},
        {f"spool-0-{FIRST}.eml", f"spool-0-{FIRST}.row"},
    ),
    "ids in a segment": (
        row_of("fresh", KEY(FRESH[0]), flip(8)),
        f"segment {FIRST} has other messages than it says",
        {*FRESH},
        {f"spool-0-segment-{FIRST}.row"},
    ),
    "notes of what was delivered": (
        row_of("settled", KEY(FRESH[0]), lambda row: b"\1abc"),
        "are no list of ids",
        {*FRESH},
        {f"spool-0-{FIRST}.eml", f"spool-0-{FIRST}.json"},
    ),
    "notes of strangers": (
        row_of("settled", KEY(FRESH[0]), lambda row: records.pack_ids([77])),
        f"has no {format_id(77)}, which is noted as delivered",
        set(),
        set(),
    ),
    "notes of no segment": (
        row_of("settled", KEY(77), lambda row: records.pack_ids([77])),
        f"segment {format_id(77)} is not there",
        set(),
        {f"spool-0-{KEY(77).hex()}.row"},
    ),
    "a body of a large fresh message": (
        row_of("chunks", records.chunk_key(LARGE_FRESH, 3), gone),
        f"message {format_id(LARGE_FRESH)}: a part of its octets is missing",
        {LARGE_FRESH},
        {f"spool-0-{format_id(LARGE_FRESH)}.eml", f"spool-0-{format_id(LARGE_FRESH)}.json"},
    ),
    "a body": (
        row_of("chunks", records.chunk_key(WAITING[0], 0), gone),
        f"envelope {W}: 0 octets are there of {len(BODY)}",
        {WAITING[0]},
        {f"spool-0-{W}.json"},
    ),
    "a body is cut": (
        row_of("chunks", records.chunk_key(WAITING[0], 0), lambda row: row[:-1]),
        f"envelope {W}: {len(BODY) - 1} octets are there of {len(BODY)}",
        {WAITING[0]},
        {f"spool-0-{W}.json", f"spool-0-{W}.eml"},
    ),
    "an envelope": (
        row_of("envelopes", ENVELOPE, flip(1)),
        f"envelope {W} cannot be read",
        {WAITING[0]},
        {f"spool-0-{W}.row", f"spool-0-{W}.eml"},
    ),
    "a letter of an address": (
        row_of("envelopes", ENVELOPE, lambda row: row.replace(b"alice", b"alike")),
        f"envelope {W} cannot be read: its checksum is that of other octets",
        {WAITING[0]},
        {f"spool-0-{W}.row", f"spool-0-{W}.eml"},
    ),
    "a letter of a message": (
        row_of("chunks", records.chunk_key(WAITING[0], 0), lambda row: row.replace(b"Hi", b"Ha")),
        f"envelope {W}: its octets have the checksum",
        {WAITING[0]},
        {f"spool-0-{W}.json", f"spool-0-{W}.eml"},
    ),
    "a letter of a message in its segment": (
        row_of("fresh", KEY(FRESH[0]), lambda row: row.replace(b"Hi", b"Ha", 1)),
        f"message {FIRST}: its octets have the checksum",
        {FRESH[0]},
        {f"spool-0-{FIRST}.json", f"spool-0-{FIRST}.eml"},
    ),
    "a letter of a large message": (
        row_of("chunks", records.chunk_key(LARGE_FRESH, 3), lambda row: b"x" + row[1:]),
        f"message {format_id(LARGE_FRESH)}: its octets have the checksum",
        {LARGE_FRESH},
        {f"spool-0-{format_id(LARGE_FRESH)}.eml", f"spool-0-{format_id(LARGE_FRESH)}.json"},
    ),
    "an envelope that is due at no time": (
        row_of("envelopes", ENVELOPE, lambda row: never(row)),
        f"envelope {W}: it is due at no time",
        {WAITING[0]},
        {f"spool-0-{W}.json", f"spool-0-{W}.eml"},
    ),
    "an envelope is gone": (
        row_of("envelopes", ENVELOPE, gone),
        f"message {W} has no envelope any more",
        {WAITING[0]},
        {f"spool-0-{W}.eml"},
    ),
    "an envelope of another": (
        row_of("envelopes", ENVELOPE, lambda row: records.pack_envelope(fresh(FRESH[0]))),
        f"envelope {W}: it is another",
        {WAITING[0]},
        {f"spool-0-{W}.json", f"spool-0-{W}.eml"},
    ),
    "an envelope with an impossible index": (
        row_of("envelopes", ENVELOPE, lambda row: minus(row)),
        f"envelope {W} cannot be read: Expected `int` >= 0",
        {WAITING[0]},
        {f"spool-0-{W}.row", f"spool-0-{W}.eml"},
    ),
    "a turn is gone": (turn(lambda key, mark: None), "has no turn", set(), set()),
    "a turn at another time": (
        turn(lambda key, mark: (key[:10] + b"\0" + key[11:], mark)),
        "has no turn",
        set(),
        set(),
    ),
    "a turn with another mark": (turn(lambda key, mark: (key, b"abcd")), "no turn", set(), set()),
    "a turn of nobody": (
        row_of("waiting", bytes(3 + 8) + KEY(77) + bytes(2), lambda row: b"abcd"),
        f"a turn is for envelope {format_id(77)} that is not there",
        set(),
        set(),
    ),
    "a turn whose name is cut": (
        row_of("waiting", bytes(5), lambda row: b"abcd"),
        "row 0000000000 of waiting is that of no turn",
        set(),
        set(),
    ),
    "a segment under another's name": (
        row_of("fresh", KEY(FRESH[0]) + b"x", lambda row: records.pack_segment([])),
        "has other messages than it says",
        set(),
        {f"spool-0-segment-{format_id(FRESH[0])}.120.row"},
    ),
    "a segment that is cut to nothing": (
        row_of("fresh", KEY(77), lambda row: b"\1\0\0"),
        f"segment {format_id(77)} cannot be read",
        set(),
        {f"spool-0-segment-{format_id(77)}.row"},
    ),
    "octets with a name that is cut": (
        row_of("chunks", b"\0\1", lambda row: b"x"),
        "row 0001 of chunks is that of no message",
        set(),
        {"spool-0-0001.row"},
    ),
    "octets of nobody": (
        row_of("chunks", records.chunk_key(77, 0), lambda row: b"From: x\r\n\r\n"),
        f"message {format_id(77)} has no envelope any more",
        set(),
        {f"spool-0-{format_id(77)}.eml"},
    ),
    "a message that is in two places": (
        row_of("envelopes", KEY(FRESH[1]) + bytes(2), lambda row: b"x"),
        "cannot be read",
        set(),
        {f"spool-0-{format_id(FRESH[1])}.row"},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired(data: Path, name: str) -> None:
    how, told, lost, files = DAMAGE[name]
    change(data, how)
    found = look(data)
    assert told in " | ".join(found.problems)
    assert not (data / "aside").exists()  # a look changes nothing
    mended = mend(data)
    assert told in " | ".join(mended.problems)
    assert mended.mended
    assert look(data).problems == []
    kept = taken_out(data)
    assert files <= kept.keys()
    assert bool(files) == bool(kept)
    assert delivered(data) == ALL - lost


@pytest.mark.parametrize("database", ["fresh", "envelopes", "chunks"])
def test_each_bit_that_is_another_is_found(data: Path, database: str) -> None:
    folder = data / "spool" / "0"
    env, db = store_env.open_environment(folder, records.DATABASES)
    with env:
        with env.begin() as txn:
            there = [(key, row) for key, row in txn.cursor(db[database]) if len(row) < 1000]
        assert len(there) == {"fresh": 2, "envelopes": 4, "chunks": 4}[database]
        for key, row in there:
            for at in range(len(row)):
                with env.begin(write=True) as txn:
                    txn.put(key, flip(at, 1 << at % 8)(row), db=db[database])
                flipped = Look(env, db, folder / "data.mdb", lambda done, total: None)
                check_spool(flipped)
                assert flipped.findings, f"octet {at} of {key.hex()}"
            with env.begin(write=True) as txn:
                txn.put(key, row, db=db[database])
    assert look(data).problems == []


def test_what_is_taken_out_is_the_message_and_its_envelope(data: Path) -> None:
    change(data, row_of("chunks", records.chunk_key(WAITING[0], 0), lambda row: row[:-1]))
    mend(data)
    kept = taken_out(data)
    assert kept[f"spool-0-{W}.eml"] == BODY[:-1]
    facts = json.loads(kept[f"spool-0-{W}.json"])
    assert (facts["id"], facts["sender"]) == (W, "alice@from.test")
    assert facts["recipients"][0]["address"] == "u1@wait.test"


def test_several_envelopes_of_one_broken_message_are_all_kept(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        other = waiting(1, "other.test", time.time() + 60)
        other.index = 1
        rows.put_envelope(txn, db, other)
        txn.put(records.chunk_key(WAITING[0], 0), b"x", db=db["chunks"])

    change(data, how)
    assert len(look(data).problems) == 2
    mend(data)
    assert look(data).problems == []
    kept = taken_out(data)
    assert kept[f"spool-0-{W}.eml"] == kept[f"spool-0-{W}.1.eml"] == b"x"
    assert delivered(data) == ALL - {WAITING[0]}


def test_a_message_that_is_in_a_segment_and_waits_is_sent_once(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        envelope = fresh(FRESH[1])
        envelope.due = time.time() + 60
        rows.put_envelope(txn, db, envelope)
        rows.put_body(txn, db, FRESH[1], [BODY])

    change(data, how)
    assert "is in its segment and waits too" in look(data).problems[0]
    mend(data)
    assert look(data).problems == []
    assert delivered(data) == ALL


def test_a_file_that_is_cut_is_found_and_made_anew(data: Path) -> None:
    file = data / "spool" / "0" / "data.mdb"
    for number in range(10, 40):
        envelope = waiting(number, "more.test", time.time() + 60)
        change(data, partial(add, envelope))
    whole = file.stat().st_size
    os.truncate(file, whole - 3 * 4096)
    found = look(data)
    assert found.problems == ["the file ends before its last page"]
    mended = mend(data)
    assert "the broken file is kept as" in mended.mended[0]
    assert look(data).problems == []
    assert len(taken_out(data)["spool-0-data.mdb"]) == whole - 3 * 4096
    left = delivered(data)
    assert left
    assert left < ALL | {number << 20 for number in range(10, 40)}


@pytest.mark.parametrize("page", range(2, 12))
def test_a_page_that_is_overwritten_is_found_and_the_rest_goes_on(data: Path, page: int) -> None:
    file = data / "spool" / "0" / "data.mdb"
    with file.open("r+b") as octets:
        octets.seek(page * 4096)
        octets.write(os.urandom(4096))
    found = look(data)
    if not found.problems:  # a page that nobody uses
        assert delivered(data) == ALL
        return
    mend(data)
    assert look(data).problems == []
    assert delivered(data) <= ALL


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_octets_are_others_the_rest_goes_on(data: Path, seed: int) -> None:
    """What is found is repaired for good, and a server can start with what is left."""
    random = Random(seed)
    file = data / "spool" / "0" / "data.mdb"
    octets = bytearray(file.read_bytes())
    for _ in range(random.randrange(1, 20)):
        octets[random.randrange(2 * 4096, len(octets))] ^= random.randrange(1, 256)
    file.write_bytes(octets)
    found = look(data).problems
    mended = mend(data)
    assert bool(found) == bool(mended.mended)
    assert look(data).problems == []
    assert delivered(data) <= ALL


def test_a_file_without_notes_of_what_was_delivered_can_be_looked_at(data: Path) -> None:
    """As of an older release, or where damage has taken the name of the database away."""

    def how(txn: Transaction, db: Databases) -> None:
        txn.drop(db["settled"], delete=True)
        assert txn.delete(ENVELOPE, db=db["envelopes"])

    change(data, how)
    assert look(data).found == 2  # a turn and octets of nobody
    mend(data)
    assert look(data).problems == []
    assert delivered(data) == ALL - {WAITING[0]}


def test_a_page_of_a_body_is_found_though_lmdb_would_not_see_it(data: Path) -> None:
    file = data / "spool" / "0" / "data.mdb"
    page = file.read_bytes().index(LARGE[:100]) // 4096
    with file.open("r+b") as octets:
        octets.seek(page * 4096)
        octets.write(bytes(8))  # it says that it is another
    assert f"overflow page {page} stores mp_pgno 0" in look(data).problems[0]
    assert "a value of chunks cannot be read" in mend(data).problems
    assert look(data).problems == []
    assert delivered(data) == ALL - {LARGE_FRESH}


def test_a_file_that_is_none_is_named(data: Path) -> None:
    file = data / "spool" / "0" / "data.mdb"
    file.write_bytes(b"x" * 100_000)
    assert "cannot be read" in look(data).problems[0]
    mend(data)
    assert look(data).problems == []
    assert taken_out(data)["spool-0-data.mdb"] == b"x" * 100_000


def test_nothing_is_repaired_while_a_server_has_it(data: Path) -> None:
    for lock in (data / "lock", data / "spool" / "0" / "owner.lock"):
        held = store_env.own(lock)
        with pytest.raises(store_env.Locked):
            list(verify.repair(data, nothing))
        assert look(data).online
        os.close(held)
    assert not look(data).online


def test_thousands_of_problems_are_repaired(data: Path) -> None:
    def how(txn: Transaction, db: Databases) -> None:
        for number in range(5000, 7500):
            txn.put(records.chunk_key(number, 0), b"x", db=db["chunks"])

    change(data, how)
    assert look(data).found == 2500
    mend(data)
    assert look(data).problems == []
    assert len(taken_out(data)) == 2500
    assert delivered(data) == ALL


def test_what_an_older_release_left_is_whole(tmp_path: Path) -> None:
    """Its `due` is what lanes are now."""
    stored = Path(__file__).parent / "data" / "due.mdb.gz"
    folder = tmp_path / "data" / "spool" / "0"
    folder.mkdir(parents=True)
    (folder / "data.mdb").write_bytes(gzip.decompress(stored.read_bytes()))
    assert look(tmp_path / "data").problems == []


def test_an_environment_that_was_never_used_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "spool" / "0"
    folder.mkdir(parents=True)
    lmdb.open(str(folder), lib_version=store_env.LIB_VERSION).close()
    assert look(tmp_path / "data").problems == []
