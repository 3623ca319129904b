"""How the SMTP server's machine takes a login: AUTH and what follows it (RFC 4954)."""

from fastmta._core.base64 import decode, encode
from fastmta._core.lines import BareLineFeed, LineTooLong
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.sasl import Challenge, Outcome, Proven
from fastmta.protocol.smtp_content import ContentReader
from fastmta.protocol.smtp_machine import CREDENTIALS, READY, Event
from fastmta.protocol.smtp_question import Attempt, Question, Step


class Authenticator(ContentReader):
    """The part of a session from AUTH to the word whether it was taken."""

    __slots__ = ()

    def _auth(self, argument: bytes) -> bytes:
        if self.door is None:
            return self._error(reply.NO_AUTH)
        if not self.tls:
            return self._error(reply.NEEDS_TLS)
        if self.authenticated:
            return self._error(reply.AUTHENTICATED_ALREADY)
        word, _, initial = argument.partition(b" ")
        exchange = self.door.exchange(word.decode("ascii", "replace"))
        if exchange is None:
            return self._error(reply.UNKNOWN_MECHANISM)
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
            self._output.append(self._fail(reply.RESPONSE_TOO_LONG))
            return True
        except BareLineFeed:
            self._output.append(self._close(self._error(reply.BARE_LINE_FEED)))
            return False
        if line is None:
            return False
        self._output.append(self._take_response(line))
        return True

    def _take_response(self, line: bytes) -> bytes:
        if self._last_word:
            return self._acknowledged(line)
        if line == b"*":
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
        return b"334 " + encode(text) + b"\r\n"

    # The end of it.

    def _let_in(self, attempt: Attempt) -> bytes:
        """Whoever proved it both ways hears the server's proof first."""
        if type(attempt) is Proven and attempt.last:
            self._last_word = reply.AUTHENTICATED
            return self._challenge(attempt.last)
        return self._logged_in()

    def _keep_out(self, answer: bytes, last: bytes) -> bytes:
        """A client with a token hears why in a challenge first (RFC 7628 section 3.2.3)."""
        if last:
            self._last_word = answer
            return self._challenge(last)
        return self._fail(answer)

    def _acknowledged(self, line: bytes) -> bytes:
        word = self._last_word
        if word != reply.AUTHENTICATED:
            return self._fail(word)
        # An empty response, be it written as an initial one (RFC 4954 section 4).
        return self._logged_in() if line in (b"", b"=") else self._fail(reply.CANCELLED)

    def _logged_in(self) -> bytes:
        self._reset_login()
        self.authenticated = self.may_relay = True
        return reply.AUTHENTICATED

    def _fail(self, answer: bytes) -> bytes:
        """Each failure is an error, and answered late: guessing takes time."""
        self._reset_login()
        answer = self._error(answer)
        if self.state == READY:
            self._pause(Event.DELAY)
        return answer

    def _reset_login(self) -> None:
        self.state = READY
        self._exchange = None
        self._last_word = b""


def _initial_response(argument: bytes) -> bytes | None:
    """RFC 4954 section 4: "=" is one that is empty. ValueError for what is no base64."""
    if not argument:
        return None
    return b"" if argument == b"=" else decode(argument, strict=True)
