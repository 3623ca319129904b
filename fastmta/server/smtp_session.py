"""One SMTP session: a socket on one side, the state machine in the middle, the spool behind it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, NamedTuple

from fastmta import metrics
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import format_id
from fastmta.mail.reply import Reply
from fastmta.mail.trace import address_literal, protocol_name, received_field
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_limits import Policy
from fastmta.protocol.smtp_machine import Event
from fastmta.protocol.smtp_question import Question, Step
from fastmta.protocol.smtp_server import SmtpServer
from fastmta.protocol.smtp_xclient import Claims
from fastmta.server.judges import Verdict
from fastmta.server.labels import Unfit
from fastmta.server.login import Login
from fastmta.server.session import HOLD_CROWD, HOLD_HANDSHAKE, HOLD_PENDING, Session, has_spoken
from fastmta.server.submission import add_missing, check_from, tenant_of, why_not_from
from fastmta.server.tls import agreed, upgrade
from fastmta.server.tls_required import read_tls_required
from fastmta.store.accounts import Account

if TYPE_CHECKING:
    from fastmta.server.smtp import SmtpService

log = logging.getLogger(__name__)

_MAX_BUFFERED = 1 << 16  # octets that may wait while a message is being made safe
_LEAST_RATE = 500  # octets a second in a message, on the average
_CLOSE_TIMEOUT = 10.0  # seconds for the last reply to go out
_DELAY = 1.0  # seconds before the reply to an error, from half of max_errors on

SESSIONS = metrics.counter("fastmta_smtp_in_sessions_total", "SMTP sessions accepted")
REFUSED = metrics.counter("fastmta_smtp_in_sessions_refused_total", "SMTP sessions refused")
RECEIVED = metrics.counter("fastmta_smtp_in_messages_total", "Messages accepted over SMTP")
OCTETS = metrics.counter("fastmta_smtp_in_bytes_total", "Octets of messages accepted over SMTP")
REJECTED = metrics.counter("fastmta_smtp_in_rejected_total", "SMTP commands and messages refused")
SECONDS = metrics.histogram("fastmta_smtp_in_accept_seconds", "From end of data to its reply")

_NOT_NOW = Reply(451, "4.3.0", "Something is wrong here; try again later")
_NO_ACCOUNT = Reply(550, "5.7.0", "There is no such account")
_TOO_MANY = Reply(421, "4.7.0", "Too many sessions from that address")
_GONE = Reply(451, "4.4.2", "The client has gone")


class Offer(NamedTuple):
    """What a new session on a listener gets."""

    service: str
    login: bool  # AUTH, under TLS
    policy: Policy
    implicit: bool  # TLS from the first octet


class SmtpSession(Session):
    """One SMTP connection."""

    __slots__ = (
        "_arrived",
        "_asking",
        "_content_octets",
        "_content_since",
        "_delayed_until",
        "_gone",
        "_half_closed",
        "_id",
        "_login",
        "_machine",
        "_octets",
        "_octets_seen",
        "_offer",
        "_peer",
        "_service",
        "_settling",
        "_size",
        "tls",
    )

    def __init__(self, service: "SmtpService", offer: "Offer") -> None:
        super().__init__(service.sessions)
        self._service = service
        self._offer = offer
        self._login = Login(service.access) if offer.login and service.access else None
        self._machine = SmtpServer(
            offer.policy,
            service.load,
            service.backend.refusal,
            tls=offer.implicit,
            asks=service.judges.asks,
            door=self._login,
        )
        self._peer = ""  # the client until XCLIENT says otherwise
        self.tls = ""  # what was agreed: "TLSv1.3 TLS_AES_256_GCM_SHA384"
        self._asking: asyncio.Task[None] | None = None  # while a judge thinks
        self._id = ""  # of the message that is being made safe, its size and when it was whole
        self._size = 0
        self._arrived = 0.0
        self._octets = self._octets_seen = self._content_octets = 0
        self._content_since = self._delayed_until = 0.0
        self._settling = self._gone = self._half_closed = False

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.begin(transport)
        self._peer = self.client
        self._note_tls()
        self.admit()
        SESSIONS.value += 1
        if why := self._service.why_refused(self.client) or self._spoke_too_soon():
            REFUSED.value += 1
            self._machine.take_output()
            self._machine.stop(why)
        self.sessions.add(self)
        self._flush()

    def admit(self) -> None:
        """Note whether the client may relay, and who is asked, as the configuration says now."""
        machine, service = self._machine, self._service
        machine.may_relay = machine.authenticated or (
            self.service == "smtp" and service.may_relay(self.client)
        )
        machine.vet, machine.asks = service.vet, service.judges.asks
        machine.watch = service.watch
        machine.trusts_xclient = service.trusts_xclient(self._peer)
        note = service.judges.note
        machine.on_error = partial(note, "errors", self) if note else None

    # What judges learn.

    @property
    def service(self) -> str:
        return self._offer.service

    @property
    def account(self) -> str:
        account = self._account
        return account.name if account else ""

    @property
    def tenant(self) -> str:
        account = self._account
        return tenant_of(account, self._service.submission) if account else ""

    @property
    def _account(self) -> Account | None:
        return self._login.account if self._login and self._machine.authenticated else None

    @property
    def helo(self) -> str:
        return self._machine.helo

    @property
    def may_relay(self) -> bool:
        return self._machine.may_relay

    def data_received(self, data: bytes) -> None:
        self._octets += len(data)
        machine = self._machine
        machine.receive(data)
        self._flush()
        if machine.is_waiting:
            self._regulate()

    def eof_received(self) -> bool:
        """A client may half-close and still read: the 250 that it waits for is sent first."""
        self._half_closed = self._machine.is_waiting and not self.tls
        return self._half_closed

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        if self._asking is not None:  # not before it has begun: it could not clean up, then
            asyncio.get_running_loop().call_soon(self._asking.cancel)
        self._machine.lose()
        self.sessions.remove(self)

    # Between machine and socket.

    def _flush(self) -> None:
        """Write what the machine has to say, and do what it asks for, as long as it goes on."""
        machine = self._machine
        while True:
            event = machine.take_event()
            while type(event) is Question and self._is_answered(event):
                event = machine.take_event()
            if event is Event.DELAY:
                self._delayed_until = asyncio.get_running_loop().time() + _DELAY
                return
            if event is Event.STARTTLS:
                self.hold(HOLD_HANDSHAKE)  # before the 220: nothing more is read in the clear
            if output := machine.take_output():
                self.transport.write(output)
                self.since = self.sessions.now
            if event is None or type(event) is Question:
                return
            if type(event) is Arrival:
                self._receive(event)
            elif event is Event.CLOSE:
                self.transport.close()
                return
            elif event is Event.YIELD:
                asyncio.get_running_loop().call_soon(self._resume)
                return
            else:
                self._service.run(self._upgrade())
                return

    def _regulate(self) -> None:
        """While somebody else has to finish, take in only so much of what is sent meanwhile."""
        if self._machine.is_waiting and self._machine.buffered > _MAX_BUFFERED:
            self.hold(HOLD_PENDING)
        else:
            self.release(HOLD_PENDING)

    def _spoke_too_soon(self) -> bytes:
        """Under implicit TLS the handshake's octets are all that could be seen."""
        if not self.tls and has_spoken(self.transport):
            return reply.TALKED_TOO_SOON
        return b""

    # Judges.

    def _is_answered(self, question: Question) -> bool:
        """Ask the judges; whether the machine has its answer, or gets it later."""
        judges = self._service.judges
        if question.step is Step.AUTH:
            assert self._login is not None
            self._wait_for(self._login.check(question, self, judges), self._answer_login)
            return False
        if question.claims is not None:
            self._machine.answer(self._become(question.claims))
            return True
        verdict = judges.ask(question, self)
        if isawaitable(verdict):
            self._wait_for(verdict, self._answer)
            return False
        self._machine.answer(verdict)
        return True

    def _wait_for(
        self, verdict: Coroutine[None, None, Verdict], tell: Callable[[Verdict], None]
    ) -> None:
        async def wait() -> None:
            try:
                heard = await verdict
            except asyncio.CancelledError:
                heard = _GONE
            except Exception:
                log.exception("a question of %s was not answered", self.client)
                heard = _NOT_NOW
            self._asking = None
            tell(heard)

        self._asking = self._service.run(wait())

    def _answer(self, verdict: Verdict) -> None:
        if not self._gone:
            self._machine.answer(verdict)
            self._go_on()

    def _answer_login(self, verdict: Verdict) -> None:
        login = self._login
        if self._gone or login is None:
            return
        self._note_login()
        self._machine.answer(verdict, login.last)
        self._go_on()

    def _note_login(self) -> None:
        account = self._login.account if self._login else None
        self._machine.vet_sender = None
        if account is not None and self._service.submission.check_sender:
            self._machine.vet_sender = partial(why_not_from, account)

    # XCLIENT.

    def _become(self, claims: Claims) -> Verdict:
        """Whoever is spoken for counts as the client from here on."""
        login, service = self._login, self._service
        account = login.named(claims.login) if login and claims.login else None
        if claims.login and account is None:
            return _NO_ACCOUNT
        client = self.client if claims.address is None else claims.address
        if client != self.client and service.has_too_many(client):
            return _TOO_MANY
        self.sessions.rename(self, client)
        if login is not None:
            login.account = account
            self._note_login()
        self._machine.authenticated = account is not None
        self.admit()
        return None

    # Messages.

    def _receive(self, arrival: Arrival) -> None:
        """Complete the arrival; what becomes of it then is told to `_settled`."""
        self._arrived = time.perf_counter()
        arrival.message = self._service.backend.new_id()
        self._id = format_id(arrival.message)
        self._content_since = 0.0
        self._settling = True
        try:
            self._complete(arrival)
        except Unfit as error:
            self._settled(error.reply)
        else:
            asks = self._service.judges.asks
            if asks and Step.MESSAGE in asks:
                self._judge(arrival)
            else:
                self._accept(arrival)
        self._settling = False

    def _judge(self, arrival: Arrival) -> None:
        def tell(refusal: Verdict) -> None:
            if refusal is None and arrival.recipients:
                arrival.size = self._size = sum(map(len, arrival.parts))
                self._accept(arrival)
            else:
                self._settled(refusal)

        verdict = self._service.judges.ask(Question(Step.MESSAGE, arrival=arrival), self)
        if isawaitable(verdict):
            self._wait_for(verdict, tell)
        else:
            tell(verdict)

    def _accept(self, arrival: Arrival) -> None:
        try:
            self._service.backend.accept(arrival, self._settled)
        except Exception:
            log.exception("the spool failed to take %s", self._id)
            self._settled(_NOT_NOW)

    def _complete(self, arrival: Arrival) -> None:
        """Add what the session knows and the machine does not; Unfit."""
        machine, service = self._machine, self._service
        arrival.received = time.time()
        arrival.client = f"{machine.helo} [{self.client}]"
        arrival.tls = self.tls
        arrival.protocol = protocol_name(
            extended=machine.extended,
            tls=machine.tls,
            utf8=arrival.utf8,
            login=machine.authenticated,
        )
        if account := self._account:
            arrival.account, arrival.tenant = self.account, self.tenant
            if service.submission.check_from:
                check_from(arrival, account)
            if service.submission.add_missing and self.service == "submission":
                add_missing(arrival, service.hostname)
        if service.labels is not None and machine.may_relay:
            service.labels.read(arrival, arrival.tenant)
        if service.heeds_tls_required:
            read_tls_required(arrival)
        trace = self._trace(arrival)
        arrival.parts.insert(0, trace)
        arrival.size = self._size = arrival.size + len(trace)

    def _trace(self, arrival: Arrival) -> bytes:
        recipients = arrival.recipients
        return received_field(
            helo=self._machine.helo,
            client=address_literal(self.client),
            by=self._service.hostname,
            protocol=arrival.protocol,
            tls=self.tls,
            id=self._id,
            recipient=recipients[0].address if len(recipients) == 1 else "",
            time=arrival.received,
        )

    def _settled(self, refusal: Reply | None) -> None:
        """The message is safe, even if its client has gone; or it is not, and why."""
        SECONDS.observe(time.perf_counter() - self._arrived)
        if refusal is None:
            RECEIVED.value += 1
            OCTETS.value += self._size
        else:
            REJECTED.value += 1
        self._machine.settle(refusal, self._id)
        if not self._settling:
            self._go_on()
        flow = self._service.flow
        if flow.is_crowded and refusal is None and not self._gone:
            self.hold(HOLD_CROWD)
            flow.pause(partial(self.release, HOLD_CROWD))

    def _resume(self) -> None:
        """A pause is over."""
        self._machine.go_on()
        self._go_on()

    def _go_on(self) -> None:
        """The machine waits no longer; it says nothing more to a client that has gone."""
        self._flush()
        self._regulate()
        if self._half_closed and not self._machine.is_waiting:
            self.transport.close()

    # TLS.

    async def _upgrade(self) -> None:
        """STARTTLS: the 220 is in the transport's buffer."""
        tls = self._service.tls
        assert tls is not None
        transport: asyncio.Transport | None = None
        if not self.is_write_held:  # uvloop cannot, then (its issue 564)
            transport = await upgrade(self.protocol, self.transport, tls.context(self.service))
        if transport is None or self._gone:
            self.transport.abort()
            self.connection_lost(None)  # which start_tls leaves out when it fails
        else:
            self._upgraded(transport)

    def _upgraded(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._hold &= ~HOLD_HANDSHAKE  # start_tls has begun to read again
        self._note_tls()
        self._machine.started_tls()
        self.admit()  # as nobody: XCLIENT in the clear is forgotten too
        self.since = self.sessions.now

    def _note_tls(self) -> None:
        self.tls = agreed(self.transport)
        if self._login is not None:
            self._login.bind(self.transport)

    # Time.

    def sweep(self, now: float) -> None:
        machine = self._machine
        if self.transport.is_closing():
            if now - self.since > _CLOSE_TIMEOUT:
                self.transport.abort()
        elif self._service.load.draining and self._is_free:
            self._stop(reply.SHUTTING_DOWN)
        elif machine.is_waiting:
            if 0 < self._delayed_until <= now:
                self._delayed_until = 0.0
                self._resume()
        elif self._is_overdue(now):
            self._stop(reply.TIMED_OUT)

    def _is_overdue(self, now: float) -> bool:
        """A command has command_timeout from the last reply; it is not the octets that renew it.

        A message has a budget by its octets as well, so that one octet a minute is not enough
        (RFC 5321 section 4.5.3.2 gives each block its minutes, and sets no limit to their sum).
        """
        timeout = self._service.timeout
        if not self._machine.is_reading_content:
            self._content_since = 0.0
            return now - self.since > timeout
        if not self._content_since:
            self._content_since = now
            self._content_octets = self._octets
        if self._octets != self._octets_seen:
            self._octets_seen = self._octets
            self.since = now
        budget = max(timeout, (self._octets - self._content_octets) / _LEAST_RATE)
        return now - self.since > timeout or now - self._content_since > budget

    def drain(self) -> None:
        if self._is_free:
            self._stop(reply.SHUTTING_DOWN)

    @property
    def _is_free(self) -> bool:
        """Whether no message is lost when the session ends now, and nobody's turn is cut short."""
        machine = self._machine
        return machine.is_idle and (machine.is_asking or not machine.is_waiting)

    def _stop(self, why: bytes) -> None:
        self._machine.stop(why)
        self._flush()
