"""One nameserver, asked over UDP and, where an answer does not fit, over TCP (RFC 7766).

A query is safe from forged answers by its random id, its random source port and the connected
socket, which lets the kernel drop whatever comes from another address (RFC 5452 section 9). A
port serves `PORT_QUERIES` queries and is then given up for a new one.
"""

import asyncio
import secrets
import socket

import dns.entropy
import dns.flags
import dns.message
from dns.message import QueryMessage

PORTS = 4  # sockets of one nameserver; a query takes one of them at random
PORT_QUERIES = 256
MAX_DATAGRAM = 4096  # octets; we offer less, so a larger one is nothing that we asked for
PARSE_ON_LOOP = 4096  # octets; parsing 64 KiB takes 0.1 s


class Nameserver:
    """Asks one recursive resolver; use it from one event loop."""

    def __init__(self, host: str, port: int) -> None:
        """`host` is an IP address, with a zone index where it is link-local; else OSError."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        self._family: int = found[0][0]
        self._address: tuple[object, ...] = found[0][4]
        self._endpoint = host, port
        self._ports: list[_Port | None] = [None] * PORTS
        self._label = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __str__(self) -> str:
        return self._label

    async def ask(self, query: QueryMessage) -> QueryMessage:
        """The answer to a query, whose id may be changed; OSError where none can come.

        Waits without a limit of its own: answers that do not match the query are ignored.
        """
        answer = await self._port().ask(query)
        if answer.flags & dns.flags.TC:
            return await self._ask_over_tcp(query)
        return answer

    def close(self) -> None:
        for port in self._ports:
            if port is not None:
                port.close()
        self._ports = [None] * PORTS

    def _port(self) -> "_Port":
        slot = secrets.randbelow(PORTS)
        port = self._ports[slot]
        if port is None or port.retired:
            port = self._ports[slot] = _Port(self._family, self._address)
        return port

    async def _ask_over_tcp(self, query: QueryMessage) -> QueryMessage:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        transport, _ = await loop.create_connection(lambda: _Stream(answer), *self._endpoint)
        try:
            wire = query.to_wire()
            transport.write(len(wire).to_bytes(2, "big") + wire)
            return await _parse(await answer, query)
        finally:
            transport.close()


class _Port(asyncio.DatagramProtocol):
    """One connected UDP socket with the queries that wait on it, by id."""

    def __init__(self, family: int, address: tuple[object, ...]) -> None:
        self.retired = False
        self._left = PORT_QUERIES
        self._waiting: dict[int, tuple[QueryMessage, asyncio.Future[QueryMessage]]] = {}
        self._loop = asyncio.get_running_loop()
        connected = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connected.connect(address)
        except OSError:
            connected.close()
            raise
        endpoint = self._loop.create_datagram_endpoint(lambda: self, sock=connected)
        self._opening = self._loop.create_task(endpoint)

    async def ask(self, query: QueryMessage) -> QueryMessage:
        while query.id in self._waiting:
            query.id = dns.entropy.random_16()
        self._left -= 1
        self.retired = self._left <= 0
        future: asyncio.Future[QueryMessage] = self._loop.create_future()
        self._waiting[query.id] = query, future
        try:
            transport, _ = await asyncio.shield(self._opening)
            transport.sendto(query.to_wire())
            return await future
        finally:
            del self._waiting[query.id]
            if self.retired and not self._waiting:
                self.close()

    def close(self) -> None:
        self.retired = True
        self._opening.add_done_callback(_close)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Hand a datagram to the query that it answers, if there is one."""
        query, future = self._waiting.get(int.from_bytes(data[:2], "big"), (None, None))
        if query is None or future is None or future.done() or len(data) > MAX_DATAGRAM:
            return
        answer = parse(data, query)
        if answer is not None:
            future.set_result(answer)

    def error_received(self, exc: Exception) -> None:
        """By ICMP: nobody listens there, or there is no way to it."""
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(exc)


def _close(opening: "asyncio.Task[tuple[asyncio.DatagramTransport, _Port]]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()


class _Stream(asyncio.Protocol):
    """An answer over TCP, behind its length (RFC 1035 section 4.2.2)."""

    def __init__(self, answer: "asyncio.Future[bytes]") -> None:
        self._answer = answer
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = 2 + int.from_bytes(self._received[:2], "big")
        if len(self._received) >= end and not self._answer.done():
            self._answer.set_result(bytes(self._received[2:end]))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))


async def _parse(wire: bytes, query: QueryMessage) -> QueryMessage:
    if len(wire) > PARSE_ON_LOOP:
        answer = await asyncio.to_thread(parse, wire, query)
    else:
        answer = parse(wire, query)
    if answer is None:
        raise ConnectionError("an answer to another question, or none that can be read")
    return answer


def parse(wire: bytes, query: QueryMessage) -> QueryMessage | None:
    """The answer to `query` in `wire`; None where it is none, or not well formed."""
    # A truncated answer may end within a record; only that it is one counts.
    cut = len(wire) > 2 and bool(wire[2] & dns.flags.TC >> 8)
    try:
        answer = dns.message.from_wire(wire, question_only=cut)
        if isinstance(answer, QueryMessage) and query.is_response(answer):
            return answer
    except Exception:  # a parser of bytes from outside: whatever it stumbles over is no answer
        pass
    return None
