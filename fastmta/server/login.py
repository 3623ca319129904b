"""How one client logs in, and what follows from it for its session."""

import asyncio
import logging
from collections.abc import Mapping
from inspect import isawaitable

from fastmta.mail.reply import Reply
from fastmta.protocol.sasl import Exchange, Kind
from fastmta.protocol.smtp_question import Question
from fastmta.server.access import Access, Refusal
from fastmta.server.binding import bindings
from fastmta.server.judges import Facts, Judges, Verdict
from fastmta.store.accounts import Account

log = logging.getLogger(__name__)

# RFC 4954 section 6 has the codes.
REFUSALS = {
    kind: Reply(code, enhanced, kind.value)
    for kind, code, enhanced in (
        (Kind.MALFORMED, 501, "5.5.2"),
        (Kind.TOO_LONG, 500, "5.5.6"),
        (Kind.CREDENTIALS, 535, "5.7.8"),
        (Kind.LATER, 454, "4.7.0"),
        (Kind.BUSY, 454, "4.7.0"),
        (Kind.UNAVAILABLE, 454, "4.7.0"),
    )
}


class Login:
    """One connection's door (protocol.smtp_limits); `account` as it was when it was opened."""

    __slots__ = ("_access", "_bindings", "_domain", "account", "last")

    def __init__(self, access: Access, domain: str = "") -> None:
        """`domain`: of names that are written without one."""
        self._access, self._domain = access, domain
        self._bindings: Mapping[str, bytes] = {}
        self.account: Account | None = None
        self.last = b""  # what is said before a refusal

    def bind(self, transport: asyncio.BaseTransport) -> None:
        """The connection is under TLS now."""
        self._bindings = bindings(transport)

    def mechanisms(self) -> tuple[str, ...]:
        return self._access.mechanisms(self._bindings)

    def exchange(self, mechanism: str) -> Exchange | None:
        return self._access.exchange(mechanism, self._bindings, self._domain)

    def named(self, name: str) -> Account | None:
        """The account of whom a trusted host has let in, if there is one."""
        return self._access.named(name)

    async def check(self, question: Question, facts: Facts, judges: Judges) -> Verdict:
        """None, then `account` is set; or why not."""
        verdict = judges.ask(question, facts)
        if isawaitable(verdict):
            verdict = await verdict
        if verdict is not None:
            return verdict
        assert question.attempt is not None
        found = await self._access.verify(question.attempt, facts.client)
        if isinstance(found, Refusal):
            log.info("no login for %s: %s", facts.client, found.kind.value)
            if found.kind is Kind.CREDENTIALS and judges.note is not None:
                judges.note("auth_failures", facts)
            self.last = found.last
            return REFUSALS[found.kind]
        self.account, self.last = found, b""
        return None
