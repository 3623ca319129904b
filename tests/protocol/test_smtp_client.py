"""The SMTP client machine against scripts of replies."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmta.mail.delivery_status import Action
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import Client, Event, TlsPolicy
from fastmta.protocol.smtp_reply import MAX_LINE, MAX_LINES, MAX_TEXT, Capabilities
from fastmta.protocol.smtp_steps import PHRASES, Step, Timeouts

GREETING = b"220 mx.test ESMTP\r\n"
BODY = [b"Subject: x\r\n\r\n", b".dot\r\nend\r\n"]
STUFFED = b"Subject: x\r\n\r\n..dot\r\nend\r\n.\r\n"
PLAIN = b"".join(BODY)

NOTHING = b"250 mx.test\r\n"
PIPELINING = b"250-mx.test\r\n250 PIPELINING\r\n"
CHUNKING = b"250-mx.test\r\n250 chunking\r\n"
BOTH = b"250-mx.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
ALL = (
    b"250-mx.test hello\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-SIZE 1000\r\n"
    b"250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8\r\n"
)


class Talk:
    """A client with what it sent and reported since it was last asked."""

    def __init__(self, piece: int = 0, *, lmtp: bool = False, tls: TlsPolicy = "none") -> None:
        self.client = Client("me.test", "mx.test [192.0.2.1]", lmtp=lmtp, tls=tls)
        self.hello = b"LHLO me.test\r\n" if lmtp else b"EHLO me.test\r\n"
        self.piece = piece  # octets a read; 0: all at once
        self.events: list[Event] = []

    def hear(self, data: bytes) -> bytes:
        """Feed what the server says; the client's answer."""
        piece = self.piece or len(data) or 1
        for start in range(0, len(data), piece):
            self.events += self.client.receive(data[start : start + piece])
        return self.client.take_output()

    def lose(self) -> None:
        self.events += self.client.lost(Reply(451, "4.4.2", "lost"))

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def greet(self, ehlo: bytes) -> None:
        assert self.hear(GREETING) == self.hello
        assert self.hear(ehlo) == b""
        assert self.take_events() == [Event.READY]
        assert self.client.is_ready

    def begin(self, envelope: Envelope, body: list[bytes] | None = BODY) -> bytes:
        self.client.begin(envelope, body)
        assert not self.client.is_ready
        return self.client.take_output()

    def stream(self, parts: list[bytes]) -> bytes:
        return b"".join(self.client.frame(part, last=part is parts[-1]) for part in parts)

    def codes(self) -> list[int]:
        """The transaction is over, once: the code for each recipient."""
        assert self.take_events().count(Event.DONE) == 1
        return [reply.code for reply in self.client.replies]


def envelope(*names: str, size: int = len(PLAIN)) -> Envelope:
    recipients = [Recipient(f"{name}@b.test") for name in names or ("r",)]
    return Envelope(1, 0, "s@a.test", "b.test", recipients, 0.0, size)


@pytest.fixture(params=[0, 1, 2, 3])
def talk(request: pytest.FixtureRequest) -> Iterator[Talk]:
    """Fed whole, byte by byte, and in pieces that fall across lines."""
    return Talk(request.param)


# One message, in each way that the server's extensions allow.


def test_chunking_with_pipelining_takes_one_write(talk: Talk) -> None:
    talk.greet(BOTH)
    sent = talk.begin(envelope("r", "q"))
    assert sent == (
        b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nRCPT TO:<q@b.test>\r\n"
        b"BDAT %d LAST\r\n%s" % (len(PLAIN), PLAIN)
    )
    assert talk.hear(b"250 2.1.0 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 2.0.0 as 7\r\n") == b""
    assert talk.take_events() == [Event.DONE, Event.READY]
    assert talk.client.replies == [Reply(250, "2.0.0", "as 7"), Reply(550, "5.1.1", "no")]


def test_pipelining_alone_waits_for_354(talk: Talk) -> None:
    talk.greet(PIPELINING)
    assert talk.begin(envelope()) == b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n"
    assert talk.hear(b"250 ok\r\n250 ok\r\n354 go\r\n") == STUFFED
    assert talk.take_events() == []
    talk.hear(b"250 2.0.0 done\r\n")
    assert talk.take_events() == [Event.DONE, Event.READY]
    assert talk.client.replies == [Reply(250, "2.0.0", "done")]


@pytest.mark.parametrize(
    ("ehlo", "data"),
    [(NOTHING, b"DATA\r\n"), (CHUNKING, b"BDAT %d LAST\r\n%s" % (len(PLAIN), PLAIN))],
)
def test_without_pipelining_each_command_waits(talk: Talk, ehlo: bytes, data: bytes) -> None:
    talk.greet(ehlo)
    assert talk.begin(envelope("r", "q")) == b"MAIL FROM:<s@a.test>\r\n"
    assert talk.hear(b"250 ok\r\n") == b"RCPT TO:<r@b.test>\r\n"
    assert talk.hear(b"450 4.2.0 later\r\n") == b"RCPT TO:<q@b.test>\r\n"
    assert talk.hear(b"250 ok\r\n") == data
    if ehlo is NOTHING:
        assert talk.hear(b"354 go\r\n") == STUFFED
    talk.hear(b"250 done\r\n")
    assert talk.codes() == [450, 250]
    assert talk.client.is_ready


def test_hello_falls_back(talk: Talk) -> None:
    assert talk.hear(GREETING) == b"EHLO me.test\r\n"
    assert talk.hear(b"502 5.5.1 what?\r\n") == b"HELO me.test\r\n"
    assert talk.hear(b"250 mx.test\r\n") == b""
    assert talk.take_events() == [Event.READY]
    assert talk.client.capabilities == Capabilities()
    assert talk.begin(envelope()) == b"MAIL FROM:<s@a.test>\r\n"


def test_many_messages_and_quit(talk: Talk) -> None:
    talk.greet(BOTH)
    for _ in range(3):
        talk.begin(envelope())
        talk.hear(b"250 ok\r\n250 ok\r\n250 ok\r\n")
        assert talk.codes() == [250]
    talk.client.quit()
    assert talk.client.take_output() == b"QUIT\r\n"
    assert talk.hear(b"221 bye\r\n") == b""
    assert talk.take_events() == [Event.CLOSED]


# What MAIL and RCPT carry.


def test_parameters_go_where_they_are_offered() -> None:
    mail = envelope(size=999)
    mail.sender, mail.eight_bit, mail.utf8 = "ü@a.test", True, True
    mail.ret, mail.envid = "HDRS", "QQ+2B1"
    mail.recipients[0].notify, mail.recipients[0].orcpt = "NEVER", "rfc822;x@y.test"
    talk = Talk()
    talk.greet(ALL)
    assert talk.begin(mail, None).decode() == (
        "MAIL FROM:<ü@a.test> SIZE=999 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1\r\n"
        "RCPT TO:<r@b.test> NOTIFY=NEVER ORCPT=rfc822;x@y.test\r\n"
    )


@pytest.mark.parametrize(
    ("address", "orcpt"),
    [
        ("r@b.test", "rfc822;r@b.test"),
        ("a+b=c@b.test", "rfc822;a+2Bb+3Dc@b.test"),
        ('"a b"@b.test', 'rfc822;"a+20b"@b.test'),
        ("+" * 170 + "@b.test", ""),  # RFC 3461 section 4.2: at most 500
        ("ü@b.test", ""),
    ],
)
def test_orcpt_is_added_where_the_sender_gave_none(address: str, orcpt: str) -> None:
    mail = envelope()
    mail.recipients[0].address = address
    talk = Talk()
    talk.greet(ALL)
    wanted = f"RCPT TO:<{address}> ORCPT={orcpt}" if orcpt else f"RCPT TO:<{address}>"
    assert talk.begin(mail, None).decode().splitlines()[1] == wanted
    assert talk.client.success is None


def test_dsn_parameters_are_dropped_where_not_offered() -> None:
    mail = envelope()
    mail.ret, mail.envid, mail.recipients[0].notify = "FULL", "x", "NEVER"
    talk = Talk()
    talk.greet(PIPELINING)
    assert talk.begin(mail) == b"MAIL FROM:<s@a.test>\r\nRCPT TO:<r@b.test>\r\nDATA\r\n"
    assert talk.client.success is Action.RELAYED


def test_null_reverse_path() -> None:
    mail = envelope()
    mail.sender = ""
    talk = Talk()
    talk.greet(NOTHING)
    assert talk.begin(mail) == b"MAIL FROM:<>\r\n"


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (["SIZE 35882577"], 35882577),
        (["size"], 0),
        (["SIZE 0"], 0),
        (["SIZE x"], 0),
        (["SIZE -1"], 0),
        (["SIZE \u0663"], 0),
        (["SIZE " + "9" * 5000], 0),
        ([], None),
    ],
)
def test_size_limit(lines: list[str], size: int | None) -> None:
    assert Capabilities.parse(lines).size == size


def test_objections() -> None:
    bare, able = Talk(), Talk()
    bare.greet(NOTHING)
    able.greet(ALL)

    def objection(talk: Talk, mail: Envelope) -> tuple[int, str] | None:
        reply = talk.client.objection(mail)
        return reply and (reply.code, reply.enhanced)

    eight_bit, utf8, address = envelope(), envelope(), envelope("ö")
    eight_bit.eight_bit = utf8.utf8 = True
    assert objection(bare, envelope(size=10**9)) is None
    assert objection(able, envelope(size=1000)) is None
    assert objection(able, envelope(size=1001)) == (552, "5.3.4")  # RFC 1870 section 6.1
    assert objection(bare, eight_bit) is None
    assert bare.client.needs_seven_bit(eight_bit)  # RFC 6152 section 3
    assert not able.client.needs_seven_bit(eight_bit)
    assert not bare.client.needs_seven_bit(envelope())
    assert objection(bare, utf8) == (553, "5.6.7")  # RFC 6531 section 3.5
    assert objection(bare, address) == (553, "5.6.7")
    for mail in (eight_bit, utf8, address):
        assert objection(able, mail) is None


@pytest.mark.parametrize("bad", ["x\r\nRSET", "x\n", "\0"])
def test_threat_5_no_control_leaves_in_an_address(bad: str) -> None:
    talk = Talk()
    talk.greet(ALL)
    reply = talk.client.objection(envelope("good", bad))
    assert reply is not None and reply.enhanced == "5.1.3"


# Refusals, step by step.

# What a server says that wants the message.
OK = {
    Step.MAIL: b"250 ok\r\n",
    Step.RCPT: b"250 ok\r\n",
    Step.DATA: b"354 go\r\n",
    Step.END: b"250 ok\r\n",
    Step.BDAT: b"250 ok\r\n",
}
TRANSACTION = {
    NOTHING: (Step.MAIL, Step.RCPT, Step.DATA, Step.END),
    PIPELINING: (Step.MAIL, Step.RCPT, Step.DATA, Step.END),
    CHUNKING: (Step.MAIL, Step.RCPT, Step.BDAT),
    BOTH: (Step.MAIL, Step.RCPT, Step.BDAT),
}
BROKEN = 451  # our own reply, 4.5.0


def outcome(step: Step, code: int) -> int:
    """The code that both recipients end with when each reply at this step has that code."""
    if step is Step.RCPT and code == 552:
        return 452
    if 400 <= code < 600:
        return code
    if code // 100 != (3 if step is Step.DATA else 2):
        return BROKEN
    return code if step in (Step.END, Step.BDAT) else 250


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("code", [199, 200, 250, 251, 354, 399, 421, 450, 500, 552, 599, 600, 999])
@pytest.mark.parametrize(
    ("ehlo", "step"), [(ehlo, step) for ehlo, steps in TRANSACTION.items() for step in steps]
)
def test_every_reply_at_every_step(ehlo: bytes, step: Step, code: int, piece: int) -> None:
    """The server says `code` to each command of a kind, and what is right to all others."""
    talk = Talk(piece)
    talk.greet(ehlo)
    talk.begin(envelope("r", "q"))
    while Event.DONE not in talk.events:
        said = OK[talk.client.waiting] if talk.client.waiting is not step else b"%d x\r\n" % code
        talk.hear(said)
    final = outcome(step, code)
    assert talk.codes() == [final, final]
    assert talk.client.closed == (final in (421, BROKEN))
    if not talk.client.closed and talk.client.waiting is Step.RSET:
        talk.hear(b"250 ok\r\n")
    assert talk.client.closed or talk.client.is_ready


@pytest.mark.parametrize("ehlo", [PIPELINING, BOTH])
def test_all_recipients_refused_in_a_group(talk: Talk, ehlo: bytes) -> None:
    """RFC 2920 section 3.1: a 354 for nobody is answered with the dot alone."""
    talk.greet(ehlo)
    talk.begin(envelope("r", "q"))
    refusals = b"250 ok\r\n550 5.1.1 no\r\n450 4.2.0 later\r\n"
    if ehlo is PIPELINING:
        assert talk.hear(refusals + b"354 go\r\n") == b".\r\n"
        assert talk.take_events() == []
        talk.hear(b"250 thank you for nothing\r\n")
        assert talk.codes() == [550, 450]
    else:
        assert talk.hear(refusals + b"503 5.5.1 nobody\r\n") == b"RSET\r\n"
        assert talk.codes() == [550, 450]
        talk.hear(b"250 ok\r\n")
        assert talk.take_events() == [Event.READY]
    assert talk.client.is_ready


@pytest.mark.parametrize("ehlo", [PIPELINING, BOTH])
def test_refused_mail_is_never_delivered(ehlo: bytes) -> None:
    """Whatever the server says to the rest of the group."""
    talk = Talk()
    talk.greet(ehlo)
    talk.begin(envelope())
    if ehlo is PIPELINING:
        assert talk.hear(b"550 5.7.1 no\r\n250 ok\r\n354 go\r\n") == b".\r\n"
        talk.hear(b"250 ok\r\n")
    else:
        talk.hear(b"550 5.7.1 no\r\n250 ok\r\n250 ok\r\n")
    assert talk.codes() == [550]


def test_reset_after_a_refused_transaction(talk: Talk) -> None:
    talk.greet(NOTHING)
    talk.begin(envelope())
    talk.hear(b"250 ok\r\n")
    assert talk.hear(b"550 no\r\n") == b"RSET\r\n"
    assert talk.take_events() == [Event.DONE]
    assert talk.hear(b"250 ok\r\n") == b""
    assert talk.take_events() == [Event.READY]


def test_reset_refused_ends_the_connection() -> None:
    talk = Talk()
    talk.greet(NOTHING)
    talk.begin(envelope())
    talk.hear(b"550 no\r\n")
    talk.take_events()
    talk.hear(b"500 what?\r\n")
    assert talk.take_events() == [Event.CLOSED]


def test_too_many_recipients_is_temporary() -> None:
    """RFC 5321 section 4.5.3.1.10; but a full mailbox is one."""
    talk = Talk()
    talk.greet(BOTH)
    talk.begin(envelope("a", "b", "c"))
    talk.hear(b"250 ok\r\n250 ok\r\n552 too many\r\n552 5.2.2 full\r\n250 ok\r\n")
    assert talk.codes() == [250, 452, 552]


# Hosts that want no mail.


@pytest.mark.parametrize("at", [Step.GREETING, Step.EHLO, Step.HELO])
@pytest.mark.parametrize("said", [b"450 4.7.1 busy", b"554 5.7.1 blocked", b"554 go away"])
def test_refusing_host_is_temporary(talk: Talk, at: Step, said: bytes) -> None:
    steps = {Step.GREETING: b"", Step.EHLO: GREETING, Step.HELO: GREETING}
    if steps[at]:
        talk.hear(steps[at])
    if at is Step.HELO:
        talk.hear(b"500 what?\r\n")
    if at is Step.EHLO and said.startswith(b"5"):
        return  # means HELO
    assert talk.hear(said + b"\r\n") == b"QUIT\r\n"
    assert talk.take_events() == [Event.CLOSED]
    reason = talk.client.reason
    assert reason is not None and 400 <= reason.code < 500 and reason.enhanced[0] == "4"
    assert said.decode() in (reason.text if said.startswith(b"5") else str(reason))


@pytest.mark.parametrize(
    "script",
    [
        [b"220 me.test ESMTP\r\n"],
        [b"220 ME.TEST.\r\n"],
        [b"220-me.test\r\n220 welcome\r\n"],
        [GREETING, b"250-Me.Test hello\r\n250 PIPELINING\r\n"],
        [GREETING, b"500 what?\r\n", b"250 me.test\r\n"],
    ],
)
def test_threat_14_host_greets_with_our_name(talk: Talk, script: list[bytes]) -> None:
    for said in script:
        answer = talk.hear(said)
    assert answer == b"QUIT\r\n"
    assert talk.take_events() == [Event.CLOSED]
    assert talk.client.reason is not None
    assert (talk.client.reason.code, talk.client.reason.enhanced) == (554, "5.4.6")


@pytest.mark.parametrize("greeting", [b"220\r\n", b"220 \r\n", b"220  \r\n", b"220 me.testing\r\n"])
def test_greeting_without_our_name(greeting: bytes) -> None:
    assert Talk().hear(greeting) == b"EHLO me.test\r\n"


# Connections that end.


@pytest.mark.parametrize("said", [b"", b"250 ok\r\n", b"250 ok\r\n250 ok\r\n550 no\r\n", b"25"])
def test_lost_before_the_last_reply(talk: Talk, said: bytes) -> None:
    talk.greet(BOTH)
    talk.begin(envelope("r", "q"))
    talk.hear(said)
    talk.lose()
    talk.lose()
    assert talk.take_events() == [Event.DONE, Event.CLOSED]
    kinds = [reply.code for reply in talk.client.replies]
    assert kinds == [451, 550] if b"550" in said else [451, 451]
    assert talk.hear(b"250 ok\r\n") == b"" and talk.take_events() == []


def test_lost_between_messages() -> None:
    talk = Talk()
    talk.greet(BOTH)
    talk.lose()
    assert talk.take_events() == [Event.CLOSED]


def test_421_between_messages(talk: Talk) -> None:
    talk.greet(BOTH)
    talk.begin(envelope())
    talk.hear(b"250 ok\r\n250 ok\r\n250 ok\r\n421 4.3.2 that was all\r\n")
    assert talk.take_events() == [Event.DONE, Event.READY, Event.CLOSED]
    assert talk.client.replies[0].code == 250


def test_421_does_not_count_as_an_answer() -> None:
    """So that its owner knows that the host has looked at nothing."""
    talk = Talk()
    talk.greet(BOTH)
    before = talk.client.answers
    talk.begin(envelope())
    talk.hear(b"421 4.3.2 idle too long\r\n")
    assert talk.client.answers == before
    assert talk.codes() == [421]


# Bodies in blocks.


@pytest.mark.parametrize("ehlo", [PIPELINING, BOTH, NOTHING, CHUNKING])
def test_streamed_body(talk: Talk, ehlo: bytes) -> None:
    talk.greet(ehlo)
    talk.begin(envelope(), None)
    sent = b""
    for said in (b"250 ok\r\n", b"250 ok\r\n"):
        sent += talk.hear(said)
    if b"DATA" in sent:
        assert talk.hear(b"354 go\r\n") == b""
    assert talk.take_events() == [Event.BODY]
    body = talk.stream(BODY)
    assert body == (STUFFED if b"DATA" in sent else PLAIN)
    talk.hear(b"250 done\r\n")
    assert talk.take_events() == [Event.DONE, Event.READY]


def test_streamed_body_that_nobody_wants_is_not_sent() -> None:
    talk = Talk()
    talk.greet(BOTH)
    talk.begin(envelope(), None)
    assert talk.hear(b"250 ok\r\n550 no\r\n") == b"RSET\r\n"
    assert talk.codes() == [550]


@pytest.mark.parametrize("ehlo", [PIPELINING, BOTH])
@pytest.mark.parametrize(("said", "code"), [(b"552 5.3.4 big\r\n", 552), (b"250 ok\r\n", BROKEN)])
def test_reply_before_the_end_of_the_body(ehlo: bytes, said: bytes, code: int) -> None:
    talk = Talk()
    talk.greet(ehlo)
    talk.begin(envelope(), None)
    talk.hear(b"250 ok\r\n250 ok\r\n")
    if ehlo is PIPELINING:
        talk.hear(b"354 go\r\n")
    talk.client.frame(BODY[0], last=False)
    talk.hear(said)
    assert talk.take_events() == [Event.BODY, Event.DONE, Event.CLOSED]
    assert [reply.code for reply in talk.client.replies] == [code]


@pytest.mark.parametrize("long", [False, True])
def test_body_must_be_as_long_as_announced(long: bool) -> None:
    talk = Talk()
    talk.greet(BOTH)
    talk.begin(envelope(), None)
    talk.hear(b"250 ok\r\n250 ok\r\n")
    with pytest.raises(ValueError, match="not as long"):
        talk.client.frame(PLAIN + b"x" if long else PLAIN[:-1], last=True)
    talk.lose()
    assert talk.codes() == [451]


# Messages cannot become two (THREATS 12).


@pytest.mark.parametrize(
    "content",
    [
        b".",
        b".\r\n",
        b"x\r\n.\r\nMAIL FROM:<evil@a.test>\r\n",
        b"x\n.\n",
        b"x\r.\r",
        b"x",
        b"\r\n.",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_threat_12_the_dot_is_ours_alone(content: bytes, streamed: bool) -> None:
    """One end of data, at the end, and no CR or LF by itself, however the content is cut."""
    for cut in range(len(content) + 1):
        talk = Talk()
        talk.greet(NOTHING)
        parts = [content[:cut], content[cut:]]
        talk.begin(envelope(size=len(content)), None if streamed else parts)
        talk.hear(b"250 ok\r\n")
        talk.hear(b"250 ok\r\n")
        sent = talk.hear(b"354 go\r\n")
        if streamed:
            sent = talk.stream(parts)
        assert (b"\r\n" + sent).find(b"\r\n.\r\n") == len(sent) - 3
        assert not set(b"\r\n") & set(sent.replace(b"\r\n", b""))


def test_threat_12_chunks_are_counted() -> None:
    content = b"x\r\n.\r\nQUIT\r\n"
    talk = Talk()
    talk.greet(BOTH)
    sent = talk.begin(envelope(size=len(content)), [content])
    assert sent.endswith(b"BDAT %d LAST\r\n%s" % (len(content), content))


# Replies as a hostile server gives them (THREATS 15).

HOSTILE = {
    "no code": b"hello\r\n",
    "empty": b"\r\n",
    "code too long": b"2500 ok\r\n",
    "no digit": b"25x ok\r\n",
    "wide digits": "２５０ ok\r\n".encode(),
    "changing code": b"250-one\r\n550 two\r\n",
    "endless line": b"250 " + b"x" * MAX_LINE * 2,
    "long line": b"250 " + b"x" * MAX_LINE + b"\r\n",
    "endless reply": b"250-x\r\n" * (MAX_LINES + 1),
    "10 MB": b"x" * 10_000_000,
    "NUL": b"\0" * 10 + b"\r\n",
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("before", [b"", b"250 ok\r\n", b"250 ok\r\n250 ok\r\n"])
def test_threat_15_broken_replies_defer(hostile: bytes, before: bytes) -> None:
    talk = Talk()
    talk.greet(BOTH)
    talk.begin(envelope())
    talk.hear(before + hostile)
    assert talk.take_events() == [Event.DONE, Event.CLOSED]
    reply = talk.client.replies[0]
    assert (reply.code, reply.enhanced) == (451, "4.5.0")
    assert reply.text.startswith("protocol error") and len(reply.text) <= MAX_TEXT
    assert reply.text.isprintable() and reply.text.isascii()


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_threat_15_broken_greeting(hostile: bytes) -> None:
    talk = Talk()
    talk.hear(hostile)
    assert talk.take_events() == [Event.CLOSED]
    assert talk.client.reason is not None and talk.client.reason.enhanced == "4.5.0"


def test_threat_15_text_is_bounded_and_clean(talk: Talk) -> None:
    talk.greet(BOTH)
    talk.begin(envelope())
    line = b"550-5.7.1 \x1b[31m\0\x07\x9b\xff\tred" + b"y" * 100 + b"\r\n"
    talk.hear(b"250 ok\r\n" + line * 50 + line.replace(b"550-", b"550 ") + b"503 no\r\n")
    reply = talk.client.replies[0]
    assert (reply.code, reply.enhanced) == (550, "5.7.1")
    assert len(reply.text) == MAX_TEXT
    assert all(text.isprintable() for text in reply.text.split("\n"))


def test_threat_15_reply_to_what_was_not_sent() -> None:
    """An acceptance that comes with the 354 is for a message that nobody has sent."""
    talk = Talk()
    talk.greet(PIPELINING)
    talk.begin(envelope())
    talk.hear(b"250 ok\r\n250 ok\r\n354 go\r\n250 got it\r\n")
    assert talk.codes() == [BROKEN]
    assert talk.client.closed


def test_bare_line_feeds_end_reply_lines(talk: Talk) -> None:
    talk.greet(BOTH.replace(b"\r\n", b"\n"))
    talk.begin(envelope())
    talk.hear(b"250 ok\n250 ok\r\n250 done\n")
    assert talk.client.replies == [Reply(250, "", "done")]


LINES = st.one_of(
    st.sampled_from(
        [
            b"250 ok\r\n",
            b"354 go\r\n",
            b"550 5.1.1 no\r\n",
            b"421 bye\r\n",
            b"250-more\r\n",
            b"\r\n",
        ]
    ),
    st.builds(
        lambda code, mark, text: b"%d%b%b\r\n" % (code, mark, text),
        st.integers(190, 610),
        st.sampled_from([b" ", b"-", b""]),
        st.binary(max_size=20),
    ),
    st.binary(max_size=40),
)


@settings(max_examples=400, deadline=None)
@given(
    greeted=st.booleans(),
    ehlo=st.sampled_from([NOTHING, PIPELINING, CHUNKING, BOTH, ALL]),
    script=st.lists(st.one_of(st.lists(LINES, min_size=1).map(b"".join), st.none()), max_size=12),
    recipients=st.integers(1, 4),
    streamed=st.booleans(),
    lmtp=st.booleans(),
)
def test_any_replies_settle_every_recipient_once(
    greeted: bool,
    ehlo: bytes,
    script: list[bytes | None],
    recipients: int,
    streamed: bool,
    lmtp: bool,
) -> None:
    """Nothing raises, whatever comes; None: the owner does what it can do next."""
    talk = Talk(lmtp=lmtp, tls="opportunistic")
    if greeted:
        talk.greet(ehlo)
    mail = envelope(*map(str, range(recipients)))
    begun = done = 0
    body_due = False
    for said in script:
        if said is not None:
            talk.hear(said)
        elif body_due and not talk.client.closed:
            body_due = False
            talk.stream(BODY)
        elif talk.client.is_ready and talk.client.objection(mail) is None:
            begun += 1
            talk.begin(mail, None if streamed else BODY)
        events = talk.take_events()
        body_due = Event.BODY in events or (body_due and Event.DONE not in events)
        done += events.count(Event.DONE)
        assert done <= begun
        if Event.DONE in events:
            assert len(talk.client.replies) == recipients
            assert all(200 <= reply.code < 600 for reply in talk.client.replies)
    talk.lose()
    done += talk.take_events().count(Event.DONE)
    assert done == begun


@given(st.lists(LINES).map(b"".join), st.lists(st.integers(1, 9)))
def test_pieces_make_no_difference(said: bytes, sizes: list[int]) -> None:
    """Where nothing is sent in between, it is all one stream."""
    ends = []
    for cuts in ([], sizes):
        talk = Talk()
        talk.greet(BOTH)
        talk.begin(envelope("r", "q"))
        rest = said
        for size in cuts:
            talk.events += talk.client.receive(rest[:size])
            rest = rest[size:]
        talk.events += talk.client.receive(rest)
        ends.append((talk.events, talk.client.replies, talk.client.reason))
    assert ends[0] == ends[1]


def test_every_step_has_its_time_and_phrase() -> None:
    """RFC 5321 section 4.5.3.2, in minutes where it says so."""
    limits = dict(zip(Step, Timeouts().by_step(), strict=True))
    assert limits[Step.STARTTLS] == limits[Step.TLS] == 60
    assert len(PHRASES) == len(Step)
    assert limits[Step.GREETING] == limits[Step.MAIL] == limits[Step.RCPT] == 5 * 60
    assert limits[Step.DATA] == 2 * 60
    assert limits[Step.END] == limits[Step.BDAT] == 10 * 60
    assert Timeouts().block == 3 * 60
