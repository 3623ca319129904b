"""The SMTP reply: what one side answers to the other."""

from msgspec import Struct


class Reply(Struct, frozen=True, array_like=True):
    """A reply code (RFC 5321 section 4.2) with its enhanced status code (RFC 3463) and text.

    `text` holds the lines of a multi-line reply joined by LF, without codes. `enhanced` is
    empty where the peer sent none.
    """

    code: int
    enhanced: str
    text: str

    def __bytes__(self) -> bytes:
        """The reply as it goes over the wire, CRLF included (RFC 5321 section 4.2.1)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = self.text.split("\n")
        last = len(lines) - 1
        return "".join(
            f"{self.code}{'-' if i < last else ' '}{prefix}{line}\r\n"
            for i, line in enumerate(lines)
        ).encode("utf-8", "surrogateescape")

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, *self.text.split("\n"))))

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500
