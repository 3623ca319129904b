"""What is fuzzed of whole dialogues, SMTP and POP3, in any pieces: against peers in plain Python.

The first two octets choose the policy and the pieces, the rest is what the peer says.
"""

import re

from msgspec import Struct

from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.protocol.sasl import Password
from fastmta.protocol.smtp_client import Client, TlsPolicy
from fastmta.protocol.smtp_client import Event as Sent
from fastmta.protocol.smtp_machine import (
    CHUNK,
    CHUNKS,
    CONTENT,
    HANDSHAKE,
    RECIPIENT,
    SENDER,
    Event,
)
from fastmta.protocol.smtp_question import Question, Step
from tests.core import wire_oracles as wire
from tests.fuzz.smtp_targets import cut
from tests.protocol.dialogue import Dialogue
from tests.protocol.pop3_dialogue import VALIDITY, WRONG, OpenDoor
from tests.protocol.pop3_dialogue import Dialogue as Pop3Dialogue
from tests.protocol.pop3_oracle import GOOD, MAX_ERRORS, MESSAGES, NAME, PASSWORD, told
from tests.protocol.pop3_oracle import Oracle as Pop3Oracle
from tests.protocol.smtp_client_oracle import Oracle as ClientOracle
from tests.protocol.smtp_client_oracle import spoken
from tests.protocol.smtp_oracle import Oracle, Taken

# A dialogue with the server.

Outcome = tuple[list[int], list[Taken], bool]  # codes of all replies, messages, whether it closed

OPEN = (SENDER, RECIPIENT, CHUNKS, CONTENT)  # states in which there is a transaction
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


class Session(Dialogue):
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


def _served(choice: int, turns: list[list[bytes]], late: bool = False) -> Session:
    heard = Session(
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
    state, is_open = heard.machine.state, heard.machine.arrival is not None
    assert state == CHUNK or is_open == (state in OPEN)  # a chunk may be one that is refused
    heard.machine.lose()
    assert heard.load.held == 0
    return heard


def _judge(question: Question) -> Reply | None:
    right = Password("", NAME.decode(), PASSWORD.decode())
    return WRONG if question.step is Step.AUTH and question.attempt != right else None


def _told(heard: Session) -> tuple[bytes, list[Taken], bool]:
    taken = [
        Taken(arrival.sender, [each.address for each in arrival.recipients], content)
        for arrival, content in zip(heard.arrivals, heard.content, strict=True)
    ]
    return heard.output, taken, heard.is_closed


def _outcome(told: tuple[bytes, list[Taken], bool]) -> Outcome:
    output, taken, closed = told
    codes = re.findall(rb"(?m)^([2345][0-9]{2}) [^\r\n]*\r\n", output)
    return [*map(int, codes)], taken, closed


# A dialogue with a server that says anything, each reply after what it is asked.

_BODY = b"Subject: x\r\n\r\n.dot\r\nend\r\n"
_TLS: list[TlsPolicy] = ["none", "none", "opportunistic", "required"]
_KIND = ("PIPELINING", "CHUNKING", "STARTTLS")


class Talked(Struct):
    """What a client did."""

    output: bytes = b""
    events: list[Sent] = []
    ended: list[list[int]] = []
    closed: bool = False


def fuzz_smtp_client(data: bytes) -> None:
    if len(data) < 2:
        return
    choice, said = data[0], data[2:]
    if data[1] & 1:
        said = _welcome(data[1] >> 1) + said
    oracle, replies = _client_oracle(choice), list(spoken(said))
    for heard, _ in replies:
        if not oracle.closed:
            oracle.hear(heard)
    oracle.lose(499)
    whole, spoke = _talked(choice, [[octets] for _, octets in replies])
    assert whole.ended == oracle.ended
    assert _verbs(whole.output) == oracle.sent
    assert _talked(choice, [cut(octets) for _, octets in replies])[0] == whole
    # Replies that answer one group come together, too.
    together = [b""]
    for (_, octets), answered in zip(replies, spoke, strict=True):
        together[-1] += octets
        if answered:
            together.append(b"")
    assert _talked(choice, [[octets] for octets in together])[0] == whole


def _welcome(choice: int) -> bytes:
    words = [word for at, word in enumerate(_KIND) if choice >> at & 1]
    lines = [b"250-" + word.encode() + b"\r\n" for word in words]
    return b"220 mx.test\r\n250-mx.test\r\n" + b"".join(lines) + b"250 SIZE\r\n"


def _client_oracle(choice: int) -> ClientOracle:
    return ClientOracle(
        lmtp=bool(choice & 1),
        tls=_TLS[choice >> 1 & 3],
        recipients=1 + (choice >> 3 & 3),
        streamed=bool(choice & 32),
    )


def _talked(choice: int, replies: list[list[bytes]]) -> tuple[Talked, list[bool]]:
    """What it did, and whether it spoke after each reply."""
    client = Client("me.test", "mx.test", lmtp=bool(choice & 1), tls=_TLS[choice >> 1 & 3])
    names = [Recipient(f"r{at}@b.test") for at in range(1 + (choice >> 3 & 3))]
    envelope = Envelope(1, 0, "s@a.test", "b.test", names, 0.0, len(_BODY))
    body = None if choice & 32 else [_BODY]
    talked, spoke = Talked(), []
    for pieces in replies:
        before = len(talked.output)
        for piece in pieces:
            _act(client, client.receive(piece), talked, envelope, body)
        spoke.append(len(talked.output) > before or Sent.STARTTLS in talked.events[-1:])
    _act(client, client.lost(Reply(499, "", "")), talked, envelope, body)
    assert client.closed
    return talked, spoke


def _act(
    client: Client, events: list[Sent], talked: Talked, envelope: Envelope, body: list[bytes] | None
) -> None:
    """What the owner of a connection does; there is always one more message."""
    talked.events += events
    talked.output += client.take_output()
    for event in events:
        if event is Sent.DONE:
            talked.ended.append([reply.code for reply in client.replies])
        elif event is Sent.READY:
            client.begin(envelope, body)
            talked.output += client.take_output()
        elif event is Sent.BODY:
            talked.output += client.frame(_BODY[:20], last=False)
            talked.output += client.frame(_BODY[20:], last=True)
        elif event is Sent.STARTTLS:
            client.started_tls()
            talked.output += client.take_output()


def _verbs(output: bytes) -> list[str]:
    """Commands without what they carry, "." for what goes behind DATA."""
    output = output.replace(b" LAST\r\n" + _BODY, b" LAST\r\n").replace(
        wire.stuffed(_BODY), b".\r\n"
    )
    return [line.split()[0].decode() for line in output.split(b"\r\n")[:-1]]


# A dialogue with the POP3 server.


def fuzz_pop3(data: bytes) -> None:
    if len(data) < 2:
        return
    choice, how, said = data[0], data[1], data[2:]
    if choice & 128:
        said = GOOD + said
    messages = {at * 3 + 1: MESSAGES[(how + at) % len(MESSAGES)] for at in range(choice & 7)}
    wanted = Pop3Oracle(VALIDITY, messages, MAX_ERRORS).talk(said)
    at_hand = [number for number in range(1, len(messages) + 1) if choice >> 3 & number]
    for pieces in ([said], cut(said)):
        dialogue = Pop3Dialogue(messages, max_errors=MAX_ERRORS)
        dialogue.read_ahead(at_hand)
        dialogue.piece = (1, 7, 64, 1 << 20)[how >> 4 & 3]
        got = dialogue.greeting + b"".join(map(dialogue.send, pieces))
        assert told(wanted.said, got)
        assert dialogue.deleted == wanted.deleted
