"""What every state of the POP3 server's machine needs: its output, its limits, its waiting.

`pop3_server` is the machine, and says what is always true; `pop3_auth` takes logins.
"""

from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from msgspec import Struct

from fastmta._core.data import Stuffer
from fastmta._core.lines import LineBuffer
from fastmta._core.pop3 import Top
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_maildrop import Maildrop
from fastmta.protocol.sasl import Exchange
from fastmta.protocol.smtp_limits import MAX_LOGIN_LINE, Door, Load
from fastmta.protocol.smtp_question import Question


class Event(Enum):
    STLS = "the output ends in +OK: flush it, shake hands, call started_tls"
    OPEN = "lock and read the maildrop of who has logged in, call opened or not_opened"
    DELAY = "hold the output for a second, call go_on, then write it"
    YIELD = "write the output, wait until there is room for more, call go_on"
    CLOSE = "write the output, then close"


class Retrieve(Struct, frozen=True):
    """Read a message: call `send` with its octets, in pieces, or `cannot_send`."""

    number: int
    is_top: bool  # its beginning may be all that is wanted


class Update(Struct, frozen=True):
    """Delete these, all or none, and let go of the maildrop; then call `updated`."""

    uids: list[int]


Task: TypeAlias = Event | Question | Retrieve | Update


class Policy(Struct, frozen=True, kw_only=True):
    """What a session may do; the same for all sessions of a listener."""

    hostname: str
    stls: bool = False
    login_delay: int = 0  # seconds between two logins of an account; 0: none
    deletes_retrieved: bool = False  # at QUIT (RFC 2449 section 6.7, EXPIRE 0)
    max_errors: int = 20  # from half of it on, replies to errors are delayed


# States, those of RFC 1939 section 3 and what lies between them. Up to TRANSACTION commands are
# read, in CREDENTIALS a login; from ASKING on the session waits for somebody else.
(
    AUTHORIZATION, NAMED, TRANSACTION, LISTING, CREDENTIALS, ASKING, OPENING, READING, UPDATING,
    PAUSED, HANDSHAKE, CLOSED,
) = range(12)  # fmt: skip

MAX_OUTPUT = 1 << 18  # octets of replies, from which on the client has to take some first


class Pop3Machine:
    """The part of a session that knows no command."""

    __slots__ = (
        "_errors",
        "_event",
        "_exchange",
        "_held_back",
        "_last_word",
        "_lines",
        "_list",
        "_listed",
        "_load",
        "_name",
        "_output",
        "_policy",
        "_question",
        "_reading",
        "_state_before",
        "_stuffer",
        "_top",
        "at_hand",
        "door",
        "drop",
        "may_log_in_clear",
        "on_error",
        "retrieved",
        "state",
        "tls",
    )

    def __init__(self, policy: Policy, load: Load, door: Door | None, tls: bool) -> None:
        self._policy = policy
        self._load = load
        self.door = door
        self.tls = tls
        self.may_log_in_clear = False
        self.on_error: Callable[[], None] | None = None  # called for each error
        self.at_hand: dict[int, bytes] = {}  # messages in memory, whole, by their numbers
        self.state = AUTHORIZATION
        self.drop: Maildrop | None = None  # from the login to the end
        self.retrieved: set[int] = set()  # numbers, where QUIT deletes them
        self._name = b""  # NAMED
        self._exchange: Exchange | None = None  # while CREDENTIALS are read
        self._last_word = b""  # the reply, where only the client's acknowledgement is waited for
        self._lines = LineBuffer(MAX_LOGIN_LINE)
        self._output: list[bytes] = []
        self._held_back = 0  # octets of output
        self._event: Task | None = None
        self._question: Question | None = None  # while ASKING
        self._state_before = AUTHORIZATION  # PAUSED or ASKING
        self._errors = 0
        self._list: Callable[[int, int], bytes] | None = None  # while LISTING
        self._listed = 0
        self._reading = 0  # the number of the message that is being sent
        self._stuffer: Stuffer | None = None  # from its first octet on
        self._top: Top | None = None

    # What the socket code calls.

    def take_output(self) -> bytes:
        """What is to be written now, maybe nothing."""
        output = self._output
        if not output:
            return b""
        joined = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        self._held_back = 0
        return joined

    def take_event(self) -> Task | None:
        """What is to be done now."""
        event = self._event
        self._event = None
        return event

    def stop(self, why: bytes) -> None:
        """Say a last reply and close, whatever the client was about to do; nothing is deleted."""
        if self.state != CLOSED:
            self._say(self._close(why))

    def lose(self) -> None:
        """The client has gone; nothing is deleted (RFC 1939 section 6)."""
        self._lines.clear()
        self._question = None
        self.state = CLOSED

    @property
    def is_waiting(self) -> bool:
        """Whether somebody else has to finish something first."""
        return ASKING <= self.state <= HANDSHAKE

    @property
    def is_updating(self) -> bool:
        return self.state == UPDATING

    @property
    def is_sending(self) -> bool:
        """Whether a reply of many lines is under way, in which no other can begin."""
        state = self._state_before if self.state == PAUSED else self.state
        return state in (LISTING, READING)

    @property
    def buffered(self) -> int:
        """Octets that came but were not looked at yet."""
        return len(self._lines)

    # Output and waiting.

    def _say(self, answer: bytes) -> None:
        if answer:
            self._output.append(answer)
            self._held_back += len(answer)

    def _wait(self) -> bool:
        return False

    def _ask(self, question: Question) -> bytes:
        """Wait for `answer`; the reply to the command comes then."""
        self._state_before = self.state
        self.state = ASKING
        self._event = self._question = question
        return b""

    def _pause(self, event: Event) -> None:
        self._state_before = self.state
        self.state = PAUSED
        self._event = event

    def _close(self, answer: bytes) -> bytes:
        self.state = CLOSED
        self._lines.clear()
        self._question = None
        self._event = Event.CLOSE
        return answer

    # Errors.

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
