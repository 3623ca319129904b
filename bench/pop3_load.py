"""A load of POP3 sessions, which knows each message that it must get.

    python -m bench.pop3_load 127.0.0.1:1110 --sessions 50 --clients 50 --messages 1000 --mode work

Session n is the first of account n. Each logs in, lists and, by its mode, fetches all messages and
deletes those whose number divides by three. Every message is compared octet by octet with what
was put there.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Literal, cast, get_args

import click
import msgspec
import uvloop
from msgspec import Struct

from fastmta.config import Endpoint
from fastmta.sink.tally import percentile

PASSWORD = "hungry"
THIRD = 3  # numbers that it divides are deleted
WINDOW = 100  # commands without an answer, where they are pipelined
END = b"\r\n.\r\n"
# The number first: it is read at a fixed place.
HEAD = b"""X-Number: %06d\r
From: <load@client.example.test>\r
To: <%b>\r
Subject: message %d\r
Date: Mon, 02 Nov 2026 10:00:00 +0000\r
Message-ID: <%d.%b>\r
\r
"""
NUMBER = slice(10, 16)

# look: log in, list and leave. rest: fetch what is left after "work", and delete nothing.
Mode = Literal["look", "work", "rest"]


class Result(Struct):
    """What the clients saw."""

    sessions: int = 0  # that ended as they should
    failed: int = 0
    why: str = ""  # of the first that failed
    seconds: float = 0.0  # from the first connection to the last answer to QUIT
    cpu: float = 0.0  # of the clients, seconds
    pipelined: bool = False
    lost: int = 0  # messages that should have been there
    duplicated: int = 0
    corrupt: int = 0
    session_p50: float = 0.0  # seconds from connecting to the answer to QUIT
    session_p99: float = 0.0


class Maildrops(Struct, frozen=True, kw_only=True):
    """What is there to fetch: a mailbox for each session."""

    sessions: int
    clients: int  # sessions at once
    messages: int  # in each
    size: int  # of a message, octets

    @property
    def accounts(self) -> list[str]:
        return [f"user{number:03}@example.test" for number in range(self.sessions)]

    @property
    def numbers(self) -> range:
        """Of the messages in each mailbox, in order."""
        return range(1, self.messages + 1)

    def body(self) -> bytes:
        """That of every message."""
        lines = cycle([b".a line that begins with a dot\r\n", b"x" * 70 + b"\r\n"])
        body = b""
        while len(body) + len(HEAD) + 40 < self.size:
            body += next(lines)
        return body

    def stuffed(self) -> bytes:
        """The same as RETR sends it, with its end (RFC 1939 section 3)."""
        return re.sub(rb"(?m)^\.", b"..", self.body()) + b".\r\n"


def head_of(account: bytes, number: int) -> bytes:
    return HEAD % (number, account, number, number, account)


class Load:
    """Hands out the accounts and gathers what became of their sessions."""

    def __init__(self, maildrops: Maildrops, mode: Mode, *, pipelined: bool) -> None:
        self.mode, self.pipelined = mode, pipelined
        self.numbers = {n for n in maildrops.numbers if mode != "rest" or n % THIRD}
        self.stuffed = maildrops.stuffed()
        self.accounts = iter(maildrops.accounts)
        self.result = Result()
        self.lengths = array("d")

    async def run(self, endpoint: Endpoint, clients: int) -> Result:
        result, cpu, started = self.result, time.process_time(), time.monotonic()
        await asyncio.gather(*(self._sessions(endpoint) for _ in range(clients)))
        result.seconds = time.monotonic() - started
        result.cpu = time.process_time() - cpu
        result.session_p50 = percentile(self.lengths, 0.5)
        result.session_p99 = percentile(self.lengths, 0.99)
        return result

    async def _sessions(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        for account in self.accounts:
            begun = time.monotonic()
            session = Session(self, account)
            await loop.create_connection(lambda it=session: it, *endpoint)  # type: ignore[misc]
            if why := await session.ended:
                self.result.failed += 1
                self.result.why = self.result.why or why
            else:
                self.result.sessions += 1
                self.lengths.append(time.monotonic() - begun)


class Session(asyncio.Protocol):
    """One connection: `_ask` sends commands of one kind, and goes on when all are answered."""

    def __init__(self, load: Load, account: str) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._load, self._account, self._name = load, account, account.encode()
        self._window = 1
        self._buffer = bytearray()
        self._positions: list[bytes] = []  # from LIST, in order
        self._numbers: list[int] = []  # of the messages, in the same order
        self._commands: Sequence[bytes] = [b"the greeting"]
        self._sent, self._answered, self._is_long = 1, 0, False
        self._take: Callable[[int, int], None] = self._nothing
        self._then = self._ask_for_capabilities

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection ended")

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(f"{self._account}: {why}")
            self._transport.abort()

    # Commands and their answers.

    def _ask(
        self,
        commands: Sequence[bytes],
        then: Callable[[], None],
        take: Callable[[int, int], None] | None = None,
        *,
        is_long: bool = False,
    ) -> None:
        """`take` gets where in the buffer each answer begins and ends."""
        if not commands:
            then()
            return
        self._commands, self._sent, self._answered = commands, 0, 0
        self._then, self._take, self._is_long = then, take or self._nothing, is_long
        self._send()

    def _send(self) -> None:
        """As many as there is room for, once half of it is free."""
        room = self._window - (self._sent - self._answered)
        if 2 * room >= self._window:
            some = self._commands[self._sent : self._sent + room]
            self._sent += len(some)
            self._transport.write(b"".join(some))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while self._answered < self._sent and (end := self._end(at)):
            if self._buffer[at] == ord("-"):
                self._fail(self._buffer[at:end].decode())
                return
            self._answered += 1
            self._take(at, end)
            at = end
        del self._buffer[:at]
        if self._answered == len(self._commands):
            self._then()
        elif at:
            self._send()

    def _end(self, at: int) -> int:
        """Where the answer that begins there ends; 0 while that has not come."""
        line = self._buffer.find(b"\n", at) + 1
        if not (line and self._is_long) or self._buffer[at] == ord("-"):
            return line
        end = self._buffer.find(END, line - 2)
        return end + len(END) if end >= 0 else 0

    def _nothing(self, at: int, end: int) -> None:
        """What it says is of no interest."""

    # The session.

    def _ask_for_capabilities(self) -> None:
        self._ask([b"CAPA\r\n"], self._log_in, self._on_capabilities, is_long=True)

    def _on_capabilities(self, at: int, end: int) -> None:
        if self._load.pipelined and b"\r\nPIPELINING\r\n" in self._buffer[at:end]:
            self._load.result.pipelined = True
            self._window = WINDOW

    def _log_in(self) -> None:
        user = [b"USER %b\r\n" % self._name, f"PASS {PASSWORD}\r\n".encode()]
        self._ask(user, lambda: self._ask([b"STAT\r\n"], self._list))

    def _list(self) -> None:
        fetch = self._leave if self._load.mode == "look" else self._fetch
        self._ask([b"LIST\r\n"], fetch, self._on_list, is_long=True)

    def _on_list(self, at: int, end: int) -> None:
        lines = self._buffer[at:end].split(b"\r\n")[1:-2]
        self._positions = [bytes(line.split()[0]) for line in lines]
        if self._load.mode == "look" and len(lines) != len(self._load.numbers):
            self._fail(f"{len(lines)} messages are listed")

    def _fetch(self) -> None:
        commands = [b"RETR %b\r\n" % position for position in self._positions]
        self._ask(commands, self._delete, self._on_message, is_long=True)

    def _on_message(self, at: int, end: int) -> None:
        buffer, name, stuffed = self._buffer, self._name, self._load.stuffed
        at = buffer.find(b"\n", at) + 1
        digits = buffer[at:end][NUMBER]
        number = int(digits) if digits.isdigit() else 0
        head = head_of(name, number)
        self._load.result.corrupt += not (
            end - at == len(head) + len(stuffed)
            and buffer.startswith(head, at)
            and buffer.startswith(stuffed, at + len(head))
        )
        self._numbers.append(number)

    def _delete(self) -> None:
        found, result = set(self._numbers), self._load.result
        result.lost += len(self._load.numbers - found)
        result.duplicated += len(self._numbers) - len(found)
        result.corrupt += len(found - self._load.numbers)  # 0, or one that was deleted
        delete = THIRD if self._load.mode == "work" else 0
        numbered = zip(self._positions, self._numbers, strict=True)
        gone = [b"DELE %b\r\n" % at for at, number in numbered if delete and not number % delete]
        self._ask(gone, self._leave)

    def _leave(self) -> None:
        self._ask([b"QUIT\r\n"], self._end_session)

    def _end_session(self) -> None:
        if not self.ended.done():
            self.ended.set_result("")
        self._transport.close()


@click.command
@click.argument("endpoint")
@click.option("--sessions", default=50, show_default=True)
@click.option("--clients", default=50, show_default=True, help="At once.")
@click.option("--messages", default=1000, show_default=True, help="In each mailbox.")
@click.option("--size", default=2048, show_default=True)
@click.option("--mode", type=click.Choice(get_args(Mode)), default="work", show_default=True)
@click.option("--pipelined/--one-by-one", default=True, show_default=True)
def main(endpoint: str, mode: Mode, pipelined: bool, **sizes: int) -> None:
    """Open the mailboxes and print as JSON what came of it."""
    maildrops = Maildrops(**sizes)
    load = Load(maildrops, mode, pipelined=pipelined)
    result = uvloop.run(load.run(Endpoint.parse(endpoint), maildrops.clients))
    click.echo(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
