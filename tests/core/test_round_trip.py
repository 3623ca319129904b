"""Encoding then decoding gives the input back, and Python's email and binascii read what we write.

By hand for a million inputs: `FASTMTA_ROUNDS=1000000 pytest tests/core/test_round_trip.py
--timeout=0`; a failure names the round, which makes its input again.
"""

import binascii
import os
import random
from email import message_from_bytes
from email.header import decode_header, make_header

from fastmta._core import base64, quopri
from fastmta.mail import encoded_words, parameters

ROUNDS = int(os.environ.get("FASTMTA_ROUNDS", "1000"))
LETTERS = "abc XYZ\t09=?_.-\"'\\%*ßüéяЖλ中日🦔"


def octets(at: int) -> bytes:
    """Of any kind, ASCII with blanks and line ends, or UTF-8, by turns."""
    chance = random.Random(at)
    size = chance.choice((8, 80, 800))
    kinds = (
        lambda: chance.randbytes(chance.randrange(size)),
        lambda: bytes(chance.choices(b"abcdef =\t\r\n.", k=chance.randrange(size))),
        lambda: text(at).replace("?", "\r\n").encode(),
    )
    return kinds[at % 3]()


def text(at: int) -> str:
    chance = random.Random(at)
    return "".join(chance.choices(LETTERS, k=chance.randrange(chance.choice((10, 100)))))


def as_message(encoding: str, body: bytes) -> bytes:
    return b"Content-Transfer-Encoding: " + encoding.encode() + b"\r\n\r\n" + body


def test_transfer_encodings():
    for at in range(ROUNDS):
        data = octets(at)
        letters, lines = base64.encode(data), base64.encode(data, lines=True)
        assert base64.decode(letters, strict=True) == base64.decode(lines) == data, at
        assert binascii.a2b_base64(letters) == binascii.a2b_base64(lines) == data, at
        quoted = quopri.encode(data)
        assert quopri.decode(quoted) == binascii.a2b_qp(quoted) == data, at
        for encoding, body in (("base64", lines), ("quoted-printable", quoted)):
            message = message_from_bytes(as_message(encoding, body))
            assert message.get_payload(decode=True) == data, (at, encoding)


def test_encoded_words():
    for at in range(ROUNDS):
        written = encoded_words.encode(text(at))
        assert encoded_words.decode(written) == text(at), at
        assert str(make_header(decode_header(written))) == text(at), at


def test_parameters():
    for at in range(ROUNDS):
        value = f".{text(at)}."  # email takes blanks off the ends
        written = parameters.encode_parameter("filename", value).replace("; ", ";\r\n ")
        field = f"Content-Disposition: attachment;\r\n {written}\r\n\r\n"
        assert message_from_bytes(field.encode()).get_filename() == value, at
