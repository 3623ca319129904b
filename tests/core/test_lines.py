"""The line buffer: lines by CRLF alone, within a limit, and octets by count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta._core.lines import BareLineFeed, LineBuffer, LineTooLong
from tests.core.wire_oracles import BareFeed, TooLong, lines_of

LIMIT = 12

tokens = st.sampled_from([b"\r\n", b"\r", b"\n", b"a", b"bc", b"0123456789", b"\0", b"\xff"])
octets = st.lists(tokens, max_size=20).map(b"".join)


def read(buffer: LineBuffer) -> list[object]:
    """All lines that are there; in place of one that is none, its error's type."""
    found: list[object] = []
    while True:
        try:
            line = buffer.next_line()
        except (BareLineFeed, LineTooLong) as error:
            found.append(type(error))
            continue
        if line is None:
            return found
        found.append(line)


def expected(data: bytes) -> list[object]:
    errors = {BareFeed: BareLineFeed, TooLong: LineTooLong}
    return [errors.get(line, line) for line in lines_of(data, LIMIT)]


@given(octets)
def test_lines_are_the_twins(data: bytes) -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(data)
    assert read(buffer) == expected(data)


@given(octets, st.integers(1, 5))
def test_pieces_give_the_same_lines_as_the_whole(data: bytes, size: int) -> None:
    buffer = LineBuffer(LIMIT)
    found: list[object] = []
    for i in range(0, len(data), size):
        buffer.feed(data[i : i + size])
        found += read(buffer)
    assert found == expected(data)


def test_threat_08_a_line_that_is_too_long_is_dropped_to_its_crlf() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"x" * 13)
    with pytest.raises(LineTooLong):
        buffer.next_line()
    for piece in (b"y" * 100, b"\n", b"MAIL\n\r", b"z\r"):
        buffer.feed(piece)
        assert buffer.next_line() is None
        assert len(buffer) <= 1
    buffer.feed(b"\nNOOP\r\n")
    assert buffer.next_line() == b"NOOP"


def test_the_longest_line_counts_its_crlf() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"x" * 10 + b"\r\n" + b"y" * 11 + b"\r\nz\r\n")
    assert read(buffer) == [b"x" * 10, LineTooLong, b"z"]


def test_a_bare_line_feed_is_told_at_once() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"NOOP\n")
    with pytest.raises(BareLineFeed):
        buffer.next_line()
    assert len(buffer) == 0


def test_take_counts_octets_between_lines() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"BDAT 5\r\na\r\n")
    assert buffer.next_line() == b"BDAT 5"
    assert buffer.take(5) == b"a\r\n"
    assert buffer.take(2) == b""
    buffer.feed(b"bcNOOP\r\nrest")
    assert buffer.take(2) == b"bc"
    assert buffer.next_line() == b"NOOP"
    assert buffer.take() == b"rest"
    assert buffer.take() == b""
    assert buffer.take(-1) == b""


def test_take_gives_what_was_fed_without_a_copy() -> None:
    buffer = LineBuffer(LIMIT)
    data = bytes(range(256))
    buffer.feed(data)
    assert buffer.take() is data


def test_clear_forgets() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"x" * 20)
    with pytest.raises(LineTooLong):
        buffer.next_line()
    buffer.clear()
    buffer.feed(b"NOOP\r\n")
    assert read(buffer) == [b"NOOP"]
