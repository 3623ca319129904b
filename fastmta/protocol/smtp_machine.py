"""What every state of the SMTP server's machine needs: its output, its limits, its waiting.

`smtp_server` is the machine, and says what is always true; `smtp_content` reads messages.
"""

from collections.abc import Callable
from enum import Enum

from fastmta._core.data import NO_ROOM, DataScanner
from fastmta._core.dkim import IncomingBody
from fastmta._core.lines import LineBuffer
from fastmta.mail.arrival import Arrival
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.sasl import Exchange
from fastmta.protocol.smtp_limits import MAX_LOGIN_LINE, Door, Load, Policy
from fastmta.protocol.smtp_question import Question, Step

_FOUR = ord("4")
_NO_SUCH_USER = b"550 5.1.1"


class Event(Enum):
    STARTTLS = "the output ends in 220: flush it, shake hands, call started_tls"
    DELAY = "hold the output for a second, call go_on, then write it"
    YIELD = "write the output, let others have their turn, call go_on"
    CLOSE = "write the output, then close"


# States. Up to CHUNKS commands are read; in CONTENT and CHUNK, the message, in CREDENTIALS
# a login; from ASKING on the session waits for somebody else.
(
    START, READY, SENDER, RECIPIENT, CHUNKS, CONTENT, CHUNK, CREDENTIALS, ASKING,
    PENDING, PAUSED, HANDSHAKE, CLOSED,
) = range(13)  # fmt: skip


class SmtpMachine:
    """The part of a session that knows no command."""

    __slots__ = (
        "_chunk_is_last",
        "_chunk_left",
        "_chunk_refusal",
        "_errors",
        "_event",
        "_exchange",
        "_held",
        "_junk",
        "_last_word",
        "_lines",
        "_load",
        "_output",
        "_overshoot",
        "_policy",
        "_question",
        "_scanner",
        "_state_before",
        "arrival",
        "authenticated",
        "door",
        "extended",
        "helo",
        "may_relay",
        "on_error",
        "state",
        "tls",
        "watch",
    )

    def __init__(self, policy: Policy, load: Load, door: Door | None, tls: bool) -> None:
        self._policy = policy
        self._load = load
        self.door = door
        self.tls = tls
        self.authenticated = False
        self._exchange: Exchange | None = None  # while CREDENTIALS are read
        self._last_word = b""  # the reply, where only the client's acknowledgement is waited for
        self.helo = ""
        self.extended = False  # EHLO, not HELO
        self.may_relay = False
        self.on_error: Callable[[], None] | None = None  # called for each error
        # Gives what sees each message of a client that may relay as it comes in; None: nobody.
        self.watch: Callable[[], IncomingBody] | None = None
        self.state = START
        self.arrival: Arrival | None = None
        # A response may come on the line of AUTH, however long it is.
        self._lines = LineBuffer(MAX_LOGIN_LINE if door else policy.max_line)
        self._scanner = DataScanner(
            policy.max_message_size, policy.max_header_size, policy.normalise
        )
        self._output: list[bytes] = []
        self._event: Arrival | Event | Question | None = None
        self._question: Question | None = None  # while ASKING
        self._state_before = START  # PAUSED or ASKING
        self._held = self._errors = self._junk = self._overshoot = 0
        self._chunk_left = 0
        self._chunk_is_last = False
        self._chunk_refusal = b""

    # What the socket code calls.

    def take_output(self) -> bytes:
        """What is to be written now, maybe nothing."""
        output = self._output
        if not output:
            return b""
        joined = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return joined

    def take_event(self) -> Arrival | Event | Question | None:
        """What is to be done now; an Arrival waits for `settle`, a Question for `answer`."""
        event = self._event
        self._event = None
        return event

    def stop(self, why: bytes) -> None:
        """Say a last reply and close, whatever the client was about to do."""
        if self.state != CLOSED:
            self._output.append(self._close(why))

    def lose(self) -> None:
        """The client has gone; an arrival that is pending still waits for `settle`."""
        if self.state != PENDING:
            self._release()
        self._lines.clear()
        self.arrival = self._question = None
        self.state = CLOSED

    @property
    def is_waiting(self) -> bool:
        """Whether somebody else has to finish something first."""
        return ASKING <= self.state <= HANDSHAKE

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for `answer`."""
        return self.state == ASKING

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

    @property
    def _awaits_greeting(self) -> bool:
        return self._question is not None and self._question.step is Step.CONNECT

    # Waiting.

    def _wait(self) -> bool:
        return False

    def _ask(self, question: Question) -> bytes:
        """Wait for `answer` with what the command would do; its reply comes then."""
        self._state_before = self.state
        self.state = ASKING
        self._event = self._question = question
        return b""

    def _pause(self, event: Event) -> None:
        self._state_before = self.state
        self.state = PAUSED
        self._event = event

    # Ends.

    def _end(self, state: int) -> None:
        """No transaction is open any more."""
        self._release()
        if self.arrival is not None:
            self.arrival = None
            self._overshoot = 0
            self._scanner.take()
        self.state = state

    def _close(self, answer: bytes) -> bytes:
        self._end(CLOSED)
        self._lines.clear()
        self._question = None
        self._event = Event.CLOSE
        return answer

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
        if self.on_error is not None:
            self.on_error()
        if self._errors >= limit:
            return answer + self._close(reply.TOO_MANY_ERRORS)
        if self._errors > limit // 2:
            self._pause(Event.DELAY)
        return answer

    def _unfit(self, answer: bytes) -> bytes:
        """A recipient that is not taken; late where that tells a stranger who is not there."""
        if answer[0] == _FOUR:
            self._load.rejected.value += 1
            return answer
        answer = self._refused(answer)
        if answer.startswith(_NO_SUCH_USER) and not (self.may_relay or self.state >= ASKING):
            self._pause(Event.DELAY)
        return answer

    def _refused(self, answer: bytes) -> bytes:
        """What is not taken from this client; no error of one that may relay."""
        if not self.may_relay:
            return self._error(answer)
        self._load.rejected.value += 1
        return answer
