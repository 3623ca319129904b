import re
from email.header import decode_header, make_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta.mail import encoded_words

# What can stand in a message: no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)
PIECES = st.lists(
    st.one_of(
        st.text(max_size=10),
        st.sampled_from(
            ["=?", "?=", "?q?", "?B?", "=?utf-8?q?=C3?=", "=?utf-8?q?=BC?=", " ", "\r\n ", "_", "=",
             "=?iso-8859-1*en?Q?a?=", "=?x?b?====?=", "=?utf-8?b?w7w?="]
        ),
    ),
    max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        # RFC 2047 8
        ("(=?ISO-8859-1?Q?a?=)", "(a)"),
        ("(=?ISO-8859-1?Q?a?= b)", "(a b)"),
        ("(=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=)", "(ab)"),
        ("(=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=)", "(ab)"),
        ("(=?ISO-8859-1?Q?a?=\r\n    =?ISO-8859-1?Q?b?=)", "(ab)"),
        ("(=?ISO-8859-1?Q?a_b?=)", "(a b)"),
        ("(=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=)", "(a b)"),
        ("=?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
        (
            "=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=\r\n"
            " =?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?=",
            "If you can read this you understand the example.",
        ),
        # RFC 2231 5
        ("=?US-ASCII*EN?Q?Keith_Moore?=", "Keith Moore"),
        # not allowed, and met
        ("=?utf-8?Q?a b ?=", "a b "),
        ("=?utf-8?Q?=C3?= =?utf-8?Q?=BC?=", "ü"),
        ("=?utf-8?B?w7w?=", "ü"),
        ("=?utf-8?Q?a?==?utf-8?Q?b?=", "ab"),
        ("=?utf-8?Q?a=zz?=", "a=zz"),
        ("x=?utf-8?q?=C3=BC?=y", "xüy"),
        ("=?nonsense?q?a=FF?=", "aÿ"),
        # none at all
        ("", ""),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?utf-8?q?a", "=?utf-8?q?a"),
        ("=??q?a?=", "=??q?a?="),
    ],
)
def test_decodes(text, decoded):
    assert encoded_words.decode(text) == decoded


@given(TEXT)
@example("日本語" * 40)
@example("a" * 200)
@example("ü" * 63)
def test_what_is_encoded_comes_back(text):
    encoded = encoded_words.encode(text)
    assert encoded_words.decode(encoded) == text
    for word in encoded.split():
        # RFC 2047 2: a word's length; 5 (3): what a phrase allows.
        assert re.fullmatch(r"=\?utf-8\?(q\?[A-Za-z0-9!*+/=_-]+|b\?[A-Za-z0-9+/=]+)\?=", word)
        assert len(word) <= 75
    assert str(make_header(decode_header(encoded))) == text


def test_the_shorter_encoding_is_taken():
    assert encoded_words.encode("Für euch alle") == "=?utf-8?q?F=C3=BCr_euch_alle?="
    assert encoded_words.encode("日本") == "=?utf-8?b?5pel5pys?="


def test_no_character_is_cut_in_two():
    for word in encoded_words.encode("日ä🦔" * 30).split():
        assert "\ufffd" not in encoded_words.decode(word)


@given(PIECES)
def test_never_fails(text):
    assert isinstance(encoded_words.decode(text), str)
    assert isinstance(encoded_words.encode(text), str)


@pytest.mark.parametrize(
    "text", ["=?" * 500_000, "=?a?q?" * 200_000, "=?a?q?x?=" * 100_000, "=?a?q?x?= " * 100_000]
)
def test_many_beginnings_take_linear_time(text):
    assert len(encoded_words.decode(text)) <= len(text)
