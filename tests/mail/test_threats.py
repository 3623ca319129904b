"""THREATS 17: messages made to cost time, memory or stack."""

import time
import tracemalloc
from collections.abc import Callable

import pytest

from fastmta.mail import encoded_words
from fastmta.mail.downgrade import to_seven_bit
from fastmta.mail.email_address import parse_addresses, syntax_of
from fastmta.mail.message import parse


def nested(depth: int) -> bytes:
    level = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n"
    return b"".join(level % (n, n) for n in range(depth))


def many(parts: int) -> bytes:
    part = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n"
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + part * parts


def read(data: bytes) -> None:
    for part in parse(data).walk():
        headers = part.headers
        _ = part.content_type, part.filename, part.encoding, part.size, part.lines
        headers.get("subject"), headers.addresses("to"), headers.date(), headers.received()


def read_fields(data: bytes) -> None:
    assert sum(1 for _ in parse(data).headers) > 0


CONTINUED = b"".join(b";\r\n x*%d*=utf-8''%%41" % n for n in range(20_000))

CASES: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "multiparts nested 10,000 deep": (read, nested(10_000)),
    "messages nested 10,000 deep": (read, b"Content-Type: message/rfc822\r\n\r\n" * 10_000),
    "100,000 parts": (read, many(100_000)),
    "a boundary of 1 MB": (
        read,
        b'Content-Type: multipart/mixed; boundary="%b"\r\n\r\n--%b\r\n\r\nx\r\n--%b--'
        % ((b"b" * 1_000_000,) * 3),
    ),
    "lines that almost are a boundary": (
        read,
        nested(100) + b"--b\r\n" * 200_000,
    ),
    "Content-Types between hyphens": (
        read,
        b"Content-Type: multipart/mixed; boundary=%b\r\n--x\r\n" % (b"b" * 900) * 1000,
    ),
    "a header of 50 MB in one field": (read, b"Subject: " + b"x" * 50_000_000 + b"\r\n\r\n"),
    "a header of 50 MB in folded lines": (read, b"To: a" + b"\r\n b" * 12_000_000),
    "a header of many fields": (read_fields, b"a:b\n" * 500_000),
    "encoded words": (read, b"Subject: " + b"=?utf-8?q?=41?= " * 60_000 + b"\r\n\r\n"),
    "encoded words that never end": (
        lambda data: encoded_words.decode(data.decode()),
        b"=?a?q?" * 200_000,
    ),
    "parameters in 20,000 sections": (read, b"Content-Type: a/b" + CONTINUED + b"\r\n\r\n"),
    "comments nested 100,000 deep": (
        read,
        b"To: " + b"(" * 100_000 + b")" * 100_000 + b"\r\nDate: " + b"(" * 100_000 + b"\r\n\r\n",
    ),
    "comments in an addr-spec": (
        lambda data: syntax_of(data.decode()),
        b"(" * 100_000 + b")" * 100_000 + b"a@b",
    ),
    "a million addresses": (parse_addresses, b"a@b," * 1_000_000),
    "open angle brackets": (parse_addresses, b"<@" * 1_000_000),
    "encoded words begun in addresses": (parse_addresses, b"=?a?q?" * 300_000),
    "groups": (parse_addresses, b"a:;" * 300_000),
    "10 MB of eight bits": (to_seven_bit, b"A: b\r\n\r\n" + b"\xff" * 10_000_000),
    "eight bits in many parts": (to_seven_bit, many(9_000).replace(b"\r\nx\r\n", b"\r\n\xff\r\n")),
}


@pytest.mark.parametrize("name", CASES)
def test_threat_17_takes_less_than_a_second(name: str) -> None:
    work, data = CASES[name]
    before = time.process_time()
    work(data)
    assert time.process_time() - before < 1


@pytest.mark.parametrize("name", CASES)
def test_threat_17_takes_less_than_ten_times_the_memory(name: str) -> None:
    work, data = CASES[name]
    tracemalloc.start()
    try:
        work(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data) + 100_000


def test_threat_17_bounds_are_told() -> None:
    assert parse(nested(200)).cut
    assert parse(many(10_001)).cut
    assert len(parse(many(10_001)).walk()) == 10_000
    assert not parse(many(9_999)).cut
