"""An SMTP server in plain Python, from RFC 5321 and those it offers: what it answers, and takes.

It knows what waits by the pieces in which it came, since some of what is said too soon is refused
(RFC 2920 section 3.1). Limits are told by the same policy as the machine's.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable

import idna
from msgspec import Struct

from fastmta.protocol.smtp_limits import Policy
from tests.core import wire_oracles as wire
from tests.protocol.pop3_oracle import NAME, PASSWORD

MAX_LOGIN_LINE = 12288  # RFC 4954 section 4
LAST_IN_GROUP = ("EHLO", "HELO", "DATA", "AUTH", "STARTTLS", "XCLIENT")
_HOST = re.compile(rb"[0-9A-Za-z_.:\-]{1,255}|\[[0-9A-Za-z.:]{1,64}\]")
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"  # RFC 3461 section 4
_ORCPT = re.compile(rf"[A-Za-z0-9-]+;{_XTEXT}+|(?i:utf-8);(?:{_XTEXT}|[^\x00-\xa0])+")


class Taken(Struct):
    """A message that was answered with 250."""

    sender: str
    recipients: list[str]
    content: bytes


class Refused(Exception):
    """With this code."""


class Oracle:
    """One session; its `codes` are those of all replies, in order."""

    def __init__(self, policy: Policy, *, may_relay: bool, tls: bool, login: bool) -> None:
        self.policy, self.may_relay, self.tls, self.login = policy, may_relay, tls, login
        self.codes = [220]
        self.taken: list[Taken] = []
        self.closed = self.authenticated = self.skipping = False
        self.errors = self.junk = 0
        self.waiting = b""
        self.read: Callable[[], None] = self.command  # what comes next
        self.greeted = False
        self.forget()

    def forget(self) -> None:
        """No transaction is open."""
        self.sender: str | None = None
        self.utf8 = self.in_chunks = False
        self.recipients: list[str] = []
        self.content = b""

    def hear(self, piece: bytes) -> None:
        self.waiting += piece
        before = None
        while not self.closed and before != (now := (len(self.waiting), self.skipping, self.read)):
            before = now
            self.read()

    # What is said.

    def say(self, code: int) -> None:
        self.codes.append(code)

    def close(self, code: int) -> None:
        self.say(code)
        self.closed = True

    def counted(self, code: int) -> None:
        self.junk += 1
        if self.junk > self.policy.max_junk:
            self.close(421)
        else:
            self.say(code)

    def error(self, code: int) -> None:
        self.say(code)
        self.errors += 1
        if self.errors >= self.policy.max_errors:
            self.close(421)

    def error_and_close(self, code: int) -> None:
        self.error(code)
        self.closed = True

    # Lines.

    def line(self) -> bytes | None:
        """The next one that is whole; what is wrong with others has been said."""
        if self.skipping:
            _, end, rest = self.waiting.partition(b"\r\n")
            if not end:
                return None
            self.waiting, self.skipping = rest, False
        found = wire.first_line(
            self.waiting, MAX_LOGIN_LINE if self.login else self.policy.max_line
        )
        if found is None:
            return None
        line, self.waiting = found
        if line is wire.TooLong:
            self.skipping = True
            self.error(500)
            self.read = self.command  # it ends a login, too
            return None
        if line is wire.BareFeed:
            self.error_and_close(500)
            return None
        assert isinstance(line, bytes)
        return line

    def command(self) -> None:
        line = self.line()
        if line is None:
            return
        verb, argument = wire.command(line)
        if verb in LAST_IN_GROUP and self.waiting:
            self.error_and_close(554)
            return
        name = {"": "unknown", "?": "unknown", "HELO": "ehlo"}.get(verb, verb.lower())
        getattr(self, f"on_{name}")(argument)

    # Commands (RFC 5321 section 4.1.1).

    def on_unknown(self, argument: bytes) -> None:
        self.error(500)

    def on_ehlo(self, argument: bytes) -> None:
        if not _HOST.fullmatch(argument):
            return self.error(501)
        self.greeted = True
        self.forget()
        return self.counted(250)

    def on_rset(self, argument: bytes) -> None:
        self.forget()
        self.counted(250)

    def on_noop(self, argument: bytes) -> None:
        self.counted(250)

    def on_help(self, argument: bytes) -> None:
        self.counted(214)

    def on_vrfy(self, argument: bytes) -> None:
        self.counted(252) if argument else self.error(501)

    def on_expn(self, argument: bytes) -> None:
        self.error(502)

    def on_quit(self, argument: bytes) -> None:
        self.close(221)

    @property
    def is_ready(self) -> bool:
        """Where a transaction may begin."""
        return self.greeted and self.sender is None

    def on_starttls(self, argument: bytes) -> None:
        """RFC 3207; what was said in the clear is forgotten (section 4.2)."""
        if not self.is_ready:
            return self.error(503)
        if self.tls or not self.policy.starttls:
            return self.error(502)
        if argument:
            return self.error(501)
        self.tls, self.greeted, self.authenticated = True, False, False
        return self.say(220)

    def on_xclient(self, argument: bytes) -> None:
        """From nobody whom we trust with it."""
        self.error(550 if self.sender is None else 503)

    # Logins: PLAIN alone (RFC 4954, RFC 4616).

    def on_auth(self, argument: bytes) -> None:
        if not self.is_ready:
            return self.error(503)
        if not self.login:
            return self.error(502)
        if not self.tls:
            return self.error(538)
        if self.authenticated:
            return self.error(503)
        word, _, initial = argument.partition(b" ")
        if word.upper() != b"PLAIN":
            return self.error(504)
        if not initial:
            self.read = self.response
            return self.say(334)
        return self.plain(b"" if initial.strip() == b"=" else initial.strip())

    def response(self) -> None:
        line = self.line()
        if line is not None:
            self.read = self.command
            self.error(501) if line == b"*" else self.plain(line)

    def plain(self, word: bytes) -> None:
        try:
            octets = b64decode(word, validate=True)
            if b64encode(octets) != word:
                raise ValueError
        except ValueError:
            return self.error(501)
        parts = octets.split(b"\0")
        if len(parts) != 3 or (parts[1].lower(), parts[2]) != (NAME, PASSWORD) or parts[0]:
            return self.error(535)
        self.authenticated = self.may_relay = True
        return self.say(235)

    # Transactions.

    def on_mail(self, argument: bytes) -> None:
        if not self.is_ready:
            return self.error(503)
        if self.policy.needs_login and not self.authenticated:
            return self.error(530)
        try:
            self.sender, self.utf8 = self.reverse_path(argument)
        except Refused as refused:
            return self.error(*refused.args)
        return self.say(250)

    def reverse_path(self, argument: bytes) -> tuple[str, bool]:
        found = wire.path(argument, b"FROM:")
        if found is None:
            raise Refused(501)
        address, parameters = found
        for name, value in parameters.items():
            good = MAIL_PARAMETERS.get(name)
            if good is None:
                raise Refused(555)
            if not good(value):
                raise Refused(501)
        if int(parameters.get("SIZE") or 0) > self.policy.max_message_size:
            raise Refused(552)
        if "REQUIRETLS" in parameters and not self.tls:
            raise Refused(555)
        if not argument.isascii() and "SMTPUTF8" not in parameters:
            raise Refused(553)
        if not _has_domain(address):
            raise Refused(501)
        return address, "SMTPUTF8" in parameters

    def on_rcpt(self, argument: bytes) -> None:
        if self.sender is None or self.in_chunks:
            return self.error(503)
        try:
            address = self.forward_path(argument)
        except Refused as refused:
            return self.error(*refused.args)
        if not self.may_relay:
            return self.error(550)
        if len(self.recipients) >= self.policy.max_recipients:
            return self.say(452)
        self.recipients.append(address)
        return self.say(250)

    def forward_path(self, argument: bytes) -> str:
        found = wire.path(argument, b"TO:")
        if found is None:
            raise Refused(501)
        address, parameters = found
        for name, value in parameters.items():
            good = RCPT_PARAMETERS.get(name)
            if good is None:
                raise Refused(555)
            if not good(value):
                raise Refused(501)
        if not argument.isascii() and not self.utf8:
            raise Refused(553)
        if not _has_domain(address):
            raise Refused(501)
        return address if "@" in address else f"{address}@{self.policy.hostname}"

    # Content: DATA, and BDAT (RFC 3030).

    def on_data(self, argument: bytes) -> None:
        if not self.recipients or self.in_chunks:
            return self.error(503)
        if argument:
            return self.error(501)
        self.read = self.data
        return self.say(354)

    def data(self) -> None:
        self.content += self.waiting
        self.waiting = b""
        end = wire.end_of_data(self.content)
        if end >= 0:
            self.content, self.waiting = self.content[: end - 3], self.content[end:]
            self.content = wire.unstuffed(self.content)
            self.message(self.fault(is_whole=True))

    def on_bdat(self, argument: bytes) -> None:
        match = re.fullmatch(rb"(\d{1,18})( +last)?", argument, re.I)
        if match is None:
            return self.error_and_close(501)
        refused, left, last = not self.recipients, int(match[1]), match[2] is not None

        def chunk() -> None:
            if len(self.waiting) >= left:
                self.content += self.waiting[:left]
                self.waiting = self.waiting[left:]
                self.chunk(refused, last)

        self.in_chunks = not refused
        self.read = chunk
        return None

    def chunk(self, refused: bool, last: bool) -> None:
        self.read = self.command
        if refused:
            self.forget()
            self.counted(503)
        elif (fault := self.fault(is_whole=last)) or last:
            self.message(fault)
        else:
            self.say(250)

    def message(self, fault: int) -> None:
        taken = Taken(self.sender or "", self.recipients, self.content)
        self.read = self.command
        self.forget()
        if fault:
            self.error(fault)
        else:
            self.junk = 0
            self.taken.append(taken)
            self.say(250)

    def fault(self, *, is_whole: bool) -> int:
        """The code that refuses the content; a CR at the end of a chunk may still get its LF."""
        policy, content = self.policy, self.content
        held = b"\r" if content.endswith(b"\r") and not is_whole else b""
        content = content.removesuffix(held)
        if policy.normalise:
            content = wire.normalised(content)
        elif wire.has_bare_newline(content):
            return 554
        if is_whole:
            self.content = content
        if len(content + held) > policy.max_message_size:
            return 552
        if wire.header_size(content) > policy.max_header_size:
            return 552
        return 554 if is_whole and wire.count_received(content) > policy.max_hops else 0


def _has_domain(address: str) -> bool:
    """RFC 6531 section 3.2: one that can be looked up."""
    domain = address.rpartition("@")[2]
    if domain.isascii():
        return True
    try:
        idna.encode(domain.lower(), uts46=True, std3_rules=True)
    except idna.IDNAError:
        return False
    return True


def _one_of(*words: str) -> Callable[[str | None], bool]:
    return lambda value: (value or "").upper() in words


def _is(pattern: str) -> Callable[[str | None], bool]:
    return lambda value: re.fullmatch(pattern, value or "", re.A) is not None


def _notify(value: str | None) -> bool:
    words = (value or "").upper().split(",")
    return words == ["NEVER"] or (
        set(words) <= {"SUCCESS", "FAILURE", "DELAY"} and len(set(words)) == len(words)
    )


# RFC 1870, RFC 6152, RFC 6531, RFC 3461, RFC 4954, RFC 8689.
MAIL_PARAMETERS: dict[str, Callable[[str | None], bool]] = {
    "SIZE": _is(r"\d{1,20}"),
    "BODY": _one_of("7BIT", "8BITMIME"),
    "SMTPUTF8": lambda value: value is None,
    "RET": _one_of("FULL", "HDRS"),
    "ENVID": _is(rf"{_XTEXT}{{1,100}}"),
    "AUTH": _is(rf"<>|{_XTEXT}{{1,500}}"),
    "REQUIRETLS": lambda value: value is None,
}
RCPT_PARAMETERS: dict[str, Callable[[str | None], bool]] = {
    "NOTIFY": _notify,
    "ORCPT": lambda value: len(value or "") <= 500 and _ORCPT.fullmatch(value or "") is not None,
}
