"""What is fuzzed of the readers of messages: each takes any octets and fails where ours and the
plain Python twin differ, or where anything at all is raised."""

from fastmta._core import address_list, addrspec, dates, headers, mime
from fastmta.mail import downgrade, dsn, email_address, message
from tests.core import address_oracles, message_oracles


def fuzz_structure(data: bytes) -> None:
    rows, cut = message_oracles.structure(data)
    root = mime.structure(data)
    assert root.cut == cut
    assert [
        (node.kind, node.start, node.header_end, node.body_start, node.end)
        for node in root.walk()
    ] == [row[:5] for row in rows]  # fmt: skip


def fuzz_header_values(data: bytes) -> None:
    assert list(headers.Ranges(data, 0, len(data))) == message_oracles.ranges(data, 0, len(data))
    assert headers.unfold(data, 0, len(data)) == message_oracles.unfold(data, 0, len(data))
    assert headers.parameters(data) == message_oracles.parameters(data)
    assert headers.words(data) == message_oracles.words(data)
    assert headers.bracketed(data) == message_oracles.bracketed(data)


def fuzz_address_list(data: bytes) -> None:
    assert address_list.address_list(data) == address_oracles.address_list(data)
    for entry in email_address.parse_addresses(data):
        str(entry)


def fuzz_addrspec(data: bytes) -> None:
    for utf8 in (False, True):
        assert addrspec.classify(data, utf8) == address_oracles.classify(data, utf8)


def fuzz_date(data: bytes) -> None:
    assert dates.date_time(data) == message_oracles.date_time(data)


def fuzz_down_conversion(data: bytes) -> None:
    try:
        result = downgrade.to_seven_bit(data)
    except downgrade.Unconvertible:
        result = b""
    root = message.parse(result)
    assert all(bytes(part.body).isascii() for part in root.walk() if not part.parts)
    dsn.parse_report(root)
    for part in root.walk():
        part.text(), part.filename, part.message(), part.headers.received()


_SPACES = [b" ", b"\t", b"\r\n", b"\n", b"\r\n ", b"\r"]
_MIME = [
    *(b"Content-Type: multipart/mixed; boundary=b\r\n", b"content-type: text/plain\r\n", b"\r\n"),
    *(b'Content-Type: multipart/alternative; boundary="b c"\r\n\r\n', b"--b\r\n", b"\r\n--b--\r\n"),
    *(
        b"Content-Type: message/rfc822\r\n\r\n",
        b"--b c\r\n",
        b"--b",
        b"--",
        b"\r\n--b\r\n\r\n",
        b"-",
    ),
    *(
        b"Content-Transfer-Encoding: base64\r\n\r\n",
        b"Content-Transfer-Encoding: 8bit\r\n",
        b"QUI=\r\n",
    ),
    *(b"Content-Type: multipart/signed; boundary=b\r\n\r\n", b"Subject: \xc3\xbc\r\n", b"text\r\n"),
    *(b"Content-Type: message/delivery-status\r\n\r\n", b"\xc3\xbc\r\n", b":", b"\0", *_SPACES),
    *(
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n",
        b"\n--b\n\n",
        b"x",
        b"Name : v\r\n",
    ),
]
_ADDRESS = [
    *(b"a", b"Bob", b"b.c", b".", b"@", b"<", b">", b",", b";", b":", b'"', b'"x y"', b"(", b")"),
    *(
        b"(c)",
        b"\\",
        b"\\a",
        b"[1.2.3.4]",
        b"[IPv6:1::2]",
        b"[",
        b"]",
        b"=?utf-8?q?a,b?=",
        b"\xc3\xa9",
    ),
    *(
        b"\xff",
        b"a@b.c",
        b"<a@b>",
        b"\0",
        b"-",
        b"group:",
        b"<@x:a@b>",
        b"x" * 64,
        b"y." * 30,
        *_SPACES,
    ),
    *(b"::", b"1.2.3.4", b"IPv6:", b"\x07", b"\x7f", b"_", b"Bob <b@c.test>, "),
]
PIECES = {
    "structure": _MIME,
    "down_conversion": _MIME,
    "header_values": [
        *(
            b"Subject: a\r\n",
            b"X:",
            b" folded\r\n",
            b"\tfolded\n",
            b"no field\r\n",
            b"name=value",
            b"; ",
        ),
        *(
            b";",
            b"=",
            b'"',
            b'"a b"',
            b"\\",
            b"(",
            b")",
            b"(c (d))",
            b"<a@b>",
            b"<",
            b">",
            b",",
            b"text/plain",
        ),
        *(b"charset=utf-8", b"\xff", b"\0", b"a", b"/", b"name*0*=x", b":", b"Received:", *_SPACES),
    ],
    "address_list": _ADDRESS,
    "addrspec": _ADDRESS,
    "date": [
        *(
            b"Mon, ",
            b"1",
            b" 01",
            b" Jan",
            b"feb ",
            b" 2026",
            b" 99",
            b" 1950",
            b" 23:59:60",
            b" 10:20",
            b":",
        ),
        *(
            b" +0100",
            b" -0000",
            b" GMT",
            b" EST",
            b" Z",
            b" (c)",
            b"(",
            b")",
            b",",
            b"0",
            b"9999",
            b" +9999",
            b"-",
        ),
        *(b"Thu, 29 Feb 2024 00:00:00 +0000", b"31 Apr 2026 25:00:00", b"Foo", *_SPACES),
    ],
}
