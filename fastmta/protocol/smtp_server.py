"""The SMTP server's side of one session, without I/O (RFC 5321).

Octets go in through `receive`; `take_output` gives what is to be written, and `take_event` what
is to be done. All replies to one `receive` are one output.

Always true:
- `arrival` is set exactly while a transaction is open (SENDER, RECIPIENT, CONTENT, CHUNK, CHUNKS,
  and ASKING from there) and not refused; every end of a transaction, good or bad, goes through
  `_end`.
- While ASKING, PENDING, PAUSED or in HANDSHAKE, no command is looked at: replies stay in order.
- What is ASKED has been checked and is not carried out before `answer`.
- In HANDSHAKE nothing is buffered, and `started_tls` forgets everything but the counts.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from fastmta._core import smtp as verb
from fastmta._core.lines import BareLineFeed, LineTooLong
from fastmta._core.smtp_plain import plain_data, plain_mail, plain_rcpt
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_arguments import Refused, read_mail, read_rcpt
from fastmta.protocol.smtp_auth import Authenticator
from fastmta.protocol.smtp_content import OUT_OF_ORDER
from fastmta.protocol.smtp_limits import Door, Load, Policy
from fastmta.protocol.smtp_machine import (
    ASKING,
    CHUNKS,
    HANDSHAKE,
    PAUSED,
    PENDING,
    READY,
    RECIPIENT,
    SENDER,
    START,
    Event,
)
from fastmta.protocol.smtp_question import Question, Step
from fastmta.protocol.smtp_xclient import NAMES, read_claims

# An address, whether the client may relay, and what it has said so far of the message: why the
# address is refused, or nothing.
Vet = Callable[[str, bool, Arrival], bytes]

# Why a reverse-path is not for the one who is logged in, or nothing.
VetSender = Callable[[str], bytes]

# Recipients beyond the limit that are not yet errors: a client may send all it has before it
# reads the first 452 (RFC 5321 section 4.5.3.1.10).
_OVERSHOOT = 1000

# Commands and pieces that are looked at before other sessions have their turn: some milliseconds.
_STEPS_AT_ONCE = 2000

# Wider than RFC 5321 section 4.1.3 so that common names pass; narrow enough for a trace field.
_HOST = re.compile(rb"[0-9A-Za-z_.:\-]{1,255}|\[[0-9A-Za-z.:]{1,64}\]")
_CLOSING = 421


class SmtpServer(Authenticator):
    """One session: see the module."""

    __slots__ = ("_refusal", "asks", "trusts_xclient", "vet", "vet_sender")

    def __init__(
        self,
        policy: Policy,
        load: Load,
        refusal: Callable[[], Reply | None],
        *,
        may_relay: bool = False,
        tls: bool = False,
        vet: Vet | None = None,
        asks: frozenset[Step] = frozenset(),
        door: Door | None = None,
    ) -> None:
        """`refusal` is asked at each MAIL, `vet` at each RCPT; `tls`: under TLS from the start.

        At each of `asks` the machine waits for `answer`; of MESSAGE it need not know, since
        `settle` is waited for anyway, and at AUTH it always asks.
        """
        super().__init__(policy, load, door, tls)
        self._refusal = refusal
        self.vet = vet
        self.may_relay = may_relay
        self.trusts_xclient = False  # this client may speak for others
        self.vet_sender: VetSender | None = None
        self.asks = asks
        self._output.append(self._connect())

    # What the socket code calls.

    def receive(self, data: bytes) -> None:
        """Take in what the client sent, and do all that can be done with it."""
        if self.state == ASKING and self._awaits_greeting:
            self.stop(reply.TALKED_TOO_SOON)  # RFC 5321 section 4.3.1: the greeting comes first
        elif self.state < HANDSHAKE:
            self._lines.feed(data)
            self._run()

    def answer(self, refusal: Reply | None, last: bytes = b"") -> None:
        """Carry out what was asked for, or refuse it; go on with what came behind it.

        `last`: a challenge that the mechanism has before a login is refused.
        """
        question, self._question = self._question, None
        if question is None:
            return
        self.state = self._state_before
        if refusal is None:
            self._output.append(_CARRY_OUT[question.step](self, question))
        else:
            self._output.append(self._turn_down(question, refusal, last))
        self._run()

    def settle(self, refusal: Reply | None, id: str) -> None:
        """The arrival is safe under this id, or it is not; go on with what came behind it."""
        self._release()
        if self.state != PENDING:
            return
        self.state = READY
        if refusal is None:
            self._junk = 0
            self._output.append(f"250 2.0.0 Ok: queued as {id}\r\n".encode())
        else:
            self._output.append(bytes(refusal))
        if self._load.draining:
            self._output.append(self._close(reply.SHUTTING_DOWN))
        self._run()

    def go_on(self) -> None:
        """What Event.DELAY or Event.YIELD asked to wait for has come."""
        if self.state == PAUSED:
            self.state = self._state_before
            self._run()

    def started_tls(self) -> None:
        """RFC 3207 section 4.2: nothing that was said in the clear is remembered."""
        self.tls = True
        self.helo = ""
        self.extended = self.authenticated = False
        self._lines.clear()
        self._end(START)

    # One step for each state: True while there is more to do.

    def _run(self) -> None:
        for _ in range(_STEPS_AT_ONCE):
            if not _STEPS[self.state](self):
                return
        if self.state < ASKING:
            self._pause(Event.YIELD)

    # What is plain is taken off in one call, by the rules of `_command` for the same line.

    def _ready(self) -> bool:
        if not self._lines:
            return False
        policy = self._policy
        found = None
        if self.authenticated or not policy.needs_login:
            found = plain_mail(self._lines, policy.max_message_size)
        if found is None:
            return self._command()
        sender, size, eight_bit = found
        self._output.append(self._begin(Arrival(0, sender, [], [], size, 0.0, eight_bit)))
        return True

    def _transaction(self) -> bool:
        if not self._lines:
            return False
        address = plain_rcpt(self._lines)
        if address is not None:
            self._output.append(self._consider(Recipient(address)))
            return True
        if self.state == RECIPIENT and plain_data(self._lines):
            self._output.append(self._data(b""))
            return True
        return self._command()

    def _command(self) -> bool:
        lines = self._lines
        try:
            line = lines.next_line()
        except LineTooLong:
            self._output.append(self._error(reply.LINE_TOO_LONG))
            return True
        except BareLineFeed:
            # Closed, since what stands behind may be smuggled: nothing of it is executed.
            self._output.append(self._close(self._error(reply.BARE_LINE_FEED)))
            return False
        if line is None:
            return False
        code, argument = verb.parse_command(line)
        if code in _LAST_IN_GROUP and len(lines):
            self._output.append(self._close(self._error(reply.TALKED_TOO_SOON)))
            return False
        self._output.append(_TRANSITIONS[self.state][code](self, argument))
        return True

    # Sessions.

    def _connect(self) -> bytes:
        if Step.CONNECT in self.asks:
            return self._ask(Question(Step.CONNECT))
        return self._greet(None)

    def _greet(self, question: Question | None) -> bytes:
        return f"220 {self._policy.hostname} ESMTP fastmta\r\n".encode()

    def _ehlo(self, argument: bytes) -> bytes:
        return self._hello(argument, True)

    def _helo(self, argument: bytes) -> bytes:
        return self._hello(argument, False)

    def _hello(self, argument: bytes, extended: bool) -> bytes:
        if not _HOST.fullmatch(argument):
            return self._error(reply.NEEDS_HOST)
        helo = argument.decode("ascii")
        if self.asks and Step.EHLO in self.asks:
            return self._ask(Question(Step.EHLO, helo, extended))
        return self._introduce(helo, extended)

    def _introduce(self, helo: str, extended: bool) -> bytes:
        self.helo = helo
        self.extended = extended
        self._end(READY)  # RFC 5321 section 4.1.4: as RSET
        if extended:
            return self._counted(self._extensions())
        return self._counted(f"250 {self._policy.hostname}\r\n".encode())

    def _extensions(self) -> bytes:
        return _extensions(self._policy, self.tls, self._mechanisms, self.trusts_xclient)

    @property
    def _mechanisms(self) -> tuple[str, ...]:
        """What can be used now: no password goes in the clear."""
        return self.door.mechanisms() if self.door and self.tls else ()

    def _xclient(self, argument: bytes) -> bytes:
        if not self.trusts_xclient:
            return self._error(reply.NO_XCLIENT)
        try:
            claims = read_claims(argument)
        except ValueError:
            return self._error(reply.BAD_XCLIENT)
        return self._ask(Question(Step.XCLIENT, claims=claims))

    def _begin_anew(self, question: Question) -> bytes:
        """As with a new client, but for TLS and the counts, which are of the host that speaks.

        Who has logged in, and who may relay, is noted by whoever answers.
        """
        self.helo = ""
        self.extended = False
        self._end(START)
        return self._connect()

    def _starttls(self, argument: bytes) -> bytes:
        if self.tls or not self._policy.starttls:
            return self._error(reply.NO_TLS)
        if argument:
            return self._error(reply.NO_ARGUMENT)
        self.state = HANDSHAKE
        self._event = Event.STARTTLS
        return reply.READY_FOR_TLS

    def _quit(self, argument: bytes) -> bytes:
        return self._close(reply.GOODBYE)

    def _noop(self, argument: bytes) -> bytes:
        return self._counted(reply.OK)

    def _help(self, argument: bytes) -> bytes:
        return self._counted(reply.HELP)

    def _vrfy(self, argument: bytes) -> bytes:
        return self._counted(reply.CANNOT_VERIFY) if argument else self._error(reply.NEEDS_ARGUMENT)

    # Transactions.

    def _mail(self, argument: bytes) -> bytes:
        if self._policy.needs_login and not self.authenticated:
            return self._error(reply.NEEDS_AUTH if self.tls else reply.TLS_FIRST)
        try:
            arrival = read_mail(argument, self._policy.max_message_size, tls=self.tls)
        except Refused as refused:
            return self._error(refused.answer)
        return self._begin(arrival)

    def _begin(self, arrival: Arrival) -> bytes:
        """MAIL is as it should be."""
        vet = self.vet_sender if self.authenticated else None
        if vet is not None and (refusal := vet(arrival.sender)):
            return self._error(refusal)
        if (not_now := self._refusal()) is not None:
            return bytes(not_now)
        if self._load.held + arrival.size > self._load.max_held:
            return reply.OUT_OF_MEMORY
        if self.asks and Step.MAIL in self.asks:
            return self._ask(Question(Step.MAIL, arrival=arrival))
        return self._open(arrival)

    def _open(self, arrival: Arrival) -> bytes:
        self.arrival = arrival
        self.state = SENDER
        return reply.SENDER_OK

    def _rcpt(self, argument: bytes) -> bytes:
        arrival = self.arrival
        assert arrival is not None
        try:
            recipient = read_rcpt(argument, arrival, self._policy.hostname)
        except Refused as refused:
            return self._error(refused.answer)
        return self._consider(recipient)

    def _consider(self, recipient: Recipient) -> bytes:
        """RCPT is as it should be."""
        arrival = self.arrival
        assert arrival is not None
        if self.vet is None:
            if not self.may_relay:
                return self._error(reply.RELAY_DENIED)
        elif refusal := self.vet(recipient.address, self.may_relay, arrival):
            return self._unfit(refusal)
        if len(arrival.recipients) >= self._policy.max_recipients:
            return self._too_many_recipients()
        if self.asks and Step.RCPT in self.asks:
            return self._ask(Question(Step.RCPT, arrival=arrival, recipient=recipient))
        return self._add(arrival, recipient)

    def _add(self, arrival: Arrival, recipient: Recipient) -> bytes:
        arrival.recipients.append(recipient)
        self.state = RECIPIENT
        return reply.RECIPIENT_OK

    def _too_many_recipients(self) -> bytes:
        self._overshoot += 1
        if self._overshoot > _OVERSHOOT:
            return self._error(reply.TOO_MANY_RECIPIENTS)
        return reply.TOO_MANY_RECIPIENTS

    def _rset(self, argument: bytes) -> bytes:
        self._end(READY if self.helo else START)
        return self._counted(reply.OK)

    # What was asked.

    def _carry_out_ehlo(self, question: Question) -> bytes:
        return self._introduce(question.helo, question.extended)

    def _carry_out_auth(self, question: Question) -> bytes:
        assert question.attempt is not None
        return self._let_in(question.attempt)

    def _carry_out_mail(self, question: Question) -> bytes:
        assert question.arrival is not None
        return self._open(question.arrival)

    def _carry_out_rcpt(self, question: Question) -> bytes:
        assert question.arrival is not None
        assert question.recipient is not None
        return self._add(question.arrival, question.recipient)

    def _turn_down(self, question: Question, refusal: Reply, last: bytes) -> bytes:
        """421 closes, at any step (RFC 5321 section 3.8); so does every "no" to a connection."""
        if refusal.code == _CLOSING or question.step is Step.CONNECT:
            self._load.rejected.value += 1
            return self._close(bytes(refusal))
        if question.step is Step.AUTH:
            return self._keep_out(bytes(refusal), last)
        if refusal.is_permanent:
            return self._refused(bytes(refusal))
        self._load.rejected.value += 1
        return bytes(refusal)

    # What is not legal now.

    def _unknown(self, argument: bytes) -> bytes:
        return self._error(reply.UNKNOWN_COMMAND)

    def _malformed(self, argument: bytes) -> bytes:
        return self._error(reply.MALFORMED)

    def _not_implemented(self, argument: bytes) -> bytes:
        return self._error(reply.NOT_IMPLEMENTED)

    def _out_of_order(self, argument: bytes) -> bytes:
        return self._error(OUT_OF_ORDER[self.state])


@lru_cache(maxsize=16)
def _extensions(policy: Policy, tls: bool, mechanisms: tuple[str, ...], xclient: bool) -> bytes:
    """The reply to EHLO; STARTTLS is not offered again under TLS (RFC 3207 section 4.2)."""
    lines = [
        policy.hostname,
        "PIPELINING",
        f"SIZE {policy.max_message_size}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "CHUNKING",
        "DSN",
        f"LIMITS RCPTMAX={policy.max_recipients}",  # RFC 9422
    ]
    if tls:
        lines.append("REQUIRETLS")  # RFC 8689 section 2: under TLS alone
    if policy.starttls and not tls:
        lines.append("STARTTLS")
    if mechanisms:
        lines.append(f"AUTH {' '.join(mechanisms)}")
    if xclient:
        lines.append(f"XCLIENT {' '.join(NAMES)}")
    return bytes(Reply(250, "", "\n".join(lines)))


_Handler = Callable[[SmtpServer, bytes], bytes]
_Server = SmtpServer

# Which command does what in which state (RFC 5321 section 4.1.4); a state's own row goes first.
_COMMON: dict[int, _Handler] = {
    verb.UNKNOWN: _Server._unknown,
    verb.MALFORMED: _Server._malformed,
    verb.EHLO: _Server._ehlo,
    verb.HELO: _Server._helo,
    verb.MAIL: _Server._out_of_order,
    verb.RCPT: _Server._out_of_order,
    verb.DATA: _Server._out_of_order,
    verb.BDAT: _Server._bdat_refused,
    verb.RSET: _Server._rset,
    verb.NOOP: _Server._noop,
    verb.HELP: _Server._help,
    verb.VRFY: _Server._vrfy,
    verb.EXPN: _Server._not_implemented,
    verb.QUIT: _Server._quit,
    verb.AUTH: _Server._out_of_order,
    verb.STARTTLS: _Server._out_of_order,
    verb.XCLIENT: _Server._out_of_order,
}
_LEGAL: dict[int, dict[int, _Handler]] = {
    START: {verb.XCLIENT: _Server._xclient},
    READY: {
        verb.AUTH: _Server._auth,
        verb.MAIL: _Server._mail,
        verb.STARTTLS: _Server._starttls,
        verb.XCLIENT: _Server._xclient,
    },
    SENDER: {verb.RCPT: _Server._rcpt},
    RECIPIENT: {verb.RCPT: _Server._rcpt, verb.DATA: _Server._data, verb.BDAT: _Server._bdat},
    CHUNKS: {verb.BDAT: _Server._bdat},  # DATA too is 503 here (RFC 3030 section 2)
}
_TRANSITIONS = tuple(
    tuple((_COMMON | own)[code] for code in sorted(_COMMON)) for _, own in sorted(_LEGAL.items())
)
# RFC 2920 section 3.1; of those that it names, the ones whose reply changes what may follow, and
# AUTH and XCLIENT, whose replies begin something.
_LAST_IN_GROUP = frozenset(
    {verb.EHLO, verb.HELO, verb.DATA, verb.AUTH, verb.STARTTLS, verb.XCLIENT}
)

_CARRY_OUT: dict[Step, Callable[[SmtpServer, Question], bytes]] = {
    Step.CONNECT: _Server._greet,
    Step.XCLIENT: _Server._begin_anew,
    Step.EHLO: _Server._carry_out_ehlo,
    Step.AUTH: _Server._carry_out_auth,
    Step.MAIL: _Server._carry_out_mail,
    Step.RCPT: _Server._carry_out_rcpt,
}

_STEPS: tuple[Callable[[SmtpServer], bool], ...] = (
    _Server._command,  # START
    _Server._ready,  # READY
    _Server._transaction,  # SENDER
    _Server._transaction,  # RECIPIENT
    _Server._command,  # CHUNKS
    _Server._content,  # CONTENT
    _Server._chunk,  # CHUNK
    _Server._response,  # CREDENTIALS
    _Server._wait,  # ASKING
    _Server._wait,  # PENDING
    _Server._wait,  # PAUSED
    _Server._wait,  # HANDSHAKE
    _Server._wait,  # CLOSED
)
