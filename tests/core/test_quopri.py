import binascii
import quopri as stdlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import quopri
from tests.core import codec_oracles as oracle

KERNELS = quopri.kernels()
TEXT = st.lists(
    st.one_of(
        st.text(max_size=60).map(str.encode),
        st.text(alphabet="abc =", max_size=90).map(str.encode),
        st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b" \r\n", b"=", b"=\r\n", b"a" * 75]),
        st.binary(max_size=40),
    ),
    max_size=14,
).map(b"".join)
ENCODED = st.lists(
    st.one_of(
        st.text(alphabet="abcXYZ 09", max_size=80).map(str.encode),
        st.binary(max_size=5).map(oracle.quopri_encode),
        st.sampled_from(
            [b"=", b"=\r\n", b"= \t\r\n", b"=\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b"=4", b"=aF",
             b"=3D" * 23, b"=C3=BC", b"\xc3\xbc", b"==41", b" " * 70]
        ),
    ),
    max_size=14,
).map(b"".join)  # fmt: skip


@pytest.fixture(params=KERNELS, autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    quopri.use_kernel(request.param)
    yield request.param
    quopri.use_kernel(KERNELS[0])


def in_pieces(codec, pieces) -> bytes:
    return b"".join([*map(codec.update, pieces), codec.finish()])


def every_cut(data: bytes) -> Iterator[list[bytes]]:
    yield [data[at : at + 1] for at in range(len(data))]
    yield from ([data[:at], data[at:]] for at in range(len(data) + 1))


def test_an_unknown_kernel_is_refused():
    assert KERNELS[-1] == "plain"
    with pytest.raises(ValueError, match="no kernel"):
        quopri.use_kernel("abacus")


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", b""),
        (b"a=b", b"a=3Db"),
        (b"trailing \r\n\tx\t", b"trailing=20\r\n\tx=09"),
        (b"a\nb\rc", b"a=0Ab=0Dc"),
        (b"x" * 76, b"x" * 76),
        (b"x" * 76 + b"\r\n", b"x" * 76 + b"\r\n"),
        (b"x" * 77, b"x" * 75 + b"=\r\nxx"),
        (b"x" * 73 + b"\xff", b"x" * 73 + b"=FF"),
        (b"x" * 73 + b"\xffx", b"x" * 73 + b"=\r\n=FFx"),
        (b"x" * 75 + b" ", b"x" * 75 + b"=\r\n=20"),
    ],
)
def test_encodes(data, encoded):
    assert quopri.encode(data) == encoded == oracle.quopri_encode(data)
    assert quopri.decode(encoded) == data


@pytest.mark.parametrize(
    ("encoded", "data"),
    [
        (b"a=3db=3D", b"a=b="),
        (b"soft=\r\nbreak=  \t\r\n!", b"softbreak!"),
        (b"soft=\nbreak", b"softbreak"),
        (b"at the end=", b"at the end"),
        (b"blank \t \r\nand \n", b"blank\r\nand\n"),
        (b"kept=20 \r\n=20=20\r\n", b"kept \r\n  \r\n"),
        (b"kept =\r\nhere", b"kept here"),
        (b"=zz =4 =4", b"=zz =4 =4"),
        (b"==41", b"=A"),
        (b"=\r", b"=\r"),
        (b"caf\xe9 \0", b"caf\xe9 \0"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 60, 61, 62, 63, 64, 65])
def test_decodes(encoded, data, before):
    """Before and behind it as much as puts it at each place of a vector."""
    front, back = b"-" * before, b"\r\n" + b"." * 130
    assert quopri.decode(front + encoded) == front + data
    assert quopri.decode(front + encoded + back) == oracle.quopri_decode(front + encoded + back)


@given(TEXT)
@example(b"\xc3\xbc" * 2000)
@example(b"x" * 5000 + b" \r\n")
@example(b" " * 1024 + b"\r\n")
def test_encoding_is_the_oracle_s_and_comes_back(data):
    encoded = quopri.encode(data)
    assert encoded == oracle.quopri_encode(data)
    assert max(map(len, encoded.split(b"\r\n"))) <= 76
    assert quopri.decode(encoded) == data
    assert binascii.a2b_qp(encoded) == data
    # Of a mutable buffer the output is not measured beforehand.
    assert quopri.encode(bytearray(data)) == encoded


@given(ENCODED)
@example(b"x" + b" " * 2500 + b"\r\n")
@example(b"=" + b" " * 1000 + b"\r\n")
@example(b"=" + b" " * 1001 + b"\r\n")
def test_decoding_is_the_oracle_s(data):
    assert quopri.decode(data) == oracle.quopri_decode(data)


@given(st.one_of(TEXT, ENCODED), st.lists(st.integers(0, 500), max_size=5))
def test_pieces_give_the_same_as_the_whole(data, cuts):
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    pieces.append(data[sum(map(len, pieces)) :])
    assert in_pieces(quopri.Decoder(), pieces) == quopri.decode(data)
    assert in_pieces(quopri.Encoder(), pieces) == quopri.encode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"Gr\xc3\xbc\xc3\x9fe =3D \t\r\n" * 9 + b" ",
        b"=C3=BC = \t\r\n =\n x = y \r\r\n=4",
        b"x" * 76 + b"\r\n" + b"y" * 77 + b" \r",
    ],
)
def test_split_at_every_octet(data):
    for pieces in every_cut(data):
        assert in_pieces(quopri.Encoder(), pieces) == quopri.encode(data)
        assert in_pieces(quopri.Decoder(), pieces) == quopri.decode(data)


def test_pieces_of_endless_blanks_are_not_kept():
    data = b"x" + b" \t" * 1200 + b"\r\n"
    assert in_pieces(quopri.Decoder(), [bytes([octet]) for octet in data]) == quopri.decode(data)
    assert quopri.decode(data) == b"x" + b" \t" * 700 + b"\r\n"


def test_large_data_without_the_gil():
    data = "Größe und Maß = \t\r\n".encode() * 5000
    assert quopri.encode(data) == oracle.quopri_encode(data)
    assert quopri.decode(quopri.encode(data)) == data
    assert quopri.decode(data) == oracle.quopri_decode(data)
    assert stdlib.decodestring(quopri.encode(data)) == data


def test_takes_any_contiguous_buffer():
    assert quopri.encode(memoryview(b"-\xff-")[1:]) == b"=FF-"
    assert quopri.Decoder().update(memoryview(b"=41")) == b"A"
    with pytest.raises(TypeError):
        quopri.encode("text")
