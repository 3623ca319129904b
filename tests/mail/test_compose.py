from datetime import UTC, datetime
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.compose import Attachment, Body, Options, compose
from fastmta.mail.email_address import EmailAddress, EmailAddressGroup
from fastmta.mail.fields import write_field
from fastmta.mail.message import parse

FROM = ("From", [EmailAddress("Jörg", "joerg", "exämple.test")])
IMAGE = Attachment(b"\x89PNG\r\n" * 50, "image/png", "logo.png", "logo@fastmta")
FILE = Attachment(bytes(range(256)), filename="grüße.bin")
ENCLOSED = Attachment("Subject: in\r\n\r\nü".encode(), "message/rfc822")


def types(data: bytes) -> list[str]:
    return [str(part.content_type) for part in parse(data).walk()]


def test_all_at_once_reads_back() -> None:
    text = "Zeile ä\nzwei" + " lang" * 400
    body = Body(text, "<img src='cid:logo@fastmta'>" * 90, [IMAGE], [FILE, ENCLOSED])
    data = compose([FROM, ("Subject", "Grüße " * 30)], body, Options(hostname="mx.test"))
    assert types(data) == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "application/octet-stream",
        "message/rfc822",
        "text/plain",
    ]
    assert data.isascii()
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert b"\n" not in data.replace(b"\r\n", b"")
    root = parse(data)
    assert root.headers.text("subject") == ("Grüße " * 30).strip()
    assert str(root.headers.addresses("from")[0]) == "Jörg <joerg@xn--exmple-cua.test>"
    assert root.headers.get("Message-ID").endswith(b"@mx.test>")
    assert abs((root.headers.date() or datetime.min) - datetime.now(UTC)).total_seconds() < 60
    parts = root.walk()
    assert parts[2].text() == text.replace("\n", "\r\n")
    assert parts[5].decode() == IMAGE.content
    assert parts[5].headers.message_ids("content-id") == ["logo@fastmta"]
    assert (parts[6].decode(), parts[6].filename) == (FILE.content, FILE.filename)


def test_the_standard_library_reads_it() -> None:
    body = Body("tëxt", "<p>html</p>", [IMAGE], [FILE])
    message = message_from_bytes(compose([FROM], body), policy=policy.default)
    assert not any(part.defects for part in message.walk())
    plain = message.get_body(("plain",))
    assert plain is not None and plain.get_content().strip() == "tëxt"
    (attached,) = message.iter_attachments()
    assert attached.get_filename() == "grüße.bin"
    assert attached.get_content() == FILE.content
    assert message["From"].addresses[0].display_name == "Jörg"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (Body(), ["text/plain"]),
        (Body("a"), ["text/plain"]),
        (Body(html="a"), ["text/html"]),
        (Body("a", "b"), ["multipart/alternative", "text/plain", "text/html"]),
        (Body(html="b", inline=[IMAGE]), ["multipart/related", "text/html", "image/png"]),
        (Body("a", attachments=[IMAGE]), ["multipart/mixed", "text/plain", "image/png"]),
    ],
)
def test_no_more_structure_than_is_needed(body: Body, expected: list[str]) -> None:
    assert types(compose([FROM], body)) == expected


@pytest.mark.parametrize(
    ("text", "options", "encoding"),
    [
        ("plain", Options(), "7bit"),
        ("one ü among many letters of a text", Options(), "quoted-printable"),
        ("всё по-русски", Options(), "base64"),
        ("всё по-русски", Options(eight_bit=True), "8bit"),
        ("x" * 998, Options(), "7bit"),
        ("x" * 999, Options(), "quoted-printable"),
        ("ü" * 500, Options(eight_bit=True), "base64"),
        ("a\0", Options(), "base64"),
    ],
)
def test_encodings(text: str, options: Options, encoding: str) -> None:
    part = parse(compose([FROM], Body(text), options))
    assert (part.encoding, part.text()) == (encoding, text)


def test_given_fields_are_kept() -> None:
    when = datetime(2026, 4, 7, 10, tzinfo=UTC)
    fields = [FROM, ("date", when), ("message-id", "<x@y>"), ("MIME-VERSION", "1.0")]
    names = [name.lower() for name, _ in parse(compose(fields, Body("a"))).headers]
    assert names == [
        "from", "date", "message-id", "mime-version", "content-type", "content-transfer-encoding"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Subject", "a\r\nBcc: evil@example.test"),
        ("Subject", "a\nb"),
        ("Subject", "a\0"),
        ("Sub ject", "a"),
        ("Subject:", "a"),
        ("", "a"),
        ("To", [EmailAddress("", "jörg", "b")]),
        ("To", [EmailAddress("", "a", "b>\r\nX: y")]),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        write_field(name, value)  # type: ignore[arg-type]


def test_what_cannot_be_attached_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be attached"):
        compose([FROM], Body(attachments=[Attachment(b"", "multipart/mixed")]))


def test_utf8_fields() -> None:
    field = write_field("To", [EmailAddress("Jörg", "jörg", "exämple.test")], utf8=True)
    assert field == "To: Jörg <jörg@exämple.test>\r\n".encode()
    group = EmailAddressGroup("Frühling", [EmailAddress("", "a", "b")])
    assert write_field("To", [group], utf8=True) == "To: Frühling: a@b;\r\n".encode()


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=300))
def test_any_subject_reads_back(text: str) -> None:
    field = write_field("Subject", text)
    assert all(len(line) <= 998 for line in field.split(b"\r\n"))
    subject = parse(field).headers.text("subject")
    assert subject.split() == text.split() if text.isascii() else subject == text.strip(" \t")


def test_a_word_without_an_end_is_cut() -> None:
    field = write_field("Subject", "x" * 5000)
    assert max(map(len, field.split(b"\r\n"))) <= 998
    assert parse(field).headers.text("subject") == "x" * 5000
