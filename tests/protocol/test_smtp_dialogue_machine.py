"""Clients that hypothesis makes up, step by step: the machine and plain Python answer alike."""

import re

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastmta.mail.reply import Reply
from fastmta.protocol.sasl import Password
from fastmta.protocol.smtp_machine import CONTENT, Event
from fastmta.protocol.smtp_question import Question, Step
from tests.protocol.dialogue import Dialogue
from tests.protocol.pop3_dialogue import WRONG, OpenDoor
from tests.protocol.pop3_oracle import NAME, PASSWORD
from tests.protocol.smtp_oracle import Oracle

EVERY = frozenset({Step.EHLO, Step.MAIL, Step.RCPT})
LINES = [
    "EHLO a", "HELO a", "EHLO a b", "MAIL FROM:<a@b.test>", "MAIL FROM:<> SIZE=301",
    "MAIL FROM:<a@b.test> BODY=8BITMIME SMTPUTF8", "RCPT TO:<c@d.test>", "RCPT TO:<ü@ü.test>",
    "RCPT TO:<c@d.test> NOTIFY=NEVER", "RCPT TO:<>", "DATA", "DATA x", "RSET", "NOOP", "VRFY a",
    "VRFY", "EXPN a", "HELP", "STARTTLS", "AUTH PLAIN", "AUTH PLAIN =", "AUTH LOGIN", "*", "", "\0",
    "AUTH PLAIN AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==", "BDAT x", "XCLIENT ADDR=1.2.3.4", "x" * 200,
]  # fmt: skip
CONTENTS = [
    b"", b"Subject: a\r\n\r\n..b\r\n", b".\r\n", b"a\nb", b"a\r", b"x" * 400,
    b"Received: a\r\n" * 4,
    b"A: " + b"x" * 250 + b"\r\n", "ü\r\n".encode(), b"\0\r\n",
]  # fmt: skip


def judge(question: Question) -> Reply | None:
    right = Password("", NAME.decode(), PASSWORD.decode())
    return WRONG if question.step is Step.AUTH and question.attempt != right else None


class Session(RuleBasedStateMachine):
    """What it says is cut at places that hypothesis chooses."""

    @initialize(flags=st.tuples(*[st.booleans()] * 7))
    def connect(self, flags: tuple[bool, ...]) -> None:
        may_relay, tls, door, starttls, login, normalise, asked = flags
        self.dialogue = Dialogue(
            may_relay=may_relay,
            tls=tls,
            door=OpenDoor("PLAIN") if door else None,
            asks=EVERY if asked else frozenset(),
            starttls=starttls,
            needs_login=login and door,
            normalise=normalise,
            max_message_size=300,
            max_header_size=200,
            max_recipients=3,
            max_hops=2,
            max_errors=8,
            max_junk=6,
            max_line=120,
        )
        self.dialogue.judge = judge
        self.oracle = Oracle(self.dialogue.policy, may_relay=may_relay, tls=tls, login=door)
        self.output = self.dialogue.greeting

    def say(self, data: bytes, cut: int) -> None:
        for piece in (data[:cut], data[cut:]):
            self.output += self.dialogue.send(piece)
            if self.dialogue.events[-1:] == [Event.STARTTLS]:
                self.dialogue.events.append(Event.DELAY)
                self.dialogue.machine.started_tls()
            self.oracle.hear(piece)

    @rule(line=st.sampled_from(LINES), cut=st.integers(0, 30))
    def command(self, line: str, cut: int) -> None:
        self.say(line.encode() + b"\r\n", cut)

    @rule(lines=st.lists(st.sampled_from(LINES), min_size=2, max_size=4), cut=st.integers(0, 60))
    def pipelined(self, lines: list[str], cut: int) -> None:
        self.say("".join(f"{line}\r\n" for line in lines).encode(), cut)

    @rule(depth=st.integers(1, 4))
    def begin(self, depth: int) -> None:
        """By chance alone it would hardly get there."""
        for line in ("EHLO a", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "DATA")[:depth]:
            self.say(line.encode() + b"\r\n", 0)

    @rule(end=st.sampled_from([b"\n", b"\r\r\n"]))
    def bad_line_end(self, end: bytes) -> None:
        self.say(b"NOOP" + end, 0)

    @precondition(lambda self: self.dialogue.machine.state == CONTENT)
    @rule(content=st.sampled_from(CONTENTS), cut=st.integers(0, 20))
    def message(self, content: bytes, cut: int) -> None:
        self.say(content + b"\r\n.\r\n", cut)

    @rule(
        content=st.sampled_from(CONTENTS),
        last=st.booleans(),
        missing=st.integers(0, 1),
        cut=st.integers(0, 20),
    )
    def chunk(self, content: bytes, last: bool, missing: int, cut: int) -> None:
        said = b"BDAT %d%b\r\n" % (len(content) + missing, b" LAST" * last)
        self.say(said + content, cut)

    @invariant()
    def every_command_has_its_reply(self) -> None:
        codes = re.findall(rb"(?m)^(\d{3}) [^\r\n]*\r\n", self.output)
        assert [*map(int, codes)] == self.oracle.codes
        assert self.dialogue.is_closed == self.oracle.closed

    @invariant()
    def what_was_taken_is_what_was_said(self) -> None:
        taken = [(one.sender, one.content) for one in self.oracle.taken]
        senders = [arrival.sender for arrival in self.dialogue.arrivals]
        assert list(zip(senders, self.dialogue.content, strict=True)) == taken

    @invariant()
    def a_transaction_is_open_where_the_oracle_has_one(self) -> None:
        machine = self.dialogue.machine
        assert (machine.arrival is None) == (self.oracle.sender is None or self.oracle.closed)
        if machine.arrival is not None:
            assert machine.arrival.sender == self.oracle.sender
            assert len(machine.arrival.recipients) == len(self.oracle.recipients)
        assert machine.buffered <= 600


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
