"""A POP3 listener in this process, with real mailboxes and somebody who may log in."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

from msgspec import structs

from fastmta.config import Config, Endpoint, Listener, Pop3, Tls, TlsMode
from fastmta.server.access import Access, Attempt, Refusal
from fastmta.server.judges import Judges
from fastmta.server.pop3 import Pop3Service
from fastmta.server.tls import ServerTls
from fastmta.store.accounts import Account
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import Drop, Post, Stored
from tests.server.test_submission import NAME, PASSWORD, OneAccount

LOGIN = (f"USER {NAME}", f"PASS {PASSWORD}")
EVERYBODY = (ip_network("127.0.0.0/8"),)


ONE = b"Subject: one\r\n\r\nhello\r\n"
DOTS = b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n\r\n.\r\n"
TWO = b"Subject: two\r\n\r\n" + b"x" * 70 + b"\r\n"
MiB = 1 << 20


class Client:
    """Says one thing after the other, and reads replies of one line and of many."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        """The next line without its end; "" at the end of all."""
        return (await self.reader.readline()).decode().removesuffix("\r\n")

    async def say(self, *lines: str) -> str:
        """The first line of the reply to the last of these, each said by itself."""
        answer = ""
        for line in lines:
            self.writer.write(line.encode() + b"\r\n")
            answer = await self.line()
        return answer

    async def lines(self) -> list[bytes]:
        """The rest of a reply of many lines, as it goes over the wire."""
        found: list[bytes] = []
        while (line := await self.reader.readline()) != b".\r\n":
            assert line.endswith(b"\r\n"), (line, found[-1:])
            found.append(line)
        return found

    async def many(self, command: str) -> list[str]:
        """The lines of the reply to a command, when all is well."""
        answer = await self.say(command)
        assert answer[:3] == "+OK", answer
        return [line.decode().removesuffix("\r\n") for line in await self.lines()]

    async def message(self, command: str) -> bytes:
        """What RETR or TOP give, without the dots that were put in front."""
        answer = await self.say(command)
        assert answer[:3] == "+OK", answer
        lines = await self.lines()
        return b"".join(line[1:] if line[:1] == b"." else line for line in lines)

    async def log_in(self) -> "Client":
        answer = await self.say(*LOGIN)
        assert answer[:3] == "+OK", answer
        return self

    async def end(self) -> bytes:
        """All that comes before the connection ends."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def reset(self) -> None:
        """Go away without a word: RST, not FIN."""
        connection = self.writer.get_extra_info("socket")
        linger_not = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


class Server:
    def __init__(self, service: Pop3Service, mailboxes: Mailboxes, address: Any) -> None:
        self.service, self.mailboxes, self.address = service, mailboxes, address
        self.clients: list[Client] = []

    async def connect(self, **options: Any) -> Client:
        """Before the greeting is read."""
        reader, writer = await asyncio.open_connection(*self.address, limit=1 << 20, **options)
        self.clients.append(client := Client(reader, writer))
        return client

    async def greeted(self, **options: Any) -> Client:
        client = await self.connect(**options)
        assert (await client.line()).startswith("+OK")
        return client

    async def logged_in(self, **options: Any) -> Client:
        return await (await self.greeted(**options)).log_in()

    async def deliver(self, *messages: bytes, account: str = NAME, front: bytes = b"") -> None:
        """Put these into somebody's INBOX."""
        for message in messages:
            pieces = [message[i : i + (1 << 16)] for i in range(0, len(message), 1 << 16)]
            post = Post(b"", pieces, len(message), 0.0, [Drop(account, front=front)])
            (outcome,) = await self.mailboxes.append(post)
            assert isinstance(outcome, Stored)

    async def contents(self, account: str = NAME) -> list[int]:
        """The uids in somebody's INBOX."""
        return list((await self.mailboxes.open(account)).uids)

    def pass_time(self, seconds: float) -> None:
        """The service's clock goes on, and its sessions are looked at."""
        sessions = self.service.sessions
        sessions.now += seconds
        sessions.each(lambda session: session.sweep(sessions.now))


def configured(
    mode: TlsMode = "none", tls: tuple[Path, Path] | None = None, folder: Path = Path(), **pop3: Any
) -> Config:
    pop3 = {"plaintext_networks": EVERYBODY, **pop3}
    proxies = pop3.pop("proxy_networks", ())
    bind = Endpoint("127.0.0.1", 0)
    listener = Listener(service="pop3", bind=bind, tls=mode, proxy_networks=proxies)
    return Config(
        hostname="mail.example.test",  # type: ignore[arg-type]
        data_dir=folder,
        listener=(listener,),
        tls=Tls(certificate=tls[0], key=tls[1]) if tls else None,
        pop3=Pop3(**pop3),
    )


class AnyAccount(OneAccount):
    """Lets whoever knows Bob's name and password in, as `name`."""

    name = NAME

    async def verify(self, attempt: Attempt, client: str) -> Account | Refusal:
        found = await super().verify(attempt, client)
        return structs.replace(found, name=self.name) if isinstance(found, Account) else found


@asynccontextmanager
async def serving(
    folder: Path,
    *messages: bytes,
    mode: TlsMode = "none",
    tls: tuple[Path, Path] | None = None,
    judges: Judges | None = None,
    access: object | None = None,
    **pop3: Any,
) -> AsyncIterator[Server]:
    """With these messages in Bob's INBOX. Without `tls`, anybody may log in in the clear."""
    config = configured(mode, tls, folder, **pop3)
    mailboxes = Mailboxes(folder / "mail" / "0", lambda account: 0)
    contexts = ServerTls(config.tls) if config.tls else None
    door = cast(Access, access or AnyAccount())
    service = Pop3Service(config, mailboxes, door, contexts, judges)
    server = Server(service, mailboxes, await service.start(config.listener[0]))
    try:
        await server.deliver(*messages)
        yield server
    finally:
        for client in server.clients:
            await client.close()
        await service.drain(5)
        await mailboxes.close()


def lines_of(octets: int) -> bytes:
    """A message of about so many octets, some of whose lines begin with dots."""
    block = b"".join(b"." * (i % 3) + b"%d" % i * 12 + b"\r\n" for i in range(1000))
    return b"Subject: large\r\n\r\n" + block * (octets // len(block) + 1)


def digest(message: bytes) -> bytes:
    """Of what RETR says of it."""
    hashed = sha256(b"+OK %d octets\r\n" % len(message))
    hashed.update(message.replace(b"\r\n.", b"\r\n.."))
    hashed.update(b".\r\n")
    return hashed.digest()


async def stalled(server: Server, account: str) -> Client:
    """A client that has asked for the message and reads nothing."""
    server.service.access.name = account  # type: ignore[attr-defined]
    client = await server.logged_in()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.writer.write(b"RETR 1\r\n")
    return client


def held_back(server: Server) -> list[bool]:
    found: list[bool] = []
    server.service.sessions.each(lambda session: found.append(session.is_write_held))
    return found


async def received(client: Client) -> bytes:
    """The hash of a reply of many lines."""
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    hashed, end = sha256(), b""
    while not end.endswith(b"\r\n.\r\n"):
        data = await client.reader.read(1 << 18)
        assert data
        hashed.update(data)
        end = (end + data)[-5:]
    return hashed.digest()
