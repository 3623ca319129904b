"""A ledger of mail: what the relay acknowledged to its clients, and what then arrived.

The order of arrival is not written down: messages of different transactions have none (a message
that is deferred is passed by others, RFC 5321 section 4.5.4.1), and connections run side by side.
"""

import asyncio
import os
import random
import re
import signal
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from zlib import crc32

from bench.processes import free_port, tree
from fastmta.sink import Behaviour, Mail, Sink
from fastmta.store import records
from fastmta.store.env import open_environment
from fastmta.store.view import SpoolView, shard_folders
from tests.support import until

PROGRAM = Path(sys.executable).with_name("fastmta")
DOMAINS = ("one.test", "two.test", "three.test")
SIZES = (1_000, 1_000, 2_000, 2_000, 4_000, 4_000, 40_000, 200_000)

CONFIGURATION = """
hostname = "relay.example.test"
data_dir = "data"
workers  = {workers}
[[listener]]
service = "smtp"
bind    = "127.0.0.1:{port}"
[smtp]
max_errors = 1000
[retry]
first = "1s"
max_interval = "1s"
[[route]]
domain   = "*"
next_hop = ["127.0.0.1:{next_hop}"]
"""

# Seconds from a delivery until it is in a transaction: two turns of the settling timer, which is 20
# ms, and the loops of both sides on a machine that has much to do.
SETTLING = 0.3
LATELY = 20_000  # arrivals of which the time is kept

_NUMBER = re.compile(rb"\r\nX-Number: (\d+)\r\n")


class Ledger:
    """Numbers messages, writes down each 250 and each arrival."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._random = random.Random(1)
        self._sums: dict[int, int] = {}
        self._recipients: dict[int, list[str]] = {}
        self.domains: Sequence[str] = DOMAINS  # of recipients
        self.sizes: Sequence[int] = SIZES  # octets of a body
        self.connections = 0  # that its clients made
        self.acknowledged: list[int] = []
        self.replies: Counter[int] = Counter()  # to the end of data
        self.arrived: Counter[tuple[int, str]] = Counter()
        self.corrupt: list[int] = []
        self._open: set[tuple[int, str]] = set()  # acknowledged, and not arrived
        self._sent: dict[int, float] = {}  # when the end of data was sent, until it is answered
        self._committed = 0.0  # when the latest message was sent that is on the disk
        self._arrivals: deque[tuple[float, tuple[int, str]]] = deque(maxlen=LATELY)
        self._is_struck = False
        self._excused: Counter[tuple[int, str]] = Counter()  # how often each may come once more
        self.in_flight = 0  # deliveries that were, when harm was done
        self.unexcused = 0  # deliveries that came once more without having been in flight

    def next(self) -> tuple[int, list[str], bytes]:
        """A message that nobody has sent yet: number, recipients, content."""
        number = next(self._numbers)
        domains = self._random.sample(self.domains, self._random.choice((1, 1, 1, 3)))
        recipients = [f"n{number}@{domain}" for domain in domains]
        if len(domains) > 1:
            recipients.append(f"again{number}@{domains[0]}")
        body = self._random.randbytes(self._random.choice(self.sizes) // 2).hex().encode()
        lines = b"".join(body[i : i + 76] + b"\r\n" for i in range(0, len(body), 76))
        self._sums[number] = crc32(lines)
        self._recipients[number] = recipients
        return number, recipients, b"Subject: x\r\nX-Number: %d\r\n\r\n%b" % (number, lines)

    def sends(self, number: int) -> None:
        """The end of its data is about to be sent."""
        self._sent[number] = time.monotonic()

    def answered(self, number: int, code: int) -> None:
        self.replies[code] += 1
        sent = self._sent.pop(number, 0.0)
        if code == 250:
            self.acknowledged.append(number)
            self._committed = max(self._committed, sent)
            wanted = {(number, recipient) for recipient in self._recipients[number]}
            self._open |= {one for one in wanted if one not in self.arrived}

    def take(self, mail: Mail) -> None:
        """What a sink calls for each message that it takes."""
        self.arrives(self.check(mail.content), mail.recipients)

    def arrives(self, number: int, recipients: list[str]) -> None:
        for delivery in [(number, recipient) for recipient in recipients]:
            if delivery in self.arrived:
                self.unexcused += not self._excused[delivery]
                self._excused[delivery] = max(0, self._excused[delivery] - 1)
            self.arrived[delivery] += 1
            self._open.discard(delivery)
            self._arrivals.append((time.monotonic(), delivery))
            if self._is_struck:
                self._excuse(delivery)

    def _excuse(self, delivery: tuple[int, str]) -> None:
        self._excused[delivery] += 1
        self.in_flight += 1

    def check(self, content: bytes) -> int:
        """The number of a message that has arrived, whole or not."""
        match = _NUMBER.search(content)
        assert match, content[:500]
        number = int(match[1])
        _, _, body = content.partition(b"\r\n\r\n")
        if crc32(body) != self._sums[number]:
            self.corrupt.append(number)
        return number

    def recipients(self, number: int, domain: str) -> list[str]:
        """Of a message, those of one domain."""
        return [one for one in self._recipients[number] if one.endswith(f"@{domain}")]

    def missing(self) -> list[tuple[int, str]]:
        """What was acknowledged and has not arrived."""
        return sorted(self._open)

    def repeated(self) -> int:
        """How many deliveries were one too many."""
        return self.arrived.total() - len(self.arrived)

    @contextmanager
    def struck(self) -> Iterator[None]:
        """While the relay is harmed: what is delivered now, or was lately, may come once more.

        A settlement rides with the next commit, so what had been settled when a message was sent
        that is acknowledged by now is on the disk, however slow that is.
        """
        since = self._committed - SETTLING
        for at, delivery in self._arrivals:
            if at > since:
                self._excuse(delivery)
        self._is_struck = True
        try:
            yield
        finally:
            self._is_struck = False

    async def acknowledges(self, more: int) -> None:
        """Wait for so many more 250s."""
        aim = len(self.acknowledged) + more
        await until(lambda: len(self.acknowledged) >= aim)

    async def complete(self) -> None:
        """Wait until all that was acknowledged has arrived, whole."""
        try:
            await until(lambda: not self._open)
        finally:
            assert not self.missing(), f"{len(self.missing())}: {self.missing()[:5]}"
        assert not self.corrupt


async def read_reply(reader: asyncio.StreamReader) -> int:
    """The code of a reply; EOFError where the server goes away."""
    # Without wait_for, which may swallow that this task is cancelled.
    while (line := await reader.readline())[3:4] == b"-":
        pass
    if not line.endswith(b"\n") or line.startswith(b"421"):
        raise EOFError
    return int(line[:3])


class Client:
    """One SMTP connection at a time, which sends message after message."""

    def __init__(self, ledger: Ledger, port: int) -> None:
        self._ledger, self._port = ledger, port
        self.is_ending = False

    async def run(self) -> None:
        """Send until told to end; whatever ends a connection, there is a next one."""
        while not self.is_ending:
            with suppress(OSError, EOFError):
                await self._session()
            await asyncio.sleep(0.02)  # between attempts to connect

    async def _session(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._ledger.connections += 1
        try:
            await read_reply(reader)
            writer.write(b"EHLO client.example.test\r\n")
            await read_reply(reader)
            while not self.is_ending:
                await self._send(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, recipients, content = self._ledger.next()
        commands = [b"MAIL FROM:<load@client.example.test>"]
        commands += [b"RCPT TO:<%b>" % recipient.encode() for recipient in recipients]
        writer.write(b"\r\n".join([*commands, b"DATA", b""]))
        codes = [await read_reply(reader) for _ in range(len(commands) + 1)]
        if codes[-1] != 354:
            self._ledger.answered(number, codes[0])
            writer.write(b"RSET\r\n")
            await read_reply(reader)
            return
        self._ledger.sends(number)
        writer.write(content + b".\r\n")
        self._ledger.answered(number, await read_reply(reader))


@asynccontextmanager
async def load(ledger: Ledger, port: int, clients: int = 20) -> AsyncIterator[None]:
    """Mail comes in, from so many clients; at the end each hears what became of its last."""
    all_clients = [Client(ledger, port) for _ in range(clients)]
    tasks = [asyncio.ensure_future(client.run()) for client in all_clients]
    try:
        yield
        for client in all_clients:
            client.is_ending = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def sink(
    ledger: Ledger,
    behaviour: Behaviour | None = None,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Sink]:
    running = Sink(behaviour, take=ledger.take, tls=tls)
    await running.start(port=port)
    try:
        yield running
    finally:
        await running.stop()


class Node:
    """`fastmta serve` with one listener and a route to a sink."""

    def __init__(self, folder: Path, next_hop: int, *tables: str, workers: int = 1) -> None:
        self.folder, self.port, self.next_hop = folder, free_port(), next_hop
        self.data = folder / "data"
        self.stderr = folder / "stderr"
        self._tables = tables
        self.configuration = folder / "fastmta.toml"
        self.configure(workers)
        self.process: asyncio.subprocess.Process | None = None

    def configure(self, workers: int) -> None:
        text = CONFIGURATION.format(workers=workers, port=self.port, next_hop=self.next_hop)
        self.configuration.write_text("\n".join([text, *self._tables]))

    async def start(self, *prefix: str) -> None:
        """Start it and wait until it greets."""
        await self.launch(*prefix)
        await until(self.said("ready:"), 0.02)

    async def launch(self, *prefix: str) -> None:
        command = (*prefix, str(PROGRAM), "serve", "-c", str(self.configuration))
        self._said = self.stderr.stat().st_size if self.stderr.exists() else 0
        with self.stderr.open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(*command, stderr=stderr)

    def said(self, text: str) -> Callable[[], bool]:
        """Whether it wrote this since it was launched; it fails if it has ended."""

        def check() -> bool:
            if text in self.output():
                return True
            assert self.process.returncode is None, self.output()
            return False

        return check

    def output(self) -> str:
        """What it wrote to standard error since it was launched."""
        return self.stderr.read_bytes()[self._said :].decode()

    def pids(self) -> list[int]:
        """The supervisor, then its workers."""
        return tree(self.process.pid)

    async def kill(self) -> None:
        """SIGKILL to all processes at once; they are gone when this returns."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await self.process.wait()
        await until(lambda: not any(map(is_alive, pids)))

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()

    def has_mail(self) -> bool:
        """Whether anything is in the queue; the node may run."""
        for folder in shard_folders(self.data):
            with closing(SpoolView(folder)) as view:
                if any(True for _ in view.envelopes()):
                    return True
        return False

    def rows(self) -> Counter[str]:
        """How much is in the spools of a node that has ended."""
        found: Counter[str] = Counter()
        for folder in (self.data / "spool").iterdir():
            env, db = open_environment(folder, records.DATABASES)
            with env, env.begin() as txn:
                found.update({name: txn.stat(handle)["entries"] for name, handle in db.items()})
        return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def node(folder: Path, next_hop: int, *tables: str, workers: int = 1) -> AsyncIterator[Node]:
    """A node that runs."""
    async with ending(Node(folder, next_hop, *tables, workers=workers)) as one:
        await one.start()
        yield one


@asynccontextmanager
async def ending(one: Node) -> AsyncIterator[Node]:
    """Whatever the test starts of this node, nothing is left at the end."""
    try:
        yield one
    finally:
        if one.process is not None and one.process.returncode is None:
            await one.kill()
        if one.stderr.exists():
            print(one.stderr.read_text()[-8000:])  # shown where a test fails
