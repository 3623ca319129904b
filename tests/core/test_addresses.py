import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import addrspec
from fastmta._core.address_list import address_list
from fastmta._core.addrspec import classify
from fastmta._core.dates import date_time
from tests.core import address_oracles as oracle
from tests.core import message_oracles

PIECES = [
    b"a",
    b"Bob",
    b"b.c",
    b".",
    b"@",
    b"<",
    b">",
    b",",
    b";",
    b":",
    b'"',
    b'"x y"',
    b"(",
    b")",
    b"(c)",
    b"\\",
    b" ",
    b"\r\n ",
    b"\t",
    b"[1.2.3.4]",
    b"[",
    b"]",
    b"=?utf-8?q?a,b?=",
    b"=?",
    b"?=",
    b"\xc3\xa9",
    b"\xff",
    b"a@b.c",
    b"<a@b>",
    b"\0",
    b"-",
    b"x:",
]
LISTS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=24).map(b"".join)
SPECS = st.lists(
    st.sampled_from(
        [
            *PIECES,
            b"\r\n",
            b"\x07",
            b"\\a",
            b"[IPv6:1::2]",
            b"[1]",
            b"::",
            b"1.2.3.4",
            b"IPv6:",
            b"org",
            b"x" * 64,
            b"1:2:3:4:5:6:7",
        ]
    )
    | st.binary(max_size=2),
    max_size=14,
).map(b"".join)
LITERALS = st.lists(
    st.sampled_from([b"1", b"ffff", b":", b"::", b".", b"255", b"1.2.3.4", b"g"]), max_size=17
)


@given(LISTS)
@example(b"Mary Smith <@machine.tld,@foo:mary@example.net>, , jdoe@test   . example")
@example(b"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>")
def test_address_lists_are_read_like_the_oracle_reads_them(value):
    assert address_list(value) == oracle.address_list(value)


@given(LISTS)
def test_every_beginning_of_a_list_is_read(value):
    for end in range(len(value)):
        assert address_list(value[:end]) == oracle.address_list(value[:end])


def test_a_list_is_bounded():
    assert len(address_list(b"a@b," * 20, 7)) == 7
    assert len(address_list(b"a@b," * 30_000)) == 10_000


@given(SPECS, st.booleans())
def test_addr_specs_are_of_the_class_that_the_oracle_gives(address, utf8):
    assert classify(address, utf8) == oracle.classify(address, utf8)
    assert classify(b"a@" + address, utf8) == oracle.classify(b"a@" + address, utf8)
    assert classify(address + b"@b.c", utf8) == oracle.classify(address + b"@b.c", utf8)


@given(LITERALS)
def test_literals_are_of_the_class_that_the_oracle_gives(pieces):
    for tag in (b"", b"IPv6:"):
        address = b"a@[" + tag + b"".join(pieces) + b"]"
        assert classify(address) == oracle.classify(address)


@pytest.mark.parametrize(
    ("literal", "level"),
    [
        (b"192.0.2.1", addrspec.RFC5321),
        (b"192.0.2", addrspec.RFC5322),
        (b"192.0.2.256", addrspec.RFC5322),
        (b"IPv6:1:2:3:4:5:6:7:8", addrspec.RFC5321),
        (b"IPv6:1:2:3:4:5:6:7", addrspec.RFC5322),
        (b"IPv6:1:2:3:4:5:6::8", addrspec.DEPRECATED),
        (b"IPv6:1:2:3:4:5::8", addrspec.RFC5321),
        (b"IPv6:1:2:3:4::192.0.2.1", addrspec.RFC5321),
        (b"IPv6:1:2:3:4:5:6:192.0.2.1", addrspec.RFC5321),
        (b"IPv6:1::2::3", addrspec.RFC5322),
        (b"IPv6:::", addrspec.RFC5321),
        (b"IPv6:1::2:", addrspec.RFC5322),
        (b"tag:anything", addrspec.RFC5322),
    ],
)
def test_literals(literal, level):
    assert classify(b"a@[" + literal + b"]") == oracle.classify(b"a@[" + literal + b"]") == level


DATES = st.lists(
    st.sampled_from(
        [
            b"Fri",
            b",",
            b" ",
            b"7",
            b"31",
            b"Oct",
            b"feb",
            b"1994",
            b"94",
            b"101",
            b":",
            b"16",
            b"05",
            b"-0700",
            b"+0930",
            b"+05",
            b"GMT",
            b"PDT",
            b"Z",
            b"(c)",
            b"(",
            b"-",
            b".",
        ]
    ),
    max_size=24,
).map(b"".join)
SHAPED = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"", b"Fri, ", b"Fri ", b"(c) Mon,"]),
    st.integers(0, 40).map(lambda n: b"%d" % n),
    st.sampled_from([b" Oct ", b" october ", b"-Oct-", b" Foo ", b"(c)may"]),
    st.sampled_from([b"1994", b"94", b"5", b"049", b"12345"]),
    st.sampled_from([b" 16:15:05", b" 1:2", b" 16 : 15 (c) : 5", b" 16:15:", b"", b" x"]),
    st.sampled_from([b"", b" +0000", b" -0730", b" -07", b" EST", b" edt (EDT)", b" Z", b" +9999"]),
)


@given(DATES | SHAPED)
def test_dates_are_read_like_the_oracle_reads_them(value):
    assert date_time(value) == message_oracles.date_time(value)


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (b"Fri, 07 Oct 1994 16:15:05 -0700 (PDT)", (1994, 10, 7, 16, 15, 5, -420)),
        (b"21 Nov 97 09:55:06 GMT", (1997, 11, 21, 9, 55, 6, 0)),
        (b"Fri, 21 Nov 1997 09(comment):   55  :  06 -0600", (1997, 11, 21, 9, 55, 6, -360)),
        (b"1 jan 101 1:2 EDT", (2001, 1, 1, 1, 2, 0, -240)),
        (b"7 Apr 2026 10:00:t", (2026, 4, 7, 10, 0, 0, 0)),
        (b"Whenever", None),
        (b"13 Aug 1998 l8:14:23 +1000", None),
        (b"", None),
    ],
)
def test_dates(value, numbers):
    assert date_time(value) == numbers
