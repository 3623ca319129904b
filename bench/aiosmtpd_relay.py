"""The relay that one builds from aiosmtpd and aiosmtplib: stored with fsync, 250, passed on, gone.

Each message is a file, written and synced by a thread while the loop goes on, and its name synced
with the folder, before the 250. Kept connections take files in turns; one that is taken is removed.
What is refused stays in the folder and is not tried again: this is a measure, not a mail server.

    python -m bench.aiosmtpd_relay FOLDER LISTEN_PORT NEXT_HOP_PORT
"""

import asyncio
import os
import sys
from itertools import count
from pathlib import Path
from typing import NamedTuple

import uvloop
from aiosmtpd.smtp import SMTP, Envelope, Session
from aiosmtplib import SMTP as Client
from aiosmtplib import SMTPException

CONNECTIONS = 20  # as many as Postfix has at the most
MOST = 64 << 20  # octets of a message


class Stored(NamedTuple):
    path: Path
    sender: str
    recipients: list[str]
    content: bytes


class Relay:
    def __init__(self, folder: Path, next_hop: int) -> None:
        self._folder, self._next_hop = folder, next_hop
        self._names = count()
        self._stored: asyncio.Queue[Stored] = asyncio.Queue()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content, sender = envelope.content, envelope.mail_from
        assert isinstance(content, bytes)
        assert sender is not None
        path = self._folder / str(next(self._names))
        mail = Stored(path, sender, envelope.rcpt_tos, content)
        await asyncio.to_thread(self._store, mail)
        self._stored.put_nowait(mail)
        return "250 OK"

    def _store(self, mail: Stored) -> None:
        with mail.path.open("wb") as file:
            file.write(repr((mail.sender, mail.recipients)).encode() + b"\n" + mail.content)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    async def pass_on(self) -> None:
        while True:
            async with Client(hostname="127.0.0.1", port=self._next_hop, start_tls=False) as client:
                while client.is_connected:
                    mail = await self._stored.get()
                    try:
                        await client.sendmail(mail.sender, mail.recipients, mail.content)
                        mail.path.unlink()
                    except SMTPException as error:
                        print(mail.path, error, flush=True)

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._session, "127.0.0.1", port, backlog=1024)
        async with server, asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self.pass_on())

    def _session(self) -> SMTP:
        return SMTP(self, hostname="aiosmtpd.example.test", data_size_limit=MOST)


if __name__ == "__main__":
    uvloop.run(Relay(Path(sys.argv[1]), int(sys.argv[3])).run(int(sys.argv[2])))
