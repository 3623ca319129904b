"""A message as a tree of parts (RFC 2045, RFC 2046): offsets into its octets, decoded on demand."""

from fastmta._core.body import count_lines
from fastmta._core.mime import LEAF, MESSAGE, Node, structure
from fastmta.mail import charset, content, transfer
from fastmta.mail.content import ContentDisposition, ContentType
from fastmta.mail.headers import Headers

_ENCLOSED = ("message/rfc822", "message/global")


class Part(Node):
    """A message or body part; `parts` are those of a multipart, or the message inside.

    `start`, `header_end`, `body_start` and `end` are offsets into `data`, the whole message.
    """

    __slots__ = ()

    @property
    def headers(self) -> Headers:
        return self.section(Headers)

    @property
    def is_multipart(self) -> bool:
        return bool(self.parts) and self.kind != MESSAGE

    @property
    def content_type(self) -> ContentType:
        """As its header or the default says (RFC 2045 section 5.2, RFC 2046 section 5.1.5)."""
        if self.type_start < 0:
            return content.DEFAULT if self.kind != MESSAGE else content.DEFAULT_IN_DIGEST
        value = self.data[self.type_start : self.type_end]
        return content.parse_content_type(value) or content.DEFAULT

    @property
    def disposition(self) -> ContentDisposition | None:
        value = self.headers.get("Content-Disposition")
        return content.parse_content_disposition(value) if value else None

    @property
    def filename(self) -> str:
        """From Content-Disposition, or else the older name parameter of Content-Type."""
        disposition = self.disposition
        name = disposition.filename if disposition else ""
        return name or self.content_type.parameters.get("name", "")

    @property
    def encoding(self) -> str:
        """The content transfer encoding, in lower case (RFC 2045 section 6.1: 7bit if missing)."""
        if self.encoding_start < 0:
            return transfer.Encoding.SEVEN_BIT
        return transfer.parse_encoding(self.data[self.encoding_start : self.encoding_end])

    @property
    def body(self) -> memoryview:
        """The body as it stands in the message, not decoded and not copied."""
        return memoryview(self.data)[self.body_start : self.end]

    @property
    def size(self) -> int:
        """Octets of the body as it stands."""
        return self.end - self.body_start

    @property
    def lines(self) -> int:
        """Lines of the body as it stands."""
        return count_lines(self.data, self.body_start, self.end)

    def decode(self) -> bytes:
        """The body with its transfer encoding undone; composite types have none to undo."""
        encoding = self.encoding if self.kind == LEAF else transfer.Encoding.SEVEN_BIT
        return transfer.decode(self.data, self.body_start, self.end, encoding)

    def text(self) -> str:
        """The body as text of its charset; never an error."""
        return charset.decode(self.decode(), self.content_type.parameters.get("charset", ""))

    def message(self) -> "Part | None":
        """The message that a message/rfc822 or message/global part encloses.

        RFC 2046 section 5.2.1 forbids to encode it, but it is done: such a one is parsed anew.
        """
        if self.kind == MESSAGE:
            return self.parts[0]
        if not self.parts and str(self.content_type) in _ENCLOSED:
            return parse(self.decode())
        return None


def parse(data: bytes) -> Part:
    """The tree of any octets at all; at most 10,000 parts, at most 100 deep."""
    return structure(data, Part)
