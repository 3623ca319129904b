"""POP3 in plain Python, from RFC 1939 and RFC 2449 alone: what a session answers, and deletes.

It takes all that a client says at once, and knows nothing of how it came.
"""

import re
from base64 import b64decode, b64encode

from msgspec import Struct

KEYWORDS = (
    *("USER", "PASS", "APOP", "AUTH", "STAT", "LIST", "RETR", "DELE", "NOOP", "RSET", "TOP"),
    *("UIDL", "CAPA", "STLS", "UTF8", "LANG", "QUIT"),
)
NAME, PASSWORD = b"bob@example.test", b"hun gry"
MAX_ERRORS = 6
MESSAGES = [
    b"Subject: one\r\n\r\nhello\r\n",
    b"",
    b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n\r\n.\r\n",
    b"no end of line",
    b"only: header\r\n",
    b"\r\n",
    b"bare\n.line\rends\r\n\r\r\n\n.\n",
    b"Subject: long\r\n\r\n" + b"x" * 997 + b"\r\n" * 50,
]
GOOD = b"USER bob@example.test\r\nPASS hun gry\r\n"


def twin_command(line: bytes) -> tuple[int, bytes]:
    if re.search(rb"[\x00-\x1f\x7f]", line):
        return 1, b""
    word, _, rest = line.partition(b" ")
    name = word.decode("ascii", "replace").upper()
    code = KEYWORDS.index(name) + 2 if name in KEYWORDS and word.isascii() else 0
    return code, rest if name == "PASS" else rest.strip(b" ")


def twin_numbers(argument: bytes) -> list[int] | None:
    words = [word for word in argument.split(b" ") if word]
    if not all(re.fullmatch(rb"[0-9]+", word) for word in words):
        return None
    return [min(int(word), 2**63 - 1) if int(word) >= 10**18 else int(word) for word in words]


def wire(message: bytes) -> bytes:
    """RFC 1939 section 3: lines end in CRLF, those that begin with a dot have one more."""
    lines = re.split(rb"\r\n|\r|\n", message)
    if lines[-1] == b"":
        lines.pop()
    return b"".join(b"." * line.startswith(b".") + line + b"\r\n" for line in lines)


def twin_top(message: bytes, lines: int) -> bytes:
    """RFC 1939 section 7, TOP, with what ends it."""
    found = wire(message).split(b"\r\n")[:-1]
    if b"" in found:
        found = found[: found.index(b"") + 1 + min(lines, len(found))]
    return b"".join(line + b"\r\n" for line in found) + b".\r\n"


class Ended(Struct):
    """What became of a session."""

    said: list[bytes]  # each reply, whole
    deleted: list[int] | None  # uids at QUIT; None: it did not come to that


class Oracle:
    """One session in the clear with somebody who may log in."""

    def __init__(self, validity: int, messages: dict[int, bytes], max_errors: int) -> None:
        self.validity, self.uids = validity, list(messages)
        self.messages = list(messages.values())
        self.gone: set[int] = set()
        self.name: bytes | None = None
        self.logged_in = False
        self.mechanism = b""  # while it is under way
        self.errors, self.max_errors = 0, max_errors
        self.ended = False
        self.deleted: list[int] | None = None

    def talk(self, said: bytes) -> Ended:
        replies = [b"+OK"]
        lines = re.findall(rb"([^\n]*)\n", said)
        for raw in lines:
            replies += self.hear(raw)
            if self.ended:
                break
        return Ended(replies, self.deleted)

    def hear(self, raw: bytes) -> list[bytes]:
        if not raw.endswith(b"\r"):
            self.ended = True
            return self.error()
        line = raw[:-1]
        if self.mechanism:
            return self.response(line)
        code, argument = twin_command(line)
        name = KEYWORDS[code - 2] if code >= 2 else ""
        if self.logged_in:
            return self.transaction(name, argument)
        return self.authorization(name, argument)

    def error(self) -> list[bytes]:
        self.errors += 1
        if self.errors >= self.max_errors:
            self.ended = True
            return [b"-ERR", b"-ERR"]
        return [b"-ERR"]

    def common(self, name: str, argument: bytes) -> list[bytes] | None:
        if name == "CAPA" and not argument:
            return [b"CAPA"]
        if name == "LANG" and not argument:
            return [b"+OK\r\nen English\r\n.\r\n"]
        if name == "LANG" and (argument == b"*" or argument.lower().split(b"-")[0] == b"en"):
            return [b"+OK"]
        return None

    # RFC 1939 section 4.

    def authorization(self, name: str, argument: bytes) -> list[bytes]:
        named, password = self.name, argument
        if name == "QUIT":
            self.ended = True
            return [b"+OK"]
        if name == "UTF8" and not argument:
            return [b"+OK"]
        if name == "USER" and argument:
            self.name = argument
            return [b"+OK"]
        if name == "PASS" and named is not None:
            self.name = None
            return self.log_in(named.lower(), password)
        if name == "AUTH" and re.fullmatch(rb"plain( +\S*)?", argument, re.I):
            initial = argument[5:].strip()
            if not initial:
                self.mechanism = b"PLAIN"
                return [b"+ "]
            return self.plain(initial, keeps_name=True)
        return self.common(name, argument) or self.error()

    def plain(self, word: bytes, keeps_name: bool = False) -> list[bytes]:
        """What USER said stays where no exchange was begun: where AUTH itself was no good."""
        self.mechanism = b""
        try:
            octets = b"" if word == b"=" else b64decode(word, validate=True)
            if b64encode(octets) != word.replace(b"=", b"", word == b"="):
                raise ValueError
        except ValueError:
            return self.bad_login(keeps_name)
        parts = octets.split(b"\0")
        if len(parts) != 3 or parts[0]:  # nobody may act as somebody else (RFC 4616 section 2)
            return self.bad_login()
        return self.log_in(parts[1].lower(), parts[2])

    def response(self, line: bytes) -> list[bytes]:
        if line == b"*":
            self.mechanism = b""
            return self.bad_login()
        return self.plain(line)

    def bad_login(self, keeps_name: bool = False) -> list[bytes]:
        if not keeps_name:
            self.name = None
        return self.error()

    def log_in(self, name: bytes, password: bytes) -> list[bytes]:
        self.name = None
        if (name, password) != (NAME, PASSWORD):
            return self.error()
        self.logged_in, self.errors = True, 0
        return [b"+OK"]

    # RFC 1939 section 5.

    def transaction(self, name: str, argument: bytes) -> list[bytes]:
        if name == "QUIT":
            self.ended = True
            self.deleted = [self.uids[n - 1] for n in sorted(self.gone)]
            return [b"+OK"]
        if name in ("NOOP", "RSET", "STAT") and argument:
            return self.error()
        if name == "NOOP":
            return [b"+OK"]
        if name == "RSET":
            self.gone = set()
            return [b"+OK"]
        if name == "STAT":
            left = [len(self.messages[n - 1]) for n in self.left()]
            return [b"+OK %d %d" % (len(left), sum(left))]
        if name in ("LIST", "UIDL") and not argument:
            lines = b"".join(self.listing(name, n) + b"\r\n" for n in self.left())
            return [b"+OK\r\n" + lines + b".\r\n"]
        if name in ("LIST", "UIDL", "RETR", "DELE"):
            return self.on_one(name, argument)
        if name == "TOP":
            numbers = twin_numbers(argument)
            if numbers is None or len(numbers) != 2:
                return self.error()
            if numbers[0] not in self.left():
                return [b"-ERR"]
            return [b"+OK\r\n" + twin_top(self.messages[numbers[0] - 1], numbers[1])]
        return self.common(name, argument) or self.error()

    def left(self) -> list[int]:
        return [n for n in range(1, len(self.messages) + 1) if n not in self.gone]

    def listing(self, name: str, n: int) -> bytes:
        if name == "LIST":
            return b"%d %d" % (n, len(self.messages[n - 1]))
        return b"%d %08x%08x" % (n, self.validity, self.uids[n - 1])

    def on_one(self, name: str, argument: bytes) -> list[bytes]:
        numbers = twin_numbers(argument)
        if numbers is None or len(numbers) != 1:
            return self.error()
        (n,) = numbers
        if n not in self.left():
            return [b"-ERR"]
        if name == "DELE":
            self.gone.add(n)
            return [b"+OK"]
        if name == "RETR":
            return [b"+OK\r\n" + wire(self.messages[n - 1]) + b".\r\n"]
        return [b"+OK " + self.listing(name, n)]


def told(wanted: list[bytes], said: bytes) -> bool:
    """Whether these replies, of which the words do not count, are what was said."""
    for reply in wanted:
        first, _, rest = reply.partition(b"\r\n")
        line, _, said = said.partition(b"\r\n")
        if reply == b"CAPA":
            body, dot, said = said.partition(b"\r\n.\r\n")
            if line[:3] != b"+OK" or b"RESP-CODES" not in body or not dot:
                return False
        elif reply in (b"+OK", b"-ERR"):
            if line != reply and not line.startswith(reply + b" "):
                return False
        elif rest or reply.endswith(b"\r\n"):
            if line[:3] != first or not said.startswith(rest):
                return False
            said = said[len(rest) :]
        elif line != first:
            return False
    return not said
