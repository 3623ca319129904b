"""The sink's SMTP server.

It must be faster than what it measures: one read makes at most one write, a message costs a
handful of calls, and nothing is parsed that nobody asked for.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import cast

from fastmta.sink.behaviour import KEYWORDS, STEPS, Behaviour, Step
from fastmta.sink.tally import NUMBER, Counts, Mail, Tally, percentile, ranges

END_OF_DATA = b"\r\n.\r\n"  # RFC 5321 section 4.1.1.4: nothing else ends a message
MAX_LINE = 64 << 10  # far above RFC 5321 section 4.5.3.1.4: what a client sends is its own affair

_PATH = rb'<((?:[^">]|"(?:[^"\\]|\\.)*")*)> ?(.*)'
_MAIL = re.compile(rb"(?is)MAIL FROM: ?" + _PATH)
_RCPT = re.compile(rb"(?is)RCPT TO: ?" + _PATH)
_BDAT = re.compile(rb"(?i)BDAT (\d{1,18})( LAST)?\s*")
_SIZE = re.compile(rb"(?i)\bSIZE=(\d{1,18})\b")
_ENHANCED = re.compile(rb"(?m)^(\d{3}[ -])[245]\.\d{1,3}\.\d{1,3} ")


class Session(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._counts = sink.totals
        self._behaviour = sink.behaviour
        self._transport: asyncio.Transport
        self._read = self._read_line
        self._rest = b""  # an unfinished command line
        self._out: list[bytes] = []
        self._owed = 0.0  # seconds to wait before the replies in _out
        self._closing = False
        self._messages = 0
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []
        self._doomed = False
        self._body = bytearray(b"\r\n")  # so that ".CRLF" as the first line ends the message
        self._chunk = -1  # octets of this BDAT chunk still to come; -1: no chunk was begun
        self._last = self._oversize = False

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        behaviour, sink = self._behaviour, self._sink
        self._counts.connections += 1
        if behaviour.max_connections and len(sink.sessions) >= behaviour.max_connections:
            self._counts.refused += 1
            self._say_and_close(b"421 4.3.2 Too many connections\r\n")
        elif behaviour.drop_at == "connect" and sink.dooms():
            self._drop()
        else:
            sink.enter(self)
            self._say(b"220 %b ESMTP\r\n" % behaviour.hostname.encode())
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._sink.leave(self)

    def close(self) -> None:
        self._closing = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        while position < end and not self._closing:
            position = self._read(data, position)
        self._flush()

    def _say(self, reply: bytes) -> None:
        self._out.append(reply)
        self._owed += self._behaviour.delay

    def _say_and_close(self, reply: bytes) -> None:
        self._say(reply)
        self._closing = True

    def _drop(self) -> None:
        """Cut the connection as a crashed host would: nothing that waits is sent."""
        self._counts.dropped += 1
        self._closing = True
        self._out.clear()
        self._transport.abort()

    def _flush(self) -> None:
        if not self._out:
            return
        replies = b"".join(self._out)
        self._out.clear()
        if "ENHANCEDSTATUSCODES" in self._behaviour.without:
            replies = _ENHANCED.sub(rb"\1", replies)
        if self._owed:
            self._transport.pause_reading()
            self._sink.loop.call_later(self._owed, self._write_late, replies)
            self._owed = 0.0
        else:
            self._write(replies)

    def _write_late(self, replies: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._write(replies)

    def _write(self, replies: bytes) -> None:
        self._transport.write(replies)
        if self._closing:
            self._transport.close()

    # Commands

    def _read_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        if end < 0:
            self._rest = data[position:]
            if len(self._rest) > MAX_LINE:
                self._say_and_close(b"500 5.5.2 Line too long\r\n")
            return len(data)
        line = data[position:end]
        handle = _HANDLERS.get(line[:4].upper())
        if handle:
            handle(self, line)
        else:
            self._complain(b"500 5.5.2 Unknown command\r\n")
        position = end + 2
        if position < len(data) and self._chunk < 0 and "PIPELINING" in self._behaviour.without:
            self._counts.protocol_errors += 1
        return position

    def _complain(self, reply: bytes) -> None:
        self._counts.protocol_errors += 1
        self._say(reply)

    def _on_ehlo(self, line: bytes) -> None:
        behaviour = self._behaviour
        self._reset()
        offered = [
            f"SIZE {behaviour.max_size}" if keyword == "SIZE" else keyword
            for keyword in KEYWORDS
            if keyword not in behaviour.without
        ]
        lines = [behaviour.hostname, *offered]
        last = len(lines) - 1
        reply = "".join(f"250{'-' if i < last else ' '}{text}\r\n" for i, text in enumerate(lines))
        self._say(reply.encode())

    def _on_helo(self, line: bytes) -> None:
        self._reset()
        self._say(b"250 %b\r\n" % self._behaviour.hostname.encode())

    def _on_mail(self, line: bytes) -> None:
        behaviour = self._behaviour
        if behaviour.close_after and self._messages >= behaviour.close_after:
            return self._say_and_close(b"421 4.3.2 Enough for this connection\r\n")
        if self._drops_at("mail"):
            return self._drop()
        match = _MAIL.match(line)
        if not match or self._sender is not None:
            code = b"503 5.5.1 Sender already given" if match else b"501 5.5.4 Syntax: MAIL FROM:<>"
            return self._complain(code + b"\r\n")
        parameters = match[2]
        if parameters and (reply := self._refused(parameters)):
            return self._say(reply)
        self._sender = match[1].decode("utf-8", "surrogateescape")
        self._parameters = parameters.decode("utf-8", "surrogateescape")
        self._say(b"250 2.1.0 Ok\r\n")
        return None

    def _refused(self, parameters: bytes) -> bytes:
        """The reply to parameters that were not offered or ask too much; empty if all is well."""
        given = {item.partition(b"=")[0].decode().upper() for item in parameters.split()}
        keywords = {"BODY": "8BITMIME"}
        if {keywords.get(name, name) for name in given} & self._behaviour.without:
            self._counts.protocol_errors += 1
            return b"555 5.5.4 Parameter not offered\r\n"
        size = _SIZE.search(parameters)
        if size and int(size[1]) > self._behaviour.max_size:
            return b"552 5.3.4 Message too big\r\n"  # RFC 1870 section 6.1
        return b""

    def _drops_at(self, step: Step) -> bool:
        """Whether the connection is cut at this step; drawn once for a transaction, at MAIL."""
        behaviour = self._behaviour
        if step == "mail":
            self._doomed = behaviour.drop_at != "connect" and self._sink.dooms()
        return self._doomed and STEPS.index(step) >= STEPS.index(behaviour.drop_at)

    def _on_rcpt(self, line: bytes) -> None:
        match = _RCPT.match(line)
        if not match or self._sender is None:
            code = b"503 5.5.1 MAIL first" if match else b"501 5.5.4 Syntax: RCPT TO:<address>"
            return self._complain(code + b"\r\n")
        address = match[1].decode("utf-8", "surrogateescape")
        fate = self._sink.fate(address)
        if fate == "drop":
            self._doomed = True
        if self._drops_at("rcpt"):
            return self._drop()
        if fate == "tempfail":
            self._counts.tempfailed += 1
            return self._say(b"451 4.3.0 Try again later\r\n")
        if fate == "permfail":
            self._counts.permfailed += 1
            return self._say(b"550 5.1.1 No such user\r\n")
        if fate == "421":
            return self._say_and_close(b"421 4.3.2 Closing\r\n")
        if 0 < self._behaviour.max_recipients <= len(self._recipients):
            return self._say(b"452 4.5.3 Too many recipients\r\n")
        if fate == "slow":
            self._owed += self._behaviour.slow
        self._recipients.append(address)
        self._say(b"250 2.1.5 Ok\r\n")
        return None

    def _on_data(self, line: bytes) -> None:
        if self._chunk >= 0:
            return self._complain(b"503 5.5.1 BDAT was begun\r\n")  # RFC 3030 section 2
        if not self._recipients:
            # RFC 2920 section 3.1: a pipelining client sends DATA before it knows.
            if self._sender is None:
                self._counts.protocol_errors += 1
            return self._say(b"554 5.5.1 No valid recipients\r\n")
        if self._drops_at("data"):
            return self._drop()
        self._read = self._read_data
        self._say(b"354 Go ahead\r\n")
        return None

    def _on_bdat(self, line: bytes) -> None:
        match = _BDAT.fullmatch(line)
        if not match or "CHUNKING" in self._behaviour.without:
            return self._complain(b"500 5.5.1 BDAT\r\n")
        if self._drops_at("data"):
            return self._drop()
        self._chunk, self._last = int(match[1]), bool(match[2])
        self._read = self._read_chunk
        if not self._chunk:
            self._read(b"", 0)
        return None

    def _on_rset(self, line: bytes) -> None:
        self._reset()
        self._say(b"250 2.0.0 Ok\r\n")

    def _on_noop(self, line: bytes) -> None:
        self._say(b"250 2.0.0 Ok\r\n")

    def _on_vrfy(self, line: bytes) -> None:
        self._say(b"252 2.5.0 Send it and see\r\n")

    def _on_quit(self, line: bytes) -> None:
        self._say_and_close(b"221 2.0.0 Bye\r\n")

    # Content

    def _read_data(self, data: bytes, position: int) -> int:
        body = self._body
        scanned = max(len(body) - len(END_OF_DATA) + 1, 0)
        body += data[position:] if position else data
        end = body.find(END_OF_DATA, scanned)
        if self._drops_at("body"):
            self._drop()
            return len(data)
        if end < 0:
            self._bound(body)
            return len(data)
        behind = len(body) - end - len(END_OF_DATA)
        del body[end + 2 :]
        if b"\r\n." in body:
            body = body.replace(b"\r\n.", b"\r\n")  # RFC 5321 section 4.5.2
        self._read = self._read_line
        self._finish(body, chunked=False)
        return len(data) - behind

    def _read_chunk(self, data: bytes, position: int) -> int:
        piece = data[position : position + self._chunk]
        self._chunk -= len(piece)
        if self._recipients:
            self._body += piece
            self._bound(self._body)
        if piece and self._drops_at("body"):
            self._drop()
        elif not self._chunk:
            self._read = self._read_line
            self._end_chunk()
        return position + len(piece)

    def _end_chunk(self) -> None:
        if not self._recipients:
            # RFC 3030 section 2: the octets are swallowed, then the chunk is refused.
            self._say(b"554 5.5.1 No valid recipients\r\n")
            self._chunk = -1
        elif self._last:
            self._finish(self._body, chunked=True)
        else:
            self._say(b"250 2.0.0 Ok\r\n")

    def _bound(self, body: bytearray) -> None:
        """Keep no more than was allowed; the tail stays, for the end of data may be in it."""
        if len(body) > self._behaviour.max_size + len(END_OF_DATA):
            self._oversize = True
            del body[2 : -len(END_OF_DATA)]

    def _finish(self, framed: bytearray, *, chunked: bool) -> None:
        if self._drops_at("end"):
            return self._drop()
        if self._oversize or len(framed) - 2 > self._behaviour.max_size:
            self._say(b"552 5.3.4 Message too big\r\n")
        else:
            self._messages += 1
            assert self._sender is not None
            self._sink.accept(self._sender, self._recipients, self._parameters, framed, chunked)
            self._say(b"250 2.0.0 Ok\r\n")
        self._reset()
        return None


_HANDLERS: dict[bytes, Callable[[Session, bytes], None]] = {
    b"EHLO": Session._on_ehlo,
    b"HELO": Session._on_helo,
    b"MAIL": Session._on_mail,
    b"RCPT": Session._on_rcpt,
    b"DATA": Session._on_data,
    b"BDAT": Session._on_bdat,
    b"RSET": Session._on_rset,
    b"NOOP": Session._on_noop,
    b"VRFY": Session._on_vrfy,
    b"QUIT": Session._on_quit,
}


class Sink:
    """The server: `async with Sink(Behaviour(), take=mails.append) as sink` inside a loop.

    `behaviour` may be replaced at any time and holds for connections made from then on.
    `take`, where given, gets each message that was answered 250, before that answer is sent.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        take: Callable[[Mail], object] | None = None,
        number: bytes = NUMBER,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.sessions: set[Session] = set()
        self.totals = Counts()
        self._tally = Tally(number)
        self._take = take
        self._dice = Random(self.behaviour.seed)
        self._attempts: Counter[str] = Counter()
        self._first = 0.0  # time.monotonic() of the first message
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        self._deserted = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one, which `endpoint` then tells."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(
            lambda: Session(self), host, port, backlog=4096
        )

    async def stop(self, grace: float = 0.0) -> None:
        """Stop listening, give clients so many seconds to leave, then close their connections."""
        assert self._server
        self._server.close()
        if grace:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._deserted.wait(), grace)
        for session in tuple(self.sessions):
            session.close()
        await self._server.wait_closed()

    async def __aenter__(self) -> "Sink":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def endpoint(self) -> tuple[str, int]:
        """Address and port that it listens on."""
        assert self._server
        host, port, *_ = self._server.sockets[0].getsockname()
        return host, port

    @property
    def counts(self) -> Counts:
        """What was counted so far; the same object each time, brought up to date."""
        counts, tally = self.totals, self._tally
        counts.distinct = len(tally.numbers)
        counts.duplicates, counts.corrupt = tally.duplicates, tally.corrupt
        counts.numbers = ranges(tally.numbers)
        counts.seconds = counts.last - self._first
        counts.delay_p50 = percentile(tally.delays, 0.5)
        counts.delay_p99 = percentile(tally.delays, 0.99)
        return counts

    async def arrived(self, messages: int) -> None:
        """Wait until so many messages in all were taken."""
        if self.totals.messages < messages:
            waiter = asyncio.get_running_loop().create_future()
            self._awaited.append((messages, waiter))
            await waiter

    # What sessions ask and tell

    def enter(self, session: Session) -> None:
        self.sessions.add(session)
        self._deserted.clear()

    def leave(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions:
            self._deserted.set()

    def dooms(self) -> bool:
        """Whether the next transaction (or connection) is to be dropped."""
        share = self.behaviour.drop
        return share > 0 and self._dice.random() < share

    def fate(self, address: str) -> str:
        """What becomes of this RCPT; see `Behaviour.fate`."""
        behaviour = self.behaviour
        if not (behaviour.tempfail or behaviour.permfail):
            return behaviour.fate(address)
        attempt = self._attempts[address]
        self._attempts[address] = attempt + 1
        return behaviour.fate(address, attempt)

    def accept(
        self, sender: str, recipients: list[str], parameters: str, framed: bytearray, chunked: bool
    ) -> None:
        """Count a message, given with a CRLF in front, and hand it on where somebody takes it."""
        totals = self.totals
        totals.last = time.monotonic()
        self._first = self._first or totals.last
        totals.messages += 1
        totals.recipients += len(recipients)
        totals.octets += len(framed) - 2
        self._tally.add(framed, recipients)
        if self._take:
            self._take(Mail(sender, recipients, parameters, bytes(framed[2:]), chunked))
        if self._awaited:
            self._wake()

    def _wake(self) -> None:
        for messages, waiter in self._awaited:
            if messages <= self.totals.messages and not waiter.done():
                waiter.set_result(None)
        self._awaited = [entry for entry in self._awaited if not entry[1].done()]
