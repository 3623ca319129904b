"""The SMTP listeners of a worker: their sessions, what these are offered, and their limits."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import cast

from fastmta import metrics
from fastmta._core.dkim import IncomingBody
from fastmta.config import MAIL_SERVICES, Config, Endpoint, Listener, Network
from fastmta.mail.envelope import Priority
from fastmta.protocol import smtp_replies as reply
from fastmta.protocol.smtp_limits import Load, Policy
from fastmta.protocol.smtp_server import Vet
from fastmta.server.access import Access
from fastmta.server.backend import Backend
from fastmta.server.judges import Judges
from fastmta.server.labels import Labels
from fastmta.server.port import Port
from fastmta.server.session import Sessions
from fastmta.server.smtp_session import REFUSED, REJECTED, Offer, SmtpSession
from fastmta.server.tls import ServerTls

MAX_HELD = 256 << 20  # octets of content in memory, of all sessions of a worker
_STRESS_TIMEOUT = 10.0  # seconds; what is left of command_timeout under stress

OPEN = metrics.gauge("fastmta_smtp_in_sessions", "SMTP sessions open now")


class SmtpService:
    """The SMTP listeners of one worker."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        tls: ServerTls | None,
        vet: Vet | None = None,
        judges: Judges | None = None,
        access: Access | None = None,
    ) -> None:
        """`access`: where a listener offers AUTH."""
        self.access = access
        self.backend = backend
        self.vet = vet
        self.judges = judges or Judges()
        self.watch: Callable[[], IncomingBody] | None = None  # see SmtpMachine
        self.tls = tls
        self.load = Load(_most_held(config), REJECTED)
        self.sessions = Sessions(config.smtp.max_sessions, config.smtp.max_sessions_per_client)
        self.sessions.on_sweep = self._note_stress
        self._ports: dict[Endpoint, Port] = {}
        self.held: dict[str, int] = {}  # address -> descriptor, where it listens already
        self._offers: dict[Endpoint, Offer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        OPEN.read = lambda: len(self.sessions)
        self._take_on(config)

    async def start(self, listener: Listener) -> tuple[str, int]:
        """Listen; gives the address, with the port that port 0 has become."""
        self.sessions.start()
        bind, mode = listener.bind, self._config.tls_mode(listener)
        self._offers[bind] = Offer(
            service=listener.service,
            login=self._config.offers_login(listener) and mode != "none",
            policy=self._policy(listener.service, mode == "starttls"),
            implicit=mode == "implicit",
        )
        port = self._ports.get(bind)
        if port is None:
            held = self.held.pop(str(bind), None)
            port = self._ports[bind] = Port(bind, lambda: self._session(bind), self._admits, held)
        context = self.tls.context(listener.service) if self.tls and mode == "implicit" else None
        await port.serve(context, listener.proxy_networks)
        return port.address

    async def reload(self, config: Config, tls: ServerTls | None) -> list[str]:
        """Go on with another configuration; gives the listeners that could not be had, and why.

        Sessions under way keep what was offered to them, but who may relay counts at once.
        """
        self.tls = tls or self.tls  # sessions under way may still ask for it
        self._take_on(config)
        self.sessions.limit = config.smtp.max_sessions
        self.sessions.limit_per_client = config.smtp.max_sessions_per_client
        self.load.max_held = _most_held(config)
        self.sessions.each(lambda session: cast(SmtpSession, session).admit())
        problems = []
        listeners = [each for each in config.listener if each.service in MAIL_SERVICES]
        for listener in listeners:
            try:
                await self.start(listener)
            except OSError as error:
                problems.append(f"cannot listen on {listener.bind}: {error.strerror}")
        for bind in self._ports.keys() - {each.bind for each in listeners}:
            await self._ports.pop(bind).close()
        return problems

    def _take_on(self, config: Config) -> None:
        self._config = config
        self.hostname = config.hostname
        self.submission = config.submission
        self.labels = _labels(config)
        honoured = config.delivery.tls_required_header == "honour"
        self.heeds_tls_required = honoured and config.strict_tls
        networks, hosts = config.smtp.relay_networks, config.smtp.xclient_hosts
        self.may_relay = lru_cache(maxsize=4096)(partial(_is_in, networks))
        self.trusts_xclient = lru_cache(maxsize=4096)(partial(_is_in, hosts))
        self.timeout: float = config.smtp.command_timeout

    def _session(self, bind: Endpoint) -> SmtpSession:
        return SmtpSession(self, self._offers[bind])

    async def drain(self, limit: float) -> None:
        """Stop listening, let messages in flight end, for `limit` seconds at most."""
        self.load.draining = True
        while self._ports:
            await self._ports.popitem()[1].close()
        await self.sessions.drain(limit)
        self.sessions.stop()

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

    def _admits(self, client: str) -> bool:
        if self.why_refused(client):
            REFUSED.value += 1
            return False
        return True

    def run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note_stress(self) -> None:
        timeout: float = self._config.smtp.command_timeout
        self.load.stressed = self.sessions.is_stressed
        self.timeout = min(timeout, _STRESS_TIMEOUT) if self.load.stressed else timeout

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


def _is_in(networks: Sequence[Network], client: str) -> bool:
    if not (client and networks):
        return False
    address = ip_address(client)
    return any(address in network for network in networks)


def _most_held(config: Config) -> int:
    """Room for two of the largest, or one alone would be told to come back for ever."""
    return max(MAX_HELD, 2 * config.smtp.max_message_size)


def _labels(config: Config) -> Labels | None:
    """None where there is nothing to read."""
    usual = {name: Priority[tenant.priority.upper()] for name, tenant in config.tenants.items()}
    labels = Labels(config.headers, {pool.name for pool in config.pool}, usual)
    return labels if labels else None
