"""The sink as a server: where it listens, and what its sessions share."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

from fastmta.sink.behaviour import Behaviour
from fastmta.sink.session import Session
from fastmta.sink.tally import NUMBER, Counts, Mail, Tally, percentile, ranges


class Sink:
    """The server: `async with Sink(Behaviour(), take=mails.append) as sink` inside a loop.

    `behaviour` may be replaced at any time and holds for connections made from then on.
    `take`, where given, gets each message that was answered 250, before that answer is sent.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        take: Callable[[Mail], object] | None = None,
        number: bytes = NUMBER,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls`, where given, is offered by STARTTLS."""
        self.behaviour = behaviour or Behaviour()
        self.sessions: set[Session] = set()
        self.totals = Counts()
        self.tls = tls
        self._tally = Tally(number)
        self._take = take
        self._dice = Random(self.behaviour.seed)
        self._attempts: Counter[str] = Counter()
        self._first = 0.0  # time.monotonic() of the first message
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []
        self._deserted = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one, which `endpoint` then tells.

        `host` may be a unix socket: "unix:/run/lmtp".
        """
        self.loop = loop = asyncio.get_running_loop()
        make, path = (lambda: Session(self)), host.removeprefix("unix:")
        if path != host:
            self._server = await loop.create_unix_server(make, path, backlog=4096)
        else:
            self._server = await loop.create_server(make, host, port, backlog=4096)

    async def stop(self, grace: float = 0.0) -> None:
        """Stop listening, give clients so many seconds to leave, then close their connections."""
        assert self._server
        self._server.close()
        if grace:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._deserted.wait()
        for session in tuple(self.sessions):
            session.close()
        await self._server.wait_closed()

    async def __aenter__(self) -> "Sink":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def endpoint(self) -> tuple[str, int]:
        """Address and port that it listens on; a unix socket has port 0."""
        assert self._server
        name = self._server.sockets[0].getsockname()
        return (f"unix:{name}", 0) if isinstance(name, str) else name[:2]

    @property
    def counts(self) -> Counts:
        """What was counted so far; the same object each time, brought up to date."""
        counts, tally = self.totals, self._tally
        counts.distinct = len(tally.numbers)
        counts.duplicates, counts.corrupt = tally.duplicates, tally.corrupt
        counts.numbers = ranges(tally.numbers)
        counts.seconds = counts.last - self._first
        counts.delay_p50 = percentile(tally.delays, 0.5)
        counts.delay_p99 = percentile(tally.delays, 0.99)
        counts.delay_p999 = percentile(tally.delays, 0.999)
        return counts

    async def arrived(self, messages: int) -> None:
        """Wait until so many messages in all were taken."""
        if self.totals.messages < messages:
            waiter = asyncio.get_running_loop().create_future()
            self._awaited.append((messages, waiter))
            await waiter

    # What sessions ask and tell

    def enter(self, session: Session) -> None:
        self.sessions.add(session)
        self._deserted.clear()

    def leave(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions:
            self._deserted.set()

    def dooms(self) -> bool:
        """Whether the next transaction (or connection) is to be dropped."""
        share = self.behaviour.drop
        return share > 0 and self._dice.random() < share

    def fate(self, address: str) -> str:
        """What becomes of this RCPT; see `Behaviour.fate`."""
        behaviour = self.behaviour
        if not (behaviour.tempfail or behaviour.permfail):
            return behaviour.fate(address)
        attempt = self._attempts[address]
        self._attempts[address] = attempt + 1
        return behaviour.fate(address, attempt)

    def accept(self, mail: Mail, framed: bytearray) -> None:
        """Count a message, given with a CRLF in front, and hand it on where somebody takes it."""
        totals = self.totals
        totals.last = time.monotonic()
        self._first = self._first or totals.last
        totals.messages += 1
        totals.recipients += len(mail.recipients)
        totals.octets += len(framed) - 2
        self._tally.add(framed, mail.recipients)
        if self._take:
            mail.content = bytes(framed[2:])
            self._take(mail)
        if self._awaited:
            self._wake()

    def _wake(self) -> None:
        for messages, waiter in self._awaited:
            if messages <= self.totals.messages and not waiter.done():
                waiter.set_result(None)
        self._awaited = [entry for entry in self._awaited if not entry[1].done()]
