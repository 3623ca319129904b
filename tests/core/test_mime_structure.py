import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import body, mime
from tests.core import message_oracles as oracle

LINES = [
    b"\r\n",
    b"\n",
    b"--a\r\n",
    b"--a",
    b"--ab\n",
    b"--a--\r\n",
    b"--ab--\r\n",
    b"--abc\n",
    b"--a \r\n",
    b"text\r\n",
    b"t",
    b"A: b\r\n",
    b" folded\r\n",
    b"junk\n",
    b"--x\r\n",
    b"--",
    b"--\n",
    b'--q"\\r\n',
    b"Content-Type: multipart/mixed; boundary=a\r\n",
    b'content-type: Multipart/digest; boundary="ab "\n',
    b'Content-Type: multipart/x; boundary="q\\"\\\\"\r\n',
    b"Content-Type: multipart/mixed\r\n boundary=abc\r\n",
    b"Content-Type: message/rfc822\r\n",
    b"Content-Type: message/global; x=y\r\n",
    b"Content-Type: (c) text/plain\n",
    b"Content-Type: message/global-headers\n",
    b"Content-Type: multipart/mixed\n",
    b'Content-Type: multipart/mixed; boundary="a\n b"\n',
    b"Content-Transfer-Encoding: base64\r\n",
    b"content-transfer-encoding: (c) 8bit\n",
    b"Content-Type:\n",
]
MESSAGES = st.lists(st.sampled_from(LINES) | st.binary(max_size=2), max_size=40).map(b"".join)


def rows(root):
    return [
        (
            node.kind,
            node.start,
            node.header_end,
            node.body_start,
            node.end,
            node.type_start,
            node.type_end,
            node.encoding_start,
            node.encoding_end,
        )
        for node in root.walk()
    ]


def without_ends(found):
    """Where a field is absent, the oracle has no end of it either."""
    return [
        (*row[:6], row[6] if row[5] >= 0 else -1, row[7], row[8] if row[7] >= 0 else -1)
        for row in found
    ]


@given(MESSAGES)
@example(b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\nx\r\n--a--\r\n")
@example(
    b"Content-Type: multipart/mixed; boundary=a\n--a\n"
    b"Content-Type: multipart/digest; boundary=ab\n\n--ab\n\nA: b\n\n--a"
)
@example(
    b"Content-Type: multipart/mixed; boundary=a\n\n--a\n"
    b"Content-Type: multipart/mixed; boundary=a\n\n--a\n\nx\n--a--\n--a--\n"
)
@example(
    b"Content-Type: multipart/digest; boundary=ab\n--a \nContent-Type: message/rfc822\n\nA: b\n"
)
def test_the_structure_is_that_of_the_oracle(data):
    root = mime.structure(data)
    expected, cut = oracle.structure(data)
    assert without_ends(rows(root)) == expected
    assert root.cut == cut


@given(MESSAGES)
def test_bounds_are_kept(data):
    root = mime.structure(data, most_depth=2, most_parts=4)
    expected, cut = oracle.structure(data, 2, 4)
    assert without_ends(rows(root)) == expected
    assert root.cut == cut
    assert len(expected) <= 4


@given(MESSAGES)
def test_parts_lie_within_each_other_in_order(data):
    for node in mime.structure(data).walk():
        assert node.start <= node.header_end <= node.body_start <= node.end <= len(data)
        at = node.body_start
        for part in node.parts:
            assert part.start >= at
            at = part.end
        assert at <= node.end


@given(MESSAGES)
def test_every_beginning_of_a_message_is_read(data):
    for end in range(0, len(data) + 1, 7):
        assert without_ends(rows(mime.structure(data[:end]))) == oracle.structure(data[:end])[0]


def test_a_long_message_is_read_like_a_short_one():
    data = b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--a\r\n\r\n" + b"x\r\n" * 9000
    assert without_ends(rows(mime.structure(data))) == oracle.structure(data)[0]


@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\0", b"\x80\xff"]), max_size=30).map(
        b"".join
    )
)
def test_octet_counts_are_those_of_the_oracle(data):
    assert body.octet_counts(data) == oracle.octet_counts(data)
    assert body.count_lines(data, 0, len(data)) == len(oracle.lines_of(data, 0, len(data)))


@given(st.binary(max_size=20), st.integers(-3, 30), st.integers(-3, 30))
def test_slices(data, start, end):
    assert body.slice_of(data, start, end) == data[max(start, 0) : max(end, 0)]
    assert body.slice_of(data * 2000, 5, 30_000) == (data * 2000)[5:30_000]


def test_only_nodes_are_made():
    with pytest.raises(TypeError, match="subclasses of Node"):
        mime.structure(b"", int)
