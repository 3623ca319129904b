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
