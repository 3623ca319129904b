"""What is fuzzed of SMTP: lines, paths, content, and whole dialogues of server and client.

Of a dialogue the first two octets choose the policy and the pieces, the rest is what the peer says.
"""

import re
from collections.abc import Iterator
from zlib import crc32

from fastmta._core import smtp
from fastmta._core.data import BARE_NEWLINE, NO_FAULT, DataScanner, Stuffer
from fastmta._core.lines import BareLineFeed, LineBuffer, LineTooLong
from fastmta.mail.address import is_domain, is_mailbox
from fastmta.mail.reply import Reply
from fastmta.protocol.sasl import Password
from fastmta.protocol.smtp_machine import HANDSHAKE, Event
from fastmta.protocol.smtp_question import Question, Step
from fastmta.protocol.smtp_reply import MAX_LINE, MAX_LINES, MAX_TEXT, BadReply, ReplyReader
from tests.core import wire_oracles as wire
from tests.protocol.dialogue import Dialogue
from tests.protocol.pop3_dialogue import WRONG, OpenDoor
from tests.protocol.pop3_oracle import NAME, PASSWORD
from tests.protocol.smtp_oracle import Oracle, Taken

LIMIT = 24
_ERRORS = {BareLineFeed: wire.BareFeed, LineTooLong: wire.TooLong}


def cut(data: bytes) -> list[bytes]:
    """In pieces of a size that the data choose, now and then single octets."""
    size = 1 + crc32(data) % 17
    return [data[at : at + size] for at in range(0, len(data), size)]


# Lines.


def fuzz_smtp_lines(data: bytes) -> None:
    expected = wire.lines_of(data, LIMIT)
    for pieces in ([data], cut(data)):
        buffer, found = LineBuffer(LIMIT), []
        for piece in pieces:
            buffer.feed(piece)
            found += _lines(buffer)
            assert len(buffer) <= LIMIT
        assert found == expected


def _lines(buffer: LineBuffer) -> Iterator[wire.Line]:
    while True:
        try:
            line = buffer.next_line()
        except (BareLineFeed, LineTooLong) as error:
            yield _ERRORS[type(error)]
            continue
        if line is None:
            return
        yield line


def fuzz_smtp_command(data: bytes) -> None:
    verb, argument = wire.command(data)
    code = smtp.MALFORMED if verb == "?" else getattr(smtp, verb or "UNKNOWN")
    assert smtp.parse_command(data) == (code, argument)
    for parse, word in ((smtp.parse_mail, b"FROM:"), (smtp.parse_rcpt, b"TO:")):
        for said in (argument, word + argument):
            assert _path(parse, said) == wire.path(said, word)


def _path(parse: object, argument: bytes) -> wire.Path | None:
    try:
        address, ascii_only, parameters = parse(argument)
    except ValueError:
        return None
    assert ascii_only == argument.isascii()
    return address, parameters or {}


def fuzz_smtp_mailbox(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert is_mailbox(text) == wire.is_mailbox(text)
    domain = re.fullmatch(rf"{wire.DOMAIN}|\[[^\]]*\]", text)
    assert is_domain(text) == (domain is not None and wire.is_domain(text))


def fuzz_smtp_reply(data: bytes) -> None:
    expected = _replies(data)
    for pieces in ([data], cut(data)):
        reader, found = ReplyReader(), []
        try:
            for piece in pieces:
                reader.feed(piece)
                while reply := reader.next():
                    found.append((reply.code, reply.enhanced, reply.text))
        except BadReply:
            found.append(None)
        assert found == expected


def _replies(data: bytes) -> list[tuple[int, str, str] | None]:
    """Each whole reply, and None where what follows breaks the protocol."""
    found: list[tuple[int, str, str] | None] = []
    texts: list[str] = []
    begun = (0, "")
    *lines, rest = data.split(b"\n")
    for line in lines:
        read = None if len(line) > MAX_LINE else wire.reply_line(line.removesuffix(b"\r"))
        if read is None or (texts and (read[0] != begun[0] or len(texts) == MAX_LINES)):
            return [*found, None]
        begun = begun if texts else (read[0], read[2])
        texts.append(read[3])
        if read[1]:
            found.append((*begun, "\n".join(texts)[:MAX_TEXT]))
            texts = []
    return [*found, None] if len(rest) > MAX_LINE else found


# Content.


def fuzz_smtp_data(data: bytes) -> None:
    wire_form, end = data + wire.END, wire.end_of_data(data + wire.END)
    content = wire.unstuffed(wire_form[: end - 3])
    for normalise in (False, True):
        bare = wire.has_bare_newline(content)
        for pieces in ([wire_form], cut(wire_form)):
            scanner = DataScanner(1 << 20, 1 << 20, normalise)
            assert _scan(scanner, pieces) == end
            if bare and not normalise:
                assert scanner.fault == BARE_NEWLINE
                continue
            expected = wire.normalised(content) if normalise else content
            assert scanner.fault == NO_FAULT
            assert scanner.received == wire.count_received(expected)
            assert scanner.eight_bit == (not content.isascii())
            assert scanner.size == scanner.held == len(expected)
            assert b"".join(scanner.take()) == expected
    for pieces in ([data], cut(data)):
        stuffer = Stuffer()
        assert b"".join(map(stuffer.feed, pieces)) + stuffer.finish() == wire.stuffed(data)


def _scan(scanner: DataScanner, pieces: list[bytes]) -> int:
    before = 0
    for piece in pieces:
        end = scanner.feed(piece)
        if end >= 0:
            return before + end
        before += len(piece)
    return -1


# A dialogue with the server.

Outcome = tuple[list[int], list[Taken], bool]  # codes of all replies, messages, whether it closed

_LAST = re.compile(rb"(?i)EHLO|HELO|DATA|AUTH|STARTTLS|XCLIENT")  # wherever a chunk ends
_BEGIN = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
_EVERY = frozenset(Step) - {Step.AUTH, Step.MESSAGE, Step.XCLIENT, Step.CONNECT}


def fuzz_smtp_server(data: bytes) -> None:
    if len(data) < 2:
        return
    choice, how, said = data[0], data[1], data[2:]
    if choice & 128:
        said = b"EHLO a\r\n" + _BEGIN + said
    turns = _turns(said)
    whole = _told(_served(choice, [[turn] for turn in turns]))
    assert _outcome(whole) == _expected(choice, turns)
    # The same in any pieces, and however late somebody answers what the machine waits for.
    assert _told(_served(choice, list(map(cut, turns)), late=how & 1 > 0)) == whole
    if not how & 6:  # without regard to whose turn it is
        pieces = cut(said) if how & 8 else [said]
        told = _told(_served(choice, [[piece] for piece in pieces]))
        assert _outcome(told) == _expected(choice, pieces)


def _turns(said: bytes) -> list[bytes]:
    """As a client sends it that waits where it has to (RFC 2920 section 3.1)."""
    turns = [b""]
    for line in re.findall(rb"[^\n]*\n|[^\n]+", said):
        turns[-1] += line
        if _LAST.search(line):
            turns.append(b"")
    return turns


def _policy(choice: int) -> dict[str, object]:
    return {
        "starttls": bool(choice & 4),
        "needs_login": choice & 24 == 24,
        "normalise": bool(choice & 32),
        "max_message_size": 300,
        "max_header_size": 200,
        "max_recipients": 3,
        "max_hops": 2,
        "max_errors": 12,
        "max_junk": 6,
        "max_line": 120,
    }


def _expected(choice: int, pieces: list[bytes]) -> Outcome:
    dialogue = Dialogue(**_policy(choice))
    oracle = Oracle(
        dialogue.policy, may_relay=bool(choice & 1), tls=bool(choice & 2), login=bool(choice & 8)
    )
    for piece in pieces:
        oracle.hear(piece)
    return oracle.codes, oracle.taken, oracle.closed


class Heard(Dialogue):
    """Takes TLS where it is asked for, and may answer late, once a turn is over."""

    output = b""

    def hear(self, turn: list[bytes], late: bool) -> None:
        for piece in turn:
            self.machine.receive(piece)
            assert self.machine.buffered <= 1 << 12
            if not late or self.machine.state == HANDSHAKE:  # in which nothing is heard
                self.output += self.answer()
        self.output += self.answer()

    def answer(self) -> bytes:
        output = super().answer()
        while self.events and self.events[-1] is Event.STARTTLS:
            self.events.append(Event.DELAY)
            self.machine.started_tls()
            output += super().answer()
        return output


def _served(choice: int, turns: list[list[bytes]], late: bool = False) -> Heard:
    heard = Heard(
        may_relay=bool(choice & 1),
        tls=bool(choice & 2),
        door=OpenDoor("PLAIN") if choice & 8 else None,
        asks=_EVERY if choice & 64 else frozenset(),
        **_policy(choice),
    )
    heard.judge = _judge
    heard.output = heard.greeting
    for turn in turns:
        heard.hear(turn, late)
    heard.machine.lose()
    assert heard.load.held == 0
    return heard


def _judge(question: Question) -> Reply | None:
    right = Password("", NAME.decode(), PASSWORD.decode())
    return WRONG if question.step is Step.AUTH and question.attempt != right else None


def _told(heard: Heard) -> tuple[bytes, list[Taken], bool]:
    taken = [
        Taken(arrival.sender, [each.address for each in arrival.recipients], content)
        for arrival, content in zip(heard.arrivals, heard.content, strict=True)
    ]
    return heard.output, taken, heard.is_closed


def _outcome(told: tuple[bytes, list[Taken], bool]) -> Outcome:
    output, taken, closed = told
    codes = re.findall(rb"(?m)^([2345][0-9]{2}) [^\r\n]*\r\n", output)
    return [*map(int, codes)], taken, closed


PREFIXES = {"smtp_server": 2}
_GREET = [
    *(_BEGIN + b"DATA\r\nSubject: a\r\n\r\n..b\r\n.\r\n", _BEGIN + b"BDAT 3 LAST\r\na\r\n"),
    *(
        b"EHLO a\r\n",
        b"MAIL FROM:<a@b.test>\r\n",
        b"RCPT TO:<c@d.test>\r\n",
        b"EHLO a\r\n" + _BEGIN,
    ),
    *(_BEGIN + b"DATA\r\n", b"EHLO a\r\n" + _BEGIN + b"DATA\r\n", b"DATA\r\n", b"\r\n.\r\n"),
    *(
        b"EHLO a\r\n" + _BEGIN + b"BDAT 6\r\nabcd\r\n",
        b"AUTH PLAIN AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==\r\n",
    ),
]
_LINES = [
    *(
        b"HELO [1.2.3.4]\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"QUIT\r\n",
        b"HELP x\r\n",
        b"VRFY a\r\n",
        b"VRFY\r\n",
    ),
    *(
        b"EXPN a\r\n",
        b"STARTTLS\r\n",
        b"XCLIENT ADDR=1.2.3.4\r\n",
        b"FROB\r\n",
        b"\r\n",
        b"DATA\r\n" * 1,
    ),
    *(
        b"AUTH PLAIN\r\n",
        b"AUTH PLAIN AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==\r\n",
        b"AUTH PLAIN =\r\n",
        b"*\r\n",
    ),
    *(
        b"AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==\r\n",
        b"AUTH LOGIN\r\n",
        b"AUTH PLAIN x\r\n",
        b"EHLO a b\r\n",
    ),
    *(
        b"BDAT 0\r\n",
        b"BDAT 5\r\n",
        b"BDAT 4 LAST\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT -1\r\n",
        b"BDAT 2  last\r\nab",
    ),
    *(
        b"MAIL FROM:<> SIZE=9 BODY=8BITMIME\r\n",
        b"MAIL FROM:<a@b.test> SIZE=301\r\n",
        b"mail from:<>\r\n",
    ),
    *(b"RCPT TO:<Postmaster>\r\n", b"RCPT TO:<@x,@y:c@d.test> NOTIFY=NEVER\r\n", b"RCPT TO:<>\r\n"),
    *(
        b"MAIL FROM:<a@b.test> SMTPUTF8\r\n",
        b"RCPT TO:<\xc3\xbc@b\xc3\xbc.test>\r\n",
        b"rcpt to: <c@d.test>\r\n",
    ),
    *(b"MAIL FROM:<a@b.test> REQUIRETLS RET=HDRS\r\n", b"MAIL FROM:<a@b.test> X=1\r\n"),
]
_CONTENT = [
    *(
        b"Subject: a\r\n\r\n",
        b"Received: x\r\n",
        b"text\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"..\r\n",
        b".x\r\n",
    ),
    *(
        b"\n.\n",
        b"\r.\r",
        b"\r\n.\n",
        b"\n.\r\n",
        b"\r\n\0.\r\n",
        b"\r",
        b"\n",
        b"\xc3\xbc",
        b"x" * 70,
        b"\0",
    ),
]
_ARGUMENTS = [
    *(
        b"MAIL FROM:",
        b"RCPT TO:",
        b"from:",
        b"TO:",
        b"EHLO ",
        b"<",
        b">",
        b"<a@b.test>",
        b"<>",
        b"@",
        b":",
        b",",
    ),
    *(
        b"<@c.test,@[1.2.3.4]:a@b.test>",
        b'"a b"@c',
        b'"\\',
        b'"',
        b"\\",
        b"[IPv6:::1]",
        b"[192.0.2.1]",
        b"[",
        b"]",
    ),
    *(
        b"postmaster",
        b" ",
        b"  ",
        b" SIZE=1",
        b" BODY=7BIT",
        b" SMTPUTF8",
        b" X-1",
        b"=",
        b" ENVID=a+2B",
        b".",
    ),
    *(
        b"\xc3\xbc",
        b"\xe4\xbe\x8b",
        b"\xc2\x85",
        b"\xff",
        b"\x7f",
        b"\0",
        b"-",
        b"_",
        b"a",
        b"x" * 63,
        b"y." * 31,
    ),
    *(
        b"IPv6:",
        b"a@b",
        b"1",
        b"QUIT",
        b"starttls",
        b"NOOP",
        b" NOTIFY=SUCCESS,DELAY",
        b" ORCPT=rfc822;a",
    ),
]
PIECES = {
    "smtp_lines": [
        b"\r\n",
        b"\r",
        b"\n",
        b"a",
        b"NOOP\r\n",
        b"x" * 11,
        b"y" * 22,
        b"z" * 23,
        b"\0",
        b"\r\r\n",
    ],
    "smtp_command": _ARGUMENTS,
    "smtp_mailbox": _ARGUMENTS,
    "smtp_data": _CONTENT,
    "smtp_reply": [
        *(
            b"250 ok\r\n",
            b"250-",
            b"250 ",
            b"250",
            b"550 5.1.1 no\r\n",
            b"354 go\r\n",
            b"220-a\r\n220 b\r\n",
        ),
        *(
            b"4.2.0",
            b"2.0.0 ",
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b"\xc3\xbc",
            b"\xff",
            b"\x1b[31m",
            b"199 a\r\n",
            b" ",
            b"-",
        ),
        *(
            b"250-PIPELINING\r\n" * 30,
            b"x" * 700,
            b"250-SIZE 1000\r\n",
            b"451 4.3.0",
            b"5.5.5555 ",
            b"600\r\n",
        ),
    ],
    "smtp_server": [*_GREET * 20, *_LINES * 4, *_CONTENT * 2, *_ARGUMENTS[::9]],
}
