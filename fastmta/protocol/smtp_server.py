"""The SMTP server's side of one session, without I/O (RFC 5321).

Octets go in through `receive`; `take_output` gives what is to be written, and `take_event` what
is to be done. All replies to one `receive` are one output.

Always true:
- `arrival` is set exactly while a transaction is open (SENDER, RECIPIENT, CONTENT, CHUNK, CHUNKS)
  and not refused; every end of a transaction, good or bad, goes through `_end`.
- While PENDING, PAUSED or in HANDSHAKE, no command is looked at: replies stay in order.
- In HANDSHAKE nothing is buffered, and `started_tls` forgets everything but the counts.
"""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache

from fastmta._core import smtp as verb
from fastmta._core.data import NO_ROOM, DataScanner
from fastmta._core.lines import BareLineFeed, LineBuffer, LineTooLong
from fastmta.mail.arrival import Arrival
from fastmta.mail.reply import Reply
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_arguments import Refused, read_mail, read_rcpt
from fastmta.protocol.smtp_limits import Load, Policy

# Recipients beyond the limit that are not yet errors: a client may send all it has before it
# reads the first 452 (RFC 5321 section 4.5.3.1.10).
_OVERSHOOT = 1000

# Commands and pieces that are looked at before other sessions have their turn: some milliseconds.
_STEPS_AT_ONCE = 2000

# Wider than RFC 5321 section 4.1.3 so that common names pass; narrow enough for a trace field.
_HOST = re.compile(rb"[0-9A-Za-z_.:\-]{1,255}|\[[0-9A-Za-z.:]{1,64}\]")
_CHUNK = re.compile(rb"([0-9]{1,18})( +[Ll][Aa][Ss][Tt])?")


# An address, and whether the client may relay: why it is refused, or nothing.
Vet = Callable[[str, bool], bytes]


class Event(Enum):
    STARTTLS = "the output ends in 220: flush it, shake hands, call started_tls"
    DELAY = "hold the output for a second, call go_on, then write it"
    YIELD = "write the output, let others have their turn, call go_on"
    CLOSE = "write the output, then close"


# States. Up to CHUNKS commands are read; in CONTENT and CHUNK, the message; from PENDING on the
# session waits for somebody else.
(START, READY, SENDER, RECIPIENT, CHUNKS, CONTENT, CHUNK, PENDING, PAUSED, HANDSHAKE, CLOSED) = (
    range(11)
)


class SmtpServer:
    """One session: see the module."""

    __slots__ = (
        "_chunk_is_last",
        "_chunk_left",
        "_chunk_refusal",
        "_errors",
        "_event",
        "_held",
        "_junk",
        "_lines",
        "_load",
        "_output",
        "_overshoot",
        "_policy",
        "_refusal",
        "_scanner",
        "_state_after_pause",
        "_vet",
        "arrival",
        "extended",
        "helo",
        "may_relay",
        "state",
        "tls",
    )

    def __init__(
        self,
        policy: Policy,
        load: Load,
        refusal: Callable[[], Reply | None],
        *,
        may_relay: bool = False,
        tls: bool = False,
        vet: Vet | None = None,
    ) -> None:
        """`refusal` is asked at each MAIL, `vet` at each RCPT; `tls`: under TLS from the start."""
        self._policy = policy
        self._load = load
        self._refusal = refusal
        self.may_relay = may_relay
        self.tls = tls
        self._vet = vet
        self.helo = ""
        self.extended = False  # EHLO, not HELO
        self.state = START
        self.arrival: Arrival | None = None
        self._lines = LineBuffer(policy.max_line)
        self._scanner = DataScanner(
            policy.max_message_size, policy.max_header_size, policy.normalise
        )
        self._output: list[bytes] = [f"220 {policy.hostname} ESMTP fastmta\r\n".encode()]
        self._event: Arrival | Event | None = None
        self._held = self._errors = self._junk = self._overshoot = 0
        self._chunk_left = 0
        self._chunk_is_last = False
        self._chunk_refusal = b""
        self._state_after_pause = START

    # What the socket code calls.

    def receive(self, data: bytes) -> None:
        """Take in what the client sent, and do all that can be done with it."""
        if self.state < HANDSHAKE:
            self._lines.feed(data)
            self._run()

    def take_output(self) -> bytes:
        """What is to be written now, maybe nothing."""
        output = self._output
        if not output:
            return b""
        joined = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return joined

    def take_event(self) -> Arrival | Event | None:
        """What is to be done now; an Arrival waits for `settle`."""
        event = self._event
        self._event = None
        return event

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
            self.state = self._state_after_pause
            self._run()

    def started_tls(self) -> None:
        """RFC 3207 section 4.2: nothing that was said in the clear is remembered."""
        self.tls = True
        self.helo = ""
        self.extended = False
        self._lines.clear()
        self._end(START)

    def stop(self, why: bytes) -> None:
        """Say a last reply and close, whatever the client was about to do."""
        if self.state != CLOSED:
            self._output.append(self._close(why))

    def lose(self) -> None:
        """The client has gone; an arrival that is pending still waits for `settle`."""
        if self.state != PENDING:
            self._release()
        self._lines.clear()
        self.arrival = None
        self.state = CLOSED

    @property
    def is_waiting(self) -> bool:
        """Whether somebody else has to finish something first."""
        return PENDING <= self.state <= HANDSHAKE

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and none is being made safe."""
        return self.arrival is None and self.state not in (PENDING, CHUNK)

    @property
    def buffered(self) -> int:
        """Octets that came but were not looked at yet."""
        return len(self._lines)

    @property
    def is_reading_content(self) -> bool:
        """Whether a message is on its way in, be it between two chunks."""
        return CHUNKS <= self.state <= CHUNK

    # One step for each state: True while there is more to do.

    def _run(self) -> None:
        for _ in range(_STEPS_AT_ONCE):
            if not _STEPS[self.state](self):
                return
        if self.state < PENDING:
            self._pause(Event.YIELD)

    def _wait(self) -> bool:
        return False

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

    def _content(self) -> bool:
        data = self._lines.take()
        end = self._scanner.feed(data)
        self._hold()
        if end < 0:
            return False
        if end < len(data):
            self._lines.feed(data[end:])
        self._end_of_message()
        return True

    def _chunk(self) -> bool:
        """The octets of a BDAT chunk; those of a refused one are read too (RFC 3030 section 2)."""
        data = self._lines.take(self._chunk_left)
        self._chunk_left -= len(data)
        if not self._chunk_refusal:
            self._scanner.feed(data)
            self._hold()
        if self._chunk_left:
            return False
        self._end_of_chunk()
        return True

    # Sessions.

    def _ehlo(self, argument: bytes) -> bytes:
        return self._hello(argument, _extensions(self._policy, self.tls), True)

    def _helo(self, argument: bytes) -> bytes:
        return self._hello(argument, f"250 {self._policy.hostname}\r\n".encode(), False)

    def _hello(self, argument: bytes, greeting: bytes, extended: bool) -> bytes:
        if not _HOST.fullmatch(argument):
            return self._error(reply.NEEDS_HOST)
        self.helo = argument.decode("ascii")
        self.extended = extended
        self._end(READY)  # RFC 5321 section 4.1.4: as RSET
        return self._counted(greeting)

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
        try:
            arrival = read_mail(argument, self._policy.max_message_size)
        except Refused as refused:
            return self._error(refused.answer)
        if (not_now := self._refusal()) is not None:
            return bytes(not_now)
        if self._load.held + arrival.size > self._load.max_held:
            return reply.OUT_OF_MEMORY
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
        if self._vet is None:
            if not self.may_relay:
                return self._error(reply.RELAY_DENIED)
        elif refusal := self._vet(recipient.address, self.may_relay):
            return self._refused(refusal)
        if len(arrival.recipients) >= self._policy.max_recipients:
            return self._too_many_recipients()
        arrival.recipients.append(recipient)
        self.state = RECIPIENT
        return reply.RECIPIENT_OK

    def _refused(self, answer: bytes) -> bytes:
        """A recipient that is not taken; no error of a client that may relay."""
        if not self.may_relay:
            return self._error(answer)
        self._load.rejected.value += 1
        return answer

    def _too_many_recipients(self) -> bytes:
        self._overshoot += 1
        if self._overshoot > _OVERSHOOT:
            return self._error(reply.TOO_MANY_RECIPIENTS)
        return reply.TOO_MANY_RECIPIENTS

    def _rset(self, argument: bytes) -> bytes:
        self._end(READY if self.helo else START)
        return self._counted(reply.OK)

    def _data(self, argument: bytes) -> bytes:
        if argument:
            return self._error(reply.NO_ARGUMENT)
        if self._load.held >= self._load.max_held:
            return reply.OUT_OF_MEMORY
        self._scanner.start(True)
        self.state = CONTENT
        return reply.GO_AHEAD

    def _bdat(self, argument: bytes) -> bytes:
        if self.state == RECIPIENT:
            self._scanner.start(False)
        return self._begin_chunk(argument, b"")

    def _bdat_refused(self, argument: bytes) -> bytes:
        """Out of order, but its octets follow and are none of the commands (RFC 3030 section 2)."""
        return self._begin_chunk(argument, _OUT_OF_ORDER[self.state])

    def _begin_chunk(self, argument: bytes, refusal: bytes) -> bytes:
        match = _CHUNK.fullmatch(argument)
        if match is None:
            return self._close(self._error(reply.BAD_CHUNK))  # where the chunk ends is unknown
        self._chunk_left = int(match[1])
        self._chunk_is_last = match[2] is not None
        self._chunk_refusal = refusal
        self.state = CHUNK
        return b""  # the reply comes behind the octets

    def _end_of_chunk(self) -> None:
        if self._chunk_refusal:
            self._end(READY if self.helo else START)
            self._output.append(self._counted(self._chunk_refusal))
        elif self._chunk_is_last:
            self._scanner.finish()
            self._end_of_message()
        elif self._scanner.fault:
            self._end_of_message()
        else:
            self.state = CHUNKS
            self._output.append(reply.CHUNK_OK)

    def _end_of_message(self) -> None:
        """All of it is there, or enough to know that it is refused."""
        scanner = self._scanner
        arrival = self.arrival
        assert arrival is not None
        if scanner.fault or scanner.received > self._policy.max_hops:
            refused = reply.AFTER_DATA.get(scanner.fault, reply.TOO_MANY_HOPS)
            self._end(READY)
            self._output.append(refused if refused[0] == _FOUR else self._error(refused))
            return
        arrival.size = scanner.size
        # Content that is ASCII can go where 8BITMIME is not offered, whatever was declared.
        arrival.eight_bit = arrival.eight_bit and scanner.eight_bit
        arrival.parts = scanner.take()
        self.arrival = None
        self._overshoot = 0
        self.state = PENDING
        self._event = arrival

    def _end(self, state: int) -> None:
        """No transaction is open any more."""
        self._release()
        if self.arrival is not None:
            self.arrival = None
            self._overshoot = 0
            self._scanner.take()
        self.state = state

    # Counts and limits.

    def _hold(self) -> None:
        """Count what the scanner holds; over the limit of all sessions it lets go of it."""
        load, scanner = self._load, self._scanner
        load.held += scanner.held - self._held
        self._held = scanner.held
        if load.held > load.max_held and self._held:
            scanner.drop(NO_ROOM)
            self._release()

    def _release(self) -> None:
        self._load.held -= self._held
        self._held = 0

    def _counted(self, answer: bytes) -> bytes:
        """The answer to a command that brings no mail nearer."""
        self._junk += 1
        if self._junk > self._policy.max_junk:
            return self._close(reply.TOO_MUCH_JUNK)
        return answer

    def _error(self, answer: bytes) -> bytes:
        """The answer to what the client did wrong: late when it errs often, in the end the last.

        Call it last: it may change the state.
        """
        limit = self._policy.max_errors
        if self._load.stressed:
            limit = min(limit, 2)
        self._load.rejected.value += 1
        self._errors += 1
        if self._errors >= limit:
            return answer + self._close(reply.TOO_MANY_ERRORS)
        if self._errors > limit // 2:
            self._pause(Event.DELAY)
        return answer

    def _pause(self, event: Event) -> None:
        self._state_after_pause = self.state
        self.state = PAUSED
        self._event = event

    def _close(self, answer: bytes) -> bytes:
        self._end(CLOSED)
        self._lines.clear()
        self._event = Event.CLOSE
        return answer

    # What is not legal now.

    def _unknown(self, argument: bytes) -> bytes:
        return self._error(reply.UNKNOWN_COMMAND)

    def _malformed(self, argument: bytes) -> bytes:
        return self._error(reply.MALFORMED)

    def _not_implemented(self, argument: bytes) -> bytes:
        return self._error(reply.NOT_IMPLEMENTED)

    def _out_of_order(self, argument: bytes) -> bytes:
        return self._error(_OUT_OF_ORDER[self.state])


@lru_cache(maxsize=16)
def _extensions(policy: Policy, tls: bool) -> bytes:
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
    if policy.starttls and not tls:
        lines.append("STARTTLS")
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
    verb.STARTTLS: _Server._out_of_order,
}
_LEGAL: dict[int, dict[int, _Handler]] = {
    START: {},
    READY: {verb.MAIL: _Server._mail, verb.STARTTLS: _Server._starttls},
    SENDER: {verb.RCPT: _Server._rcpt},
    RECIPIENT: {verb.RCPT: _Server._rcpt, verb.DATA: _Server._data, verb.BDAT: _Server._bdat},
    CHUNKS: {verb.BDAT: _Server._bdat},  # DATA too is 503 here (RFC 3030 section 2)
}
_TRANSITIONS = tuple(
    tuple((_COMMON | own)[code] for code in sorted(_COMMON)) for _, own in sorted(_LEGAL.items())
)
_OUT_OF_ORDER = {
    START: reply.EHLO_FIRST,
    READY: reply.MAIL_FIRST,
    SENDER: reply.RCPT_FIRST,
    RECIPIENT: reply.TRANSACTION_OPEN,
    CHUNKS: reply.CHUNKS_ONLY,
}
# RFC 2920 section 3.1; of those that it names, the ones whose reply changes what may follow.
_LAST_IN_GROUP = frozenset({verb.EHLO, verb.HELO, verb.DATA, verb.STARTTLS})
_FOUR = ord("4")

_STEPS: tuple[Callable[[SmtpServer], bool], ...] = (
    _Server._command,  # START
    _Server._command,  # READY
    _Server._command,  # SENDER
    _Server._command,  # RECIPIENT
    _Server._command,  # CHUNKS
    _Server._content,  # CONTENT
    _Server._chunk,  # CHUNK
    _Server._wait,  # PENDING
    _Server._wait,  # PAUSED
    _Server._wait,  # HANDSHAKE
    _Server._wait,  # CLOSED
)
