"""The null POP3 server: the most that the load can fetch, as the limit to measure against.

It has all mailboxes in memory, asks nobody for a password, and takes any DELE for the deletion of
every third message. One process, one loop.

    python -m bench.null_pop3 PORT MESSAGES SIZE
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import cast

import uvloop

from bench.pop3_load import THIRD, Maildrops, head_of


class Mailboxes:
    """All alike but for the name of their owner, and whether a third is gone."""

    def __init__(self, maildrops: Maildrops) -> None:
        self.body = maildrops.stuffed()
        self._all = maildrops.numbers
        self._rest = [number for number in self._all if number % THIRD]
        self.reduced: set[bytes] = set()

    def of(self, name: bytes) -> Sequence[int]:
        """The numbers of the messages."""
        return self._rest if name in self.reduced else self._all


class Session(asyncio.Protocol):
    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        self._name = self._rest = b""
        self._numbers: Sequence[int] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"+OK null.example.test\r\n")

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        answers: list[bytes] = []
        for line in lines:
            verb, _, argument = line.partition(b" ")
            answers.append(b"+OK\r\n")
            answers += self._retrieve(argument) if verb == b"RETR" else self._do(verb, argument)
        self._transport.write(b"".join(answers))

    def _retrieve(self, argument: bytes) -> tuple[bytes, bytes]:
        return head_of(self._name, self._numbers[int(argument) - 1]), self._mailboxes.body

    def _do(self, verb: bytes, argument: bytes) -> list[bytes]:
        match verb:
            case b"CAPA":
                return [b"PIPELINING\r\n.\r\n"]
            case b"USER":
                self._name, self._numbers = argument, self._mailboxes.of(argument)
            case b"LIST":
                return [*(b"%d 0\r\n" % at for at in range(1, len(self._numbers) + 1)), b".\r\n"]
            case b"DELE":
                self._mailboxes.reduced.add(self._name)
        return []


async def _run(port: int, messages: int, size: int) -> None:
    mailboxes = Mailboxes(Maildrops(sessions=0, clients=0, messages=messages, size=size))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Session(mailboxes), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_run(*map(int, sys.argv[1:])))
