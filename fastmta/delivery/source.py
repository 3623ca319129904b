"""Where mail leaves from: sources (addresses of ours, each with its name) and pools of them."""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from fastmta import config, metrics
from fastmta.delivery.site import Site
from fastmta.delivery.tls import ClientCertificate
from fastmta.mail.envelope import Envelope
from fastmta.mail.reply import Reply

log = logging.getLogger(__name__)

SET_ASIDE = metrics.gauge(
    "fastmta_source_addresses_set_aside", "Addresses of sources that could not be bound"
)

ASIDE_SECONDS = 60.0  # until an address that could not be bound is tried again
MAX_TURNS = 10_000  # sites whose turns a pool remembers


class Source(Struct, frozen=True):
    """A name to greet with and, of each family, at most one address to leave from."""

    name: str  # "" is the system's choice of addresses
    hostname: str  # in EHLO
    addresses: tuple[str, ...] = ()
    certificate: ClientCertificate | None = None  # what hosts are shown that ask


class Pool:
    """Sources that take turns by weight, for each site by itself."""

    def __init__(self, name: str, weights: dict[Source, int]) -> None:
        self.name = name
        self._weights = weights
        self._turns: dict[str, dict[Source, int]] = {}  # by site: who is how far behind

    @property
    def sources(self) -> Sequence[Source]:
        return list(self._weights)

    def order(self, site: str, usable: Callable[[Source], bool]) -> list[Source]:
        """Whom to ask, the one first whose turn it is."""
        behind = self._turns.get(site, {})
        sources = [one for one in self._weights if usable(one)]
        if len(sources) > 1:
            weights = self._weights
            sources.sort(key=lambda one: -behind.get(one, 0) - weights[one])
        return sources

    def took(self, site: str, source: Source, among: list[Source]) -> None:
        """One of those that were asked has the job (smooth weighted round robin)."""
        if len(among) < 2:
            return
        behind = self._turns.get(site)
        if behind is None:
            if len(self._turns) >= MAX_TURNS:
                del self._turns[next(iter(self._turns))]
            behind = self._turns[site] = {}
        for one in among:
            behind[one] = behind.get(one, 0) + self._weights[one]
        behind[source] -= sum(self._weights[one] for one in among)


class Sources:
    """All of them, as the configuration says; which address is not on this machine any more."""

    def __init__(self, settings: config.Config, clock: Callable[[], float]) -> None:
        delivery = settings.delivery
        shown = _certificate(delivery.client_certificate, delivery.client_key)
        self.system = Source("", settings.hostname, (), shown)
        self._clock = clock
        self._aside: dict[str, float] = {}  # address -> when it is tried again
        named: dict[str, Source] = {
            one.name: Source(
                one.name,
                one.hostname or settings.hostname,
                tuple(map(str, one.addresses)),
                _certificate(one.client_certificate, one.client_key) or shown,
            )
            for one in settings.source
        }
        self._pools: dict[str, Pool] = {
            pool.name: Pool(pool.name, {named[name]: n for name, n in pool.sources.items()})
            for pool in settings.pool
        }
        self._by_tenant = {name: self._pools[p.name] for p in settings.pool for name in p.tenants}
        self._by_sender: dict[str, Pool] = {
            pattern: self._pools[pool.name] for pool in settings.pool for pattern in pool.senders
        }

    def pool_of(self, envelope: Envelope) -> Pool | None:
        """By its own word, its tenant, its sender; None: the system's choice."""
        pools = self._pools
        if not pools:
            return None
        return (
            pools.get(envelope.pool)
            or self._by_tenant.get(envelope.tenant)
            or self._pool_of_sender(envelope.sender)
            or pools.get("default")
        )

    def _pool_of_sender(self, sender: str) -> Pool | None:
        domain = sender.rpartition("@")[2].lower()
        if not (domain and self._by_sender):
            return None
        found = (self._by_sender.get(pattern) for pattern in _patterns(domain))
        return next(filter(None, found), None)

    def order(self, pool: Pool, site: Site) -> list[Source]:
        """The sources that mail to a site can leave from now, the one first whose turn it is."""
        families = {
            _family(address) for tier in site.tiers for host in tier for address in host.addresses
        }

        def usable(source: Source) -> bool:
            return any(
                _family(address) in families and not self._is_aside(address)
                for address in source.addresses
            )

        # A site without addresses says so itself, whatever the source; and to a socket of this
        # machine (LMTP) any will do.
        hosts = (host for tier in site.tiers for host in tier)
        is_local = any(address.startswith("unix:") for host in hosts for address in host.addresses)
        return pool.order(site.name, usable if families and not is_local else lambda _: True)

    def objection(self, pool: Pool) -> Reply:
        """What mail is told that cannot leave from any source of its pool."""
        addresses = [address for source in pool.sources for address in source.addresses]
        gone = [address for address in addresses if self._is_aside(address)]
        if gone:
            text = f"no source address of pool {pool.name} is on this machine: {', '.join(gone)}"
        else:
            text = f"no source address of pool {pool.name} has the family of the host's address"
        return Reply(451, "4.3.5", text)

    def local_address(self, source: Source, remote: str) -> str | None:
        """What to bind for a connection: "" for the system's choice, None: there is nothing."""
        if not source.addresses or remote.startswith("unix:"):
            return ""
        for address in source.addresses:
            if _family(address) == _family(remote) and not self._is_aside(address):
                return address
        return None

    def set_aside(self, address: str, error: OSError) -> None:
        if address not in self._aside:
            why = (
                "it is not on this machine"
                if error.errno == errno.EADDRNOTAVAIL
                else os.strerror(error.errno or 0)
            )
            log.warning("no mail leaves from %s: %s", address, why)
        self._aside[address] = self._clock() + ASIDE_SECONDS
        SET_ASIDE.value = len(self._aside)

    def bound(self, address: str) -> None:
        if self._aside and self._aside.pop(address, None) is not None:
            log.warning("mail leaves from %s again", address)
            SET_ASIDE.value = len(self._aside)

    def _is_aside(self, address: str) -> bool:
        return self._aside.get(address, 0.0) > self._clock()


def _certificate(certificate: Path | None, key: Path | None) -> ClientCertificate | None:
    return ClientCertificate(certificate, key) if certificate and key else None


def _family(address: str) -> bool:
    """Whether it is IPv6."""
    return ":" in address


def _patterns(domain: str) -> Iterator[str]:
    """What matches a domain, the nearest first (config_reader.DomainPattern)."""
    yield domain
    at = domain.find(".")
    while at >= 0:
        yield "*" + domain[at:]
        at = domain.find(".", at + 1)
    yield "*"
