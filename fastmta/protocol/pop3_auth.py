"""How the POP3 server's machine takes a login: USER and PASS, AUTH (RFC 5034)."""

from fastmta._core.base64 import decode, encode
from fastmta._core.lines import BareLineFeed, LineTooLong
from fastmta.mail.reply import Reply
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_machine import (
    AUTHORIZATION,
    CREDENTIALS,
    NAMED,
    OPENING,
    TRANSACTION,
    Event,
    Pop3Machine,
)
from fastmta.protocol.pop3_maildrop import Maildrop
from fastmta.protocol.sasl import Challenge, Outcome, Proven
from fastmta.protocol.smtp_question import Attempt, Question, Step


class Authenticator(Pop3Machine):
    """The part of a session from its greeting to the TRANSACTION state."""

    __slots__ = ()

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What can be used now: no password goes in the clear but where that is allowed."""
        if self.door is None or not (self.tls or self.may_log_in_clear):
            return ()
        return self.door.mechanisms()

    @property
    def takes_passwords(self) -> bool:
        """USER and PASS are PLAIN in other words, and go where that goes."""
        return "PLAIN" in self.mechanisms

    # USER and PASS (RFC 1939 section 7).

    def _user(self, argument: bytes) -> bytes:
        """Whether there is such an account is not told."""
        if not self.takes_passwords:
            return self._error(self._why_no_login())
        if not argument:
            return self._error(reply.NEEDS_NAME)
        self._name = argument
        self.state = NAMED
        return reply.NAME_TAKEN

    def _pass(self, argument: bytes) -> bytes:
        name = self._name
        self._reset_login()
        exchange = self.door.exchange("PLAIN") if self.door else None
        if exchange is None:  # the configuration has changed since USER
            return self._error(reply.NO_LOGINS)
        return self._go_by(exchange.begin(b"\0%b\0%b" % (name, argument)))

    def _why_no_login(self) -> bytes:
        if self.door is None or self.tls or self.may_log_in_clear:
            return reply.NO_LOGINS
        return reply.NEEDS_TLS

    # AUTH.

    def _auth(self, argument: bytes) -> bytes:
        if self.door is None or not self.mechanisms:
            return self._error(self._why_no_login())
        word, _, initial = argument.partition(b" ")
        exchange = self.door.exchange(word.decode("ascii", "replace"))
        if exchange is None:
            return self._error(reply.NEEDS_MECHANISM)
        try:
            response = _initial_response(initial.lstrip())
        except ValueError:
            return self._error(reply.BAD_BASE64)
        self._exchange = exchange
        return self._go_by(exchange.begin(response))

    def _response(self) -> bool:
        """One line of the client's in the exchange."""
        try:
            line = self._lines.next_line()
        except LineTooLong:
            self._say(self._fail(reply.LINE_TOO_LONG))
            return True
        except BareLineFeed:
            self._say(self._close(self._error(reply.BARE_LINE_FEED)))
            return False
        if line is None:
            return False
        self._say(self._take_response(line))
        return True

    def _take_response(self, line: bytes) -> bytes:
        if self._last_word:
            return self._acknowledged(line)
        if line == b"*":  # RFC 5034 section 4
            return self._fail(reply.CANCELLED)
        try:
            response = decode(line, strict=True)
        except ValueError:
            return self._fail(reply.BAD_BASE64)
        assert self._exchange is not None
        return self._go_by(self._exchange.step(response))

    def _go_by(self, outcome: Outcome) -> bytes:
        if isinstance(outcome, Challenge):
            return self._challenge(outcome.text)
        self._reset_login()
        return self._ask(Question(Step.AUTH, attempt=outcome))

    def _challenge(self, text: bytes) -> bytes:
        self.state = CREDENTIALS
        return b"+ " + encode(text) + b"\r\n"

    # The end of it.

    def _let_in(self, attempt: Attempt) -> bytes:
        """Whoever proved it both ways hears the server's proof first."""
        if type(attempt) is Proven and attempt.last:
            self._last_word = reply.OK
            return self._challenge(attempt.last)
        return self._logged_in()

    def _keep_out(self, refusal: Reply, last: bytes) -> bytes:
        """A client with a token hears why in a challenge first (RFC 7628 section 3.2.3)."""
        answer = reply.refusal(refusal)
        if last:
            self._last_word = answer
            return self._challenge(last)
        return self._fail(answer)

    def _acknowledged(self, line: bytes) -> bytes:
        word = self._last_word
        if word != reply.OK:
            return self._fail(word)
        return self._logged_in() if line in (b"", b"=") else self._fail(reply.CANCELLED)

    def _logged_in(self) -> bytes:
        self._reset_login()
        self.state = OPENING
        self._event = Event.OPEN
        return b""

    def _fail(self, answer: bytes) -> bytes:
        """Each failure is an error, and answered late: guessing takes time."""
        self._reset_login()
        answer = self._error(answer)
        if self.state == AUTHORIZATION:
            self._pause(Event.DELAY)
        return answer

    def _reset_login(self) -> None:
        self.state = AUTHORIZATION
        self._name = b""
        self._exchange = None
        self._last_word = b""

    # The maildrop (RFC 1939 section 4).

    def opened(self, drop: Maildrop) -> None:
        """It is locked, and this is what is in it; go on with what came behind the login."""
        if self.state != OPENING:
            return
        self.drop = drop
        self.state = TRANSACTION
        self._errors = 0
        self._say(b"+OK %d messages (%d octets)\r\n" % (drop.count, drop.octets))
        self._run()

    def not_opened(self, why: bytes) -> None:
        """It cannot be had; the client may try again."""
        if self.state != OPENING:
            return
        self._reset_login()
        self._say(self._error(why))
        self._run()

    def _run(self) -> None:
        raise NotImplementedError


def _initial_response(argument: bytes) -> bytes | None:
    """RFC 5034 section 4: "=" is one that is empty. ValueError for what is no base64."""
    if not argument:
        return None
    return b"" if argument == b"=" else decode(argument, strict=True)
