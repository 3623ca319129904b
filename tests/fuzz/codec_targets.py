"""What is fuzzed of the transfer codecs: each takes any octets and fails where ours and the plain
Python twin differ, for every kernel, whole and cut in two."""

from collections.abc import Callable

from fastmta._core import base64, quopri
from fastmta.mail import encoded_words, parameters
from tests.core import codec_oracles, mail_oracles


def _outcome(function: Callable[..., bytes], *args: object, **kwargs: bool) -> object:
    try:
        return function(*args, **kwargs)
    except ValueError:
        return ValueError


def _in_two(codec: base64.Decoder | base64.Encoder, data: bytes) -> bytes:
    cut = data[0] % len(data) if data else 0
    return codec.update(data[:cut]) + codec.update(data[cut:]) + codec.finish()


def fuzz_base64(data: bytes) -> None:
    written = [codec_oracles.base64_encode(data, lines=lines) for lines in (False, True)]
    read = [_outcome(codec_oracles.base64_decode, data, strict=strict) for strict in (False, True)]
    for name in base64.kernels():
        base64.use_kernel(name)
        for lines, encoded in enumerate(written):
            assert base64.encode(data, lines=bool(lines)) == encoded
            assert _in_two(base64.Encoder(lines=bool(lines)), data) == encoded
            assert base64.decode(encoded) == data
        for strict, expected in enumerate(read):
            assert _outcome(base64.decode, data, strict=bool(strict)) == expected
            assert _outcome(_in_two, base64.Decoder(strict=bool(strict)), data) == expected


def fuzz_quopri(data: bytes) -> None:
    written, read = codec_oracles.quopri_encode(data), codec_oracles.quopri_decode(data)
    for name in quopri.kernels():
        quopri.use_kernel(name)
        assert quopri.encode(data) == written
        assert _in_two(quopri.Encoder(), data) == written
        assert quopri.decode(written) == data
        assert quopri.decode(data) == read
        assert _in_two(quopri.Decoder(), data) == read


def fuzz_encoded_words(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert encoded_words.decode(text) == mail_oracles.decode_words(text)
    assert encoded_words.decode(encoded_words.encode(text)) == text


def fuzz_parameters(data: bytes) -> None:
    pairs = [(name, value) for name, _, value in (p.partition(b"=") for p in data.split(b"\n"))]
    assert parameters.decode_parameters(pairs) == mail_oracles.decode_parameters(pairs)
    value = data.decode("utf-8", "replace")
    sections = parameters.encode_parameter("name", value).encode().split(b"; ")
    if sections[0].startswith(b"name*"):
        written = [(name, text) for name, _, text in (s.partition(b"=") for s in sections)]
        assert parameters.decode_parameters(written) == {"name": value}
