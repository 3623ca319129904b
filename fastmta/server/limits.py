"""Rate limits for those who come in: by client address, by network and by account.

What is refused is not counted, or who is over a limit would never come below it. A client that
is exempt, or an account where it has none, costs a look-up in a cache.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address, ip_network
from math import ceil

from fastmta import config, metrics
from fastmta.config_abuse import AccountLimits
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.counts import PAGE, Counts, Row
from fastmta.server.judges import Facts

_SCOPES = {"client": "your address", "network": "your network", "account": "your account"}
_THINGS = {
    "sessions": "sessions",
    "messages": "messages",
    "recipients": "recipients",
    "errors": "errors",
    "auth_failures": "failed logins",
}
_NAMES = tuple(
    f"{scope}.{what}"
    for scope in _SCOPES
    for what in _THINGS
    if scope != "account" or what in AccountLimits.__struct_fields__
)

REFUSED = metrics.counters(
    "fastmta_limits_refused_total",
    "Sessions, messages, recipients and logins refused by a rate limit",
    "limit",
    _NAMES,
)
SUBJECTS = metrics.gauge(
    "fastmta_limits_subjects", "Addresses, networks and accounts that are counted", combine="max"
)

Share = Callable[[list[Row]], None]


class Limits:
    """A judge that counts. Call `flush` once a second: it tells the other workers."""

    def __init__(
        self, settings: config.Limits, share: Share, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._told: Counter[tuple[str, str]] = Counter()  # what the others have to hear of
        self.counts = Counts({}, clock)
        self.configure(settings)
        SUBJECTS.read = lambda: len(self.counts)

    def configure(self, settings: config.Limits) -> None:
        self._settings = settings
        self.counts.configure(settings.rates)
        self._subjects = lru_cache(maxsize=4096)(self._find_subjects)
        self.steps = self._steps()

    def _steps(self) -> frozenset[Step]:
        """When there is something to ask: the limits on errors are asked of new sessions."""
        things = {name.partition(".")[2] for name in self._settings.rates}
        steps = {"messages": {Step.MAIL}, "recipients": {Step.RCPT}}
        steps["auth_failures"] = {Step.AUTH, Step.CONNECT}
        return frozenset[Step]().union(*(steps.get(what, {Step.CONNECT}) for what in things))

    @property
    def notes(self) -> bool:
        """Whether `note` has to be told anything."""
        return any(name.endswith(("errors", "auth_failures")) for name in self._settings.rates)

    # What sessions ask and tell.

    def judge(self, question: Question, facts: Facts) -> Reply | None:
        match question.step:
            case Step.CONNECT:
                return self._connect(facts)
            case Step.MAIL:
                return self._take("messages", facts, 450)
            case Step.RCPT:
                return self._take("recipients", facts, 450)
            case Step.AUTH:  # RFC 4954 section 6
                return self._over("auth_failures", self._concerned("auth_failures", facts), 454)
        return None

    def note(self, what: str, facts: Facts) -> None:
        """An error or a failed login."""
        for name, subject in self._concerned(what, facts):
            self._count(name, subject)

    def _connect(self, facts: Facts) -> Reply | None:
        for what in ("errors", "auth_failures"):
            if refusal := self._over(what, self._concerned(what, facts), 421):
                return refusal
        return self._take("sessions", facts, 421)

    def _take(self, what: str, facts: Facts, code: int) -> Reply | None:
        """Count one more, or say why not."""
        concerned = self._concerned(what, facts)
        if refusal := self._over(what, concerned, code):
            return refusal
        for name, subject in concerned:
            self._count(name, subject)
        return None

    def _over(self, what: str, concerned: list[tuple[str, str]], code: int) -> Reply | None:
        now = self.counts.clock()
        for name, subject in concerned:
            if wait := self.counts[name].wait(subject, now):
                REFUSED.count(name)
                return _refusal(code, name, what, wait)
        return None

    def _count(self, name: str, subject: str) -> None:
        window, now = self.counts[name], self.counts.clock()
        window.add(subject, window.part(now), 1, now)
        self._told[name, subject] += 1

    def _concerned(self, what: str, facts: Facts) -> list[tuple[str, str]]:
        """The limits that apply, with whom they count. What an account sends is its own."""
        if facts.account:
            found = [(f"account.{what}", facts.account)]
        elif facts.may_relay and self._settings.exempt_relay_networks:
            return []
        else:
            found = [
                (f"{scope}.{what}", subject) for scope, subject in self._subjects(facts.client)
            ]
        return [each for each in found if each[0] in self.counts]

    def _find_subjects(self, client: str) -> tuple[tuple[str, str], ...]:
        if not client or any(ip_address(client) in network for network in self._settings.exempt):
            return ()
        return ("client", client), ("network", network_of(self._settings, client))

    # What the workers tell each other.

    def flush(self) -> None:
        """Tell what was counted since the last time."""
        self.counts.turn()
        if not self._told:
            return
        now = self.counts.clock()
        rows = [
            Row(name, subject, self.counts[name].part(now), count)
            for (name, subject), count in self._told.items()
            if name in self.counts
        ]
        self._told.clear()
        for i in range(0, len(rows), PAGE):
            self._share(rows[i : i + PAGE])

    def clear(self, subjects: set[str]) -> None:
        """An operator lifts what counts against them."""
        self.counts.clear(subjects)
        for key in [key for key in self._told if key[1] in subjects]:
            del self._told[key]


def network_of(settings: config.Limits, client: str) -> str:
    """The network that an address counts for: "192.0.2.0/24"."""
    prefix = settings.ipv6_prefix if ":" in client else settings.ipv4_prefix
    return str(ip_network(f"{client}/{prefix}", strict=False))


def subjects_of(settings: config.Limits, name: str) -> set[str]:
    """What counts against an address, a network or an account; an address has a network too."""
    try:
        address = str(ip_address(name))
    except ValueError:
        return {name}
    return {address, network_of(settings, address)}


def _refusal(code: int, name: str, what: str, wait: float) -> Reply:
    """Says whose limit it is and when to come again; what the limit is stays with us."""
    scope = _SCOPES[name.partition(".")[0]]
    text = f"Too many {_THINGS[what]} from {scope}; come again in {_span(wait)}"
    return Reply(code, "4.7.1" if code == 450 else "4.7.0", text)


def _span(wait: float) -> str:
    if wait > 90:
        return f"{ceil(wait / 60)} minutes"
    return f"{ceil(wait)} seconds"
