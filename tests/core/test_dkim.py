"""The canonical forms of DKIM, beside a plain reading of RFC 6376."""

from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta._core.dkim import BodyHash, IncomingBody, SignedFields, canonical_field
from tests.core.dkim_oracles import relaxed_body, relaxed_field, simple_body

FORMS = {True: relaxed_body, False: simple_body}
OCTETS = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b"a", b".", b"\0", b"\xff", b"word "]),
    max_size=40,
).map(b"".join)


def hashed(relaxed: bool, *pieces: bytes) -> bytes:
    body = BodyHash(relaxed)
    for piece in pieces:
        body.feed(piece)
    return body.digest()


def split(octets: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    return [octets[start:end] for start, end in pairwise(places)]


# RFC 6376 section 3.4.5 (with its <SP>, <HTAB> and <CRLF> written out).
EXAMPLE_HEADER = b"A: X\r\nB : Y\t\r\n\tZ  \r\n"
EXAMPLE_BODY = b" C \r\nD \t E\r\n\r\n\r\n"


def test_example_1_of_the_rfc() -> None:
    fields = SignedFields([b"a", b"b"])
    assert fields.select(EXAMPLE_HEADER, len(EXAMPLE_HEADER), True) == ((1, 1), b"a:X\r\nb:Y Z\r\n")
    assert relaxed_body(EXAMPLE_BODY) == b" C\r\nD E\r\n"
    assert hashed(True, EXAMPLE_BODY) == sha256(b" C\r\nD E\r\n").digest()


def test_example_2_of_the_rfc() -> None:
    fields = SignedFields([b"a", b"b"])
    assert fields.select(EXAMPLE_HEADER, len(EXAMPLE_HEADER), False) == ((1, 1), EXAMPLE_HEADER)
    assert hashed(False, EXAMPLE_BODY) == sha256(b" C \r\nD \t E\r\n").digest()


@pytest.mark.parametrize(
    ("body", "simple", "relaxed"),
    [
        (b"", b"\r\n", b""),
        (b"\r\n\r\n", b"\r\n", b""),
        (b" \t\r\n \r\n", b" \t\r\n \r\n", b""),
        (b" ", b" \r\n", b""),
        (b"a", b"a\r\n", b"a\r\n"),
        (b"a\r\n", b"a\r\n", b"a\r\n"),
        (b"a\r\n\r\n b\t\t c \r\n\r\n", b"a\r\n\r\n b\t\t c \r\n", b"a\r\n\r\n b c\r\n"),
        (b"a\r", b"a\r\r\n", b"a\r\r\n"),
        (b"a \r \n\r\n", b"a \r \n\r\n", b"a \r \n\r\n"),
        (b"\r\n" * 5000 + b"a\r\n", b"\r\n" * 5000 + b"a\r\n", b"\r\n" * 5000 + b"a\r\n"),
    ],
)
def test_a_body_in_both_forms(body: bytes, simple: bytes, relaxed: bytes) -> None:
    assert (simple_body(body), relaxed_body(body)) == (simple, relaxed)
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        assert hashed(False, *pieces) == sha256(simple).digest()
        assert hashed(True, *pieces) == sha256(relaxed).digest()


def test_the_hashes_of_an_empty_body_are_those_that_the_rfc_names() -> None:
    """Sections 3.4.3 and 3.4.4."""
    assert hashed(False).hex() == sha256(b"\r\n").hexdigest()
    assert hashed(True).hex() == sha256(b"").hexdigest()


@given(OCTETS, st.booleans(), st.lists(st.integers(0, 200), max_size=6))
def test_any_split_gives_what_the_plain_reading_gives(
    body: bytes, relaxed: bool, cuts: list[int]
) -> None:
    assert hashed(relaxed, *split(body, cuts)) == sha256(FORMS[relaxed](body)).digest()


@given(st.binary(max_size=200), st.integers(1, 400), st.booleans())
def test_long_bodies_go_through_the_buffer(line: bytes, times: int, relaxed: bool) -> None:
    body = (line + b"\r\n") * times
    assert hashed(relaxed, body) == sha256(FORMS[relaxed](body)).digest()


@pytest.mark.parametrize("length", [32_760, 32_767, 32_768, 32_769, 100_000])
@pytest.mark.parametrize("octet", [b"a", b" ", b"\r", b"a b\tc "])
def test_lines_as_long_as_the_buffer(length: int, octet: bytes) -> None:
    body = (octet * length)[:length] + b"\r\n" + b"  x" * 100 + b"\r\n"
    for relaxed, form in FORMS.items():
        assert hashed(relaxed, body) == sha256(form(body)).digest()
        assert hashed(relaxed, body[:100], body[100:]) == sha256(form(body)).digest()


@given(OCTETS, OCTETS, st.lists(st.integers(0, 200), max_size=6))
def test_the_body_of_a_message_is_found_and_hashed_as_it_comes(
    first: bytes, second: bytes, cuts: list[int]
) -> None:
    message = first + b"\r\n\r\n" + second
    end = 0 if message.startswith(b"\r\n") else message.index(b"\r\n\r\n") + 2
    seen: list[bytes] = []

    def choose(head: bytes) -> tuple[bool, ...]:
        seen.append(head)
        return True, False

    incoming = IncomingBody(choose)
    for piece in split(message, cuts):
        incoming.feed(piece)
    for relaxed, form in FORMS.items():
        assert incoming.digest(relaxed) == sha256(form(message[end + 2 :])).digest()
    assert seen == [message[: end + 2]]


def test_a_body_that_nobody_wants_is_not_hashed() -> None:
    incoming = IncomingBody(lambda _: (True,))
    incoming.feed(b"A: b\r\n\r\nbody\r\n")
    assert incoming.digest(False) is None
    assert incoming.digest(True) == sha256(b"body\r\n").digest()


def test_a_message_that_is_all_header_has_an_empty_body() -> None:
    incoming = IncomingBody(lambda _: (True, False))
    incoming.feed(b"A: b\r\n")
    assert incoming.digest(True) == sha256(b"").digest()
    assert incoming.digest(False) == sha256(b"\r\n").digest()


# Header fields


NAMES = st.sampled_from([b"From", b"TO", b"x-a", b"X"])
VALUES = st.lists(
    st.sampled_from([b"a", b" ", b"\t", b"\r\n ", b"\r\n\t", b":", b"\xc3\xa9", b"=?x?="]),
    max_size=12,
).map(b"".join)
FIELDS = st.tuples(NAMES, st.sampled_from([b":", b" :", b"\t :"]), VALUES).map(
    lambda parts: b"".join(parts) + b"\r\n"
)


@given(FIELDS)
def test_a_field_in_both_forms(field: bytes) -> None:
    assert canonical_field(field, 0, len(field), True) == relaxed_field(field)
    assert canonical_field(field, 0, len(field), False) == field


@given(st.lists(FIELDS, max_size=12), st.booleans())
def test_fields_are_chosen_from_the_last_one_up(fields: list[bytes], relaxed: bool) -> None:
    head = b"".join(fields)
    names = [b"to", b"from", b"x-a"]
    chosen = [
        [f for f in reversed(fields) if f.partition(b":")[0].strip().lower() == name]
        for name in names
    ]
    expected = b"".join(relaxed_field(f) if relaxed else f for fs in chosen for f in fs)
    found = SignedFields(names).select(head + b"\r\nbody: x\r\n", len(head), relaxed)
    assert found == (tuple(map(len, chosen)), expected)


@pytest.mark.parametrize("head", [b"no field\r\n", b"From: a\r\nno field\r\n", b": b\r\n"])
def test_a_header_section_with_a_line_that_is_no_field_is_not_signed(head: bytes) -> None:
    assert SignedFields([b"from"]).select(head, len(head), True) is None


def test_a_header_section_with_too_many_fields_is_not_signed() -> None:
    for count, is_signed in ((1000, True), (1001, False), (170_000, False)):
        head = b"To: b\r\n" * count
        found = SignedFields([b"to"]).select(head, len(head), True)
        assert (found is not None) == is_signed


def test_a_last_field_without_a_line_end_gets_one() -> None:
    assert SignedFields([b"a"]).select(b"A: b", 4, False) == ((1,), b"A: b\r\n")
