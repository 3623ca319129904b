"""The SMTP listeners of a worker: their sessions, what these are offered, and their limits."""

from collections.abc import Callable
from typing import cast

from fastmta import metrics
from fastmta._core.dkim import IncomingBody
from fastmta.config import MAIL_SERVICES, Config, Endpoint, Listener
from fastmta.mail.envelope import Priority
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_limits import Load, Policy
from fastmta.protocol.smtp_server import Vet
from fastmta.queue.flow import Flow
from fastmta.server.access import Access
from fastmta.server.backend import Backend
from fastmta.server.judges import Judges
from fastmta.server.labels import Labels
from fastmta.server.service import STRESS_TIMEOUT, Service, membership
from fastmta.server.session import Sessions
from fastmta.server.smtp_session import REFUSED, REJECTED, Offer, SmtpSession
from fastmta.server.tls import ServerTls

MAX_HELD = 256 << 20  # octets of content in memory, of all sessions of a worker

OPEN = metrics.gauge("fastmta_smtp_in_sessions_open", "SMTP sessions open now")


class SmtpService(Service):
    """The SMTP listeners of one worker."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        tls: ServerTls | None,
        vet: Vet | None = None,
        judges: Judges | None = None,
        access: Access | None = None,
        flow: Flow | None = None,
    ) -> None:
        """`access`: where a listener offers AUTH."""
        settings = config.smtp
        sessions = Sessions(settings.max_sessions, settings.max_sessions_per_client)
        super().__init__(sessions, Load(_most_held(config), REJECTED), tls, REFUSED)
        self.access, self.flow = access, flow or Flow()
        self.backend = backend
        self.vet = vet
        self.judges = judges or Judges()
        self.watch: Callable[[], IncomingBody] | None = None  # see SmtpMachine
        self._offers: dict[Endpoint, Offer] = {}
        OPEN.read = lambda: len(self.sessions)
        self._take_on(config)

    async def start(self, listener: Listener) -> tuple[str, int]:
        bind, mode = listener.bind, self._config.tls_mode(listener)
        self._offers[bind] = Offer(
            service=listener.service,
            login=self._config.offers_login(listener) and mode != "none",
            policy=self._policy(listener.service, mode == "starttls"),
            implicit=mode == "implicit",
        )
        return await self._listen(listener, mode, lambda: self._session(bind))

    async def reload(self, config: Config, tls: ServerTls | None) -> list[str]:
        """Go on with another configuration; gives the listeners that could not be had, and why.

        Sessions under way keep what was offered to them, but who may relay counts at once.
        """
        self.tls = tls or self.tls  # sessions under way may still ask for it
        self._take_on(config)
        self.sessions.limit = config.smtp.max_sessions
        self.sessions.limit_per_client = config.smtp.max_sessions_per_client
        self.most_held = _most_held(config)
        self.sessions.each(lambda session: cast(SmtpSession, session).admit())
        listeners = [each for each in config.listener if each.service in MAIL_SERVICES]
        return await self._listen_on(listeners)

    def _take_on(self, config: Config) -> None:
        self._config = config
        self.hostname = config.hostname
        self.submission = config.submission
        self.labels = _labels(config)
        honoured = config.delivery.tls_required_header == "honour"
        self.heeds_tls_required = honoured and config.strict_tls
        self.may_relay = membership(config.smtp.relay_networks)
        self.trusts_xclient = membership(config.smtp.xclient_hosts)
        self.timeout: float = config.smtp.command_timeout

    def _session(self, bind: Endpoint) -> SmtpSession:
        return SmtpSession(self, self._offers[bind])

    def why_refused(self, client: str) -> bytes:
        if self.load.draining:
            return reply.SHUTTING_DOWN
        if self.sessions.is_full:
            return reply.TOO_MANY_SESSIONS
        if self.has_too_many(client):
            return reply.TOO_MANY_OF_CLIENT
        return b""

    def has_too_many(self, client: str) -> bool:
        return self.sessions.has_too_many(client) and not self.may_relay(client)

    def _note_stress(self) -> None:
        super()._note_stress()
        timeout: float = self._config.smtp.command_timeout
        self.timeout = min(timeout, STRESS_TIMEOUT) if self.load.stressed else timeout

    def _policy(self, service: str, starttls: bool) -> Policy:
        settings = self._config.smtp
        return Policy(
            hostname=self.hostname,
            starttls=starttls,
            needs_login=service == "submission",
            max_message_size=settings.max_message_size,
            max_recipients=settings.max_recipients,
            max_hops=settings.max_hops,
            max_errors=settings.max_errors,
            normalise=settings.bare_newlines == "normalise",
        )


def _most_held(config: Config) -> int:
    """Room for two of the largest, or one alone would be told to come back for ever."""
    return max(MAX_HELD, 2 * config.smtp.max_message_size)


def _labels(config: Config) -> Labels | None:
    """None where there is nothing to read."""
    usual = {name: Priority[tenant.priority.upper()] for name, tenant in config.tenants.items()}
    labels = Labels(config.headers, {pool.name for pool in config.pool}, usual)
    return labels if labels else None
