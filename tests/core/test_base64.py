import base64 as stdlib
import binascii
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import base64
from tests.core import codec_oracles as oracle

KERNELS = base64.kernels()
# Lengths around every width a kernel works in, and around one line and two.
LENGTHS = [*range(0, 200), 1000, 57 * 40, 57 * 40 + 1, 40_000]
PIECES = st.one_of(
    st.binary(max_size=90),
    st.text(alphabet=oracle.ALPHABET.decode(), max_size=90).map(str.encode),
    st.sampled_from([b"\r\n", b"\n", b" ", b"=", b"==", b"A", b"-_", b"\xff", b"A" * 76 + b"\r\n"]),
)
ENCODED = st.lists(PIECES, max_size=12).map(b"".join)


@pytest.fixture(params=KERNELS, autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    base64.use_kernel(request.param)
    yield request.param
    base64.use_kernel(KERNELS[0])


def octets(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def outcome(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except ValueError:
        return ValueError


def in_pieces(codec, pieces) -> bytes:
    return b"".join([*map(codec.update, pieces), codec.finish()])


def every_cut(data: bytes) -> Iterator[list[bytes]]:
    yield [data[at : at + 1] for at in range(len(data))]
    yield from ([data[:at], data[at:]] for at in range(len(data) + 1))


def test_the_first_kernel_is_not_the_plain_one_where_there_is_a_better():
    assert KERNELS[-1] == "plain"
    with pytest.raises(ValueError, match="no kernel"):
        base64.use_kernel("abacus")


@pytest.mark.parametrize("lines", [False, True])
def test_encodes_every_length(lines):
    for size in LENGTHS:
        data = octets(size)
        expected = oracle.base64_encode(data, lines=lines)
        assert base64.encode(data, lines=lines) == expected
        assert base64.encoded_size(size, lines=lines) == len(expected)


def test_the_standard_library_reads_what_we_write():
    for size in LENGTHS:
        data = octets(size)
        assert binascii.a2b_base64(base64.encode(data), strict_mode=True) == data
        assert stdlib.decodebytes(base64.encode(data, lines=True)) == data


def test_decodes_every_length():
    for size in LENGTHS:
        data = octets(size)
        assert base64.decode(stdlib.b64encode(data)) == data
        assert base64.decode(stdlib.b64encode(data), strict=True) == data
        assert base64.decode(stdlib.b64encode(data).rstrip(b"=")) == data
        assert base64.decode(stdlib.encodebytes(data)) == data
        assert base64.decode(base64.encode(data, lines=True)) == data


@pytest.mark.parametrize("width", [4, 60, 64, 72, 75, 76, 77, 80, 998])
@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b" \t\r\n", b"\r\n\r\n"])
def test_decodes_lines_of_any_width_and_end(width, end):
    data = octets(3000)
    plain = stdlib.b64encode(data)
    lines = end.join(plain[at : at + width] for at in range(0, len(plain), width))
    assert base64.decode(lines) == data


def test_each_octet_in_each_place_of_a_vector():
    base = b"ABCD" * 40
    for octet in range(256):
        for at in (0, 1, 15, 16, 31, 33, 63, 64, 75, 76, 77, 78, 127, 159):
            data = base[:at] + bytes([octet]) + base[at + 1 :]
            assert base64.decode(data) == oracle.base64_decode(data), (octet, at)
            strict = outcome(base64.decode, data, strict=True)
            assert strict == outcome(oracle.base64_decode, data, strict=True), (octet, at)


def test_strict_names_the_place():
    with pytest.raises(ValueError, match="octet 100: octet outside"):
        base64.decode(b"A" * 100 + b"\r\n", strict=True)
    with pytest.raises(ValueError, match="inside a group"):
        base64.decode(b"AAA", strict=True)
    with pytest.raises(ValueError, match="bits are set"):
        base64.decode(b"AB==", strict=True)
    with pytest.raises(ValueError, match="octet 4: padding"):
        base64.decode(b"AA==AAAA", strict=True)


@given(st.binary(max_size=700), st.booleans())
def test_encoding_is_the_oracle_s_and_comes_back(data, lines):
    encoded = base64.encode(data, lines=lines)
    assert encoded == oracle.base64_encode(data, lines=lines)
    assert base64.decode(encoded) == data
    assert binascii.a2b_base64(encoded) == data


@given(ENCODED)
@example(b"QUJD=QUJD")
@example(b"QQ=Q=")
@example(b"QQ=Q=QUJD")
@example(b"QQ==QQ==")
@example(b"Q")
def test_decoding_is_the_oracle_s(data):
    assert base64.decode(data) == oracle.base64_decode(data)
    strict = outcome(base64.decode, data, strict=True)
    assert strict == outcome(oracle.base64_decode, data, strict=True)


@given(ENCODED)
def test_binascii_agrees_where_it_gives_an_answer(data):
    expected = outcome(binascii.a2b_base64, data)
    if expected is not ValueError:
        assert base64.decode(data) == expected


@given(ENCODED, st.lists(st.integers(0, 500), max_size=5))
def test_pieces_give_the_same_as_the_whole(data, cuts):
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    pieces.append(data[sum(map(len, pieces)) :])
    assert in_pieces(base64.Decoder(), pieces) == base64.decode(data)
    for lines in (False, True):
        assert in_pieces(base64.Encoder(lines=lines), pieces) == base64.encode(data, lines=lines)
    strict = outcome(in_pieces, base64.Decoder(strict=True), pieces)
    assert strict == outcome(base64.decode, data, strict=True)


def test_split_at_every_octet():
    data = octets(150)
    broken = base64.encode(data, lines=True).replace(b"+", b" - ") + b"\xff\r\n==AAAA"
    for pieces in every_cut(broken):
        assert in_pieces(base64.Decoder(), pieces) == base64.decode(broken)
    for pieces in every_cut(data):
        assert in_pieces(base64.Encoder(), pieces) == base64.encode(data)
        assert in_pieces(base64.Encoder(lines=True), pieces) == base64.encode(data, lines=True)


def test_a_codec_begins_anew_after_its_end():
    for codec in (base64.Encoder(), base64.Encoder(lines=True), base64.Decoder()):
        first = in_pieces(codec, [b"QUJ", b"D"])
        assert in_pieces(codec, [b"QUJ", b"D"]) == first


def test_writes_into_the_caller_s_buffer_and_not_beyond():
    data = octets(1000)
    for lines in (False, True):
        size = base64.encoded_size(1000, lines=lines)
        room = bytearray(size + 64)
        assert base64.encode_into(data, memoryview(room)[:size], lines=lines) == size
        assert room == base64.encode(data, lines=lines) + bytes(64)
        room = bytearray(base64.decoded_bound(size) + 64)
        assert base64.decode_into(base64.encode(data, lines=lines), memoryview(room)[:-64]) == 1000
        assert room[:1000] == data and not any(room[-64:])


def test_pieces_into_the_caller_s_buffer():
    data, room = octets(200), bytearray(400)
    encoder, decoder, encoded, decoded = base64.Encoder(lines=True), base64.Decoder(), b"", b""
    for at in range(0, 200, 23):
        encoded += room[: encoder.update_into(data[at : at + 23], room)]
    encoded += encoder.finish()
    for at in range(0, len(encoded), 23):
        decoded += room[: decoder.update_into(encoded[at : at + 23], room)]
    assert decoded + decoder.finish() == data


@pytest.mark.parametrize("lines", [False, True])
def test_pieces_write_nothing_beyond_their_size(lines):
    data = octets(400)
    for size in range(400):
        piece = data[:size]
        written = len(base64.Encoder(lines=lines).update(piece))
        room = bytearray(b"#" * (written + 64))
        base64.Encoder(lines=lines).update_into(piece, memoryview(room)[:written])
        assert room == base64.encode(data, lines=lines)[:written] + b"#" * 64
        encoded = base64.encode(piece, lines=lines)
        bound = base64.decoded_bound(len(encoded))
        room = bytearray(b"#" * (bound + 64))
        base64.Decoder().update_into(encoded, memoryview(room)[:bound])
        assert room[:size] == piece and room[bound:] == b"#" * 64


def test_a_buffer_that_is_too_short_takes_nothing():
    encoder, decoder = base64.Encoder(), base64.Decoder()
    for call in (
        lambda: base64.encode_into(b"abcd", bytearray(7)),
        lambda: base64.decode_into(b"QUJD", bytearray(2)),
        lambda: encoder.update_into(b"abcd", bytearray(3)),
        lambda: decoder.update_into(b"QUJD", bytearray(2)),
    ):
        with pytest.raises(ValueError, match="buffer of"):
            call()
    assert in_pieces(encoder, [b"abc"]) == b"YWJj"
    assert in_pieces(decoder, [b"QUJD"]) == b"ABC"


def test_takes_any_contiguous_buffer():
    data = octets(100)
    assert base64.encode(memoryview(data)[3:50]) == base64.encode(bytearray(data[3:50]))
    with pytest.raises(BufferError):
        base64.encode(memoryview(data)[::2])
    with pytest.raises(TypeError):
        base64.encode("text")
