"""The PROXY protocol's header: every form whole, split at every octet and with data behind it."""

import struct
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.protocol.proxy import LONGEST_V1, LONGEST_V2, SIGNATURE, BadHeader, ProxyHeader

IPV4 = ip_address("192.0.2.7").packed + ip_address("198.51.100.1").packed
IPV6 = ip_address("2001:db8::7").packed + ip_address("2001:db8::1").packed
MAPPED = ip_address("::ffff:192.0.2.7").packed + ip_address("2001:db8::1").packed
PORTS = struct.pack("!HH", 50000, 25)
TLV = b"\x04\x00\x05hello" + b"\x20\x00\x01\x00"


def v2(command: int = 0x21, family: int = 0x11, rest: bytes = IPV4 + PORTS) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


GOOD = {
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 25\r\n": "192.0.2.7",
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": "255.255.255.255",
    b"PROXY TCP6 2001:db8::7 2001:DB8::1 0 25\r\n": "2001:db8::7",
    b"PROXY TCP6 ::ffff:192.0.2.7 ::1 50000 25\r\n": "192.0.2.7",
    b"PROXY UNKNOWN\r\n": "",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": "",
    b"PROXY UNKNOWN " + b"x" * (LONGEST_V1 - 16) + b"\r\n": "",
    v2(): "192.0.2.7",
    v2(family=0x21, rest=IPV6 + PORTS): "2001:db8::7",
    v2(family=0x21, rest=MAPPED + PORTS): "192.0.2.7",
    v2(rest=IPV4 + PORTS + TLV): "192.0.2.7",
    v2(rest=IPV4 + PORTS + bytes(LONGEST_V2 - 28)): "192.0.2.7",
    v2(family=0x00, rest=b""): "",
    v2(family=0x00, rest=TLV): "",
    v2(family=0x31, rest=b"/run/a".ljust(108, b"\0") * 2): "",
    v2(command=0x20, family=0x00, rest=b""): "",
    v2(command=0x20, rest=IPV4 + PORTS): "",  # LOCAL: the addresses are not looked at
    v2(command=0x20, family=0xFF, rest=b"?"): "",
}
BAD = [
    b"EHLO client.test\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a handshake
    b"proxy TCP4 192.0.2.7 198.51.100.1 50000 25\r\n",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY  TCP4 192.0.2.7 198.51.100.1 50000 25\r\n",
    b"PROXY TCP5 192.0.2.7 198.51.100.1 50000 25\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 50000 25\r\n",
    b"PROXY TCP6 192.0.2.7 198.51.100.1 50000 25\r\n",
    b"PROXY TCP4 192.0.2.07 198.51.100.1 50000 25\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.1 50000 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.256 50000 25\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 50000 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 050 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 25\r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 25 \r\n",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n",
    b"PROXY TCP4 192.0.2.7\n198.51.100.1 50000 25\r\n",
    b"PROXY UNKNOWN\0\r\n",
    b"PROXY UNKNOWN " + b"x" * (LONGEST_V1 - 15) + b"\r\n",
    b"PROXY UNKNOWN " + b"x" * 200,
    SIGNATURE[:-1] + b"X" + v2()[12:],
    v2(command=0x11),
    v2(command=0x22),
    v2(family=0x12),  # UDP
    v2(family=0x41),
    v2(rest=(IPV4 + PORTS)[:-1]),
    v2(family=0x21, rest=(IPV6 + PORTS)[:-1]),
    v2(family=0x31, rest=b"/run/a"),
    v2(rest=IPV4 + PORTS + bytes(LONGEST_V2 - 27)),
    SIGNATURE + b"\x21\x11\xff\xff",
]


def feed(*pieces: bytes) -> tuple[ProxyHeader, bytes]:
    """The header, and what it left of the pieces: once complete it is fed no more."""
    header, left = ProxyHeader(), b""
    for piece in pieces:
        left += piece if header.is_complete else piece[header.feed(piece) :]
    return header, left


@pytest.mark.parametrize(("text", "client"), GOOD.items())
def test_good_headers_whole_split_and_with_data_behind(text: bytes, client: str) -> None:
    behind = b"EHLO client.test\r\n"
    for cut in range(len(text) + len(behind)):
        data = text + behind
        header, left = feed(data[:cut], data[cut:])
        assert (header.is_complete, header.client, left) == (True, client, behind)
    header, left = feed(*(text[i : i + 1] for i in range(len(text))))
    assert (header.is_complete, header.client, left) == (True, client, b"")
    assert not feed(text[:-1])[0].is_complete


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_header_whole_and_split(text: bytes) -> None:
    for cut in range(len(text)):
        with pytest.raises(BadHeader):
            feed(text[:cut], text[cut:])
    with pytest.raises(BadHeader):
        feed(*(text[i : i + 1] for i in range(len(text))))


@pytest.mark.parametrize("text", [b"PROXY " * 1000, SIGNATURE + b"\x21\x11\x10\x00" * 1000])
def test_what_is_held_is_bounded(text: bytes) -> None:
    header = ProxyHeader()
    with pytest.raises(BadHeader):
        for i in range(len(text)):
            header.feed(text[i : i + 1])
    assert len(header._seen) < max(LONGEST_V1, LONGEST_V2)


@given(
    st.one_of(st.just(b"PROXY "), st.just(SIGNATURE), st.sampled_from(sorted(GOOD))),
    st.binary(max_size=300),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_any_octets_in_any_pieces_come_to_one_end(
    start: bytes, rest: bytes, cuts: list[int]
) -> None:
    def outcome(*pieces: bytes) -> object:
        try:
            header, left = feed(*pieces)
        except BadHeader:
            return "bad"
        return header.is_complete, header.client, left

    data = start + rest
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = (data[a:b] for a, b in pairwise(places))
    whole = outcome(data)
    assert outcome(*pieces) == whole
    if isinstance(whole, tuple) and whole[1]:
        assert ip_address(whole[1])


@given(st.binary(max_size=64), st.integers(0, 63), st.integers(0, 255))
def test_a_header_with_one_octet_changed(tail: bytes, at: int, octet: int) -> None:
    for good in (v2(), *sorted(GOOD)[:5]):
        changed = bytearray(good + tail)
        changed[at % len(good)] = octet
        try:
            header, _ = feed(bytes(changed))
        except BadHeader:
            continue
        assert not header.client or ip_address(header.client)
