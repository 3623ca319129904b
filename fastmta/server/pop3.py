"""The POP3 listeners of a worker: their sessions, what these are offered, and their limits."""

import time

from fastmta import metrics
from fastmta.config import Config, Endpoint, Listener
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_machine import Policy
from fastmta.protocol.smtp_limits import Load
from fastmta.server.access import Access
from fastmta.server.judges import Judges
from fastmta.server.pop3_maildrop import LockedMaildrop
from fastmta.server.pop3_session import REFUSED, REJECTED, Offer, Pop3Session
from fastmta.server.service import STRESS_TIMEOUT, Service, membership
from fastmta.server.session import Sessions
from fastmta.server.tls import ServerTls
from fastmta.store.login_times import LoginTimes
from fastmta.store.mailboxes import Mailboxes

MAX_HELD = 64 << 20  # octets that are read ahead of clients, of all sessions of a worker

OPEN = metrics.gauge("fastmta_pop3_sessions_open", "POP3 sessions open now")


class Pop3Service(Service):
    """The POP3 listeners of one worker."""

    def __init__(
        self,
        config: Config,
        mailboxes: Mailboxes,
        access: Access,
        tls: ServerTls | None,
        judges: Judges | None = None,
    ) -> None:
        settings = config.pop3
        sessions = Sessions(settings.max_sessions, settings.max_sessions_per_client)
        super().__init__(sessions, Load(MAX_HELD, REJECTED), tls, REFUSED)
        self.mailboxes, self.access = mailboxes, access
        self.judges = judges or Judges()
        self._offers: dict[Endpoint, Offer] = {}
        self._logins: LoginTimes | None = None  # where a delay is set
        OPEN.read = lambda: len(self.sessions)
        self._take_on(config)

    async def start(self, listener: Listener) -> tuple[str, int]:
        bind, mode = listener.bind, self._config.tls_mode(listener)
        self._offers[bind] = Offer(self._policy(mode == "starttls"), implicit=mode == "implicit")
        return await self._listen(listener, mode, lambda: Pop3Session(self, self._offers[bind]))

    async def reload(self, config: Config, tls: ServerTls | None) -> list[str]:
        """Go on with another configuration; gives the listeners that could not be had, and why.

        Sessions under way keep what was offered to them.
        """
        self.tls = tls or self.tls  # sessions under way may still ask for it
        self._take_on(config)
        self.sessions.limit = config.pop3.max_sessions
        self.sessions.limit_per_client = config.pop3.max_sessions_per_client
        return await self._listen_on([one for one in config.listener if one.service == "pop3"])

    def _take_on(self, config: Config) -> None:
        self._config, settings = config, config.pop3
        self.default_domain = settings.default_domain or ""
        self.may_log_in_clear = membership(settings.plaintext_networks)
        self.login_delay = int(settings.login_delay)
        self.idle_timeout: float = settings.idle_timeout
        self.login_timeout: float = settings.login_timeout

    def why_refused(self, client: str) -> bytes:
        if self.load.draining:
            return reply.SHUTTING_DOWN
        if self.sessions.is_full:
            return reply.TOO_MANY_SESSIONS
        if self.sessions.has_too_many(client):
            return reply.TOO_MANY_OF_CLIENT
        return b""

    async def open(self, account: str) -> LockedMaildrop:
        """Lock and read somebody's maildrop; NotNow, or an error of the disk."""
        return await LockedMaildrop.open(self.mailboxes, account, self.load, self._is_due)

    def _is_due(self, mailbox: int) -> bool:
        """Note that a mailbox is opened; whether that is not too soon (RFC 2449 section 6.5)."""
        if not self.login_delay:
            return True
        if self._logins is None:
            self._logins = LoginTimes(self._config.data_dir / "mail" / "logins")
        return self._logins.begin(mailbox, int(time.time()), self.login_delay)

    async def drain(self, limit: float) -> None:
        await super().drain(limit)
        if self._logins is not None:
            self._logins.close()

    def _note_stress(self) -> None:
        super()._note_stress()
        timeout: float = self._config.pop3.login_timeout
        self.login_timeout = min(timeout, STRESS_TIMEOUT) if self.load.stressed else timeout

    def _policy(self, stls: bool) -> Policy:
        settings = self._config.pop3
        return Policy(
            hostname=self._config.hostname,
            stls=stls,
            login_delay=int(settings.login_delay),
            deletes_retrieved=settings.delete_retrieved,
            max_errors=settings.max_errors,
        )
