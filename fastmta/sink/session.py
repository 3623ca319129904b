"""One client's connection to the sink, over SMTP or LMTP.

It must be faster than what it measures: one read makes at most one write, a message costs a
handful of calls, and nothing is parsed that nobody asked for.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from fastmta.sink.behaviour import KEYWORDS, STEPS, Step
from fastmta.sink.tally import Mail

if TYPE_CHECKING:
    from fastmta.sink.server import Sink

END_OF_DATA = b"\r\n.\r\n"  # RFC 5321 section 4.1.1.4: nothing else ends a message
MAX_LINE = 64 << 10  # far above RFC 5321 section 4.5.3.1.4: what a client sends is its own affair

_PATH = rb'<((?:[^">]|"(?:[^"\\]|\\.)*")*)> ?(.*)'
_MAIL = re.compile(rb"(?is)MAIL FROM: ?" + _PATH)
_RCPT = re.compile(rb"(?is)RCPT TO: ?" + _PATH)
_BDAT = re.compile(rb"(?i)BDAT (\d{1,18})( LAST)?\s*")
_SIZE = re.compile(rb"(?i)\bSIZE=(\d{1,18})\b")
# What the end of the message is answered where a recipient asks for it; over LMTP the recipient
# alone (RFC 2033 section 4.2), over SMTP the message as a whole.
_AT_THE_END = {
    "busy": b"451 4.3.0 Busy, try again later\r\n",
    "full": b"552 5.2.2 Mailbox full\r\n",
}
_TAKEN = b"250 2.0.0 Ok\r\n"
# Parameters by the keyword of EHLO that offers them, where it has another name.
_KEYWORD_OF = {"BODY": "8BITMIME", **dict.fromkeys(("RET", "ENVID", "NOTIFY", "ORCPT"), "DSN")}
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
        self._client = self._hello = ""
        self._starting = self._secured = False  # the TLS handshake
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []
        self._wishes: dict[str, str] = {}  # recipient -> parameters of its RCPT
        self._ends: dict[str, bytes] = {}  # what some of them are answered behind the message
        self._doomed = False
        self._body = bytearray(b"\r\n")  # so that ".CRLF" as the first line ends the message
        self._chunk = -1  # octets of this BDAT chunk still to come; -1: no chunk was begun
        self._last = self._oversize = False

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        behaviour, sink = self._behaviour, self._sink
        self._counts.connections += 1
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if peer else ""
        if behaviour.max_connections and len(sink.sessions) >= behaviour.max_connections:
            self._counts.refused += 1
            self._say_and_close(b"421 4.3.2 Too many connections\r\n")
        elif behaviour.drop_at == "connect" and sink.dooms():
            self._drop()
        else:
            sink.enter(self)
            protocol = b"LMTP" if behaviour.lmtp else b"ESMTP"
            self._say(b"220 %b %b\r\n" % (behaviour.hostname.encode(), protocol))
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
        elif self._starting:
            self._starting = False
            self._transport.pause_reading()
            self._upgrade = self._sink.loop.create_task(self._start_tls())

    # TLS

    def _on_starttls(self, line: bytes) -> None:
        if self._sink.tls is None or self._secured:
            return self._complain(b"503 5.5.1 No TLS here\r\n")
        self._starting = True
        self._read = self._discard
        return self._say(b"220 2.0.0 Go ahead\r\n")

    def _discard(self, data: bytes, position: int) -> int:
        """What stands behind STARTTLS in the clear (RFC 3207 section 4.2)."""
        self._counts.protocol_errors += 1
        return len(data)

    async def _start_tls(self) -> None:
        context = self._sink.tls
        assert context
        loop = self._sink.loop
        try:
            transport = await loop.start_tls(self._transport, self, context, server_side=True)
        except OSError:
            return self.connection_lost(None)  # which nobody else calls then
        assert transport
        self._transport = transport
        self._secured = True
        self._counts.tls += 1
        self._reset()
        self._read = self._read_line
        return None

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
        if behaviour.lmtp is not line[:4].upper().startswith(b"L"):  # RFC 2033 section 4.1
            return self._complain(b"500 5.5.1 The other hello\r\n")
        self._reset()
        self._hello = line[5:].decode("utf-8", "surrogateescape")
        offered = [
            f"SIZE {behaviour.max_size}" if keyword == "SIZE" else keyword
            for keyword in KEYWORDS
            if keyword not in behaviour.without and (self._secured or keyword != "REQUIRETLS")
        ]
        if self._sink.tls and not self._secured:
            offered.append("STARTTLS")
        lines = [behaviour.hostname, *offered]
        last = len(lines) - 1
        reply = "".join(f"250{'-' if i < last else ' '}{text}\r\n" for i, text in enumerate(lines))
        return self._say(reply.encode())

    def _on_helo(self, line: bytes) -> None:
        if self._behaviour.lmtp:
            return self._complain(b"500 5.5.1 The other hello\r\n")
        self._reset()
        self._hello = line[5:].decode("utf-8", "surrogateescape")
        return self._say(b"250 %b\r\n" % self._behaviour.hostname.encode())

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
        if {_KEYWORD_OF.get(name, name) for name in given} & self._behaviour.without:
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
        if match[2] and (reply := self._refused(match[2])):
            return self._say(reply)
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
        if match[2]:
            self._wishes[address] = match[2].decode("utf-8", "surrogateescape")
        if fate in _AT_THE_END:
            self._ends[address] = _AT_THE_END[fate]
        self._say(b"250 2.1.5 Ok\r\n")
        return None

    def _on_data(self, line: bytes) -> None:
        if self._chunk >= 0:
            return self._complain(b"503 5.5.1 BDAT was begun\r\n")  # RFC 3030 section 2
        if not self._recipients:
            # RFC 2920 section 3.1: a pipelining client sends DATA before it knows.
            if self._sender is None:
                self._counts.protocol_errors += 1
            code = b"503" if self._behaviour.lmtp else b"554"  # RFC 2033 section 4.2
            return self._say(code + b" 5.5.1 No valid recipients\r\n")
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
        refusal = self._refusal(framed)
        taken = [] if refusal else self._recipients
        if self._ends and taken:
            taken = [recipient for recipient in taken if recipient not in self._ends]
        if taken:
            self._messages += 1
            assert self._sender is not None
            whose = self._client, self._hello
            mail = Mail(self._sender, taken, self._parameters, b"", chunked, self._wishes, *whose)
            self._sink.accept(mail, framed)
        if self._behaviour.lmtp:
            for recipient in self._recipients:
                self._say(refusal or self._ends.get(recipient, _TAKEN))
        else:
            self._say(refusal or _TAKEN)
        self._reset()
        return None

    def _refusal(self, framed: bytearray) -> bytes:
        """Why the message is taken for nobody; empty where it is for some."""
        if self._oversize or len(framed) - 2 > self._behaviour.max_size:
            return b"552 5.3.4 Message too big\r\n"
        if self._ends and not self._behaviour.lmtp:
            return next(iter(self._ends.values()))
        return b""


_HANDLERS: dict[bytes, Callable[[Session, bytes], None]] = {
    b"EHLO": Session._on_ehlo,
    b"LHLO": Session._on_ehlo,
    b"HELO": Session._on_helo,
    b"STAR": Session._on_starttls,
    b"MAIL": Session._on_mail,
    b"RCPT": Session._on_rcpt,
    b"DATA": Session._on_data,
    b"BDAT": Session._on_bdat,
    b"RSET": Session._on_rset,
    b"NOOP": Session._on_noop,
    b"VRFY": Session._on_vrfy,
    b"QUIT": Session._on_quit,
}
