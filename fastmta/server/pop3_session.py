"""One POP3 session: a socket on one side, the state machine in the middle, a mailbox behind it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import lmdb

from fastmta import metrics
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_machine import Event, Policy, Retrieve, Task, Update
from fastmta.protocol.pop3_server import Pop3Server
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.judges import Verdict
from fastmta.server.login import Login
from fastmta.server.pop3_maildrop import LockedMaildrop, NotNow
from fastmta.server.session import HOLD_HANDSHAKE, HOLD_PENDING, Session
from fastmta.server.tls import agreed, upgrade
from fastmta.store.records import Unreadable

if TYPE_CHECKING:
    from fastmta.server.pop3 import Pop3Service

log = logging.getLogger(__name__)

_MAX_BUFFERED = 1 << 16  # octets of commands that may wait while something is being done
_LEAST_RATE = 500  # octets a second that a client has to take
_CLOSE_TIMEOUT = 10.0  # seconds for the last reply to go out
_DELAY = 1.0  # seconds before the reply to an error, from half of max_errors on
_AHEAD_SECONDS = 10.0  # that what was read ahead is kept for a client that does nothing

SESSIONS = metrics.counter("fastmta_pop3_sessions_total", "POP3 sessions accepted")
REFUSED = metrics.counter("fastmta_pop3_sessions_refused_total", "POP3 sessions refused")
REJECTED = metrics.counter("fastmta_pop3_rejected_total", "POP3 commands refused")
LOCKED = metrics.counter("fastmta_pop3_in_use_total", "Logins to a maildrop that was open already")
OCTETS = metrics.counter("fastmta_pop3_bytes_total", "Octets written to POP3 clients")
DELETED = metrics.counter("fastmta_pop3_deleted_total", "Messages deleted by QUIT")

T = TypeVar("T")


class Offer(NamedTuple):
    """What a new session on a listener gets."""

    policy: Policy
    implicit: bool  # TLS from the first octet


class Pop3Session(Session):
    """One POP3 connection. At most one thing at a time is waited for: `_task`."""

    __slots__ = (
        "_began",
        "_delayed_until",
        "_gone",
        "_half_closed",
        "_login",
        "_machine",
        "_maildrop",
        "_offer",
        "_room",
        "_service",
        "_task",
        "tls",
    )

    def __init__(self, service: "Pop3Service", offer: Offer) -> None:
        super().__init__(service.sessions)
        self._service, self._offer = service, offer
        self._login = Login(service.access, service.default_domain)
        self._machine = Pop3Server(
            offer.policy,
            service.load,
            door=self._login,
            tls=offer.implicit,
            asks=service.judges.asks,
        )
        self._maildrop: LockedMaildrop | None = None
        self.tls = ""  # what was agreed: "TLSv1.3 TLS_AES_256_GCM_SHA384"
        self._task: asyncio.Task[None] | None = None
        self._room: Callable[[], None] | None = None  # called when the client has read enough
        self._began = self.sessions.now
        self._delayed_until = 0.0
        self._gone = self._half_closed = False

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.begin(transport)
        self._note_tls()
        machine, service = self._machine, self._service
        machine.may_log_in_clear = service.may_log_in_clear(self.client)
        note = service.judges.note
        machine.on_error = partial(note, "errors", self) if note else None
        SESSIONS.value += 1
        if why := service.why_refused(self.client):
            REFUSED.value += 1
            machine.take_output()
            machine.stop(why)
        self.sessions.add(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        machine.receive(data)
        self._flush()
        if machine.is_waiting:
            self._regulate()

    def eof_received(self) -> bool:
        """A client may half-close and still read: the replies that it waits for are sent first."""
        self._half_closed = self._machine.is_waiting and not self.tls
        return self._half_closed

    def resume_writing(self) -> None:
        super().resume_writing()
        self.since = self.sessions.now
        room, self._room = self._room, None
        if room is not None:
            room()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        deletes = self._machine.is_updating
        self._machine.lose()
        self.sessions.remove(self)
        if self._task is None:
            self._let_go()
        elif not deletes:  # not before it has begun: it could not clean up, then
            asyncio.get_running_loop().call_soon(self._task.cancel)

    # What judges learn.

    service = "pop3"
    helo = tenant = ""
    may_relay = False

    @property
    def account(self) -> str:
        account = self._login.account
        return account.name if account and self._maildrop else ""

    # Between machine and socket.

    def _flush(self) -> None:
        """Write what the machine has to say, and begin what it asks for."""
        if self._delayed_until:
            return
        event = self._machine.take_event()
        if event is Event.DELAY:
            self._delayed_until = asyncio.get_running_loop().time() + _DELAY
            return
        if event is Event.STLS:
            self.hold(HOLD_HANDSHAKE)  # before the +OK: nothing more is read in the clear
        self._write()
        if event is not None:
            self._begin(event)

    def _begin(self, event: Task) -> None:
        match event:
            case Event.CLOSE:
                self.transport.close()
            case Event.YIELD:
                self._when_there_is_room(self._resume)
            case Event.STLS:
                self._service.run(self._upgrade())
            case Event.OPEN:
                self._wait_for(self._open(), self._opened)
            case Retrieve():
                self._wait_for(self._retrieve(event), self._retrieved)
            case Update():
                self._wait_for(self._update(event.uids), self._updated)
            case Question(step=Step.AUTH):
                check = self._login.check(event, self, self._service.judges)
                self._wait_for(check, self._answer_login)
            case Question():
                self._ask(event)

    def _write(self) -> None:
        if output := self._machine.take_output():
            OCTETS.value += len(output)
            self.since = self.sessions.now
            self.transport.write(output)

    def _when_there_is_room(self, do: Callable[[], None]) -> None:
        if self.is_write_held:
            self._room = do
        else:
            asyncio.get_running_loop().call_soon(do)

    def _regulate(self) -> None:
        """While somebody else has to finish, take in only so much of what is sent meanwhile."""
        if self._machine.is_waiting and self._machine.buffered > _MAX_BUFFERED:
            self.hold(HOLD_PENDING)
        else:
            self.release(HOLD_PENDING)

    def _resume(self) -> None:
        """A pause is over."""
        if not self._gone:
            self._machine.go_on()
            self._go_on()

    def _go_on(self) -> None:
        self._flush()
        self._regulate()
        if self._half_closed and not self._machine.is_waiting:
            self.transport.close()

    def _wait_for(self, work: Coroutine[None, None, T], tell: Callable[[T], None]) -> None:
        """`tell` what comes of it, unless the client has gone."""

        async def wait() -> None:
            try:
                done = await work
            except Exception:  # a fault of ours; the client cannot be left waiting
                log.exception("a session of %s failed", self.client)
                self.transport.abort()
                return
            finally:
                self._task = None
                if self._gone:
                    self._let_go()
            if not self._gone:
                tell(done)

        self._task = self._service.run(wait())

    # Who comes in.

    def _ask(self, question: Question) -> None:
        """Whether the client hears a greeting; the judges may think about it."""
        verdict = self._service.judges.ask(question, self)
        if isawaitable(verdict):
            self._wait_for(verdict, self._answer)
        else:
            self._answer(verdict)

    def _answer(self, verdict: Verdict) -> None:
        self._machine.answer(verdict)
        self._go_on()

    def _answer_login(self, verdict: Verdict) -> None:
        self._machine.answer(verdict, self._login.last)
        self._go_on()

    async def _open(self) -> bytes:
        """Why the maildrop cannot be had, or nothing."""
        assert self._login.account is not None
        name = self._login.account.name
        try:
            self._maildrop = await self._service.open(name)
        except NotNow as refused:
            LOCKED.value += refused.reply == reply.IN_USE
            return refused.reply
        except (lmdb.Error, OSError, Unreadable) as error:
            log.error("cannot open the maildrop of %s: %s", name, error)
            return reply.CANNOT_OPEN
        return b""

    def _opened(self, why_not: bytes) -> None:
        machine, maildrop = self._machine, self._maildrop
        if maildrop is None:
            machine.not_opened(why_not)
        else:
            machine.at_hand = maildrop.ahead
            machine.opened(maildrop.drop)
        self._go_on()

    # Messages.

    async def _retrieve(self, event: Retrieve) -> bytes:
        """Hand a message to the machine; why that cannot be, or nothing."""
        maildrop, number = self._maildrop, event.number
        assert maildrop is not None
        try:
            if maildrop.is_small(number):
                self._machine.send([await maildrop.read_small(number)], is_last=True)
            else:
                await self._stream(maildrop, number)
        except KeyError:
            return reply.NO_LONGER_THERE
        except (lmdb.Error, OSError, Unreadable) as error:
            log.error("cannot read a message of %s: %s", self.account, error)
            return reply.CANNOT_READ
        return b""

    async def _stream(self, maildrop: LockedMaildrop, number: int) -> None:
        """A large message, as fast as the client reads."""
        count, left = 0, maildrop.drop.size(number)
        while True:
            pieces = await maildrop.read_large(number, count)
            count += len(pieces)
            left -= sum(map(len, pieces))
            if not self._machine.send(pieces, is_last=left <= 0 or not pieces):
                return
            del pieces  # it is in the transport now; the client may take its time
            self._write()
            await self._has_room()

    async def _has_room(self) -> None:
        if self.is_write_held:
            room = asyncio.get_running_loop().create_future()
            self._room = partial(room.set_result, None)
            await room

    def _retrieved(self, why_not: bytes) -> None:
        if why_not and not self._machine.cannot_send(why_not):
            self.transport.abort()  # the client has half of it, and no other way to learn that
        else:
            self._go_on()

    async def _update(self, uids: list[int]) -> bool:
        """Whether they are deleted, all of them."""
        assert self._maildrop is not None
        try:
            await self._maildrop.delete(uids)
        except (KeyError, lmdb.Error, OSError, Unreadable) as error:
            log.error("cannot delete messages of %s: %s", self.account, error)
            return False
        DELETED.value += len(uids)
        return True

    def _updated(self, done: bool) -> None:
        self._let_go()  # before the +OK: the client may come again at once
        self._machine.updated(done=done)
        self._go_on()

    def _let_go(self) -> None:
        if self._maildrop is not None:
            self._maildrop.close()
            self._maildrop = None

    # TLS.

    async def _upgrade(self) -> None:
        """STLS: the +OK is in the transport's buffer."""
        tls = self._service.tls
        assert tls is not None
        transport: asyncio.Transport | None = None
        if not self.is_write_held:  # uvloop cannot, then (its issue 564)
            transport = await upgrade(self.protocol, self.transport, tls.context(self.service))
        if transport is None or self._gone:
            self.transport.abort()
            self.connection_lost(None)  # which start_tls leaves out when it fails
            return
        self.transport = transport
        self._hold &= ~HOLD_HANDSHAKE  # start_tls has begun to read again
        self._note_tls()
        self._machine.started_tls()
        self.since = self._began = self.sessions.now

    def _note_tls(self) -> None:
        self.tls = agreed(self.transport)
        self._login.bind(self.transport)

    # Time.

    def sweep(self, now: float) -> None:
        if self.transport.is_closing():
            if now - self.since > _CLOSE_TIMEOUT:
                self.transport.abort()
        elif self._service.load.draining and self._is_free:
            self._stop(reply.SHUTTING_DOWN)
        elif 0 < self._delayed_until <= now:
            self._delayed_until = 0.0
            self._resume()
        elif self._is_overdue(now):
            # Without a word, and nothing is deleted (RFC 1939 section 3).
            self.transport.abort() if self.is_write_held else self.transport.close()
        elif self._maildrop is not None and now - self.since > _AHEAD_SECONDS:
            self._maildrop.forget()

    def _is_overdue(self, now: float) -> bool:
        """A login has its time from the connection on, whatever is said meanwhile; later it is
        the time since the last reply, and more where the client has much to read."""
        if self._task is not None and not self.is_write_held:
            return False  # it is somebody else's turn
        if self._machine.drop is None:
            return now - self._began > self._service.login_timeout
        unread = self.transport.get_write_buffer_size()
        return now - self.since > max(self._service.idle_timeout, unread / _LEAST_RATE)

    def drain(self) -> None:
        if self._is_free:
            self._stop(reply.SHUTTING_DOWN)

    @property
    def _is_free(self) -> bool:
        """Whether no reply is cut short, and no deletion, when the session ends now."""
        return not (self._machine.is_sending or self._machine.is_updating)

    def _stop(self, why: bytes) -> None:
        self._delayed_until = 0.0
        self._machine.stop(why)
        self._flush()
