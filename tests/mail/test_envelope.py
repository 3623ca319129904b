"""Message ids as people see them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.envelope import format_id, parse_id

numbers = st.integers(0, 2**64 - 1)


@given(numbers)
def test_an_id_comes_back(number: int) -> None:
    text = format_id(number)
    assert parse_id(text) == parse_id(text.lower()) == number
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    assert text == "".join(digits[number >> shift & 31] for shift in range(60, -1, -5))


@given(numbers, numbers)
def test_ids_sort_as_their_numbers(one: int, other: int) -> None:
    assert (format_id(one) < format_id(other)) == (one < other)


@pytest.mark.parametrize(
    "text", ["", "0" * 12, "0" * 14, "U" * 13, "I000000000000", "Z" * 13, "é" * 13]
)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="id"):
        parse_id(text)
