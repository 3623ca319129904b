"""The client's side of an SMTP or LMTP connection, without I/O (RFC 5321, RFC 2033).

What is always true:

- A reply belongs to the oldest command that has none; nothing is expected that was not sent.
- Each recipient of a transaction gets exactly one reply, and DONE comes once a transaction.
- A recipient's reply is positive only if its RCPT was answered 2xx and, after that, the end of
  the data, all of which had been sent. Over LMTP that answer is the recipient's own.
- Where TLS is a must, no command but EHLO, STARTTLS and QUIT goes out before the handshake.
- Once closed, nothing more is sent, understood or reported.
"""

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

from fastmta._core.data import Stuffer
from fastmta.mail.delivery_status import Action
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.reply import Reply
from fastmta.protocol import smtp_commands as commands
from fastmta.protocol.smtp_reply import (
    MAX_TEXT,
    BadReply,
    Capabilities,
    ReplyReader,
    too_many_is_temporary,
)
from fastmta.protocol.smtp_steps import PHRASES, SUCCESS, Step

# Whether to ask for TLS (RFC 3207), to go on without it, and to ask who is at the other end.
# "requiretls" is "verified", to hosts that promise the same for their part (RFC 8689).
TlsPolicy = Literal["none", "opportunistic", "required", "verified", "requiretls"]


class Event(IntEnum):
    """What the owner of the connection has to act on."""

    READY = 1  # a transaction may begin
    BODY = 2  # send the body: `frame` each block
    DONE = 3  # the transaction is over: `replies` has one for each recipient
    CLOSED = 4  # the connection is of no more use; `reason` says why
    STARTTLS = 5  # do the handshake, then `started_tls`; what comes in the clear is not for us


_PENDING = Reply(0, "", "")  # a recipient's, until the transaction is over


class Client:
    """One connection: feed `receive`, act on its events, send what `take_output` gives."""

    __slots__ = (
        "_accepted",
        "_body",
        "_body_due",
        "_events",
        "_expected",
        "_host",
        "_hostname",
        "_implicit",
        "_is_passed_on",
        "_lmtp",
        "_next",
        "_open",
        "_output",
        "_reader",
        "_stuffer",
        "_tls",
        "_unframed",
        "_unsent",
        "answers",
        "capabilities",
        "closed",
        "reason",
        "replies",
    )

    def __init__(
        self,
        hostname: str,
        host: str = "the host",
        *,
        lmtp: bool = False,
        tls: TlsPolicy = "none",
        implicit: bool = False,
    ) -> None:
        """`hostname` is our name, `host` the other's, for replies of our own.

        `implicit`: TLS begins with the connection (RFC 8314 section 3.3), before any greeting.
        """
        self.capabilities = Capabilities()
        self.closed = False
        self.reason: Reply | None = None
        self.replies: list[Reply] = []  # of the transaction's recipients, in order
        self.answers = 0  # what the server said so far, 421 aside
        self._hostname = hostname
        self._host = host
        self._lmtp = lmtp
        self._tls: TlsPolicy = tls  # "none" as soon as it is there
        self._is_passed_on = tls == "requiretls"  # the host has to ask the same of the next one
        self._events: list[Event] = []
        self._expected: deque[Step] = deque((Step.TLS if implicit else Step.GREETING,))
        self._implicit = implicit
        self._output: list[bytes] = []
        self._reader = ReplyReader()
        # The transaction under way.
        self._open = False
        self._unsent: deque[tuple[Step, str]] = deque()  # commands held back without PIPELINING
        self._next = 0  # index of the recipient whose reply comes next
        self._accepted = 0
        self._body: list[bytes] | None = None  # None: streamed
        self._body_due = False  # the body is streamed, and its end is still to be framed
        self._unframed = 0  # octets of a streamed body that are still to come
        self._stuffer: Stuffer | None = None

    # What the owner asks.

    @property
    def is_ready(self) -> bool:
        """A transaction may begin."""
        return not (self.closed or self._expected or self._open)

    @property
    def waiting(self) -> Step | None:
        """The step whose reply comes next; None: none is owed."""
        return self._expected[0] if self._expected else None

    def objection(self, envelope: Envelope) -> Reply | None:
        """Why this server cannot be given this message at all; None: it can."""
        return commands.objection(envelope, self.capabilities)

    @property
    def success(self) -> Action | None:
        """What a report of success calls a delivery here; None: the host is asked to report it.

        RFC 3461 section 5.2.2 (b): "relayed" where the host offers no DSN.
        """
        return None if self.capabilities.dsn else Action.RELAYED

    def needs_seven_bit(self, envelope: Envelope) -> bool:
        """Whether the message has to be converted first (RFC 6152 section 3)."""
        return envelope.eight_bit and not self.capabilities.eight_bit

    def take_output(self) -> bytes:
        """Everything to be sent now, for one write."""
        output = self._output
        if not output:
            return b""
        self._output = []
        return b"".join(output) if len(output) > 1 else output[0]

    # What the owner does.

    def begin(self, envelope: Envelope, body: list[bytes] | None) -> None:
        """Start a transaction; only when `is_ready` and without an `objection`.

        `body` None: of `envelope.size` octets, to be sent in blocks when BODY comes.
        """
        recipients = envelope.recipients
        self._open = True
        self.replies = [_PENDING] * len(recipients)
        self._next = self._accepted = 0
        self._body, self._unframed = body, envelope.size
        offered = self.capabilities
        mail = commands.mail(envelope, offered)
        if offered.pipelining:
            self._send_group(mail, recipients)
        else:
            rcpts = ((Step.RCPT, commands.rcpt(each, offered)) for each in recipients)
            self._unsent.extend(rcpts)
            self._send(Step.MAIL, mail)

    def frame(self, block: bytes, *, last: bool) -> bytes:
        """A block of a streamed body as it goes over the wire, the last with what ends the body.

        Raises ValueError where the body is not as long as the envelope says.
        """
        self._unframed -= len(block)
        if self._unframed < 0 or (last and self._unframed):
            raise ValueError("the message is not as long as its envelope says")
        self._body_due = not last
        if self._stuffer is None:
            return block
        framed = self._stuffer.feed(block)
        return framed + self._stuffer.finish() if last else framed

    def quit(self) -> None:
        """End the connection as RFC 5321 section 4.1.1.10 asks; only when `is_ready`."""
        self._send(Step.QUIT, "QUIT\r\n")

    def started_tls(self) -> list[Event]:
        """The handshake is done: all that was said before is void.

        RFC 3207 section 4.2.
        """
        events: list[Event] = []
        if self.closed:
            return events
        self._events = events
        self._expected.clear()
        self._tls = "none"
        self.capabilities = Capabilities()
        if self._reader.has_more:  # an answer that was begun in the clear must not end under TLS
            self._violated("octets in the clear before the TLS handshake")
        elif self._implicit:
            self._expected.append(Step.GREETING)
        else:
            self._hello()
        return events

    def lost(self, reason: Reply) -> list[Event]:
        """The connection is gone, or given up: what has no reply yet gets this one."""
        self._events = []
        self._close(reason)
        return self._events

    def receive(self, data: bytes) -> list[Event]:
        """Read what the server sent, in pieces of any size."""
        events: list[Event] = []
        self._events = events
        reader = self._reader
        reader.feed(data)
        try:
            while not self.closed and (reply := reader.next()):
                self._on_reply(reply)
        except BadReply as error:
            self._violated(str(error))
        return events

    def _on_reply(self, reply: Reply) -> None:
        if reply.code == 421:  # section 3.8: to any command, or to none
            return self._close(reply)
        if not self._expected or self._output:
            # Output that still waits here cannot have been answered.
            return self._violated(f"reply to nothing: {reply}")
        step = self._expected[0]
        kind = reply.code // 100
        if kind not in (SUCCESS[step], 4, 5):
            return self._violated(f"{reply.code} is not {PHRASES[step]}")
        self.answers += 1
        self._expected.popleft()
        return _HANDLERS[step](self, reply, kind < 4)

    # The steps, each with its reply and whether that is success.

    def _on_greeting(self, reply: Reply, ok: bool) -> None:
        if not ok:
            return self._refused(reply)
        if self._is_ourselves(reply.text):
            return self._loops()
        return self._hello()

    def _on_ehlo(self, reply: Reply, ok: bool) -> None:
        if reply.code >= 500 and not self._lmtp:  # section 3.2: it may know HELO alone
            return self._send(Step.HELO, f"HELO {self._hostname}\r\n")
        if ok:
            self.capabilities = Capabilities.parse(self._reader.lines[1:])
        return self._on_helo(reply, ok)

    def _on_helo(self, reply: Reply, ok: bool) -> None:
        if not ok:
            return self._refused(reply)
        if self._is_ourselves(reply.text):
            return self._loops()
        if self._tls == "none":
            return self._ready()
        if self.capabilities.starttls:
            return self._send(Step.STARTTLS, "STARTTLS\r\n")
        return self._go_on_in_the_clear("was not offered")

    def _on_starttls(self, reply: Reply, ok: bool) -> None:
        if not ok:
            return self._go_on_in_the_clear(f"was refused: {reply}")
        if self._reader.has_more:  # injected (CVE-2011-0411): nobody may speak but us now
            return self._violated("octets in the clear behind the reply to STARTTLS")
        self._expected.append(Step.TLS)
        return self._events.append(Event.STARTTLS)

    def _on_tls(self, reply: Reply, ok: bool) -> None:
        self._violated("a reply in the clear instead of a TLS handshake")

    def _on_mail(self, reply: Reply, ok: bool) -> None:
        if not ok:
            self._unsent.clear()
            self._answer_rest(reply)
        self._advance()

    def _on_rcpt(self, reply: Reply, ok: bool) -> None:
        index = self._next
        self._next = index + 1
        if self.replies[index] is _PENDING:
            if ok:
                self._accepted += 1
            else:
                self.replies[index] = too_many_is_temporary(reply)
        self._advance()

    def _on_data(self, reply: Reply, ok: bool) -> None:
        if not ok:
            self._answer_rest(reply)
            return self._finish(reset=True)
        if self._lmtp and not self._accepted:  # RFC 2033 section 4.2: it must say 503
            return self._violated("DATA accepted without a recipient")
        self._expected.append(Step.END)
        if not self._accepted:
            # RFC 2920 section 3.1: no recipient is left, so nothing but the dot is sent.
            self._output.append(b".\r\n")
        elif self._body is None:
            self._stuffer = Stuffer()
            self._stream()
        else:
            stuffer = Stuffer()
            self._output.extend(map(stuffer.feed, self._body))
            self._output.append(stuffer.finish())
        return None

    def _on_end(self, reply: Reply, ok: bool) -> None:
        if self._body_due and ok:
            return self._violated(f"message accepted before its end: {reply}")
        if self._body_due:  # refused halfway; there is no way to stop but to hang up
            self._answer_rest(reply)
            return self._close(reply)
        if self._lmtp and self._answer_one(reply):
            return self._expected.append(Step.END)
        self._answer_rest(reply)
        return self._finish(reset=False)

    def _on_bdat(self, reply: Reply, ok: bool) -> None:
        if self._body_due:
            return self._on_end(reply, ok)
        if self._lmtp and self._answer_one(reply):
            return self._expected.append(Step.BDAT)
        self._answer_rest(reply)
        # RFC 3030 section 2: a failed BDAT leaves the transaction to be cleared by RSET.
        return self._finish(reset=not ok)

    def _on_rset(self, reply: Reply, ok: bool) -> None:
        if not ok:
            return self._close(reply)
        return self._events.append(Event.READY)

    def _on_quit(self, reply: Reply, ok: bool) -> None:
        self._close(reply)

    # What the steps are made of.

    def _hello(self) -> None:
        verb = "LHLO" if self._lmtp else "EHLO"  # RFC 2033 section 4.1
        self._send(Step.EHLO, f"{verb} {self._hostname}\r\n")

    def _ready(self) -> None:
        if self._is_passed_on and not self.capabilities.requiretls:
            # RFC 8689 section 4.2.1: another host of the domain may offer it.
            text = f"the message needs REQUIRETLS, which {self._host} does not offer"
            return self._leave(Reply(450, "4.7.30", text[:MAX_TEXT]))
        return self._events.append(Event.READY)

    def _go_on_in_the_clear(self, why: str) -> None:
        """There is no TLS with this host: not one octet of mail where it is a must."""
        if self._tls == "opportunistic":
            return self._events.append(Event.READY)
        text = f"TLS is required for {self._host}, but STARTTLS {why}"
        return self._leave(Reply(451, "4.7.4", text[:MAX_TEXT]))

    def _send(self, step: Step, command: str) -> None:
        self._expected.append(step)
        self._output.append(command.encode())

    def _send_group(self, mail: str, recipients: list[Recipient]) -> None:
        """MAIL, all RCPT and, with a body at hand, DATA or BDAT in one write (RFC 2920)."""
        expected, offered = self._expected, self.capabilities
        expected.append(Step.MAIL)
        for recipient in recipients:
            mail += commands.rcpt(recipient, offered)
            expected.append(Step.RCPT)
        body = self._body
        if body is None:
            # A large message waits for the replies: it may be that nobody wants it.
            self._output.append(mail.encode())
        elif offered.chunking:
            # RFC 3030 section 2 lets the replies to RCPT be read first. Without that stop a
            # message costs one round trip; a server must discard what it does not want anyway.
            expected.append(Step.BDAT)
            self._output.append(f"{mail}BDAT {sum(map(len, body))} LAST\r\n".encode())
            self._output += body
        else:
            expected.append(Step.DATA)
            self._output.append(f"{mail}DATA\r\n".encode())

    def _advance(self) -> None:
        """After a reply to MAIL or RCPT: the next command, where it was held back."""
        if self._expected:
            return None
        if self._unsent:
            return self._send(*self._unsent.popleft())
        if not self._accepted:
            return self._finish(reset=True)
        return self._send_body()

    def _send_body(self) -> None:
        if not self.capabilities.chunking:
            return self._send(Step.DATA, "DATA\r\n")
        if self._body is None:
            self._send(Step.BDAT, f"BDAT {self._unframed} LAST\r\n")
            return self._stream()
        self._send(Step.BDAT, f"BDAT {sum(map(len, self._body))} LAST\r\n")
        self._output += self._body
        return None

    def _stream(self) -> None:
        self._body_due = True
        self._events.append(Event.BODY)

    def _answer_one(self, reply: Reply) -> bool:
        """RFC 2033 section 4.2: a reply for each accepted recipient; True: more are to come.

        Section 4.3: where none was accepted, BDAT is refused as a whole.
        """
        if self._accepted <= 1:
            return False  # the only one left has it by `_answer_rest`
        self._accepted -= 1
        self._next = self.replies.index(_PENDING, self._next % len(self.replies))
        self.replies[self._next] = reply
        return True

    def _answer_rest(self, reply: Reply) -> None:
        self.replies = [reply if each is _PENDING else each for each in self.replies]

    def _finish(self, *, reset: bool) -> None:
        self._open = False
        self._body = self._stuffer = None
        self._events.append(Event.DONE)
        if reset:
            self._send(Step.RSET, "RSET\r\n")
        else:
            self._events.append(Event.READY)

    def _close(self, reason: Reply) -> None:
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._expected.clear()
        self._unsent.clear()
        self._output.clear()
        self._body = self._stuffer = None
        if self._open:
            self._open = False
            self._answer_rest(reason)
            self._events.append(Event.DONE)
        self._events.append(Event.CLOSED)

    def _refused(self, reply: Reply) -> None:
        """The host wants no mail from us, now or ever; another may, so it is no bounce.

        RFC 5321 section 3.1 lets a 5xx be final. It mostly tells of a block list or a broken
        host, so it is temporary here, as in Postfix (smtp_skip_5xx_greeting).
        """
        if reply.is_permanent:
            text = f"refused to talk to us: {reply}"[:MAX_TEXT]
            reply = Reply(450, f"4{reply.enhanced[1:] or '.3.2'}", text)
        self._leave(reply)

    def _loops(self) -> None:
        self._leave(Reply(554, "5.4.6", "mail loops back to us: the host answers with our name"))

    def _leave(self, reason: Reply) -> None:
        """Nothing is to be sent here, and the host hears of it."""
        self._close(reason)
        self._output.append(b"QUIT\r\n")

    def _violated(self, what: str) -> None:
        """What comes cannot be matched to what was sent: nothing after it is worth reading."""
        self.answers += 1
        self._close(Reply(451, "4.5.0", f"protocol error: {what}"[:MAX_TEXT]))

    def _is_ourselves(self, text: str) -> bool:
        if self._lmtp:  # a mailbox, mostly on this very machine, and never a relay
            return False
        name = text.split(None, 1)[0] if text.strip() else ""
        return name.rstrip(".").lower() == self._hostname.rstrip(".").lower()


_Handler = Callable[[Client, Reply, bool], None]
_HANDLERS: tuple[_Handler, ...] = (
    Client._on_greeting,
    Client._on_ehlo,
    Client._on_helo,
    Client._on_starttls,
    Client._on_tls,
    Client._on_mail,
    Client._on_rcpt,
    Client._on_data,
    Client._on_end,
    Client._on_bdat,
    Client._on_rset,
    Client._on_quit,
)
