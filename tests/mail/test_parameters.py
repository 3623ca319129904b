import email.policy
from email.parser import BytesParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta.mail.parameters import decode_parameters, encode_parameter

NAME = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=70)
PAIR = st.tuples(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"a", b"A*", b"a*0", b"a*1*", b"a*0*", b"a*2", b"a*9999", b"*", b"a*00"]),
    ),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [b"utf-8''%C3%BC", b"''", b"'", b"%", b"%4", b"=?utf-8?q?=C3=BC?=", b"%zz"]
        ),
    ),
)


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        ([], {}),
        ([(b"Charset", b"us-ascii")], {"charset": "us-ascii"}),
        # RFC 2231 3
        (
            [
                (b"access-type", b"URL"),
                (b"url*0", b"ftp://"),
                (b"url*1", b"cs.utk.edu/pub/moore/bulk-mailer/bulk-mailer.tar"),
            ],
            {
                "access-type": "URL",
                "url": "ftp://cs.utk.edu/pub/moore/bulk-mailer/bulk-mailer.tar",
            },
        ),
        # RFC 2231 4
        (
            [(b"title*", b"us-ascii'en-us'This%20is%20%2A%2A%2Afun%2A%2A%2A")],
            {"title": "This is ***fun***"},
        ),
        # RFC 2231 4.1
        (
            [
                (b"title*0*", b"us-ascii'en'This%20is%20even%20more%20"),
                (b"title*1*", b"%2A%2A%2Afun%2A%2A%2A%20"),
                (b"title*2", b"isn't it!"),
            ],
            {"title": "This is even more ***fun*** isn't it!"},
        ),
        # in any order, a character cut in two, and a gap
        (
            [(b"a*1*", b"%BC%25"), (b"a*3", b"lost"), (b"a*0*", b"utf-8''%C3")],
            {"a": "ü%"},
        ),
        # the extended form counts before the plain one, the first of two alike
        ([(b"a", b"u"), (b"a*", b"utf-8''%C3%BC"), (b"a*", b"x")], {"a": "ü"}),
        ([(b"a", b"1"), (b"a", b"2")], {"a": "1"}),
        # broken
        ([(b"a*", b"%C3%BC"), (b"b*", b"utf-8'%C3%BC")], {"a": "ü", "b": "utf-8'ü"}),
        ([(b"a*1", b"x")], {"a": "x"}),
        ([(b"a", "ü".encode()), (b"b", b"\xfc")], {"a": "ü", "b": "ü"}),
        ([(b"a", b"=?utf-8?q?=C3=BC?=.txt")], {"a": "ü.txt"}),
        ([(b"a*x", b"1"), (b"*", b"2")], {"a*x": "1", "*": "2"}),
        ([(b"a*" + b"9" * 5000, b"1")], {"a*" + "9" * 5000: "1"}),
    ],
)
def test_decodes(pairs, values):
    assert decode_parameters(pairs) == values


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("plain name.txt", 'a="plain name.txt"'),
        ('with "quotes" and \\', 'a="with \\"quotes\\" and \\\\"'),
        ("Übersicht 1*.pdf", "a*=utf-8''%C3%9Cbersicht%201%2A.pdf"),
        ("x" * 80, "a*0*=utf-8''" + "x" * 62 + "; a*1*=" + "x" * 18),
        ("a\r\nBcc: b", "a*=utf-8''a%0D%0ABcc%3A%20b"),
    ],
)
def test_encodes(value, encoded):
    assert encode_parameter("a", value) == encoded


@given(NAME, st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@example("filename", "🦔" * 50)
def test_what_is_encoded_comes_back(name, value):
    encoded = encode_parameter(name, value)
    assert encoded.isascii() and encoded.isprintable()
    assert all(len(section) < 78 or len(name) > 50 for section in encoded.split("; "))
    if encoded.startswith(f'{name}="'):
        assert encoded == f'{name}="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return
    pairs = [tuple(section.encode().split(b"=", 1)) for section in encoded.split("; ")]
    assert decode_parameters(pairs) == {name: value}


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=100))
def test_python_s_email_reads_what_we_write(value):
    value = f"x{value}x"
    field = "Content-Disposition: attachment;\r\n " + encode_parameter("filename", value).replace(
        "; ", ";\r\n "
    )
    message = BytesParser(policy=email.policy.compat32).parsebytes(field.encode() + b"\r\n\r\n")
    assert message.get_filename() == value


@given(st.lists(PAIR, max_size=8))
def test_never_fails(pairs):
    assert all(isinstance(value, str) for value in decode_parameters(pairs).values())


def test_many_sections_take_linear_time():
    # Four digits at most are a section's number.
    pairs = [(b"a*%d*" % at, b"utf-8''%C3%BC") for at in range(100_000)]
    assert len(decode_parameters(pairs)["a"]) == 8 * 10_000 - 7
