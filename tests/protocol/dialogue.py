"""A client of the SMTP machine that needs no socket."""

from collections.abc import Callable

from fastmta.mail.arrival import Arrival
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_limits import Door, Load, Policy
from fastmta.protocol.smtp_machine import Event
from fastmta.protocol.smtp_question import Question, Step
from fastmta.protocol.smtp_server import SmtpServer, Vet


class Count:
    value = 0


class Dialogue:
    """Says things to a machine, settles what arrives, and keeps what happened."""

    def __init__(
        self,
        *,
        may_relay: bool = True,
        tls: bool = False,
        max_held: int = 1 << 28,
        vet: Vet | None = None,
        asks: frozenset[Step] = frozenset(),
        door: Door | None = None,
        **policy: object,
    ) -> None:
        self.load = Load(max_held, Count())
        self.policy = Policy(hostname="relay.example.test", **policy)  # type: ignore[arg-type]
        self.not_now: Reply | None = None
        self.verdict: Reply | None = None  # what settles the next arrivals; None: safe
        self.settles = True  # arrivals are settled at once
        self.questions: list[Question] = []
        self.judge: Callable[[Question], Reply | None] | None = lambda question: None
        self.machine = SmtpServer(
            self.policy,
            self.load,
            lambda: self.not_now,
            may_relay=may_relay,
            tls=tls,
            vet=vet,
            asks=asks,
            door=door,
        )
        self.greeting = self.machine.take_output()
        self.arrivals: list[Arrival] = []
        self.events: list[Event] = []

    def send(self, data: bytes) -> bytes:
        """All that the machine answers to these octets."""
        self.machine.receive(data)
        return self.answer()

    def answer(self) -> bytes:
        output = self.machine.take_output()
        while (event := self.machine.take_event()) is not None:
            if isinstance(event, Event):
                self.events.append(event)
                if event in (Event.DELAY, Event.YIELD):
                    self.machine.go_on()
            elif isinstance(event, Question):
                self.questions.append(event)
                if self.judge is not None:
                    self.machine.answer(self.judge(event))
            else:
                self.arrivals.append(event)
                if self.settles:
                    self.machine.settle(self.verdict, f"id{len(self.arrivals)}")
            output += self.machine.take_output()
        return output

    def say(self, *lines: str) -> list[str]:
        """One after the other, each when the one before was answered: code and enhanced code."""
        return [code for line in lines for code in codes(self.send(line.encode() + b"\r\n"))]

    @property
    def is_closed(self) -> bool:
        return Event.CLOSE in self.events

    @property
    def content(self) -> list[bytes]:
        return [b"".join(arrival.parts) for arrival in self.arrivals]


def codes(output: bytes) -> list[str]:
    """Of each reply its code, and the enhanced code where it has one: "250 2.1.0"."""
    found = []
    for line in output.decode().split("\r\n")[:-1]:
        if line[3:4] != "-":
            words = line.split(" ")
            enhanced = len(words) > 1 and words[1].count(".") == 2 and words[1][0] == line[0]
            found.append(" ".join(words[:2]) if enhanced else words[0])
    return found


def greeted(**options: object) -> Dialogue:
    """After EHLO."""
    dialogue = Dialogue(**options)  # type: ignore[arg-type]
    assert dialogue.say("EHLO client.example.test") == ["250"]
    return dialogue


def with_recipient(**options: object) -> Dialogue:
    """After RCPT."""
    dialogue = greeted(**options)
    assert dialogue.say("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>") == [
        "250 2.1.0",
        "250 2.1.5",
    ]
    return dialogue


def in_data(**options: object) -> Dialogue:
    """After 354."""
    dialogue = with_recipient(**options)
    assert dialogue.say("DATA") == ["354"]
    return dialogue
