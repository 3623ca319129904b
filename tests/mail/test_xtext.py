"""RFC 3461 section 4: xtext."""

from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.xtext import decode, encode

ASCII = st.text(st.characters(max_codepoint=127))


def test_what_has_a_meaning_is_encoded() -> None:
    assert encode("a+b=c d\r\n~") == "a+2Bb+3Dc+20d+0D+0A~"
    assert decode("+2b+zz+2B+") == "+2b+zz++"


@given(ASCII)
def test_it_reads_back_and_holds_nothing_that_ends_a_parameter(text: str) -> None:
    assert decode(encode(text)) == text
    assert all("!" <= character <= "~" and character != "=" for character in encode(text))
