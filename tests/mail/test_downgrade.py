from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.compose import Attachment, Body, compose
from fastmta.mail.downgrade import Unconvertible, to_seven_bit
from fastmta.mail.message import parse

MIXED = (
    "From: a@b\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n"
    "Content-Type: multipart/mixed; boundary=x\r\n\r\npreämble\r\n"
    "--x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    "mostly plain text with one ü in it\r\n"
    "--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nвсё по-русски\r\n"
    "--x\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n"
    "--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: inside\r\n\r\nü\r\n"
    "--x--\r\nepilögue"
).encode()

SIGNED = (
    b"Content-Type: multipart/signed; boundary=s\r\n\r\n"
    b"--s\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit\r\n\r\nseven bits  \r\n"
    b"--s\r\nContent-Type: application/pgp-signature\r\n\r\nsignature\r\n--s--\r\n"
)


def decoded(data: bytes) -> list[bytes]:
    return [part.decode() for part in parse(data).walk() if not part.parts]


def test_each_part_keeps_its_octets() -> None:
    result = to_seven_bit(MIXED)
    assert result.isascii()
    assert decoded(result) == decoded(MIXED)
    parts = parse(result).walk()
    assert [part.encoding for part in parts] == [
        "7bit",
        "quoted-printable",
        "base64",
        "base64",
        "7bit",
        "base64",
    ]
    assert b"pre??mble" in result and b"epil??gue" in result
    inside = parse(result).parts[3].message()
    assert inside and inside.headers.get("MIME-Version") == b"1.0"
    assert str(inside.content_type) == "text/plain"
    assert inside.content_type.parameters == {"charset": "utf-8"}


def test_the_standard_library_reads_the_same() -> None:
    message = message_from_bytes(to_seven_bit(MIXED), policy=policy.default)
    parts = [part for part in message.walk() if part.get_content_type() == "text/plain"]
    texts = [part.get_content() for part in parts]
    assert texts[0].strip() == "mostly plain text with one ü in it"
    assert texts[1].strip() == "всё по-русски"


def test_what_has_seven_bits_is_the_same_object() -> None:
    assert to_seven_bit(SIGNED) is SIGNED


def test_a_signed_part_of_seven_bits_is_left_alone() -> None:
    head = b"Content-Type: multipart/mixed; boundary=o\r\n\r\n"
    outer = head + b"--o\r\n%b\r\n--o\r\n\r\n\xc3\xbc\r\n--o--"
    result = to_seven_bit(outer % SIGNED)
    assert SIGNED in result
    assert result.isascii()


def test_a_message_global_is_encoded_with_its_header() -> None:
    """RFC 6532 section 3.7, and a signature inside it stays what it was."""
    inside = "Subject: ü\r\n".encode() + SIGNED.replace(b"seven", "sèven".encode())
    head = b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n"
    data = head + b"Content-Type: message/global\r\n\r\n" + inside + b"\r\n--o--\r\n"
    result = to_seven_bit(data)
    assert result.isascii()
    enclosed = parse(result).parts[0].message()
    assert enclosed is not None and enclosed.data == inside
    assert enclosed.headers.text("Subject") == "ü"


EIGHT_SIGNED = SIGNED.replace(b"seven", "sèven".encode())


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (EIGHT_SIGNED, "signed"),
        (b"Content-Type: message/rfc822\r\n\r\n" + EIGHT_SIGNED, "signed"),
        (SIGNED + "epilögue".encode(), "signed"),
        ("Content-Type: multipart/x; boundary=ö\r\n\r\n--ö\r\n\r\n".encode(), "boundary"),
        (b"Content-Type: message/rfc822\r\n\r\n" * 101 + b"\xff", "deeper"),
    ],
)
def test_what_may_not_be_changed_is_refused(message: bytes, why: str) -> None:
    with pytest.raises(Unconvertible, match=why):
        to_seven_bit(message)


def test_what_may_not_be_changed_is_not_attached_either() -> None:
    enclosed = Attachment(EIGHT_SIGNED, "message/rfc822")
    with pytest.raises(Unconvertible):
        compose([], Body(attachments=[enclosed]))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # A message that is all body gets a header section.
        (
            b"\xff" * 6,
            b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n////////\r\n",
        ),
        # Octets above 127 mean nothing in base64, and are quoted in quoted-printable.
        (
            b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nAA\xffEC",
            b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC",
        ),
        (
            b"A: b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3\xbc",
            b"A: b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC",
        ),
        # A multipart without parts may not be encoded, so it becomes text.
        (
            b"MIME-Version: 1.0\r\nContent-Type: multipart/x\r\nA: b\r\n\r\n\xff\xff\xff",
            b"MIME-Version: 1.0\r\nA: b\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n////\r\n",
        ),
    ],
)
def test_odd_messages(message: bytes, expected: bytes) -> None:
    assert to_seven_bit(message) == expected


PIECES = [*MIXED.splitlines(keepends=True), b"\r\n", b"\xff", b"--x\r\n", b"\xe4: b\r\n"]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_no_body_keeps_an_octet_above_127(data: bytes) -> None:
    result = to_seven_bit(data)
    for part in parse(result).walk():
        assert bytes(part.body).isascii() or part.parts
    assert to_seven_bit(result) == result or not result.isascii()
