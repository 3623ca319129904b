"""Plain commands are those that the reader of lines would take, and mean the same."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta._core import smtp
from fastmta._core.lines import BareLineFeed, LineBuffer, LineTooLong
from fastmta._core.smtp_plain import plain_data, plain_mail, plain_rcpt
from fastmta.mail.arrival import Arrival
from fastmta.protocol.smtp_arguments import Refused, read_mail, read_rcpt

LIMIT, MAX_SIZE = 200, 5000
words = st.sampled_from([
    b"MAIL FROM:", b"mail from:", b"RCPT TO:", b"rcpt To:", b"DATA", b"data", b"NOOP", b"<", b">",
    b"<a@b.test>", b"<>", b'<"a b"@b.test>', b"<a@[192.0.2.1]>", b"<@c.test:a@b.test>", b"<a>",
    b"<postmaster>", b"<\xc3\xa4@b.test>", b"<a@" + b"x." * 90 + b"y>", b" ", b"  ", b" SIZE=",
    b" size=5", b" SIZE=5001", b" SIZE=" + b"9" * 18, b"1", b" BODY=8BITMIME", b" body=7bit",
    b" BODY=X", b" SMTPUTF8", b" NOTIFY=NEVER", b" RET=FULL", b"\r\n", b"\r", b"\n", b"\0", b"\x7f",
    b"\x1a", b"\x80", b"x" * LIMIT,
])  # fmt: skip
octets = st.lists(words, max_size=8).map(b"".join)
lines = octets.map(lambda line: line + b"\r\n")
mails = octets.map(lambda rest: b"MAIL FROM:<a@b.test>" + rest + b"\r\n")


def buffer(data: bytes) -> LineBuffer:
    lines = LineBuffer(LIMIT)
    lines.feed(data)
    return lines


def read(lines: LineBuffer) -> Arrival | str | bool | None:
    """The first line as the machine reads it; None for what is no good MAIL, RCPT or DATA."""
    try:
        line = lines.next_line()
        code, argument = smtp.parse_command(line or b"")
        if code == smtp.MAIL:
            return read_mail(argument, MAX_SIZE, tls=True)
        if code == smtp.RCPT:
            arrival = Arrival(0, "", [], [], 0, 0.0, utf8=True)
            return read_rcpt(argument, arrival, "relay.test").address
    except (Refused, LineTooLong, BareLineFeed):
        return None
    return True if code == smtp.DATA and not argument else None


@given(lines | mails, octets)
@example(b"MAIL FROM:<> SIZE=5 SIZE=6\r\n", b"")
@example(b"MAIL FROM:<a@b.test> SIZE=\r\n", b"")
@example(b"MAIL\x00FROM:<a@b.test>\r\n", b"")
@example(b"MAIL FROM\x1a<a@b.test>\r\n", b"")
@example(b"RCPT TO:<a@b.test> \r\n", b"")
@example(b"DATA\r\n", b"x")
def test_what_is_plain_is_read_alike(line: bytes, behind: bytes) -> None:
    oracle = buffer(line + behind)
    expected = read(oracle)
    plain = buffer(line + behind)
    if (mail := plain_mail(plain, MAX_SIZE)) is not None:
        sender, size, eight_bit = mail
        assert expected == Arrival(0, sender, [], [], size, 0.0, eight_bit)
    elif (address := plain_rcpt(plain)) is not None:
        assert expected == address
    elif plain_data(plain):
        assert expected is True and not len(oracle)
    else:
        assert plain.take() == line + behind  # nothing of it was taken
        return
    assert plain.take() == oracle.take()


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (b"MAIL FROM:<>", ("", 0, False)),
        (b"Mail From:<a@b.test> BODY=8BITMIME SIZE=5000", ("a@b.test", 5000, True)),
        (b"MAIL FROM:<a@b.test> SIZE=0 BODY=7BIT", ("a@b.test", 0, False)),
        (b"MAIL FROM:<a@b.test> SIZE=5001", None),
        (b"MAIL FROM:<a@b.test> SMTPUTF8", None),
        (b"MAIL FROM: <a@b.test>", None),
        (b"MAIL FROM:<\xc3\xa4@b.test>", None),
    ],
)
def test_which_mail_is_plain(command: bytes, found: tuple[str, int, bool] | None) -> None:
    assert plain_mail(buffer(command + b"\r\n"), MAX_SIZE) == found
    assert plain_mail(buffer(command + b"\r"), MAX_SIZE) is None


def test_which_rcpt_and_data_are_plain() -> None:
    assert plain_rcpt(buffer(b"rcpt to:<a@b.test>\r\n")) == "a@b.test"
    assert plain_rcpt(buffer(b"RCPT TO:<postmaster>\r\n")) is None
    assert plain_data(buffer(b"data\r\n"))
    assert not plain_data(buffer(b"DATA\r\nx"))


def test_the_longest_line_that_is_plain() -> None:
    for octets, plain in ((LIMIT, True), (LIMIT + 1, False)):
        line = b"RCPT TO:<" + b"a" * (octets - 19) + b"@b.test>\r\n"
        assert len(line) == octets
        assert (plain_rcpt(buffer(line)) is not None) == plain


def test_nothing_is_plain_in_the_rest_of_a_line_that_is_too_long() -> None:
    lines = buffer(b"x" * (LIMIT + 1))
    with pytest.raises(LineTooLong):
        lines.next_line()
    lines.feed(b"RCPT TO:<a@b.test>\r\n")
    assert plain_rcpt(lines) is None
