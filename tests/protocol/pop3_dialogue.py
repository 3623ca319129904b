"""A client of the POP3 machine that needs no socket."""

from array import array
from collections.abc import Iterable

from fastmta.mail.reply import Reply
from fastmta.protocol.pop3_machine import Event, Policy, Retrieve, Task, Update
from fastmta.protocol.pop3_maildrop import Maildrop
from fastmta.protocol.pop3_server import Pop3Server
from fastmta.protocol.sasl import MECHANISMS, Context, Exchange, Password
from fastmta.protocol.scram import Keys, derive
from fastmta.protocol.smtp_limits import Load
from fastmta.protocol.smtp_question import Question, Step
from tests.protocol.pop3_oracle import NAME, PASSWORD

KEYS = derive(PASSWORD.decode(), b"0123456789abcdef", 4096)
WRONG = Reply(535, "5.7.8", "Name or password wrong")
VALIDITY = 7


class Count:
    value = 0


class OpenDoor:
    """Offers what it is told to."""

    def __init__(self, *offered: str) -> None:
        self.offered = offered

    def mechanisms(self) -> tuple[str, ...]:
        return self.offered

    def exchange(self, mechanism: str) -> Exchange | None:
        name = mechanism.upper()
        if name not in self.offered or name not in MECHANISMS:
            return None
        return Exchange(name, Context(self._keys))

    def _keys(self, name: str) -> Keys:
        return KEYS


class Dialogue:
    """Says things to a machine, does what it asks for, and keeps what happened."""

    def __init__(
        self,
        messages: dict[int, bytes] | None = None,
        *,
        tls: bool = True,
        clear: bool = False,
        offered: tuple[str, ...] = ("PLAIN",),
        asks: frozenset[Step] = frozenset(),
        **policy: object,
    ) -> None:
        self.messages = messages or {}
        self.load = Load(1 << 28, Count())
        self.policy = Policy(hostname="mail.example.test", **policy)  # type: ignore[arg-type]
        self.machine = Pop3Server(
            self.policy, self.load, door=OpenDoor(*offered), tls=tls, asks=asks
        )
        self.machine.may_log_in_clear = clear
        self.at_hand: dict[int, bytes] = {}  # messages that are in memory already
        self.piece = 1 << 20  # octets of a message that come at a time
        self.answers = True  # what it asks for is done at once
        self.why_locked = b""
        self.greeting = self.machine.take_output()
        self.events: list[Event] = []
        self.asked: list[Task] = []
        self.deleted: list[int] | None = None
        self.outputs: list[bytes] = []  # of the last `send`

    def send(self, data: bytes) -> bytes:
        """All that the machine answers to these octets."""
        self.machine.receive(data)
        return self.answer()

    def say(self, *lines: str) -> list[str]:
        """One after the other, each when the one before was answered: the first line of each."""
        return [self.send(line.encode() + b"\r\n").decode().split("\r\n")[0] for line in lines]

    def logged_in(self) -> "Dialogue":
        assert self.say(f"USER {NAME.decode()}", f"PASS {PASSWORD.decode()}")[1][:3] == "+OK"
        return self

    def answer(self) -> bytes:
        self.outputs = [self.machine.take_output()]
        while (event := self.machine.take_event()) is not None:
            if isinstance(event, Event):
                self.events.append(event)
            else:
                self.asked.append(event)
            if self.answers:
                self.do(event)
            self.outputs.append(self.machine.take_output())
        return b"".join(self.outputs)

    def do(self, event: Task) -> None:
        machine = self.machine
        match event:
            case Event.DELAY | Event.YIELD:
                machine.go_on()
            case Event.OPEN if self.why_locked:
                machine.not_opened(self.why_locked)
            case Event.OPEN:
                machine.at_hand = self.at_hand
                machine.opened(self.maildrop())
            case Question(step=Step.AUTH):
                machine.answer(None if self.is_right(event) else WRONG)
            case Retrieve():
                self.retrieve(event)
            case Update():
                self.deleted = event.uids
                machine.updated(done=True)

    @staticmethod
    def is_right(question: Question) -> bool:
        if isinstance(question.attempt, Password):
            return question.attempt == Password("", NAME.decode(), PASSWORD.decode())
        return type(question.attempt).__name__ == "Proven"

    def maildrop(self) -> Maildrop:
        sizes = array("Q", map(len, self.messages.values()))
        return Maildrop(VALIDITY, array("I", self.messages), sizes)

    def message(self, number: int) -> bytes:
        return list(self.messages.values())[number - 1]

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """These messages are in memory."""
        self.at_hand.update((number, self.message(number)) for number in numbers)

    def retrieve(self, event: Retrieve) -> None:
        message = self.message(event.number)
        last = max(0, len(message) - 1) // self.piece
        for i in range(last + 1):
            piece = message[i * self.piece : (i + 1) * self.piece]
            if not self.machine.send([piece], is_last=i == last):
                break
            self.outputs.append(self.machine.take_output())

    @property
    def is_closed(self) -> bool:
        return Event.CLOSE in self.events
