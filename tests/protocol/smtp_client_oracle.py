"""An SMTP client in plain Python, from RFC 5321, 2033, 2920 and 3030: what comes of what it hears.

It is told one reply after another, says which commands it has sent by then, and what became of
each recipient.
"""

from collections.abc import Generator, Iterator

from msgspec import Struct

from fastmta.protocol.smtp_reply import MAX_LINE, MAX_LINES
from tests.core import wire_oracles as wire

Hears = Generator[None, "Heard", None]


class Heard(Struct):
    """A whole reply; code 0 for what is none."""

    code: int
    enhanced: str = ""
    lines: list[str] = []

    @property
    def is_old_word_for_too_many(self) -> bool:
        """RFC 5321 section 4.5.3.1.10: 552 was once what 452 is."""
        return self.code == 552 and self.enhanced in ("", "5.5.3")


def spoken(data: bytes) -> Iterator[tuple[Heard, bytes]]:
    """Each whole reply with its octets; at the end code 0, where what follows is none."""
    *lines, rest = data.split(b"\n")
    texts: list[str] = []
    octets, begun = b"", (0, "")
    for line in lines:
        octets += line + b"\n"
        read = None if len(line) > MAX_LINE else wire.reply_line(line.removesuffix(b"\r"))
        if read is None or (texts and (read[0] != begun[0] or len(texts) == MAX_LINES)):
            yield Heard(0), octets
            return
        begun = begun if texts else (read[0], read[2])
        texts.append(read[3])
        if read[1]:
            yield Heard(*begun, texts), octets
            octets, texts = b"", []
    if len(rest) > MAX_LINE:
        yield Heard(0), octets + rest


class Lost(Exception):
    """The connection is of no more use; what is open ends with this code."""


class Oracle:
    """One connection: the commands it sends, and the codes of each transaction's recipients."""

    def __init__(self, *, lmtp: bool, tls: str, recipients: int, streamed: bool) -> None:
        self.lmtp, self.tls, self.streamed = lmtp, tls, streamed
        self.count = recipients
        self.sent: list[str] = []
        self.ended: list[list[int]] = []
        self.offered: set[str] = set()
        self.codes: list[int] | None = None  # while a transaction is open
        self.closed = False
        self.running = self.session()
        next(self.running)

    def hear(self, heard: Heard) -> None:
        try:
            if heard.code in (0, 421):  # RFC 5321 section 3.8: to any command, or to none
                raise Lost(heard.code or 451)
            self.running.send(heard)
        except Lost as lost:
            self.lose(*lost.args)

    def lose(self, code: int) -> None:
        self.closed = True
        self.running.close()
        if self.codes is not None:
            self.rest(code)
            self.ended.append(self.codes)
            self.codes = None

    def expect(self, *kinds: int) -> Generator[None, Heard, Heard]:
        """The next reply, whose first digit is one of these, 4 or 5."""
        heard = yield
        if heard.code // 100 not in (*kinds, 4, 5):
            raise Lost(451)
        return heard

    def say(self, *commands: str) -> None:
        self.sent += commands

    # The session.

    def session(self) -> Hears:
        heard = yield from self.expect(2)
        self.proceed_with(heard)
        yield from self.hello()
        if self.tls != "none":
            yield from self.starttls()
        while True:
            yield from self.transaction()

    def proceed_with(self, heard: Heard) -> None:
        """Somebody who wants mail, and is not us."""
        name = ("\n".join(heard.lines).split() or [""])[0].rstrip(".").lower()
        if heard.code >= 400 or (name == "me.test" and not self.lmtp):
            self.say("QUIT")
            raise Lost(0)

    def hello(self) -> Hears:
        self.say("LHLO" if self.lmtp else "EHLO")
        heard = yield from self.expect(2)
        self.offered = set()
        if heard.code >= 500 and not self.lmtp:
            self.say("HELO")
            heard = yield from self.expect(2)
        elif heard.code < 400:
            self.offered = {line.partition(" ")[0].upper() for line in heard.lines[1:]}
        self.proceed_with(heard)

    def starttls(self) -> Hears:
        if "STARTTLS" in self.offered:
            self.say("STARTTLS")
            heard = yield from self.expect(2)
            if heard.code < 400:
                self.tls = "none"
                return (yield from self.hello())
        if self.tls != "opportunistic":
            self.say("QUIT")
            raise Lost(0)
        return None

    def transaction(self) -> Hears:
        self.codes = [0] * self.count
        if "PIPELINING" in self.offered:
            reset = yield from self.group()
        else:
            reset = yield from self.one_by_one()
        self.ended.append(self.codes)
        self.codes = None
        if reset:
            self.say("RSET")
            heard = yield from self.expect(2)
            if heard.code >= 400:
                raise Lost(0)

    def rest(self, code: int) -> None:
        assert self.codes is not None
        self.codes = [each or code for each in self.codes]

    def on_rcpt(self, at: int, heard: Heard) -> None:
        """A no is final; a yes waits for the end of the data."""
        assert self.codes is not None
        if heard.code >= 400 and not self.codes[at]:
            self.codes[at] = 452 if heard.is_old_word_for_too_many else heard.code

    @property
    def accepted(self) -> list[int]:
        assert self.codes is not None
        return [at for at, code in enumerate(self.codes) if not code]

    def one_by_one(self) -> Generator[None, Heard, bool]:
        self.say("MAIL")
        heard = yield from self.expect(2)
        if heard.code >= 400:
            self.rest(heard.code)
            return True
        for at in range(self.count):
            self.say("RCPT")
            self.on_rcpt(at, (yield from self.expect(2)))
        if not self.accepted:
            return True
        return (yield from self.content())

    def group(self) -> Generator[None, Heard, bool]:
        """RFC 2920: a large body waits for the replies to RCPT, any other follows at once."""
        self.say("MAIL", *["RCPT"] * self.count)
        if not self.streamed:
            self.say("BDAT" if "CHUNKING" in self.offered else "DATA")
        heard = yield from self.expect(2)
        if heard.code >= 400:
            self.rest(heard.code)
        for at in range(self.count):
            self.on_rcpt(at, (yield from self.expect(2)))
        if not self.streamed:
            return (yield from self.content(said=True))
        if not self.accepted:
            return True
        return (yield from self.content())

    def content(self, said: bool = False) -> Generator[None, Heard, bool]:
        if "CHUNKING" in self.offered:
            self.say(*[] if said else ["BDAT"])
            heard = yield from self.whole(2)
            return heard.code >= 400
        self.say(*[] if said else ["DATA"])
        heard = yield from self.expect(3)
        if heard.code >= 400:
            self.rest(heard.code)
            return True
        if self.lmtp and not self.accepted:  # RFC 2033 section 4.2
            raise Lost(451)
        self.say(".")
        yield from self.whole(2)
        return False

    def whole(self, *kinds: int) -> Generator[None, Heard, Heard]:
        """The reply to the end of the content; over LMTP one for each who was accepted."""
        for at in self.accepted[:-1] if self.lmtp else ():
            assert self.codes is not None
            self.codes[at] = (yield from self.expect(*kinds)).code
        heard = yield from self.expect(*kinds)
        self.rest(heard.code)
        return heard
