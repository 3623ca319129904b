"""The POP3 server's side of one session, without I/O (RFC 1939).

Octets go in through `receive`; `take_output` gives what is to be written, and `take_event` what
is to be done. All replies to one `receive` are one output, up to MAX_OUTPUT.

Always true:
- `drop` is there exactly from the end of a login on: in TRANSACTION and what is reached from it.
- Messages are deleted by an Update alone, which QUIT alone gives, all at once; a session that
  ends otherwise deletes nothing (RFC 1939 section 6).
- From ASKING on no command is looked at: replies stay in order (RFC 2449 section 6.6).
- In HANDSHAKE nothing is buffered, and `started_tls` forgets everything but the counts.
"""

from collections.abc import Callable
from functools import lru_cache

from fastmta._core import pop3 as keyword
from fastmta._core.data import Stuffer
from fastmta._core.lines import BareLineFeed, LineTooLong
from fastmta._core.pop3 import Top, parse_command, parse_numbers
from fastmta.mail.reply import Reply
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_auth import Authenticator
from fastmta.protocol.pop3_machine import (
    ASKING,
    AUTHORIZATION,
    HANDSHAKE,
    LISTING,
    MAX_OUTPUT,
    NAMED,
    PAUSED,
    READING,
    TRANSACTION,
    UPDATING,
    Event,
    Policy,
    Retrieve,
    Update,
)
from fastmta.protocol.pop3_maildrop import LISTED_AT_ONCE, Maildrop
from fastmta.protocol.smtp_limits import Door, Load
from fastmta.protocol.smtp_question import Question, Step

_STEPS_AT_ONCE = 2000  # before other sessions have their turn: some milliseconds


class Pop3Server(Authenticator):
    """One session: see the module."""

    __slots__ = ()

    def __init__(
        self,
        policy: Policy,
        load: Load,
        *,
        door: Door | None = None,
        tls: bool = False,
        asks: frozenset[Step] = frozenset(),
    ) -> None:
        """`tls`: from the start. Where CONNECT is among `asks`, the greeting waits for `answer`."""
        super().__init__(policy, load, door, tls)
        if Step.CONNECT in asks:
            self._ask(Question(Step.CONNECT))
        else:
            self._say(self._greet())

    # What the socket code calls.

    def receive(self, data: bytes) -> None:
        """Take in what the client sent, and do all that can be done with it."""
        if self.state < HANDSHAKE:
            self._lines.feed(data)
            self._run()

    def answer(self, refusal: Reply | None, last: bytes = b"") -> None:
        """Go on with what was asked, or refuse it; a refused connection is closed.

        `last`: a challenge that the mechanism has before a login is refused.
        """
        question, self._question = self._question, None
        if question is None:
            return
        self.state = self._state_before
        if question.attempt is None:
            self._say(self._greet() if refusal is None else self._close(reply.refusal(refusal)))
        elif refusal is None:
            self._say(self._let_in(question.attempt))
        elif refusal.code == 421:
            self._say(self._close(reply.refusal(refusal)))
        else:
            self._say(self._keep_out(refusal, last))
        self._run()

    def send(self, pieces: list[bytes], *, is_last: bool) -> bool:
        """The next octets of the message that is to be read; whether more are wanted."""
        if self.state != READING:
            return False
        if self._stuffer is None:
            self._say(self._begin_message())
        if not self._content(pieces, is_last):
            return True
        self._end_message()
        self._run()
        return False

    def cannot_send(self, why: bytes) -> bool:
        """The message cannot be read. False where the client has some of it: it must go."""
        if self.state == READING and self._stuffer is None:
            self.state = TRANSACTION
            self._say(why)
            self._run()
            return True
        return False

    def updated(self, *, done: bool) -> None:
        """All was deleted, or nothing (RFC 1939 section 6)."""
        if self.state == UPDATING:
            self._say(self._close(reply.GOODBYE if done else reply.NOT_DELETED))

    def go_on(self) -> None:
        """What Event.DELAY or Event.YIELD asked to wait for has come."""
        if self.state == PAUSED:
            self.state = self._state_before
            self._run()

    def started_tls(self) -> None:
        """RFC 2595 section 4: nothing that was said in the clear is remembered."""
        self.tls = True
        self._lines.clear()
        self._reset_login()

    # One step for each state: True while there is more to do.

    def _run(self) -> None:
        for _ in range(_STEPS_AT_ONCE):
            if self._held_back >= MAX_OUTPUT or not _STEPS[self.state](self):
                break
        else:
            self._yield()
            return
        if self._held_back >= MAX_OUTPUT:
            self._yield()

    def _yield(self) -> None:
        if self.state < ASKING:
            self._pause(Event.YIELD)

    def _command(self) -> bool:
        lines = self._lines
        try:
            line = lines.next_line()
        except LineTooLong:
            self._say(self._error(reply.LINE_TOO_LONG))
            return True
        except BareLineFeed:
            # Closed, since what stands behind may be smuggled: nothing of it is executed.
            self._say(self._close(self._error(reply.BARE_LINE_FEED)))
            return False
        if line is None:
            return False
        code, argument = parse_command(line)
        self._say(_TRANSITIONS[self.state][code](self, argument))
        return True

    def _listing(self) -> bool:
        """A part of a long listing (RFC 1939 section 3)."""
        assert self._list is not None
        assert self.drop is not None
        self._say(self._list(self._listed, LISTED_AT_ONCE))
        self._listed += LISTED_AT_ONCE
        if self._listed >= len(self.drop):
            self._say(reply.END)
            self._list = None
            self.state = TRANSACTION
        return True

    # In all states.

    def _greet(self) -> bytes:
        """RFC 1939 section 4; without a timestamp, since APOP is not offered (section 7)."""
        return f"+OK {self._policy.hostname} POP3 fastmta\r\n".encode()

    def _capa(self, argument: bytes) -> bytes:
        if argument:
            return self._error(reply.NO_ARGUMENT)
        takes_passwords = self.drop is None and self.takes_passwords
        mechanisms = self.mechanisms if self.drop is None else ()
        offers_tls = self._policy.stls and not self.tls and self.drop is None
        return _capabilities(self._policy, offers_tls, takes_passwords, mechanisms)

    def _lang(self, argument: bytes) -> bytes:
        """RFC 6856 section 3: the list, or the choice; "*" is what the server likes best."""
        if not argument:
            return reply.LANGUAGES
        if argument == b"*" or argument.lower().split(b"-")[0] == b"en":
            return reply.ENGLISH
        return self._error(reply.NO_SUCH_LANGUAGE)

    # Before the login.

    def _stls(self, argument: bytes) -> bytes:
        """RFC 2595 section 4. Nothing that came behind it in the clear is ever executed."""
        if argument:
            return self._error(reply.NO_ARGUMENT)
        if self.tls or not self._policy.stls:
            return self._error(reply.NO_TLS)
        if len(self._lines):
            return self._close(self._error(reply.TALKED_TOO_SOON))
        self.state = HANDSHAKE
        self._event = Event.STLS
        return reply.READY_FOR_TLS

    def _utf8(self, argument: bytes) -> bytes:
        """RFC 6856 section 2. Messages go out as they came, in either mode: see docs/pop3.md."""
        return self._error(reply.NO_ARGUMENT) if argument else reply.UTF8_ON

    def _leave(self, argument: bytes) -> bytes:
        return self._close(reply.GOODBYE)

    # The maildrop.

    def _stat(self, argument: bytes) -> bytes:
        if argument:
            return self._error(reply.NO_ARGUMENT)
        drop = self._drop
        return b"+OK %d %d\r\n" % (drop.count, drop.octets)

    def _list_sizes(self, argument: bytes) -> bytes:
        return self._list_with(self._drop.sizes, argument)

    def _list_ids(self, argument: bytes) -> bytes:
        return self._list_with(self._drop.ids, argument)

    def _list_with(self, listing: Callable[[int, int], bytes], argument: bytes) -> bytes:
        """Of one message on the line, or of all below it."""
        if argument:
            number, why_not = self._number(argument)
            return why_not or b"+OK " + listing(number - 1, 1)
        self._list, self._listed = listing, 0
        self.state = LISTING
        return reply.LIST_FOLLOWS

    def _dele(self, argument: bytes) -> bytes:
        number, why_not = self._number(argument)
        if why_not:
            return why_not
        self._drop.delete(number)
        return reply.DELETED * (1 + self._drop.delete_run(self._lines))

    def _rset(self, argument: bytes) -> bytes:
        if argument:
            return self._error(reply.NO_ARGUMENT)
        self._drop.reset()
        self.retrieved.clear()
        return reply.OK

    def _noop(self, argument: bytes) -> bytes:
        return self._error(reply.NO_ARGUMENT) if argument else reply.OK

    def _quit(self, argument: bytes) -> bytes:
        """The UPDATE state (RFC 1939 section 6)."""
        drop = self._drop
        for number in self.retrieved:
            if drop.has(number):
                drop.delete(number)
        self.state = UPDATING
        self._event = Update(drop.deleted)
        return b""

    @property
    def _drop(self) -> Maildrop:
        assert self.drop is not None
        return self.drop

    def _number(self, argument: bytes) -> tuple[int, bytes]:
        """Of a message that is there, and nothing; or why not."""
        try:
            (number,) = parse_numbers(argument)
        except ValueError:
            return 0, self._error(reply.NEEDS_NUMBER)
        return number, b"" if self._drop.has(number) else reply.NO_SUCH_MESSAGE

    # Messages.

    def _retr(self, argument: bytes) -> bytes:
        number, why_not = self._number(argument)
        if why_not:
            return why_not
        if number not in self.at_hand:
            return self._read(number, None)
        self._note_retrieved(number)
        # Each that is deleted for it has to be noted, so it is not one of a run.
        room = 0 if self._policy.deletes_retrieved else MAX_OUTPUT - self._held_back
        return self._drop.retrieve_run(number, self._lines, self.at_hand, room)

    def _top_of(self, argument: bytes) -> bytes:
        try:
            number, lines = parse_numbers(argument)
        except ValueError:
            return self._error(reply.NEEDS_NUMBERS)
        if not self._drop.has(number):
            return reply.NO_SUCH_MESSAGE
        self._read(number, Top(lines))
        message = self.at_hand.get(number)
        if message is not None:
            self._event = None
            self._say(self._begin_message())
            self._content([message], True)
            self._end_message()
        return b""

    def _read(self, number: int, top: Top | None) -> bytes:
        """Wait for `send` with its octets."""
        self._reading, self._top = number, top
        self._event = Retrieve(number, is_top=top is not None)
        self.state = READING
        return b""

    def _begin_message(self) -> bytes:
        self._stuffer = Stuffer()
        if self._top is not None:
            return reply.TOP_FOLLOWS
        return b"+OK %d octets\r\n" % self._drop.size(self._reading)

    def _content(self, pieces: list[bytes], is_last: bool) -> bool:
        """Say these; True when nothing more is to be said of the message."""
        stuffer, top = self._stuffer, self._top
        assert stuffer is not None
        for piece in pieces:
            wire = stuffer.feed(piece)
            self._say(wire if top is None else top.feed(wire))
            if top is not None and top.is_full:
                self._say(reply.END)  # it is full at the end of a line alone
                return True
        if is_last:
            self._say(stuffer.finish())
        return is_last

    def _end_message(self) -> None:
        self._stuffer = None
        self.state = TRANSACTION
        if self._top is None:
            self._note_retrieved(self._reading)

    def _note_retrieved(self, number: int) -> None:
        if self._policy.deletes_retrieved:
            self.retrieved.add(number)

    # What is not legal now.

    def _unknown(self, argument: bytes) -> bytes:
        return self._error(reply.UNKNOWN_COMMAND)

    def _malformed(self, argument: bytes) -> bytes:
        return self._error(reply.MALFORMED)

    def _apop(self, argument: bytes) -> bytes:
        return self._error(reply.NO_APOP)

    def _too_early(self, argument: bytes) -> bytes:
        return self._error(reply.LOG_IN_FIRST)

    def _without_name(self, argument: bytes) -> bytes:
        return self._error(reply.NAME_FIRST)

    def _too_late(self, argument: bytes) -> bytes:
        return self._error(reply.LOGGED_IN)


@lru_cache(maxsize=64)
def _capabilities(
    policy: Policy, stls: bool, takes_passwords: bool, mechanisms: tuple[str, ...]
) -> bytes:
    """The reply to CAPA (RFC 2449 section 5)."""
    lines = [
        "+OK I can",
        "TOP",
        "UIDL",
        "RESP-CODES",
        "AUTH-RESP-CODE",  # RFC 3206
        "PIPELINING",
        "EXPIRE 0" if policy.deletes_retrieved else "EXPIRE NEVER",
        "UTF8 USER",  # RFC 6856
        "LANG",
        "IMPLEMENTATION fastmta",
    ]
    if policy.login_delay:
        lines.append(f"LOGIN-DELAY {policy.login_delay}")
    if stls:
        lines.append("STLS")  # RFC 2595 section 4: not under TLS
    if takes_passwords:
        lines.append("USER")
    if mechanisms:
        lines.append(f"SASL {' '.join(mechanisms)}")  # RFC 5034 section 3
    return "\r\n".join([*lines, ".\r\n"]).encode()


_Handler = Callable[[Pop3Server, bytes], bytes]
_Server = Pop3Server

# Which command does what in which state (RFC 1939 sections 4 to 6); a state's own row goes first.
_COMMON: dict[int, _Handler] = {
    keyword.UNKNOWN: _Server._unknown,
    keyword.MALFORMED: _Server._malformed,
    keyword.USER: _Server._user,
    keyword.PASS: _Server._without_name,
    keyword.APOP: _Server._apop,
    keyword.AUTH: _Server._auth,
    keyword.STAT: _Server._too_early,
    keyword.LIST: _Server._too_early,
    keyword.RETR: _Server._too_early,
    keyword.DELE: _Server._too_early,
    keyword.NOOP: _Server._too_early,
    keyword.RSET: _Server._too_early,
    keyword.TOP: _Server._too_early,
    keyword.UIDL: _Server._too_early,
    keyword.CAPA: _Server._capa,
    keyword.STLS: _Server._stls,
    keyword.UTF8: _Server._utf8,
    keyword.LANG: _Server._lang,
    keyword.QUIT: _Server._leave,
}
_LEGAL: dict[int, dict[int, _Handler]] = {
    AUTHORIZATION: {},
    NAMED: {keyword.PASS: _Server._pass},
    TRANSACTION: {
        keyword.USER: _Server._too_late,
        keyword.PASS: _Server._too_late,
        keyword.AUTH: _Server._too_late,
        keyword.STAT: _Server._stat,
        keyword.LIST: _Server._list_sizes,
        keyword.RETR: _Server._retr,
        keyword.DELE: _Server._dele,
        keyword.NOOP: _Server._noop,
        keyword.RSET: _Server._rset,
        keyword.TOP: _Server._top_of,
        keyword.UIDL: _Server._list_ids,
        keyword.STLS: _Server._too_late,
        keyword.UTF8: _Server._too_late,
        keyword.QUIT: _Server._quit,
    },
}
_TRANSITIONS = tuple(
    tuple((_COMMON | own)[code] for code in sorted(_COMMON)) for _, own in sorted(_LEGAL.items())
)

_STEPS: tuple[Callable[[Pop3Server], bool], ...] = (
    _Server._command,  # AUTHORIZATION
    _Server._command,  # NAMED
    _Server._command,  # TRANSACTION
    _Server._listing,  # LISTING
    _Server._response,  # CREDENTIALS
    _Server._wait,  # ASKING
    _Server._wait,  # OPENING
    _Server._wait,  # READING
    _Server._wait,  # UPDATING
    _Server._wait,  # PAUSED
    _Server._wait,  # HANDSHAKE
    _Server._wait,  # CLOSED
)
