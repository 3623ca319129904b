"""A load of numbered messages, over SMTP, that writes down each 250.

Each client sends one message after another over one connection: envelope and DATA in one write,
where the server offers PIPELINING, then the content. The content carries its number, its checksum
and the time at which it was sent (`fastmta.sink.tally` reads them at the other end), and a line
that begins with a dot.

    python -m bench.load 127.0.0.1:2525 --messages 1000 --clients 10 --size 2048

`send` does it at C's speed, `Load` in Python, which takes twice the CPU and knows TLS.
"""

import asyncio
import re
import socket
import ssl
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import cycle
from typing import Literal, cast, get_args
from zlib import crc32

import click
import msgspec
import uvloop
from msgspec import Struct

from bench._core import load as fast
from fastmta.config import Endpoint
from fastmta.sink.tally import NUMBER, SUM, TIME, percentile, ranges

ENVELOPE = b"MAIL FROM:<load@client.example.test>\r\nRCPT TO:<user%d@%bexample.test>\r\nDATA\r\n"
# Filled in twice: for all messages, then for each.
HEAD = b"""From: <load@client.example.test>
To: <user@example.test>
Subject: message %%d
Date: Mon, 02 Nov 2026 10:00:00 +0000
Message-ID: <%%d.load@client.example.test>
%b: %%d
%b: %08x
%b: %%.6f

""".replace(b"\n", b"\r\n")
Tls = Literal["none", "starttls", "implicit"]
GREETED = 60.0  # seconds until all clients have to be
RECIPIENTS = 1000  # distinct local parts
UNCOUNTED = b"X-Warm-Up"


class Result(Struct):
    """What the senders saw."""

    acknowledged: str = ""  # numbers that got a 250, as in "1-4999,5003"
    refused: int = 0  # messages that got anything else
    disconnects: int = 0  # connections that the server ended
    started: float = 0.0  # time.monotonic() of the first message
    seconds: float = 0.0  # from then to the last 250
    accept_p50: float = 0.0  # seconds from the last octet of content to the 250
    accept_p99: float = 0.0
    accept_p999: float = 0.0


def body_of(size: int) -> tuple[bytes, int]:
    """A body that makes a message of about `size` octets, stuffed for DATA, and its checksum."""
    lines = cycle([b".a line that begins with a dot\r\n", b"x" * 70 + b"\r\n"])
    body = bytearray()
    while len(body) + len(HEAD) + 60 < size:
        body += next(lines)
    return re.sub(rb"(?m)^\.", b"..", body) + b".\r\n", crc32(body)


def head_of(checksum: int, name: bytes = NUMBER) -> bytes:
    """The header section, but for the number, thrice, and the time."""
    return HEAD % (name, SUM, checksum, TIME)


def send(
    endpoint: Endpoint,
    clients: int,
    messages: int,
    size: int,
    domains: int = 0,
    rate: float = 0.0,
    name: bytes = NUMBER,
) -> Result:
    """Send everything without TLS; see `Load`. TimeoutError where not all clients are greeted.

    `name`: of the field with the number; a sink counts no message that has another than `NUMBER`.
    """
    body, checksum = body_of(size)
    pieces = re.split(rb"%d|%b", ENVELOPE), re.split(rb"%d|%\.6f", head_of(checksum, name))
    load = fast.Load(clients, messages, rate, domains, RECIPIENTS, *pieces, body)
    deadline = time.monotonic() + GREETED
    with ExitStack() as stack:
        for _ in range(clients):  # one by one: OpenSMTPD has a backlog of 5, and lost SYNs wait
            left = max(deadline - time.monotonic(), 0.001)
            sock = stack.enter_context(socket.create_connection(endpoint, left))
            sock.setblocking(False)
            load.greet(sock.fileno(), deadline)
        load.run()
    latencies = sorted(load.latencies())
    return Result(
        acknowledged=ranges(load.acknowledged()),
        refused=load.refused,
        disconnects=load.disconnects,
        started=load.started,
        seconds=load.ended - load.started,
        accept_p50=percentile(latencies, 0.5),
        accept_p99=percentile(latencies, 0.99),
        accept_p999=percentile(latencies, 0.999),
    )


class Load:
    """Hands out the numbers and gathers what became of them."""

    def __init__(
        self, messages: int, size: int, domains: int = 0, tls: Tls = "none", rate: float = 0.0
    ) -> None:
        """`domains`: so many in turn, d0.example.test and on; 0: example.test alone.

        `rate`: messages a second, at even times as long as a client is free; 0: as fast as can be.
        """
        self.tls, self.rate = tls, rate
        self.context = trusting()
        self.numbers = iter(range(1, messages + 1))
        self.result = Result()
        self.acknowledged: list[int] = []
        self.latencies = array("d")
        self._body, checksum = body_of(size)
        self._head = head_of(checksum)
        self._domains = domains

    def envelope(self, number: int) -> bytes:
        below = b"d%d." % (number % self._domains) if self._domains else b""
        return ENVELOPE % (number % RECIPIENTS, below)

    def content(self, number: int) -> bytes:
        return self._head % (number, number, number, time.monotonic()) + self._body

    async def run(self, endpoint: Endpoint, clients: int) -> Result:
        """Send everything; at the end every client has left or was cut off."""
        loop = asyncio.get_running_loop()
        sessions = [Client(self) for _ in range(clients)]
        context = self.context if self.tls == "implicit" else None
        async with asyncio.timeout(GREETED):
            for it in sessions:
                await loop.create_connection(lambda it=it: it, *endpoint, ssl=context)
                await it.greeted  # one by one: OpenSMTPD has a backlog of 5, and lost SYNs wait
        result = self.result
        result.started = time.monotonic()
        for session in sessions:
            session.next()
        await asyncio.gather(*(session.left for session in sessions))
        result.seconds = time.monotonic() - result.started
        result.acknowledged = ranges(self.acknowledged)
        result.accept_p50 = percentile(self.latencies, 0.5)
        result.accept_p99 = percentile(self.latencies, 0.99)
        result.accept_p999 = percentile(self.latencies, 0.999)
        return result


def trusting() -> ssl.SSLContext:
    """Any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Client(asyncio.Protocol):
    """One connection; `_then` gets the reply codes once as many as were asked for are there."""

    def __init__(self, load: Load) -> None:
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()
        self._load = load
        self._rest = b""
        self._codes: list[bytes] = []
        self._number = 0
        self._sent = 0.0
        self._pipelining = False
        self._steps: list[bytes] = []  # commands still to be sent, one by one
        self._expect(1, self._on_greeting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        self._codes += [line[:3] for line in lines if line[3:4] != b"-"]
        if self._then == self._on_ehlo:
            self._pipelining |= any(line[4:] == b"PIPELINING" for line in lines)
        if len(self._codes) >= self._awaited:
            self._then(self._codes)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.left.done():
            self._load.result.disconnects += 1
            self.left.set_result(None)
        if not self.greeted.done():
            self.greeted.set_result(None)

    def _expect(self, replies: int, then: Callable[[list[bytes]], None]) -> None:
        self._awaited, self._then, self._codes = replies, then, []

    def _on_greeting(self, codes: list[bytes]) -> None:
        clear = self._load.tls == "starttls"
        self._expect(1, self._ask_for_tls if clear else self._on_ehlo)
        self._write(b"EHLO client.example.test\r\n")

    def _ask_for_tls(self, codes: list[bytes]) -> None:
        self._expect(1, self._on_starttls)
        self._write(b"STARTTLS\r\n")

    def _on_starttls(self, codes: list[bytes]) -> None:
        if codes[0] == b"220":
            self._upgrading = asyncio.ensure_future(self._upgrade())
        else:
            self._transport.abort()

    async def _upgrade(self) -> None:
        loop, context = asyncio.get_running_loop(), self._load.context
        upgraded: asyncio.Transport | None = None
        with suppress(OSError):
            upgraded = await loop.start_tls(self._transport, self, context)
        if upgraded is None:
            self.connection_lost(None)  # which start_tls leaves out when it fails
            return
        self.connection_made(upgraded)
        self._expect(1, self._on_ehlo)
        self._write(b"EHLO client.example.test\r\n")

    def _on_ehlo(self, codes: list[bytes]) -> None:
        self.greeted.set_result(None)

    def next(self) -> None:
        """Begin the next message, or leave where all are sent."""
        if self.left.done():
            return  # the server has ended the connection before
        self._number = next(self._load.numbers, 0)
        if self._number and self._load.rate:
            due = self._load.result.started + self._number / self._load.rate
            now = time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, due - now), self._begin)
        elif self._number:
            self._begin()
        else:
            self.left.set_result(None)
            self._write(b"QUIT\r\n")
            self._expect(1, lambda _: self._transport.close())

    def _begin(self) -> None:
        envelope = self._load.envelope(self._number)
        if self._pipelining:
            self._expect(3, self._on_envelope)
            self._write(envelope)
        else:  # RFC 2920, section 3.1: only where the server has said that it can
            self._steps = envelope.splitlines(keepends=True)
            self._step([b"250"])

    def _step(self, codes: list[bytes]) -> None:
        if self._steps and codes[0] == b"250":
            self._expect(1, self._step)
            self._write(self._steps.pop(0))
        else:
            self._on_envelope(codes)

    def _on_envelope(self, codes: list[bytes]) -> None:
        if codes[-1] == b"354":
            content = self._load.content(self._number)
            self._expect(1, self._on_end_of_data)
            self._sent = time.monotonic()
            self._write(content)
        else:
            self._load.result.refused += 1
            self._expect(1, lambda _: self.next())
            self._write(b"RSET\r\n")

    def _on_end_of_data(self, codes: list[bytes]) -> None:
        if codes[0] == b"250":
            self._load.latencies.append(time.monotonic() - self._sent)
            self._load.acknowledged.append(self._number)
        else:
            self._load.result.refused += 1
        self.next()


@click.command
@click.argument("endpoint")
@click.option("--messages", default=1000, show_default=True)
@click.option("--clients", default=10, show_default=True)
@click.option("--size", default=2048, show_default=True)
@click.option("--domains", default=0, help="Recipients are in so many, not in one.")
@click.option("--tls", type=click.Choice(get_args(Tls)), default="none", show_default=True)
@click.option("--python", is_flag=True, help="In Python, as all that speaks TLS.")
@click.option("--rate", default=0.0, help="Messages a second; 0 is as fast as can be.")
@click.option("--warm-up", is_flag=True, help="The sink counts none of them; not in Python.")
def main(
    endpoint: str,
    messages: int,
    clients: int,
    size: int,
    domains: int,
    tls: Tls,
    python: bool,
    rate: float,
    warm_up: bool,
) -> None:
    """Send numbered messages and print as JSON which of them got a 250."""
    where = Endpoint.parse(endpoint)
    try:
        if python or tls != "none":
            result = uvloop.run(Load(messages, size, domains, tls, rate).run(where, clients))
        else:
            name = UNCOUNTED if warm_up else NUMBER
            result = send(where, clients, messages, size, domains, rate, name)
    except TimeoutError:
        raise click.ClickException(f"not all clients were greeted in {GREETED:.0f} s") from None
    click.echo(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
