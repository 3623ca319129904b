"""From a domain to its site: our mailboxes, by a [[route]], or by its MX records.

RFC 5321 section 5.1 has what MX records mean.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from math import inf
from typing import TypeVar

from msgspec import UNSET

from fastmta.config import Config, DomainPattern, HopProtocol, NextHop, Route, TlsPolicy, parse_hop
from fastmta.config_reader import covers
from fastmta.delivery import addresses
from fastmta.delivery.dns import Answer, Exchange, Resolver, Status
from fastmta.delivery.site import LOCAL, RoutingError, Site
from fastmta.delivery.survey import Candidate, Survey, Target, judge, judge_exchanges, judge_hops
from fastmta.mail.reply import Reply

V = TypeVar("V")


CACHE_SIZE = 10_000  # domains, and sites
MAX_HOSTS = 20  # of one domain, lowest preferences first; the others are never looked up

# A host name, as the records of a stranger may give one: whatever else they hold, an address
# literal too, is not looked up. The punctuation of site names cannot be forged through it.
_HOST_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*(?!\d+\Z)[a-z0-9_-]+")


class Router:
    """Where mail goes; use it from one event loop."""

    def __init__(self, config: Config, resolver: Resolver) -> None:
        self._resolver = resolver
        self._clock = resolver.clock
        self._domains = config.domains
        self._routes = config.route
        self._hostname = config.hostname
        self._port = config.delivery.port
        self._allow_local = config.delivery.allow_local_addresses
        self._listening = {
            each.bind.host
            for each in config.listener
            if each.service == "smtp" and each.bind.port == self._port
        }
        self._surveys = 0  # under way
        self._retired = False
        self._known: OrderedDict[str, tuple[float, Site]] = OrderedDict()
        self._sites: OrderedDict[str, Site] = OrderedDict()

    def cached(self, domain: str) -> Site | None:
        """The site of a domain (as `mail.address.domain_of` gives it) where it is known."""
        known = self._known.get(domain)
        if known is not None and known[0] > self._clock():
            return known[1]
        return None

    async def site(self, domain: str) -> Site:
        """The site of a domain; RoutingError where there is none, or none now."""
        if site := self.cached(domain):
            return site
        survey = await self.survey(domain)
        if isinstance(survey.outcome, Reply):
            raise RoutingError(survey.outcome)
        _remember(self._known, domain, (survey.expires, survey.outcome))
        return survey.outcome

    async def survey(self, domain: str) -> Survey:
        """What is to be known of a domain, or of a next hop that an operator chose; never from
        this router's own cache."""
        self._surveys += 1
        try:
            return await self._survey_now(domain)
        finally:
            self._surveys -= 1
            self._close_if_done()

    def route(self, domain: str) -> str:
        """The [[route]] that says where a domain's mail goes, for people; "" where none does."""
        if domain in self._domains:
            return ""
        route = self._route_of(domain)
        return _name(route) if route else ""

    def _route_of(self, domain: str) -> Route | None:
        name = DomainPattern(domain)
        return next((route for route in self._routes if covers(route.domain, name)), None)

    def retire(self) -> None:
        """Answer what was asked, and let go of the resolver then: another router follows."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._surveys:
            self._resolver.close()

    async def _survey_now(self, domain: str) -> Survey:
        if _is_hop(domain):
            return await self._by_order(domain)
        if domain in self._domains:
            return Survey(domain, f'[domains."{domain}"]', (), inf, LOCAL)
        if route := self._route_of(domain):
            tls = None if route.tls is UNSET else route.tls
            return await self._by_hops(domain, _name(route), route.protocol, route.next_hop, tls)
        try:
            literal = addresses.parse_literal(domain)
        except ValueError:
            reply = Reply(550, "5.1.2", f"{domain} is no address literal")
            return Survey(domain, "address literal", (), inf, reply)
        if literal is not None:
            return self._by_literal(domain, literal)
        return await self._by_dns(domain)

    async def _by_order(self, text: str) -> Survey:
        """The next hop that an operator chose for some mail, as `parse_hop` reads it."""
        origin = "an operator's order"
        try:
            protocol, hop = parse_hop(text)
        except ValueError as error:
            return Survey(text, origin, (), inf, Reply(451, "4.4.4", f"next hop: {error}"))
        return await self._by_hops(text, origin, protocol, (hop,))

    async def _by_hops(
        self,
        domain: str,
        origin: str,
        protocol: HopProtocol,
        hops: Sequence[NextHop],
        tls: TlsPolicy | None = None,
    ) -> Survey:
        """Each next hop is a tier of its own, tried in the order of the configuration."""
        candidates = await asyncio.gather(
            *(self._next_hop(tier, endpoint) for tier, endpoint in enumerate(hops))
        )
        outcome = judge_hops(origin, protocol, candidates, tls)
        origin += "" if protocol == "smtp" else f", {protocol}"
        origin += f", tls {tls}" if tls else ""
        return self._survey(domain, origin, candidates, outcome)

    async def _next_hop(self, tier: int, endpoint: NextHop) -> Candidate:
        """Whoever writes a route knows the host: no address is refused."""
        if endpoint.path or _is_address(endpoint.host):
            return Candidate(tier, *endpoint, targets=(Target(endpoint.host, ""),))
        answer = await self._resolver.addresses(endpoint.host)
        targets = tuple(Target(address, "") for address in answer.records)
        detail = answer.detail or answer.status
        return Candidate(
            tier, *endpoint, answer.status, targets, expires=answer.expires, detail=detail
        )

    def _by_literal(self, domain: str, address: str) -> Survey:
        exchange = Exchange(0, f"[{address}]")
        candidate = self._candidate(exchange, Answer(Status.FOUND, inf, (address,)))
        outcome = judge(domain, (candidate,), implicit=True)
        return self._survey(domain, "address literal", (candidate,), outcome)

    async def _by_dns(self, domain: str) -> Survey:
        answer = await self._resolver.exchanges(domain)
        if reply := judge_exchanges(domain, answer):
            return Survey(domain, "MX", (), answer.expires, reply)
        # RFC 5321 section 5.1: without MX records, the domain is its own and only exchange.
        implicit = answer.status is Status.NO_DATA
        candidates = await asyncio.gather(
            *map(self._look_up, _first(answer.records or (Exchange(0, domain),)))
        )
        outcome = judge(domain, candidates, implicit=implicit)
        origin = "implicit MX" if implicit else "MX"
        return self._survey(domain, origin, candidates, outcome, answer.expires)

    async def _look_up(self, exchange: Exchange) -> Candidate:
        if exchange.host == self._hostname:
            return Candidate(exchange.preference, exchange.host, self._port, is_us=True)
        if not _HOST_NAME.fullmatch(exchange.host):
            no_name: Answer[str] = Answer(Status.NO_NAME, inf, detail="not a host name")
            return self._candidate(exchange, no_name)
        return self._candidate(exchange, await self._resolver.addresses(exchange.host))

    def _candidate(self, exchange: Exchange, answer: Answer[str]) -> Candidate:
        targets = tuple(Target(each, self._refused(each)) for each in answer.records)
        return Candidate(
            exchange.preference,
            exchange.host,
            self._port,
            answer.status,
            targets,
            is_us=any(map(self._is_us, targets)),
            expires=answer.expires,
            detail=answer.detail or ("" if targets else answer.status),
        )

    def _refused(self, address: str) -> str:
        return "" if self._allow_local else addresses.refusal(address)

    def _is_us(self, target: Target) -> bool:
        """Whether a connection to an address would come back to a listener of ours."""
        if target.refused not in ("", addresses.OWN):
            return False
        reached = self._listening & {target.address, "0.0.0.0", "::"}
        return bool(reached) and addresses.is_own(target.address)

    def _survey(
        self,
        domain: str,
        origin: str,
        candidates: Sequence[Candidate],
        outcome: Site | Reply,
        expires: float = inf,
    ) -> Survey:
        expires = min(expires, *(each.expires for each in candidates))
        if isinstance(outcome, Site):
            outcome = self._interned(outcome)
        return Survey(domain, origin, tuple(candidates), expires, outcome)

    def _interned(self, site: Site) -> Site:
        """The same object for equal sites, so that comparing and keeping them is cheap."""
        known = self._sites.get(site.name)
        if known == site:
            site = known
        _remember(self._sites, site.name, site)
        return site


def _name(route: Route) -> str:
    return f"route {route.domain}"


def _first(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """The hosts to look up, by preference, each once (it counts at its best preference)."""
    best: dict[str, Exchange] = {}
    for exchange in exchanges:
        best.setdefault(exchange.host, exchange)
    return list(best.values())[:MAX_HOSTS]


def _remember(table: OrderedDict[str, V], key: str, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > CACHE_SIZE:
        table.popitem(last=False)


def _is_hop(text: str) -> bool:
    """No domain and no address literal looks like this."""
    return ":" in text and not text.endswith("]")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
