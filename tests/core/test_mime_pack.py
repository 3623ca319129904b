"""The tree of a message as octets, as it is kept beside a body."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta._core.mime import Node, structure
from fastmta._core.mime_pack import pack, unpack

FRONT = b"Return-Path: <a@b.test>\r\nDelivered-To: bob@x.test\r\n"
PIECES = (
    *(b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: message/rfc822\r\n"),
    *(
        b"Content-Transfer-Encoding: base64\r\n",
        b"Subject: x\r\n",
        b"\r\n",
        b"--b\r\n",
        b"--b--\r\n",
    ),
    *(b"text\r\n", b"no field", b"\n", b""),
)
MESSAGES = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join)


def told(root: Node, front: int = 0) -> list[tuple[int, ...]]:
    """All that a tree tells, its offsets counted from behind `front` octets."""
    return [
        (
            *(node.kind, len(node.parts), node.cut, node.start and node.start - front),
            *(node.header_end - front, node.body_start - front, node.end - front),
            *(at - front if at >= 0 else at for at in (node.type_start, node.encoding_start)),
        )
        for node in root.walk()
    ]


@given(MESSAGES)
def test_what_was_packed_is_the_same_tree(data: bytes) -> None:
    root = unpack(pack(data), data)
    assert told(root) == told(structure(data))
    assert root.data is data


@given(MESSAGES, st.sampled_from([b"", b"A: b\r\n", FRONT]), st.sampled_from([b"C: d\r\n", FRONT]))
def test_other_fields_in_front_move_it(data: bytes, front: bytes, other: bytes) -> None:
    packed = pack(FRONT + data, len(FRONT))
    assert told(unpack(packed, other + data, before=len(other)), len(other)) == told(
        structure(other + data), len(other)
    )


def test_a_message_that_is_cut_says_so() -> None:
    data = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n\r\n" * 10_001
    root = unpack(pack(data), data)
    assert root.cut and len(root.parts) == 9999


@given(st.binary(max_size=130), MESSAGES)
def test_octets_that_are_no_structure_are_told_or_harmless(packed: bytes, data: bytes) -> None:
    try:
        root = unpack(packed, data)
    except ValueError:
        return
    for node in root.walk():
        assert 0 <= node.start <= node.header_end <= node.body_start <= node.end <= len(data)


def test_the_structure_of_another_message_is_refused() -> None:
    with pytest.raises(ValueError, match="structure"):
        unpack(pack(b"Subject: long\r\n\r\ntext"), b"short")
    with pytest.raises(ValueError, match="structure"):
        unpack(b"", b"")
