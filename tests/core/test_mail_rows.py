"""Many rows in one call are what they are one by one, whatever is wrong with some."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from fastmta._core.mail_rows import (
    body_keys,
    entry_keys,
    join_messages,
    list_entries,
    place_of,
)
from fastmta.store import mail_records as records
from fastmta.store.mail_records import MOST_INLINE, Entry
from fastmta.store.records import Unreadable

MAILBOX = 7
uids = st.lists(st.integers(0, (1 << 32) - 1), unique=True, max_size=8)
messages = st.tuples(st.binary(max_size=9), st.binary(max_size=9), st.binary(max_size=40))


def rows_of(front: bytes, structure: bytes, octets: bytes, body: int) -> tuple[bytes, bytes]:
    """An entry and its body."""
    entry = Entry(body, len(front) + len(octets), 1.5, 2, 3, 0, front, ["$Junk"])
    return records.pack_entry(entry), records.pack_body(len(octets), structure, [octets])


def one_by_one(row: bytes | None, body: bytes | None) -> bytes | None:
    """As `read_message` has it; None where that fails, or where chunks have to be read."""
    try:
        _, front = records.unpack_place(row or b"")
        octets = records.unpack_octets(body or b"")
    except Unreadable:
        return None
    return None if octets is None else front + octets


@given(st.integers(0, (1 << 32) - 1), uids)
def test_keys_are_those_of_the_records(mailbox: int, uids: list[int]) -> None:
    assert entry_keys(mailbox, uids) == [records.entry_key(mailbox, uid) for uid in uids]
    assert entry_keys(mailbox, array("I", uids)) == entry_keys(mailbox, uids)


@given(st.data(), st.lists(messages, max_size=8))
def test_messages_are_joined_as_one_by_one(
    data: st.DataObject, told: list[tuple[bytes, bytes, bytes]]
) -> None:
    keys = entry_keys(MAILBOX, range(len(told)))
    entries: dict[bytes, bytes] = {}
    bodies: dict[bytes, bytes] = {}
    wanted = []
    for number, (key, one) in enumerate(zip(keys, told, strict=True)):
        row, body = rows_of(*one, number)
        harm = data.draw(st.sampled_from(["", "", "entry", "body", "no entry", "no body"]))
        row = damaged(data, row) if harm == "entry" else row
        body = damaged(data, body) if harm == "body" else body
        if harm != "no entry":
            entries[key] = row
        if harm != "no body":
            bodies[records.body_key(number)] = body
        if harm == "entry":  # it may name another body
            place = place_of(row)
            found = bodies.get(place[0]) if place else None
            wanted.append(one_by_one(row, found))
        else:
            wanted.append(one_by_one(entries.get(key), bodies.get(records.body_key(number))))
    rows = [(key, entries[key]) for key in keys if key in entries]
    there = [(key, bodies[key]) for key in body_keys(rows) if key in bodies]
    assert join_messages(keys, rows, there, MOST_INLINE) == wanted


def damaged(data: st.DataObject, row: bytes) -> bytes:
    """Cut somewhere, or of a version that is not known."""
    cut = data.draw(st.integers(0, len(row)))
    return data.draw(st.sampled_from([row[:cut], b"\x03" + row[1:]]))


def test_a_body_in_chunks_is_left_to_who_reads_them() -> None:
    row, _ = rows_of(b"", b"", b"", 1)
    large = records.pack_body(1 << 40, b"", ())
    keys, body = entry_keys(MAILBOX, [1]), records.body_key(1)
    assert join_messages(keys, [(keys[0], row)], [(body, large)], MOST_INLINE) == [None]


def test_an_entry_tells_its_place() -> None:
    row, _ = rows_of(b"front", b"", b"octets", 9)
    assert place_of(row) == (records.body_key(9), 11, 5)
    assert place_of(b"\x02" + row[1:]) is None
    assert place_of(row[:46]) is None


def test_a_list_ends_with_the_mailbox_and_tells_where_to_go_on() -> None:
    row, _ = rows_of(b"", b"", b"octets", 1)
    keys = [*entry_keys(MAILBOX, [1, 3, 5, 8]), *entry_keys(MAILBOX + 1, [2])]
    rows = [(key, b"bad" if key == keys[1] else row) for key in keys]
    listed = []
    for most in (1, 2, 3, 4, 9):
        uids, sizes, bad = array("I"), array("Q"), list[int]()
        more = list_entries(iter(rows), records.mailbox_key(MAILBOX), most, uids, sizes, bad)
        assert list(sizes) == [6] * len(uids)
        listed.append((list(uids), bad, more))
    assert listed == [
        ([1], [], 1),
        ([1], [3], 3),
        ([1, 5], [3], 5),
        ([1, 5, 8], [3], 0),
        ([1, 5, 8], [3], 0),
    ]
