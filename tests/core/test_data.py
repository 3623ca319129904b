"""Content on the wire: where it ends, its dots, and what is counted, against plain-Python twins."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core.data import (
    BARE_NEWLINE,
    HEADER_TOO_BIG,
    NO_FAULT,
    NO_ROOM,
    TOO_BIG,
    DataScanner,
    Stuffer,
)
from tests.core.wire_oracles import (
    END,
    count_received,
    end_of_data,
    has_bare_newline,
    normalised,
    stuffed,
    unstuffed,
)

LARGE = 1 << 30

# THREATS: each stands between two lines and must not end the message.
SMUGGLING = [
    b"\n.\n", b"\n.\r", b"\r.\n", b"\r.\r", b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r",
    b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n",
]  # fmt: skip

tokens = st.sampled_from([
    b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\0", b"\xc3\xa4", b" ", b":", b"Received:", b"X: y",
])  # fmt: skip
wire = st.lists(tokens, max_size=30).map(b"".join)
cuts = st.lists(st.integers(0, 80), max_size=8).map(sorted)


def split(data: bytes, at: list[int]) -> list[bytes]:
    """`data` in pieces, cut at the given places."""
    bounds = [0, *(min(cut, len(data)) for cut in at), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def single_octets(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def scan(scanner: DataScanner, pieces: list[bytes]) -> int:
    """Where the end is, counted over all pieces, or -1."""
    before = 0
    for piece in pieces:
        end = scanner.feed(piece)
        if end >= 0:
            return before + end
        before += len(piece)
    return -1


@given(wire, cuts)
@example(b"", [])
@example(b".\r\n", [1, 2])
def test_data_ends_where_the_twin_says(data: bytes, at: list[int]) -> None:
    data += END + b"QUIT\r\n"
    end = end_of_data(data)
    content = data[: end - 3]
    for pieces in (split(data, []), split(data, at), single_octets(data)):
        scanner = DataScanner(LARGE, LARGE)
        assert scan(scanner, pieces) == end
        bare = has_bare_newline(content)
        assert scanner.fault == (BARE_NEWLINE if bare else NO_FAULT)
        if not bare:
            assert scanner.size == scanner.held == len(unstuffed(content))
            assert scanner.eight_bit == (not content.isascii())
            assert scanner.received == count_received(unstuffed(content))
            assert b"".join(scanner.take()) == unstuffed(content)


@given(wire, cuts)
def test_normalising_makes_crlf_of_each_and_never_an_end(data: bytes, at: list[int]) -> None:
    data += END
    end = end_of_data(data)
    expected = normalised(unstuffed(data[: end - 3]))
    for pieces in (split(data, []), split(data, at), single_octets(data)):
        scanner = DataScanner(LARGE, LARGE, True)
        assert scan(scanner, pieces) == end
        assert scanner.fault == NO_FAULT
        assert b"".join(scanner.take()) == expected


@given(wire, cuts)
def test_chunks_keep_their_dots_and_end_by_count(data: bytes, at: list[int]) -> None:
    for pieces in (split(data, []), split(data, at), single_octets(data)):
        scanner = DataScanner(LARGE, LARGE, True)
        scanner.start(False)
        assert scan(scanner, pieces) == -1
        scanner.finish()
        assert b"".join(scanner.take()) == normalised(data)
        scanner = DataScanner(LARGE, LARGE)
        scanner.start(False)
        scan(scanner, pieces)
        scanner.finish()
        assert scanner.fault == (BARE_NEWLINE if has_bare_newline(data) else NO_FAULT)


@pytest.mark.parametrize("sequence", SMUGGLING)
@pytest.mark.parametrize("normalise", [False, True])
def test_threat_01_smuggling_never_ends_data(sequence: bytes, normalise: bool) -> None:
    data = b"Subject: a\r\n\r\nfirst" + sequence + b"MAIL FROM:<mallory@example.test>\r\n"
    for cut in range(len(data) + 1):
        scanner = DataScanner(LARGE, LARGE, normalise)
        assert scan(scanner, [data[:cut], data[cut:]]) == -1
        assert scan(scanner, [b"x", END]) == 6
        bare = has_bare_newline(data)
        assert scanner.fault == (BARE_NEWLINE if bare and not normalise else NO_FAULT)
    scanner = DataScanner(LARGE, LARGE, normalise)
    assert scan(scanner, single_octets(data)) == -1


@pytest.mark.parametrize("sequence", SMUGGLING)
def test_threat_01_what_was_normalised_leaves_as_one_message(sequence: bytes) -> None:
    scanner = DataScanner(LARGE, LARGE, True)
    scan(scanner, [b"first" + sequence + b"second", END])
    stuffer = Stuffer()
    sent = b"".join(map(stuffer.feed, scanner.take())) + stuffer.finish()
    assert end_of_data(sent) == len(sent)


def test_nul_is_content() -> None:
    """RFC 5321 section 4.5.2 allows all of ASCII."""
    scanner = DataScanner(LARGE, LARGE)
    assert scan(scanner, [b"a\0b\r\n.\r\n"]) == 8
    assert scanner.take() == [b"a\0b\r\n"]
    assert scanner.fault == NO_FAULT


def test_content_that_needs_no_change_is_not_copied() -> None:
    data = b"Subject: a\r\n\r\nsome text\r\n"
    scanner = DataScanner(LARGE, LARGE)
    scanner.feed(data)
    assert scanner.take()[0] is data


def test_take_lets_go_and_start_begins_anew() -> None:
    scanner = DataScanner(LARGE, LARGE)
    scanner.feed(b"Received: a\r\n\xff\n")
    scanner.start(True)
    assert (scanner.size, scanner.held, scanner.fault, scanner.received) == (0, 0, 0, 0)
    assert not scanner.eight_bit
    assert scanner.feed(b"b\r\n.\r\n") == 6
    assert scanner.take() == [b"b\r\n"]
    assert scanner.held == 0


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_threat_08_size_is_limited_while_it_arrives(piece: int) -> None:
    scanner = DataScanner(100, LARGE)
    data = b"x" * 98 + b"\r\n"
    scan(scanner, [data[i : i + piece] for i in range(0, 100, piece)])
    assert (scanner.fault, scanner.held) == (NO_FAULT, 100)
    scanner.feed(b"y")
    assert (scanner.fault, scanner.held) == (TOO_BIG, 0)
    assert scanner.feed(END) == 5
    assert scanner.take() == []


@pytest.mark.parametrize("normalise", [False, True])
def test_threat_08_header_block_is_limited(normalise: bool) -> None:
    header = b"A: " + b"x" * 45 + b"\r\n"
    body = b"\r\n" + b"no header\r\n" * 100
    for pieces in ([header * 2 + body], single_octets(header * 2 + body)):
        scanner = DataScanner(LARGE, 100, normalise)
        scan(scanner, pieces)
        assert scanner.fault == NO_FAULT
    for pieces in ([header * 2 + b"B:" + body], single_octets(b"A:" + b"x" * 99)):
        scanner = DataScanner(LARGE, 100, normalise)
        scan(scanner, pieces)
        assert scanner.fault == HEADER_TOO_BIG


def test_text_without_a_header_is_no_header() -> None:
    scanner = DataScanner(LARGE, 100)
    scanner.feed(b"just text\r\n" * 1000)
    assert scanner.fault == NO_FAULT


def test_received_fields_are_counted_in_the_header_alone() -> None:
    data = (
        b"Received: a\r\n by b\r\nRECEIVED: c\r\nreceived:\r\nReceived-SPF: pass\r\n"
        b"X: Received: d\r\n Received: e\r\n\r\nReceived: f\r\n.\r\n"
    )
    for pieces in ([data], single_octets(data)):
        scanner = DataScanner(LARGE, LARGE)
        assert scan(scanner, pieces) == len(data)
        assert scanner.received == 3


def test_threat_03_small_pieces_do_not_grow_memory() -> None:
    scanner = DataScanner(LARGE, LARGE)
    scanner.start(False)
    for _ in range(100_000):
        scanner.feed(b"x")
    parts = scanner.take()
    assert len(parts) <= 5
    assert b"".join(parts) == b"x" * 100_000


def test_dropping_keeps_the_first_reason_and_no_octets() -> None:
    scanner = DataScanner(LARGE, LARGE)
    scanner.feed(b"x" * 10_000)
    scanner.drop(NO_ROOM)
    scanner.feed(b"\n.stuffed\r\n.x\r\n" * 10)
    assert (scanner.fault, scanner.held) == (NO_ROOM, 0)
    assert scanner.take() == []


@given(wire, cuts)
@example(b".", [])
@example(b"\r", [])
@example(b"\n.", [1])
def test_threat_12_stuffing_is_the_twins_and_comes_back_whole(data: bytes, at: list[int]) -> None:
    for pieces in (split(data, []), split(data, at), single_octets(data)):
        stuffer = Stuffer()
        sent = b"".join(map(stuffer.feed, pieces)) + stuffer.finish()
        assert sent == stuffed(data)
        assert not has_bare_newline(sent)
        scanner = DataScanner(LARGE, LARGE)
        assert scan(scanner, [sent, b"MAIL FROM:<>\r\n"]) == len(sent)
        assert b"".join(scanner.take()) in (normalised(data), normalised(data) + b"\r\n")


def test_stuffing_hands_back_what_needs_no_change() -> None:
    data = b"Subject: a\r\n\r\ntext . with .dots\r\n"
    stuffer = Stuffer()
    assert stuffer.feed(data) is data
    assert stuffer.finish() == b".\r\n"
