"""A mail exchanger of a few lines that misbehaves as it is told."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from fastmta.delivery.site import Host

DROP = b"!drop"  # instead of a reply: cut the connection
SILENCE = b""  # instead of a reply: none

# What to say to a command ("" is the greeting, "." the end of the data); None: what is right.
Answer = Callable[["Session", str], bytes | None]


class Session(asyncio.Protocol):
    def __init__(self, mx: "Mx") -> None:
        self.mx = mx
        self.number = len(mx.sessions)
        self.commands: list[str] = []
        self.messages: list[bytes] = []
        self.reads = 0
        self.transport: asyncio.Transport
        self._buffer = b""
        self._chunk = 0  # octets of a chunk that are still to come
        self._in_data = False
        self._content = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.mx.enter(self)
        self._say("", b"220 mx.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        self._buffer += data
        while not self.transport.is_closing() and self._step():
            pass

    def connection_lost(self, error: Exception | None) -> None:
        self.mx.leave(self)

    def _step(self) -> bool:
        """Act on the next command or piece of content; False: it is not there yet."""
        if self._chunk:
            return self._take_chunk()
        end = b"\r\n.\r\n" if self._in_data else b"\r\n"
        head, found, rest = self._buffer.partition(end)
        if not found:
            return False
        self._buffer = rest
        if self._in_data:
            self._in_data = False
            self._end((head + b"\r\n").replace(b"\r\n..", b"\r\n.")[2:], ".")
        else:
            self._command(head.decode())
        return True

    def _take_chunk(self) -> bool:
        piece, self._buffer = self._buffer[: self._chunk], self._buffer[self._chunk :]
        self._content += piece
        self._chunk -= len(piece)
        if not self._chunk:
            self._end(bytes(self._content), "BDAT")
        return bool(self._buffer)

    def _command(self, command: str) -> None:
        self.commands.append(command)
        verb = command.split(" ")[0]
        if verb == "EHLO":
            self._say(command, self.mx.ehlo)
        elif verb == "DATA":
            if self._say(command, b"354 go\r\n").startswith(b"354"):
                self._in_data = True
                self._buffer = b"\r\n" + self._buffer
        elif verb == "BDAT":
            self._content, self._chunk = bytearray(), int(command.split(" ")[1])
        elif verb == "QUIT":
            self._say(command, b"221 bye\r\n")
            self.transport.close()
        else:
            self._say(command, b"250 2.0.0 ok\r\n")

    def _end(self, content: bytes, command: str) -> None:
        reply = self._say(command, b"250 2.0.0 ok\r\n")
        if reply.startswith(b"2") and not reply.endswith(DROP):
            self.messages.append(content)

    def _say(self, command: str, right: bytes) -> bytes:
        said = self.mx.answer(self, command)
        reply = right if said is None else said
        if reply.endswith(DROP):
            self.transport.write(reply.removesuffix(DROP))
            self.transport.close()
        elif reply:
            self.transport.write(reply)
        return reply


class Mx:
    """Use as `async with Mx(...) as mx`; then `mx.host` leads to it."""

    def __init__(
        self,
        answer: Answer = lambda session, command: None,
        *,
        extensions: tuple[str, ...] = ("PIPELINING", "CHUNKING", "8BITMIME", "SIZE 0"),
        name: str = "mx.test",
    ) -> None:
        self.answer = answer
        self.name = name
        lines = ["mx.test", *extensions]
        marks = "-" * (len(lines) - 1) + " "
        self.ehlo = "".join(f"250{m}{x}\r\n" for m, x in zip(marks, lines, strict=True)).encode()
        self.sessions: list[Session] = []
        self.open = 0
        self.most = 0  # connections at one time
        self._server: asyncio.Server

    @property
    def messages(self) -> list[bytes]:
        return [message for session in self.sessions for message in session.messages]

    @property
    def host(self) -> Host:
        return Host(self.name, ("127.0.0.1",), self.port)

    async def __aenter__(self) -> "Mx":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Session(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.close()
        for session in self.sessions:
            session.transport.abort()

    def enter(self, session: Session) -> None:
        self.sessions.append(session)
        self.open += 1
        self.most = max(self.most, self.open)

    def leave(self, session: Session) -> None:
        self.open -= 1
