"""What an SMTP server says: replies out of bytes, and what its EHLO reply offers.

The server is not trusted: what it can make us hold is bounded. (That its words hold no
controls, and so may be shown, is parse_reply_line's work.)
"""

from msgspec import Struct

from fastmta._core.smtp import parse_reply_line
from fastmta.mail.reply import Reply

# RFC 5321 section 4.5.3.1.5 says 512 octets a line; real hosts send more.
MAX_LINE = 2048
MAX_LINES = 100
MAX_TEXT = 1000  # characters that are kept


class BadReply(ValueError):
    """The server breaks the protocol; nothing that it says after this can be understood."""


class ReplyReader:
    """Bytes in through `feed`, whole replies out through `next` (RFC 5321 section 4.2)."""

    __slots__ = ("_code", "_enhanced", "_pending", "_tail", "lines")

    def __init__(self) -> None:
        self.lines: list[str] = []  # the text of the newest reply, uncut
        self._pending: list[bytes] = []  # whole lines, the next one last
        self._tail = b""  # a line whose end has not come yet
        self._code = 0  # of the reply whose last line has not come yet
        self._enhanced = ""

    @property
    def has_more(self) -> bool:
        """Something was fed that `next` has not given yet, if only the beginning of a line."""
        return bool(self._pending or self._tail or self._code)

    def feed(self, data: bytes) -> None:
        """More of what the server sent; what came before must have been read with `next`."""
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        lines.reverse()
        self._pending = lines

    def next(self) -> Reply | None:
        """The next reply, None where the rest of it is still to come; raises BadReply."""
        while self._pending:
            if self._read(self._pending.pop()):
                return self._reply()
        if len(self._tail) > MAX_LINE:
            raise BadReply("reply line without end")
        return None

    def _read(self, line: bytes) -> bool:
        """Take in one line; True for the last of a reply."""
        if len(line) > MAX_LINE:
            raise BadReply("reply line too long")
        try:
            # A bare LF ends a line too: here nothing can be smuggled by it.
            code, last, enhanced, text = parse_reply_line(line.removesuffix(b"\r"))
        except ValueError:
            raise BadReply(f"no reply: {line[:100]!r}") from None
        if not self._code:
            self.lines, self._code, self._enhanced = [text], code, enhanced
            return last
        if code != self._code:  # section 4.2.1: the same on every line
            raise BadReply(f"reply changes its code from {self._code} to {code}")
        if len(self.lines) >= MAX_LINES:
            raise BadReply("reply of too many lines")
        self.lines.append(text)
        return last

    def _reply(self) -> Reply:
        lines = self.lines
        text = lines[0] if len(lines) == 1 else "\n".join(lines)
        reply = Reply(self._code, self._enhanced, text[:MAX_TEXT])
        self._code = 0
        return reply


class Capabilities(Struct, frozen=True):
    """What a server's EHLO reply offers."""

    pipelining: bool = False  # RFC 2920
    chunking: bool = False  # RFC 3030
    eight_bit: bool = False  # RFC 6152
    utf8: bool = False  # RFC 6531
    dsn: bool = False  # RFC 3461
    size: int | None = None  # RFC 1870; 0: no limit is told, None: not offered
    starttls: bool = False  # RFC 3207
    requiretls: bool = False  # RFC 8689

    @classmethod
    def parse(cls, lines: list[str]) -> "Capabilities":
        """From the lines of an EHLO reply after its first (RFC 5321 section 4.1.1.1)."""
        offered = {}
        for line in lines:
            keyword, _, parameter = line.partition(" ")
            offered[keyword.upper()] = parameter.strip()
        return cls(
            pipelining="PIPELINING" in offered,
            chunking="CHUNKING" in offered,
            eight_bit="8BITMIME" in offered,
            utf8="SMTPUTF8" in offered,
            dsn="DSN" in offered,
            size=_size(offered["SIZE"]) if "SIZE" in offered else None,
            starttls="STARTTLS" in offered,
            requiretls="REQUIRETLS" in offered,
        )


def _size(parameter: str) -> int:
    """RFC 1870 section 4: at most 20 digits; what is no number tells of no limit."""
    known = parameter.isascii() and parameter.isdigit() and len(parameter) <= 20
    return int(parameter) if known else 0


def too_many_is_temporary(reply: Reply) -> Reply:
    """RFC 5321 section 4.5.3.1.10: old servers say 552 for "too many recipients", meaning 452."""
    if reply.code == 552 and reply.enhanced in ("", "5.5.3"):
        return Reply(452, "4.5.3", reply.text)
    return reply
