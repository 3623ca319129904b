"""One SMTP or LMTP connection to a host: the client machine on a socket, within limits of time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Protocol, cast

from msgspec import Struct

from fastmta.delivery import conversion
from fastmta.delivery.conversion import CannotConvert
from fastmta.delivery.site import Host
from fastmta.delivery.tls import (
    HANDSHAKES,
    ClientCertificate,
    Context,
    Tls,
    describe,
    reason,
    result_of,
)
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import Client, Event, TlsPolicy
from fastmta.protocol.smtp_steps import PHRASES, Step, Timeouts
from fastmta.queue.ready import Job

log = logging.getLogger(__name__)

# A message up to this size goes out in one write; of a larger one no more is held than what the
# peer has not taken yet.
JOINED_SIZE = 1 << 20

# `await read(message_id, first_chunk)`: up to about 1 MiB of consecutive chunks; [] at the end.
Read = Callable[[int, int], Awaitable[list[bytes]]]


class Terms(Struct, frozen=True):
    """What all connections of a dispatcher have in common."""

    hostname: str
    read: Read
    timeouts: Timeouts
    by_step: tuple[float, ...]  # the time limit for the reply to each Step
    # Converted messages above JOINED_SIZE that may be in memory at a time.
    conversions: asyncio.Semaphore
    tls: Tls
    certificate: ClientCertificate | None = None  # ours


class Owner(Protocol):
    """Whom a connection serves."""

    def made(self, connection: "Connection") -> None:
        """The host took the connection; its greeting is still to come."""

    def free(self, connection: "Connection") -> None:
        """A transaction may begin."""

    def done(self, connection: "Connection", job: Job, replies: list[Reply]) -> None:
        """The attempt is over, with one reply for each recipient."""

    def untouched(self, connection: "Connection", job: Job) -> None:
        """A kept connection ended before the host had answered anything about this job."""

    def ended(self, connection: "Connection") -> None:
        """The connection is gone; the last call."""


class Connection:
    """From the TCP connection to its end.

    `deadline` (loop time) is watched from outside: once it has passed, `expire` is to be called.
    """

    def __init__(
        self,
        owner: Owner,
        terms: Terms,
        host: Host,
        address: str,
        tls: TlsPolicy = "opportunistic",
    ) -> None:
        self.is_local = address.startswith("unix:")  # a socket of this machine, so without TLS
        self.label = address if self.is_local else f"{host.name} [{address}]"
        self._implicit = host.protocol == "smtps"
        avoids = tls == "opportunistic" and not self._implicit and terms.tls.avoids(self.label)
        if self.is_local or avoids:
            tls = "none"
        lmtp = host.protocol == "lmtp"
        self.client = Client(
            terms.hostname, self.label, lmtp=lmtp, tls=tls, implicit=self._implicit
        )
        self.tls = ""  # what there is of it; see Disposition
        self.falls_back = False  # TLS failed, and a connection without it may be made
        self.deadline = float("inf")
        self.messages = 0  # jobs that were begun here
        self.kept = False  # it has waited, or done a job: the host may have had enough of it
        self.host, self.address, self._policy = host, address, tls
        self._ended = False
        self._owner = owner
        self._terms = terms
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Reply | None] = self._loop.create_future()  # None: it is open
        self._transport: asyncio.Transport
        self._context: Context
        self._job: Job | None = None
        self._sent: Job | None = None  # what goes out for it: itself, or its message converted
        self._converts = False  # one of `terms.conversions` is ours
        self._answers = 0  # the client's, when the job began
        self._task: asyncio.Task[None] | None = None  # reads or sends a message
        self._resumed: asyncio.Future[None] | None = None  # set while the peer takes no more

    @property
    def protocol(self) -> asyncio.Protocol:
        """Itself, as the loop knows it: a compiled class has no base in Python."""
        return cast(asyncio.Protocol, self)

    @property
    def job(self) -> Job | None:
        """What is being sent."""
        return self._job

    # What the owner does.

    @property
    def target(self) -> str:
        """Where it goes, for people."""
        return self.label if self.is_local else f"{self.label} port {self.host.port}"

    async def connect(self) -> None:
        """Raises OSError or ValueError where the host is not to be had."""
        if self.is_local:
            path = self.address.removeprefix("unix:")
            await self._loop.create_unix_connection(lambda: self.protocol, path)
        else:
            await self._loop.create_connection(lambda: self.protocol, self.address, self.host.port)

    def begin(self, job: Job) -> None:
        """Send the message of the job; only when free, and without an objection."""
        self._job = job
        self._answers = self.client.answers
        self.messages += 1
        if self.client.needs_seven_bit(job.envelope):
            self._prepare(self._convert(job))
        elif job.parts is None and job.envelope.size <= JOINED_SIZE:
            self._prepare(self._load(job))
        else:
            self._send(job)

    def _send(self, job: Job) -> None:
        """The transaction, with the message at hand or to be streamed."""
        self._sent = job
        self.client.begin(job.envelope, None if job.envelope.size > JOINED_SIZE else job.parts)
        self._flush()

    def _prepare(self, work: Coroutine[None, None, None]) -> None:
        self._task = self._loop.create_task(work)
        self.allow(self._terms.timeouts.block)

    def park(self, seconds: float) -> None:
        """Wait for a job, at most so long."""
        self.kept = True
        self.allow(seconds)

    def quit(self) -> None:
        self.client.quit()
        self._flush()

    def allow(self, seconds: float) -> None:
        """From now on, until it expires."""
        self.deadline = self._loop.time() + seconds

    def expire(self) -> None:
        """The deadline has passed."""
        if self.client.closed:
            self._transport.abort()  # the peer does not even take our QUIT
        elif self.client.is_ready and self._job is None:
            self.quit()
        else:
            self.abort(Reply(451, "4.4.2", f"timed out {self._activity()}"))

    def abort(self, reason: Reply) -> None:
        """End it at once; what is under way gets this reply."""
        for event in self.client.lost(reason):
            self._act(event)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.allow(self._terms.timeouts.greeting)
        self._owner.made(self)
        if self._implicit:
            self._start_tls()

    def data_received(self, data: bytes) -> None:
        client = self.client
        answers = client.answers
        for event in client.receive(data):
            self._act(event)
        # Time counts from whole replies: single bytes are no progress.
        if client.answers != answers and not client.closed:
            self._flush()

    def eof_received(self) -> None:
        # Half closed: there will be no more replies, so there is nothing to wait for.
        self._lost()

    def connection_lost(self, error: Exception | None) -> None:
        # During a handshake uvloop calls this or does not; what ended it is told to `_upgrade`.
        if self.client.waiting is not Step.TLS:
            self._end()

    def pause_writing(self) -> None:
        self._resumed = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._lost()
            self._owner.ended(self)

    def _lost(self) -> None:
        self.abort(Reply(451, "4.4.2", f"connection lost {self._activity()}"))

    # What the client machine says.

    def _act(self, event: Event) -> None:
        if event is Event.DONE:
            self._done(self.client.replies)
        elif event is Event.READY:
            if not self.opened.done():
                self._note_tls()
                self.opened.set_result(None)
            self._owner.free(self)
        elif event is Event.BODY:
            assert self._sent is not None
            self._task = self._loop.create_task(self._stream(self._sent))
        elif event is Event.STARTTLS:
            # Nothing more is read in the clear: it would not be from whom we think.
            self._transport.pause_reading()
            self._start_tls()
        else:
            self._close()

    def _done(self, replies: list[Reply]) -> None:
        job, self._job = self._job, None
        assert job is not None
        self._sent = None
        if self._converts:
            self._converts = False
            self._terms.conversions.release()
        kept, self.kept = self.kept, True
        if kept and self.client.closed and self.client.answers == self._answers:
            self._owner.untouched(self, job)
        else:
            self._owner.done(self, job, replies)

    def _close(self) -> None:
        reason = self.client.reason
        assert reason is not None
        if not self.opened.done():
            if reason.enhanced == "4.7.4":
                HANDSHAKES.count("absent")
            self.opened.set_result(reason)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._job is not None:  # its message was still being read
            self._done([reason] * len(self._job.envelope.recipients))
        output = self.client.take_output()
        if output:
            self._transport.write(output)
            self._transport.close()
            self.allow(self._terms.timeouts.quit)
        else:
            # Not `close`: that would still send the rest of a message whose fate is settled.
            self._transport.abort()

    def _flush(self) -> None:
        """Send what is to be sent; the time for the next reply begins."""
        output = self.client.take_output()
        if output:
            self._transport.write(output)
        step = self.client.waiting
        if step is not None and self._task is None:
            self.deadline = self._loop.time() + self._terms.by_step[step]

    def _activity(self) -> str:
        step = self.client.waiting
        if self._task is not None:
            what = "while sending the message"
        elif step is not None:
            what = f"while waiting for {PHRASES[step]}"
        else:
            what = "between messages"
        return f"{what}: {self.label}"

    # TLS.

    def _start_tls(self) -> None:
        self.deadline = float("inf")  # the handshake has its own
        self._task = self._loop.create_task(self._upgrade())

    async def _upgrade(self) -> None:
        """The handshake, after the 220 to STARTTLS (RFC 3207 section 4)."""
        transport: asyncio.Transport | None = None
        try:
            transport = await self._handshake()
        except (OSError, ValueError, RuntimeError) as error:
            # A certificate, a name that cannot be one, a transport that has gone meanwhile.
            self._task = None
            self._tls_failed(error)
        finally:
            if transport is None:
                self._transport.abort()
                self._end()
        if transport is not None:
            self._task = None
            self._upgraded(transport)

    async def _handshake(self) -> asyncio.Transport | None:
        terms, timeouts = self._terms, self._terms.timeouts
        self._context = terms.tls.context(self._policy, terms.certificate)
        return await self._loop.start_tls(
            self._transport,
            self.protocol,
            self._context,
            server_hostname=self._certified_name,
            ssl_handshake_timeout=timeouts.tls,
            ssl_shutdown_timeout=timeouts.quit,
        )

    def _upgraded(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        session = transport.get_extra_info("ssl_object")
        HANDSHAKES.count("resumed" if session.session_reused else "full")
        self.tls = describe(session, self._policy)
        for event in self.client.started_tls():
            self._act(event)
        if not self.client.closed:
            self._flush()

    def _tls_failed(self, error: Exception) -> None:
        HANDSHAKES.count(result_of(error))
        optional = self._policy == "opportunistic" and not self._implicit
        if optional and not self.client.closed:
            self._terms.tls.avoid(self.label)
            self.falls_back = True
        text = f"no TLS with {self.label}: {reason(error)}"
        self.abort(Reply(451, "4.7.5", text))

    def _note_tls(self) -> None:
        """The host has answered EHLO: what it gave for the next handshake is there by now."""
        if self.tls:
            session = self._transport.get_extra_info("ssl_object")
            self._context.remember(self._certified_name, session)
        elif self._policy != "none":
            HANDSHAKES.count("absent")

    @property
    def _certified_name(self) -> str:
        """Whose the certificate has to be; an address literal stands for its address."""
        return self.host.name.strip("[]")

    # Messages that are not at hand, or too large for one write.

    async def _load(self, job: Job) -> None:
        """Read a small message, then send it like any other."""
        try:
            parts = await self._read_whole(job)
        except Exception as error:
            self._give_up(_unreadable(job, error))
        else:
            self._task = None
            self._send(Job(job.envelope, parts))

    async def _convert(self, job: Job) -> None:
        """Read a message of any size, then send what may go to a host without 8BITMIME."""
        try:
            conversion.check(job.envelope)
            if job.envelope.size > JOINED_SIZE:
                await self._terms.conversions.acquire()
                self._converts = True
            parts = await self._read_whole(job)
            converted = await conversion.seven_bit(job.envelope, parts)
        except CannotConvert as error:
            self._give_up(error.reply)
        except Exception as error:
            self._give_up(_unreadable(job, error))
        else:
            self._task = None
            # It may have grown beyond what the host takes.
            objection = self.client.objection(converted.envelope)
            if objection is not None:
                self._give_up(objection)
            else:
                self._send(converted)

    def _give_up(self, reason: Reply) -> None:
        """The message was not begun to be sent, so the connection is as good as before."""
        self._task = None
        assert self._job is not None
        self._done([reason] * len(self._job.envelope.recipients))
        self._owner.free(self)

    async def _read_whole(self, job: Job) -> list[bytes]:
        left = job.envelope.size
        parts = []
        async for part in self._parts(job):
            parts.append(part)
            left -= len(part)
            if left < 0:
                break
        if left:
            raise ValueError("the spooled message is not as long as its envelope says")
        return parts

    async def _stream(self, job: Job) -> None:
        """Send a large message no faster than the peer takes it."""
        try:
            held = b""  # one part behind, to know the last when it is sent
            async for part in self._parts(job):
                if held:
                    await self._write_part(held)
                held = part
            framed = self.client.frame(held, last=True)
        except Exception as error:
            # The host holds the beginning of a message: only hanging up says that it is void.
            self._task = None
            self.abort(_unreadable(job, error))
        else:
            # From here on its reply may come, so nothing more is awaited.
            self._task = None
            self._transport.write(framed)
            self.allow(self._terms.timeouts.end)

    async def _write_part(self, part: bytes) -> None:
        self._transport.write(self.client.frame(part, last=False))
        self.allow(self._terms.timeouts.block)
        await (self._resumed or asyncio.sleep(0))

    async def _parts(self, job: Job) -> AsyncIterator[bytes]:
        if job.parts is not None:
            for part in job.parts:
                yield part
            return
        chunk = 0
        while parts := await self._terms.read(job.envelope.message, chunk):
            chunk += len(parts)
            for part in parts:
                yield part


def _unreadable(job: Job, error: Exception) -> Reply:
    log.error("%s: the message cannot be read: %r", job.envelope.id, error)
    return Reply(451, "4.3.0", "the message cannot be read from the spool for now")
