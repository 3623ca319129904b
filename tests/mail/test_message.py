import base64
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.date_time import format_date, parse_date
from fastmta.mail.message import Part, parse

MESSAGE = (
    b"Received: from client.test (client.test [IPv6:2001:db8::1])\r\n"
    b"\tby mx.test with ESMTPS id 7X for <bob@mx.test>;\r\n"
    b"\tTue, 7 Apr 2026 10:00:01 +0000 (UTC)\r\n"
    b"From: =?utf-8?q?J=C3=B6rg?= <j@client.test>\r\n"
    b"To: bob@mx.test\r\nTo: al@mx.test\r\n"
    b"Subject: first\r\nsubject: =?utf-8?b?w7w=?=\r\n =?utf-8?b?w7w=?= last\r\n"
    b"References: <a@b> (c)\r\n <c@d>\r\n"
    b"Date: Tue, 7 Apr 2026 12:00:00 +0200\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
    b"Content-Transfer-Encoding: Quoted-Printable\r\n\r\n=FCber=\r\n alles\r\n"
    b"--b\r\nContent-Type: image/png; name=old.png\r\n"
    b"Content-Disposition: ATTACHMENT; filename*=utf-8''gr%C3%BCn.png\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAAEC\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inside\r\n\r\nlast\r\n--b--\r\n"
)


def test_header_fields_are_typed() -> None:
    headers = parse(MESSAGE).headers
    (hop,) = headers.received()
    assert (hop.from_, hop.from_ip, hop.by) == ("client.test", "2001:db8::1", "mx.test")
    assert (hop.with_, hop.id, hop.for_) == ("ESMTPS", "7X", "bob@mx.test")
    assert hop.date == datetime(2026, 4, 7, 10, 0, 1, tzinfo=UTC)
    assert headers.text("SUBJECT") == "üü last"
    assert [str(entry) for entry in headers.addresses("from")] == ["Jörg <j@client.test>"]
    assert [str(entry) for entry in headers.addresses("to")] == ["bob@mx.test", "al@mx.test"]
    assert headers.message_ids("references") == ["a@b", "c@d"]
    assert headers.date() == datetime(2026, 4, 7, 10, tzinfo=UTC)
    assert headers.get("nothing") == b""
    assert headers.get_all("Subject") == [b"first", b"=?utf-8?b?w7w=?= =?utf-8?b?w7w=?= last"]
    assert "Date" in headers
    assert bytes(headers) == MESSAGE[: MESSAGE.index(b"\r\n\r\n") + 2]


def test_parts_are_decoded_on_demand() -> None:
    root = parse(MESSAGE)
    text, image, message = root.parts
    assert root.is_multipart and not root.cut
    assert (str(text.content_type), text.encoding) == ("text/plain", "quoted-printable")
    assert text.text() == "über alles"
    assert bytes(text.body) == b"=FCber=\r\n alles"
    assert (text.size, text.lines) == (15, 2)
    assert image.decode() == b"\0\1\2"
    assert image.filename == "grün.png"
    assert image.disposition and image.disposition.type == "attachment"
    inside = message.message()
    assert inside is message.parts[0]
    assert inside.headers.text("subject") == "inside"
    assert [str(part.content_type) for part in root.walk()] == [
        "multipart/mixed",
        "text/plain",
        "image/png",
        "message/rfc822",
        "text/plain",
    ]


def test_an_encoded_message_is_opened_too() -> None:
    inside = base64.encodebytes(b"Subject: inside\r\n\r\nbody")
    data = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + inside
    part = parse(data)
    assert not part.parts
    message = part.message()
    assert message and message.text() == "body"


def test_the_default_in_a_digest_is_a_message() -> None:
    root = parse(b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nA: b\r\n\r\nx")
    assert str(root.parts[0].content_type) == "message/rfc822"


def read_all(part: Part) -> None:
    for each in part.walk():
        str(each.content_type), each.disposition, each.filename, each.encoding, each.lines
        each.text(), each.decode(), each.message()
        headers = each.headers
        headers.addresses("from"), headers.date(), headers.text("subject"), headers.received()
        headers.message_ids("message-id")


@given(st.lists(st.sampled_from([*MESSAGE.split(b" "), b"\r\n", b"\r\n\r\n", b"--b", b"\xff"])))
def test_nothing_raises_on_any_input(pieces: list[bytes]) -> None:
    read_all(parse(b" ".join(pieces)))


def test_every_beginning_and_end_of_a_message_is_read() -> None:
    for cut in range(len(MESSAGE)):
        read_all(parse(MESSAGE[:cut]))
        read_all(parse(MESSAGE[cut:]))


MOMENTS = st.datetimes(
    timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    min_value=datetime(1900, 1, 1),
)


@given(MOMENTS)
def test_a_date_that_is_written_reads_the_same(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    assert parse_date(format_date(moment).encode()) == moment


def test_what_is_no_day_is_no_date() -> None:
    assert parse_date(b"30 Feb 2026 10:00:00 +0000") is None
    assert parse_date(b"1 Feb 2026 25:00:00 +0000") is None
    assert parse_date(b"30 Jun 2015 23:59:60 +0000") == datetime(
        2015, 6, 30, 23, 59, 59, tzinfo=UTC
    )
    assert parse_date(b"1 Feb 2026 10:00:00 -9959") == datetime(2026, 2, 1, 10, tzinfo=UTC)
