"""Commands, paths, parameters and reply lines, against regular expressions from the ABNF."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import smtp
from fastmta._core.smtp import (
    ParameterError,
    PathError,
    parse_command,
    parse_mail,
    parse_rcpt,
    parse_reply_line,
)
from fastmta.mail.address import domain_of, is_domain, is_mailbox
from tests.core import wire_oracles

pieces = st.sampled_from([
    "a", "B", "9", ".", "-", "_", "@", '"', "\\", " ", "%", "!", "[", "]", "ü", "例", "\x00", "\r",
    "\n", "\x7f", "\x85", "IPv6:", "::1", "192.0.2.1", "127.0.0.256", "example.test", ",", ":", "<",
    ">",
])  # fmt: skip
texts = st.lists(pieces, max_size=8).map("".join)


@given(texts | texts.map(lambda text: f"a@{text}") | texts.map(lambda text: f"{text}@b.test"))
@example("a@[]")
@example('""@b')
@example('"a\\')
@example("a@" + "x" * 63 + ".test")
@example("a@" + "x" * 64 + ".test")
@example("a@" + "x." * 127 + "y")
@example("a@" + "x." * 127 + "yz")
@example("a@[" + "1" * 80 + "]")
@example("a@[IPv6:" + "\0" + "]")
def test_mailboxes_are_the_twins(text: str) -> None:
    assert is_mailbox(text) == wire_oracles.is_mailbox(text)
    path = f"<{text}>".encode()
    for parse, word in ((parse_mail, b"FROM:"), (parse_rcpt, b"TO:")):
        try:
            address, ascii_only, parameters = parse(word + path)
        except ValueError:
            assert not wire_oracles.is_mailbox(text)
        else:
            if wire_oracles.is_mailbox(text):
                assert (address, ascii_only, parameters) == (text, text.isascii(), None)
            else:
                assert (address, parse) == ("", parse_mail) or text[0] == "@"


def test_surrogates_are_no_address() -> None:
    assert not is_mailbox("\udcff@example.test")


@given(st.binary(max_size=40))
def test_no_octets_upset_the_parsers(data: bytes) -> None:
    verb, argument = parse_command(data)
    assert 0 <= verb <= 16
    assert argument in data
    for argument in (data, b"FROM:" + data, b"TO:<" + data, b"TO:<a@b>" + data):
        for parse in (parse_mail, parse_rcpt):
            try:
                address, _, _ = parse(argument)
            except ValueError:
                continue
            assert address == "" or is_mailbox(address) or address.lower() == "postmaster"


@pytest.mark.parametrize("control", [*range(32), 127])
def test_threat_05_no_control_passes_in_any_command(control: int) -> None:
    octet = bytes([control])
    for line in (b"NOOP" + octet, b"EHLO a" + octet, b"VRFY " + octet + b"a", octet + b"QUIT"):
        assert parse_command(line)[0] == smtp.MALFORMED
    for path in (b"<a%cb@c>", b'<"a%cb"@c>', b'<"a\\%cb"@c>', b"<a@b%cc>", b"<a@[%c]>", b"<a@b>%c"):
        for parse, word in ((parse_mail, b"FROM:"), (parse_rcpt, b"TO:")):
            with pytest.raises(ValueError, match=r"."):
                parse(word + path % control)
    with pytest.raises(ValueError, match=r"."):
        parse_mail(b"FROM:<a@b> ENVID=a" + octet + b"b")


@pytest.mark.parametrize(
    "word", ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "QUIT"]
)
def test_verbs_in_any_case_with_white_space_behind(word: str) -> None:
    code = getattr(smtp, word)
    for written in (word, word.lower(), word.title()):
        assert parse_command(f"{written}".encode()) == (code, b"")
        assert parse_command(f"{written}  some thing  ".encode()) == (code, b"some thing")
    assert parse_command(f"{word}X".encode())[0] == smtp.UNKNOWN
    assert parse_command(f" {word}".encode())[0] == smtp.UNKNOWN


def test_other_commands() -> None:
    assert parse_command(b"StartTLS") == (smtp.STARTTLS, b"")
    assert parse_command(b"STARTTLSX") == (smtp.UNKNOWN, b"")
    assert parse_command(b"") == (smtp.UNKNOWN, b"")
    assert parse_command(b"\xff\xff\xff\xff") == (smtp.UNKNOWN, b"")


@pytest.mark.parametrize(
    "argument",
    [
        b"FROM:<a@b.test>",
        b"from: <a@b.test>",
        b"From:   <a@b.test>  ",
        b"FROM:<@x,@[192.0.2.1]:a@b.test>",
    ],
)
def test_the_reverse_path_as_people_write_it(argument: bytes) -> None:
    assert parse_mail(argument) == ("a@b.test", True, None)


@pytest.mark.parametrize(
    "path",
    [
        "", "a@b", "<a@b", "a@b>", "<<a@b>>", "<a>", "<@>", "<a@>", "<@b>", "<a@b.>",
        "<a@.b>", "<a.@b>", "<.a@b>", "<a..c@b>", "<a@b@c>", "< a@b>", "<a@b >", "<a b@c>",
        "<@x>", "<@x:>", "<@x,:a@b>", "<@x,y:a@b>", "<@x@y:a@b>", '<"a@b>', '<"a"b@c>',
        "<a@[1.2.3]>", "<a@[1.2.3.4>", "<a@[IPv6:1.2.3.4]>", "<a@[X-tag:1]>", "<a@-b>", "<a@b->",
        "<postmaster@>",
    ],
)  # fmt: skip
def test_what_is_no_path(path: str) -> None:
    for parse, word in ((parse_mail, "FROM:"), (parse_rcpt, "TO:")):
        with pytest.raises(PathError):
            parse((word + path).encode())


def test_the_null_path_and_postmaster() -> None:
    assert parse_mail(b"FROM:<>") == ("", True, None)
    assert parse_mail(b"FROM:<> SIZE=1") == ("", True, {"SIZE": "1"})
    assert parse_rcpt(b"TO:<PostMaster>") == ("PostMaster", True, None)
    for argument in (b"TO:<>", b"TO:<postmaster@>"):
        with pytest.raises(PathError):
            parse_rcpt(argument)
    with pytest.raises(PathError):
        parse_mail(b"FROM:<postmaster>")


def test_parameters() -> None:
    argument = b"FROM:<a@b>  size=10 BODY=8bitMIME  X-1 ENVID=a+2Bb,;"
    expected = {"SIZE": "10", "BODY": "8bitMIME", "X-1": None, "ENVID": "a+2Bb,;"}
    assert parse_mail(argument) == ("a@b", True, expected)
    assert parse_rcpt("TO:<a@b> ORCPT=utf-8;ü".encode()) == ("a@b", False, {"ORCPT": "utf-8;ü"})


@pytest.mark.parametrize(
    "parameters",
    ["x", " =", " =a", " A=", " A==", " A=b=c", " -A=b", " A A", " a=1 A=2", " A\u00fc=1"],
)
def test_what_are_no_parameters(parameters: str) -> None:
    with pytest.raises(ParameterError):
        parse_mail(f"FROM:<a@b>{parameters}".encode())


def test_not_utf8() -> None:
    with pytest.raises(PathError):
        parse_mail(b"FROM:<\xff@b>")
    with pytest.raises(ParameterError):
        parse_mail(b"FROM:<a@b> X=\xff")


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("a@Example.TEST", "example.test"),
        ('"a@b"@example.test', "example.test"),
        ("a@Bücher.test", "xn--bcher-kva.test"),
        ("a@XN--BCHER-KVA.test", "xn--bcher-kva.test"),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
        ("a@[ipv6:2001:DB8:0:0::1]", "[IPv6:2001:db8::1]"),
    ],
)
def test_the_normal_form_of_a_domain(address: str, domain: str) -> None:
    assert domain_of(address) == domain


@given(texts)
def test_every_ascii_mailbox_has_a_domain(text: str) -> None:
    if is_mailbox(text) and text.isascii():
        assert domain_of(text).lower() == domain_of(text).lower()
        assert is_domain(domain_of(text))


def test_a_domain_without_a_labels_is_told() -> None:
    with pytest.raises(ValueError, match=r"."):
        domain_of("a@\u2615.test")


@given(
    st.binary(max_size=12)
    | st.from_regex(
        rb"[1-6][0-9]{2}[ -]?([245]\.[0-9]{1,4}\.[0-9]{1,4})? ?(a|\xff|\r)*", fullmatch=True
    )
)
@example(b"250")
@example(b"250 2.0.0")
@example(b"250-2.0.0 a")
@example(b"550 4.0.0 a")
@example(b"354 3.0.0 a")
def test_reply_lines_are_the_twins(line: bytes) -> None:
    expected = wire_oracles.reply_line(line)
    if expected is None:
        with pytest.raises(ValueError, match="not a reply line"):
            parse_reply_line(line)
    else:
        assert parse_reply_line(line) == expected


def test_threat_15_a_reply_with_controls_is_made_harmless() -> None:
    assert parse_reply_line(b"250 a\x00\x1b[31m\xffb") == (
        250,
        True,
        "",
        "a\ufffd\ufffd[31m\ufffdb",
    )
