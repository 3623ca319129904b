import encodings.aliases

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail import charset

NAMES = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values()})


@pytest.mark.parametrize(
    ("name", "octets", "text"),
    [
        ("utf-8", b"\xc3\xbc", "ü"),
        ("UTF-8 ", b"\xc3\xbc\xff", "ü\ufffd"),
        ('"utf8mb4"', b"\xc3\xbc", "ü"),
        ("iso-8859-1", b"\x93\xfc\x81", "\x93ü\x81"),
        ("ISO-8859-1", b"\x93\xfc\x94", "“ü”"),
        ("latin1", b"\x80", "€"),
        ("us-ascii", "ü".encode(), "ü"),
        ("us-ascii", b"\xfc", "ü"),
        ("", b"\x8d", "\x8d"),
        ("x-gbk", "中".encode("gbk"), "中"),
        ("gb2312", "中国镕".encode("gbk"), "中国镕"),
        ("ks_c_5601-1987", "한글".encode("cp949"), "한글"),
        ("shift_jis", "①".encode("cp932"), "①"),
        ("x-sjis", "日本".encode("cp932"), "日本"),
        ("iso-2022-jp", "日本".encode("iso-2022-jp"), "日本"),
        ("iso-8859-8-i", "שלום".encode("iso-8859-8"), "שלום"),
        ("windows-1251", "Привет".encode("cp1251"), "Привет"),
        ("koi8-r", "Привет".encode("koi8-r"), "Привет"),
        ("x-mac-cyrillic", "Привет".encode("mac_cyrillic"), "Привет"),
        ("unknown-8bit", "€".encode(), "€"),
        ("utf-8\0", b"a\xc3\xbc", "aü"),
        ("nonsense" * 1000, b"a\xc3\xbc", "aü"),
        ("ütf", b"a", "a"),
        ("hex", b"6161", "6161"),
        ("rot13", b"a", "a"),
        ("punycode", b"a", "a"),
        ("unicode_escape", b"\\d", "\\d"),
    ],
)
def test_decodes(name, octets, text):
    assert charset.decode(octets, name) == text
    assert charset.decode(memoryview(octets), name) == text


@given(st.binary(max_size=60), st.one_of(st.sampled_from(NAMES), st.text(max_size=50)))
def test_never_fails(octets, name):
    assert isinstance(charset.decode(octets, name), str)


def test_every_codec_of_python_takes_every_octet():
    for name in NAMES:
        charset.decode(bytes(range(256)) * 2, name)
