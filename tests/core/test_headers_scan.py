import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta._core import headers
from tests.core import message_oracles as oracle

PIECES = [
    b"From",
    b"to",
    b"X",
    b":",
    b" :",
    b": a",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\r\n b",
    b"\xc3\xa9",
    b"\0",
    b"(",
    b")",
    b'"',
    b"\\",
    b";",
    b"=",
    b"name",
    b"a/b",
    b"<x@y>",
    b"<",
]
HEADERS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (b"", []),
        (b"\r\nA: b\r\n", []),
        (b"A: b\r\n", [("A", b" b")]),
        (b"A: b", [("A", b" b")]),
        (b"A : b\nC:d\n\nE: f\n", [("A", b" b"), ("C", b"d")]),
        (b"A: b\r\n c\r\n\td\r\nE:\r\n", [("A", b" b\r\n c\r\n\td"), ("E", b"")]),
        (b"broken\r\nA: b\r\n", [("", b"broken"), ("A", b" b")]),
        (b" folded into nothing\r\nA: b\r\n", [("", b" folded into nothing"), ("A", b" b")]),
        (b"N\xc3\xa4me: b\r\n", [("", b"N\xc3\xa4me: b")]),
        (b": b\r\n", [("", b": b")]),
    ],
)
def test_fields(section, fields):
    assert list(headers.Section(section, 0, len(section))) == fields
    assert list(headers.Fields(section, 0, len(section))) == fields


@given(HEADERS, st.integers(0, 9), st.integers(0, 100))
def test_ranges_are_those_of_the_oracle(data, start, end):
    expected = oracle.ranges(data, start, end)
    assert list(headers.Ranges(data, start, end)) == expected
    texts = [(data[a:b].decode("latin-1"), data[c:d]) for a, b, c, d in expected]
    assert list(headers.Fields(data, start, end)) == texts
    assert headers.find(data, start, end, b"to") == oracle.find(data, start, end, b"to")


@given(HEADERS)
def test_fields_of_every_part_of_the_input(data):
    for end in range(len(data) + 1):
        assert list(headers.Ranges(data, 0, end)) == oracle.ranges(data, 0, end)


@given(HEADERS, st.integers(0, 9))
def test_the_empty_line_is_where_the_oracle_sees_it(data, start):
    assert headers.end_of_header(data, start) == oracle.end_of_header(data, start)


@given(HEADERS, st.integers(0, 9), st.integers(0, 100))
def test_unfolds_like_the_oracle(data, start, end):
    assert headers.unfold(data, start, end) == oracle.unfold(data, start, end)


@given(HEADERS)
def test_values_are_read_like_the_oracle_reads_them(value):
    assert headers.parameters(value) == oracle.parameters(value)
    assert headers.words(value) == oracle.words(value)
    assert headers.bracketed(value) == oracle.bracketed(value)


@pytest.mark.parametrize(
    ("value", "main", "pairs"),
    [
        (b"text/plain", b"text/plain", []),
        (b" text/plain (c;d) ; charset=utf-8", b"text/plain", [(b"charset", b"utf-8")]),
        (b'a/b;X="a\\"b;c";y = z ', b"a/b", [(b"x", b'a"b;c'), (b"y", b"z")]),
        (b"a/b;x=a file.txt;y=z", b"a/b", [(b"x", b"a file.txt"), (b"y", b"z")]),
        (b"a/b\r\n\tx=1\r\n\ty=2", b"a/b", [(b"x", b"1"), (b"y", b"2")]),
        (b"; x=y", b"", [(b"x", b"y")]),
        (b'a/b; x="open', b"a/b", [(b"x", b"open")]),
        (b"a/b; x; =y; z=", b"a/b", [(b"z", b"")]),
    ],
)
def test_parameters(value, main, pairs):
    assert headers.parameters(value) == (main, pairs)
