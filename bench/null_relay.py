"""The null relay: the least that a relay in Python can do, as the limit to measure against.

It parses nothing that it need not, stores nothing, and passes each message on as it came, over
50 kept connections, with MAIL, RCPT and DATA in one write. Its 250 means nothing: a crash loses
what it holds. Next hop 0 throws everything away. Each process has one loop, and shares the port.

    python -m bench.null_relay LISTEN_PORT NEXT_HOP_PORT PROCESSES
"""

import asyncio
import os
import sys
from collections import deque
from typing import cast

import uvloop

CONNECTIONS = 50
END = b"\r\n.\r\n"
EHLO = b"250-null.example.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n"


class Outbound(asyncio.Protocol):
    """One kept connection to the next hop; it carries one message at a time."""

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._body = b""
        self._awaited = 1  # lines of reply still to come; first the greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self._awaited -= data.count(b"\n")
        if self._awaited > 0:
            return
        if self._body:
            body, self._body, self._awaited = self._body, b"", 1
            self._write(body)
        else:
            self._relay.idle(self)

    def send(self, envelope: bytes, body: bytes) -> None:
        self._body, self._awaited = body, 3
        self._write(envelope)


class Inbound(asyncio.Protocol):
    """One client; the message is everything from DATA to the end of data, not looked into."""

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._envelope = self._rest = b""
        self._in_data = self._leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"220 null.example.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        replies = b""
        while data:
            mark = END if self._in_data else b"\r\n"
            head, found, tail = data.partition(mark)
            if not found:
                self._rest = data
                break
            replies += self._message(head) if self._in_data else self._command(head)
            data = tail
        if replies:
            self._transport.write(replies)
        if self._leaving:
            self._transport.close()

    def _message(self, body: bytes) -> bytes:
        self._relay.take(self._envelope + b"DATA\r\n", body + END)
        self._envelope, self._in_data = b"", False
        return b"250 Ok\r\n"

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb in (b"MAIL", b"RCPT"):
            self._envelope += line + b"\r\n"
        elif verb == b"DATA":
            self._in_data = True
            return b"354 Go ahead\r\n"
        elif verb == b"EHLO":
            return EHLO
        elif verb == b"QUIT":
            self._leaving = True
        return b"250 Ok\r\n"


class Relay:
    """What waits to be passed on, and the connections that wait for something."""

    def __init__(self) -> None:
        self._idle: list[Outbound] = []
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._throws_away = False

    def take(self, envelope: bytes, body: bytes) -> None:
        if self._throws_away:
            return
        if self._idle:
            self._idle.pop().send(envelope, body)
        else:
            self._waiting.append((envelope, body))

    def idle(self, outbound: Outbound) -> None:
        if self._waiting:
            outbound.send(*self._waiting.popleft())
        else:
            self._idle.append(outbound)

    async def run(self, port: int, next_hop: int) -> None:
        loop = asyncio.get_running_loop()
        self._throws_away = not next_hop
        for _ in range(CONNECTIONS if next_hop else 0):
            await loop.create_connection(lambda: Outbound(self), "127.0.0.1", next_hop)
        server = await loop.create_server(
            lambda: Inbound(self), "127.0.0.1", port, backlog=1024, reuse_port=True
        )
        await server.serve_forever()


def main(port: int, next_hop: int, processes: int) -> None:
    for _ in range(processes - 1):
        if not os.fork():
            break
    uvloop.run(Relay().run(port, next_hop))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
