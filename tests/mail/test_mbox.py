"""mbox files, of each dialect, as programs write them and as they are broken."""

import io
import mailbox
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail import mbox
from fastmta.mail.mbox import Broken, Mail, Piece

LINE = b"From a@b.test Sat Jan  3 01:05:34 1996\n"
WHEN = 820631134.0


def read(data: bytes, dialect: str = "mboxrd") -> list[Mail]:
    return [mbox.parse(piece, dialect) for piece in mbox.split(io.BytesIO(data).read, 0, dialect)]


def octets(data: bytes, dialect: str = "mboxrd") -> list[bytes]:
    return [mail.octets for mail in read(data, dialect)]


def test_messages_are_told_apart() -> None:
    text = b"Subject: %d\n\ntext\n"
    data = b"".join(LINE + text % number + b"\n" for number in range(3))
    crlf = [(text % number).replace(b"\n", b"\r\n") for number in range(3)]
    assert octets(data) == octets(data[:-1]) == octets(b"\n\n" + data) == crlf
    assert octets(data.replace(b"\n", b"\r\n")) == crlf
    assert [mail.date for mail in read(data)] == [WHEN] * 3


def test_the_ends_say_where_the_next_begins() -> None:
    data = b"".join(LINE + b"A: %d\n\n%d\n\n" % (number, number) for number in range(5))
    pieces = list(mbox.split(io.BytesIO(data).read, 0, "mboxrd"))
    for number, piece in enumerate(pieces):
        rest = io.BytesIO(data[piece.end :]).read
        assert [p.text for p in mbox.split(rest, piece.end, "mboxrd")] == [
            p.text for p in pieces[number + 1 :]
        ]
    assert pieces[-1].end == len(data)


@pytest.mark.parametrize(
    ("dialect", "line", "expected"),
    [
        ("mboxrd", b">From here", b"From here"),
        ("mboxrd", b">>From here", b">From here"),
        ("mboxrd", b">Fromage", b">Fromage"),
        ("mboxo", b">From here", b"From here"),
        ("mboxo", b">>From here", b">>From here"),
        ("mboxcl2", b">From here", b">From here"),
        ("mboxrd", b"From here", b"From here"),  # tells no time
    ],
)
def test_lines_that_were_quoted(dialect: str, line: bytes, expected: bytes) -> None:
    data = LINE + b"A: b\n\n" + line + b"\n\n" + LINE + b"C: d\n\n"
    assert octets(data, dialect) == [b"A: b\r\n\r\n" + expected + b"\r\n", b"C: d\r\n"]


def test_a_length_that_fits_tells_the_end() -> None:
    body = b"one\n\n" + LINE + b"still the same\n"
    data = LINE + b"Content-Length: %d\nA: b\n\n" % len(body) + body + b"\n" + LINE + b"C: d\n\nx\n"
    first = b"A: b\r\n\r\n" + body.replace(b"\n", b"\r\n")
    assert octets(data, "mboxcl2") == [first, b"C: d\r\n\r\nx\r\n"]
    assert len(octets(data, "mboxrd")) == 3
    wrong = data.replace(b"Length: ", b"Length: 9")
    assert len(octets(wrong, "mboxcl2")) == 3


def test_what_readers_kept_becomes_flags_and_goes() -> None:
    text = b"Status: RO\nA: b\nX-Status: AF\nX-Keywords: $Junk\n  later\nContent-Length: 2\n"
    text += b"\nStatus: R\n"
    (mail,) = read(LINE + text)
    assert mail == Mail(b"A: b\r\n\r\nStatus: R\r\n", WHEN, 7, ("$Junk", "later"))


@pytest.mark.parametrize(
    ("line", "when"),
    [
        (b"From a Sat Jan  3 01:05:34 1996", WHEN),
        (b"From a Sat Jan  3 01:05:34 GMT 1996", WHEN),
        (b"From a Sat Jan  3 01:05:34 1996 -0100", WHEN + 3600),
        (b"From a Sat Jan 03 01:05 1996", WHEN - 34),
        (b"From a at 11:30", None),
        (b"From a Sat Jan  3 01:05:34 0000", None),
    ],
)
def test_the_time_of_a_line(line: bytes, when: float | None) -> None:
    assert mbox.time_of(line) == when


@pytest.mark.parametrize("data", [b"Subject: x\n\ntext\n", b"From nobody\n\n", b"\0" * 9000])
def test_what_is_no_mbox_is_told(data: bytes) -> None:
    with pytest.raises(Broken):
        read(data)


def test_a_message_without_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mbox, "LONGEST", 1 << 20)
    with pytest.raises(Broken, match="is longer"):
        read(LINE + b"x" * 9_000_000)


def test_messages_larger_than_a_block() -> None:
    bodies = [b"A: b\n\n" + bytes([65 + n]) * (700_000 * n) + b"\n" for n in range(5)]
    found = octets(b"".join(LINE + body + b"\n" for body in bodies))
    assert found == [body.replace(b"\n", b"\r\n") for body in bodies]


LINES = st.sampled_from(
    [
        b"From a@b.test Sat Jan  3 01:05:34 1996",
        b">From x",
        b"From ",
        b"Status: x",
        b"",
        b"A: b",
        b">",
    ]
)
FIELDS = st.sampled_from(
    [
        b"Subject: x",
        b"status: RO",
        b"X-Status: FD",  # of its author, who has no say in what the reader thinks of it
        b"X-Keywords: theirs",
        b"Content-Length: 7",
        b" goes on",
    ]
)
MAILS = st.builds(
    Mail,
    octets=st.tuples(st.lists(FIELDS, min_size=1, max_size=4), st.lists(LINES, max_size=8)).map(
        lambda both: b"".join(line + b"\r\n" for line in [*both[0], b"", *both[1]])
    ),
    date=st.integers(0, 2**31).map(float),
    flags=st.integers(0, 31),
    keywords=st.lists(st.sampled_from(["$Junk", "later", "ä"]), unique=True).map(tuple),
)


@given(st.lists(MAILS, max_size=5), st.sampled_from([1, 7, 100_000]))
def test_what_is_written_is_read_as_it_was(mails: list[Mail], step: int) -> None:
    data = io.BytesIO(b"".join(mbox.write(mail, "a@b.test") for mail in mails))
    pieces = mbox.split(lambda octets: data.read(min(octets, step)), 0, "mboxrd")
    assert [mbox.parse(piece, "mboxrd") for piece in pieces] == mails


@given(st.lists(LINES, max_size=12).map(b"\n".join) | st.binary(max_size=200))
def test_anything_is_read_or_told(data: bytes) -> None:
    for dialect in mbox.DIALECTS:
        try:
            read(data, dialect)
        except Broken:
            pass


def test_python_s_own_reader_reads_what_we_write(tmp_path: Path) -> None:
    mails = [Mail(b"Subject: %d\r\n\r\ntext\r\n" % n, WHEN, n, ()) for n in range(4)]
    path = tmp_path / "mbox"
    path.write_bytes(b"".join(mbox.write(mail, "a@b.test") for mail in mails))
    found = mailbox.mbox(path)
    assert [message["Subject"] for message in found] == ["0", "1", "2", "3"]
    assert [message.get_flags() for message in found] == ["O", "RO", "OA", "ROA"]
    found.close()


def test_a_piece_is_what_stands_there() -> None:
    assert list(mbox.split(io.BytesIO(LINE + b"A: b\n").read, 10, "mboxrd")) == [
        Piece(LINE, b"A: b\n", 10 + len(LINE) + 5)
    ]
