"""A message composed from header fields, text, HTML, images and attachments (RFC 2045, 2046)."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from fastmta.mail import downgrade, transfer
from fastmta.mail.fields import FieldValue, write_field
from fastmta.mail.parameters import encode_parameter
from fastmta.mail.transfer import Encoding


class Attachment(Struct, frozen=True):
    """Content that goes with a message; with a `content_id`, HTML shows it as `cid:` URL."""

    content: bytes
    type: str = "application/octet-stream"
    filename: str = ""
    content_id: str = ""  # without angle brackets


class Body(Struct, frozen=True):
    """What a message says. With neither text nor HTML it has an empty text."""

    text: str | None = None
    html: str | None = None
    inline: Sequence[Attachment] = ()  # shown inside the HTML
    attachments: Sequence[Attachment] = ()


class Options(Struct, frozen=True):
    """What the way to the reader allows; by default no extension of SMTP is needed."""

    eight_bit: bool = False  # 8BITMIME (RFC 6152)
    utf8: bool = False  # SMTPUTF8 (RFC 6531)
    hostname: str = "localhost"  # right side of a Message-ID that is made


class _Entity(Struct, frozen=True):
    """Content fields and the body behind them, not yet joined."""

    fields: list[bytes]
    chunks: list[bytes]

    def all(self) -> list[bytes]:
        return [*self.fields, b"\r\n", *self.chunks]


def compose(
    fields: Sequence[tuple[str, FieldValue]], body: Body, options: Options | None = None
) -> bytes:
    """The message with CRLF line ends, none longer than 998 octets.

    Fields come in the order given; Date, Message-ID and MIME-Version are added if they are
    missing. ValueError for a field that cannot be written (see `write_field`), and for an enclosed
    message that cannot be had in seven bits where it must be.
    """
    options = options or Options()
    entity = _mixed(body, options)
    head = [write_field(name, value, options.utf8) for name, value in fields]
    given = {name.lower() for name, _ in fields}
    if "date" not in given:
        head.append(write_field("Date", datetime.now(UTC)))
    if "message-id" not in given:
        head.append(write_field("Message-ID", f"<{secrets.token_hex(16)}@{options.hostname}>"))
    if "mime-version" not in given:
        head.append(b"MIME-Version: 1.0\r\n")
    return b"".join(head + entity.all())


def _mixed(body: Body, options: Options) -> _Entity:
    shown = _alternative(body, options)
    if not body.attachments:
        return shown
    attached = [_attached(item, "attachment", options) for item in body.attachments]
    return _multipart("mixed", [shown, *attached])


def _alternative(body: Body, options: Options) -> _Entity:
    """RFC 2046 section 5.1.4: in increasing order of preference."""
    if body.html is None:
        return _text("plain", body.text or "", options)
    html = _related(body.html, body.inline, options)
    if body.text is None:
        return html
    return _multipart("alternative", [_text("plain", body.text, options), html])


def _related(html: str, inline: Sequence[Attachment], options: Options) -> _Entity:
    root = _text("html", html, options)
    if not inline:
        return root
    images = [_attached(item, "inline", options) for item in inline]
    # RFC 2387 section 3.1: the type of the root is told.
    return _multipart("related", [root, *images], 'type="text/html"')


def _multipart(subtype: str, entities: list[_Entity], *parameters: str) -> _Entity:
    # "=_" is in no quoted-printable or base64 line; the rest is beyond chance in any other.
    boundary = f"=_{secrets.token_hex(16)}"
    delimiter = f"--{boundary}\r\n".encode()
    chunks: list[bytes] = []
    for entity in entities:
        chunks += [delimiter, *entity.all(), b"\r\n"]
    chunks.append(f"--{boundary}--\r\n".encode())
    kind = "; ".join([f"multipart/{subtype}", *parameters, f'boundary="{boundary}"'])
    return _Entity([write_field("Content-Type", kind)], chunks)


def _text(subtype: str, text: str, options: Options) -> _Entity:
    """RFC 2046 section 4.1.1: the line end of text is CRLF."""
    content = "\r\n".join(text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).encode()
    charset = "us-ascii" if content.isascii() else "utf-8"
    encoding = transfer.choose(content, options.eight_bit)
    kind = write_field("Content-Type", f"text/{subtype}; charset={charset}")
    return _encoded([kind], content, encoding)


def _attached(item: Attachment, disposition: str, options: Options) -> _Entity:
    kind, where = item.type, disposition
    if item.filename:
        where += "; " + encode_parameter("filename", item.filename)
    fields = [write_field("Content-Type", kind), write_field("Content-Disposition", where)]
    if item.content_id:
        fields.append(write_field("Content-ID", f"<{item.content_id}>"))
    return _encoded(fields, *_content(item, options))


def _content(item: Attachment, options: Options) -> tuple[bytes, Encoding]:
    kind = item.type.lower().partition(";")[0].strip()
    if kind.startswith("multipart/"):
        raise ValueError(f"a {kind} cannot be attached: it has no encoding of its own")
    content = item.content
    if kind == "message/rfc822":
        # RFC 2046 section 5.2.1: an enclosed message is not encoded; what is inside it may be.
        if not options.eight_bit:
            content = downgrade.to_seven_bit(content)
        return content, Encoding.SEVEN_BIT if content.isascii() else Encoding.EIGHT_BIT
    # RFC 6532 section 3.7: a message/global may be encoded as a whole.
    if kind.startswith("text/") or kind == "message/global":
        return content, transfer.choose(content, options.eight_bit)
    return content, Encoding.BASE64


def _encoded(fields: list[bytes], content: bytes, encoding: Encoding) -> _Entity:
    mechanism = write_field("Content-Transfer-Encoding", encoding)
    return _Entity([*fields, mechanism], [transfer.encode(content, encoding)])
