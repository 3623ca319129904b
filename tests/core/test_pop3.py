"""Lines of POP3: commands, numbers, listings and TOP, against plain Python."""

import re
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta._core import pop3
from fastmta._core.data import Stuffer
from fastmta._core.pop3 import Top, list_ids, list_sizes, parse_command, parse_numbers
from tests.protocol.pop3_oracle import KEYWORDS, twin_command, twin_numbers, twin_top

words = st.sampled_from([*KEYWORDS, *map(str.lower, KEYWORDS), "Top", "tops", "", "RETR\x00", "ü"])
spaces = st.sampled_from(["", " ", "  "])
arguments = st.lists(
    st.sampled_from(["1", "01", "0", "-1", "+1", "9" * 18, "9" * 19, "9" * 40, "a", "\t", "\x7f"]),
    max_size=3,
)
lines = st.builds(
    lambda a, word, b, rest, c: (a + word + b + " ".join(rest) + c).encode(),
    spaces, words, spaces, arguments, spaces,
)  # fmt: skip


@given(lines | st.binary(max_size=30))
def test_commands(line: bytes) -> None:
    assert parse_command(line) == twin_command(line)


def test_a_password_keeps_its_spaces() -> None:
    assert parse_command(b"pass  a  b ") == (pop3.PASS, b" a  b ")
    assert parse_command(b"user  a  b ") == (pop3.USER, b"a  b")
    assert parse_command(b"PASS") == (pop3.PASS, b"")


@given(lines | st.binary(max_size=30) | arguments.map(lambda some: " ".join(some).encode()))
def test_numbers(argument: bytes) -> None:
    wanted = twin_numbers(argument)
    if wanted is None:
        with pytest.raises(ValueError):
            parse_numbers(argument)
    else:
        assert parse_numbers(argument) == wanted


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.booleans()), max_size=30),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_size_listings(messages: list[tuple[int, bool]], first: int, count: int) -> None:
    sizes, deleted = array("Q", [size for size, _ in messages]), [gone for _, gone in messages]
    wanted = [
        f"{i + 1} {size}\r\n"
        for i, (size, gone) in enumerate(messages)
        if first <= i < first + count and not gone
    ]
    assert list_sizes(sizes, bytearray(deleted), first, count) == "".join(wanted).encode()


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), max_size=30),
)
def test_unique_ids(validity: int, messages: list[tuple[int, bool]]) -> None:
    uids, deleted = array("I", [uid for uid, _ in messages]), [gone for _, gone in messages]
    listed = list_ids(validity, uids, bytearray(deleted), 0, 100).decode().splitlines()
    wanted = [
        f"{i + 1} {validity:08x}{uid:08x}" for i, (uid, gone) in enumerate(messages) if not gone
    ]
    assert listed == wanted
    # RFC 1939 section 7: one to 70 characters, of 0x21 to 0x7E.
    assert all(re.fullmatch(r"\d+ [!-~]{1,70}", line) for line in listed)


def test_a_listing_beyond_the_end_is_empty() -> None:
    sizes = array("Q", [1, 2, 3])
    assert list_sizes(sizes, bytearray(3), 3, 1) == b""
    assert list_sizes(sizes, bytearray(3), 1 << 40, 1 << 40) == b""
    assert list_sizes(sizes, bytearray(3), -1, 1) == b""


messages = st.lists(
    st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"Subject: x\r\n", b"..\r\n"]), max_size=20
).map(b"".join)


def top(message: bytes, lines: int, pieces: list[bytes]) -> bytes:
    stuffer, cut, out = Stuffer(), Top(lines), b""
    for piece in pieces:
        out += cut.feed(stuffer.feed(piece))
        if cut.is_full:
            return out + b".\r\n"
    return out + stuffer.finish()


@given(messages, st.integers(0, 5) | st.just(pop3.LARGEST))
def test_top_whole_and_split_at_every_octet(message: bytes, lines: int) -> None:
    wanted = twin_top(message, lines)
    assert top(message, lines, [message]) == wanted
    for cut in range(len(message) + 1):
        assert top(message, lines, [message[:cut], message[cut:]]) == wanted
    assert top(message, lines, [bytes([octet]) for octet in message]) == wanted


def test_top_0_is_the_header_alone() -> None:
    message = b"Subject: x\r\nTo: y\r\n\r\nbody\r\n"
    assert top(message, 0, [message]) == b"Subject: x\r\nTo: y\r\n\r\n.\r\n"
    assert top(message, 1, [message]) == message + b".\r\n"
