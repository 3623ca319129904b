"""Which addresses mail may go to."""

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.delivery.addresses import is_own, parse_literal, refusal

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "shared address space",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "192.0.0.8": "reserved",
    "198.18.0.1": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "fe80::1": "link-local",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "100::1": "reserved",
    "::127.0.0.1": "reserved",
    "::8.8.8.8": "reserved",
    "64:ff9b:1::7f00:1": "reserved",
    "::ffff:127.0.0.1": "loopback, as 127.0.0.1",
    "::ffff:10.0.0.1": "private, as 10.0.0.1",
    "::ffff:169.254.169.254": "link-local, as 169.254.169.254",
    "2002:7f00:1::1": "loopback, as 127.0.0.1",  # 6to4
    "2002:a00:1::": "private, as 10.0.0.1",
    "64:ff9b::127.0.0.1": "loopback, as 127.0.0.1",  # NAT64
    "64:ff9b::c0a8:101": "private, as 192.168.1.1",
    "2001:0:808:808::80ff:fffe": "reserved",  # Teredo
    "2606:4700::5efe:10.0.0.1": "private, as 10.0.0.1",  # ISATAP
    "2606:4700::200:5efe:10.0.0.1": "private, as 10.0.0.1",
}
ALLOWED = [
    "8.8.8.8",
    "172.15.255.255",
    "172.32.0.1",
    "100.128.0.1",
    "169.253.255.255",
    "223.255.255.255",
    "198.51.100.1",
    "2606:4700::1",
    "2a00:1450::1",
    "2002:808:808::1",
    "64:ff9b::8.8.8.8",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize(("address", "reason"), REFUSED.items())
def test_threat_13_addresses_that_only_we_can_reach_are_refused(address: str, reason: str) -> None:
    assert refusal(address) == reason


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(address) == ""


def own_address() -> str | None:
    """An IPv4 address of this machine beside loopback, found in another way than the product's."""
    table = Path("/proc/net/fib_trie").read_text()
    found = re.findall(r"\|-- (\S+)\n +/32 host LOCAL", table)
    return next((each for each in found if not each.startswith("127.")), None)


def test_threat_13_own_addresses_are_refused() -> None:
    assert is_own("127.0.0.1")
    assert is_own("::1") or not socket.has_ipv6
    assert not is_own("8.8.8.8")
    if address := own_address():
        assert is_own(address)
        assert refusal(address)


@given(st.ip_addresses().map(str))
def test_every_address_gets_an_answer(address: str) -> None:
    assert isinstance(refusal(address), str)


@given(st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_threat_13_embedding_hides_nothing(address: object) -> None:
    for form in ("::ffff:{}", "64:ff9b::{}", "2606:4700::5efe:{}"):
        assert refusal(form.format(address)) == f"private, as {address}"


@pytest.mark.parametrize(
    ("domain", "address"),
    [
        ("example.test", None),
        ("192.0.2.1", None),
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[ipv6:2001:DB8:0::1]", "2001:db8::1"),
    ],
)
def test_literals(domain: str, address: str | None) -> None:
    assert parse_literal(domain) == address


@pytest.mark.parametrize(
    "domain",
    [
        *("[", "[]", "[192.0.2.1", "[192.0.2.256]", "[2001:db8::1]", "[IPv6:192.0.2.1]"),
        *("[192.0.2.01]", "[IPv6:fe80::1%eth0]", "[IPv6:]", "[192.0.2.1]x", "[127.1]", "[a.test]"),
    ],
)
def test_what_is_no_literal(domain: str) -> None:
    with pytest.raises(ValueError):
        parse_literal(domain)
