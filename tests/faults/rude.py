"""Peers that break off, and worse: clients and a host, raw on their sockets."""

import asyncio
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import product

from tests.integration.ledger import Ledger, read_reply

PATIENCE = 30.0  # seconds after which the other should have gone long ago
_NOW = struct.pack("ii", 1, 0)  # linger for no time: close sends RST, and what waits is thrown away

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Harm = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Way = tuple[str, Harm]  # the step, and what is done there


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RST, whatever is under way."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
    writer.transport.abort()


async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """FIN, and then listen: the other has to go by itself, and the kernel tells it that we did."""
    writer.write_eof()
    await _until_gone(reader)
    writer.close()


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what is answered at length, and read none of it, until no more can be sent."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                writer.write(b"EHLO client.example.test\r\n" * 500)
                await writer.drain()
    await reset(reader, writer)


async def endless_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _say_for_ever(reader, writer, b"250-" + b"x" * 4096)


async def endless_reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _say_for_ever(reader, writer, b"250-and so on\r\n" * 50)


async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\0\xff\r\n250 \r\n")
    await half_close(reader, writer)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A reply octet by octet, all but its end."""
    for octet in b"250-2.0.0 wait\r\n250 2.0.0 Ok":
        writer.write(bytes([octet]))
        await asyncio.sleep(0.02)  # slowness is the harm
    await reset(reader, writer)


async def _say_for_ever(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: bytes
) -> None:
    gone = asyncio.ensure_future(_until_gone(reader))
    try:
        async with asyncio.timeout(PATIENCE):
            while not gone.done():
                writer.write(what)
                await writer.drain()
    except TimeoutError:
        raise AssertionError("the other listens for ever") from None
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _until_gone(reader: asyncio.StreamReader) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        raise AssertionError("the other stays with who has gone") from None


# Clients.

HARMS_OF_CLIENTS: tuple[Harm, ...] = (reset, half_close, deaf)
# What is said before the harm; the message stands for its content, cut or whole.
STEPS = ("", "EHLO", "MAIL", "RCPT", "BDAT", "DATA", "half", "almost", "dot", "QUIT")
WHOLE = ("dot", "QUIT")  # the message is


async def rude_client(ledger: Ledger, port: int, step: str, harm: Harm) -> int:
    """Break off a transaction at this step; gives the number of its message.

    Who half-closes still hears what becomes of a whole one. To the others nothing is owed.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number, recipients, content = ledger.next()
    try:
        with suppress(OSError, EOFError):
            await read_reply(reader)
            await _say(reader, writer, step, recipients, content)
            if harm is half_close and step in WHOLE:
                writer.write_eof()
                ledger.answered(number, await read_reply(reader))
            await harm(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return number


async def _say(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    step: str,
    recipients: list[str],
    content: bytes,
) -> None:
    """All commands up to this one."""
    rcpt = b"\r\n".join(b"RCPT TO:<%b>" % each.encode() for each in recipients)
    commands = {
        "EHLO": b"EHLO client.example.test",
        "MAIL": b"MAIL FROM:<rude@client.example.test>",
        "RCPT": rcpt,
        "BDAT": b"BDAT 999999999 LAST\r\n" + content,  # never whole, whatever else is said
        "DATA": b"DATA",
    }
    said = STEPS[1 : STEPS.index(step) + 1] if step in commands else tuple(commands)
    for word in said:
        if word != "BDAT" or step == "BDAT":
            writer.write(commands[word] + b"\r\n" * (word != "BDAT"))
        for _ in range(len(recipients) if word == "RCPT" else word != "BDAT"):
            await read_reply(reader)
    ends = {"half": content[: len(content) // 2], "almost": content + b".\r"}
    writer.write(ends.get(step, content + b".\r\n" if step in ("dot", "QUIT") else b""))
    if step == "QUIT":
        writer.write(b"QUIT\r\n")
    await writer.drain()


# A host.

HARMS_OF_HOSTS: tuple[Harm, ...] = (
    *(reset, half_close, endless_line, endless_reply, gibberish, trickle),
)
ASKED = ("connect", "EHLO", "MAIL", "RCPT", "DATA", "body", "dot")
WAYS = tuple(product(ASKED, HARMS_OF_HOSTS))
_EHLO = b"250-mx.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
_EHLO_CHUNKING = b"250-mx.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 8BITMIME\r\n"


class RudeHost:
    """Harms every second connection while any are due, and passes the others on to a good host."""

    def __init__(self, behind: int, dice: random.Random) -> None:
        self._behind, self._dice = behind, dice
        self.port = 0
        self._connections = 0
        self.due = 0  # connections that are to be harmed
        self._ways: list[Way] = []  # the last comes next; each comes before any comes again
        self.problems: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, EOFError, TimeoutError):
                self._connections += 1
                if self.due > 0 and self._connections % 2:
                    await self._harm(reader, writer)
                else:
                    await self._pass_on(reader, writer)
        except AssertionError as error:
            self.problems.append(str(error))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _harm(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.due -= 1
        self._ways = self._ways or list(WAYS)
        way = step, harm = self._ways.pop()
        ehlo = self._dice.choice((_EHLO, _EHLO_CHUNKING))
        try:
            await _answer_until(step, ehlo, reader, writer)
        except (OSError, EOFError):  # the other had nothing to say that goes so far
            self._ways.append(way)
            self.due += 1
            raise
        await harm(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(_pump(reader, to_behind), _pump(behind, writer))

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _answer_until(
    step: str, ehlo: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Be a good host up to this step, whose reply is not given."""
    if step == "connect":
        return None
    writer.write(b"220 mx.test ESMTP\r\n")
    while line := await reader.readline():
        verb = line[:4].decode().upper()
        if verb == step:
            return None
        if verb in ("DATA", "BDAT"):
            return await _take_content(step, line, reader, writer)
        writer.write(ehlo if verb == "EHLO" else b"250 2.0.0 Ok\r\n")
    raise EOFError


async def _take_content(
    step: str, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Some of it, or all and no reply."""
    if line[:4].upper() == b"DATA":
        writer.write(b"354 go on\r\n")
    if step == "body":
        await reader.read(1000)
    elif match := re.match(rb"(?i)BDAT (\d+)", line):
        await reader.readexactly(int(match[1]))
    else:
        while await reader.readline() not in (b".\r\n", b""):
            pass


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def rude_host(behind: int, dice: random.Random) -> AsyncIterator[RudeHost]:
    host = RudeHost(behind, dice)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
        await host.stop()
