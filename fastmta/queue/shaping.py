"""Which limits a path has: the blocks of [shaping] that apply to it, merged."""

from collections.abc import Iterator
from typing import Any, Protocol

from msgspec import UNSET, structs

from fastmta.config_reader import DomainPattern, Duration, covers
from fastmta.config_shaping import LIMITS, Limited, Provider, ShapedDomain, Shaping
from fastmta.mail.envelope import TlsDemand
from fastmta.protocol.smtp_client import TlsPolicy
from fastmta.queue.limits import Group, Limits, Shape

CACHE_SIZE = 10_000  # (source, site, domain, demand), and paths

# What a sender's word makes of the policy (RFC 8689 sections 4.2.1 and 4.2.2), and its name.
_DEMANDED: dict[TlsDemand, tuple[TlsPolicy, str]] = {
    TlsDemand.NONE: ("none", ""),
    TlsDemand.REQUIRED: ("requiretls", "REQUIRETLS"),
    TlsDemand.OPTIONAL: ("opportunistic", "TLS-Required: No"),
}


class Destination(Protocol):
    """What a site is to the shaper."""

    @property
    def name(self) -> str:
        """Equal names mean the same hosts."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of its MX hosts."""

    @property
    def tls(self) -> TlsPolicy | None:
        """What its [[route]] says."""


class Shaper:
    """Shapes by one configuration; equal paths give the same object, while it is remembered."""

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping
        self._providers = shaping.providers
        self._known: dict[tuple[str, str, str, TlsDemand], Shape] = {}
        self._paths: dict[str, Shape] = {}

    def shape(
        self, source: str, site: Destination, domain: str, demand: TlsDemand = TlsDemand.NONE
    ) -> Shape:
        """The path on which mail for `domain` goes to `site`; `source` is "" where there is none.

        Asked for each message, so mostly one look-up.
        """
        key = source, site.name, domain if self._shaping.domain else "", demand
        shape = self._known.get(key)
        if shape is None:
            shape = self._on_demand(self._shape(source, site, domain), demand)
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            self._known[key] = shape
        return shape

    def _on_demand(self, usual: Shape, demand: TlsDemand) -> Shape:
        """What the sender says of TLS makes another path, where it makes a difference."""
        policy, origin = _DEMANDED[demand]
        if demand is TlsDemand.NONE or (
            demand is TlsDemand.OPTIONAL and usual.limits.tls not in ("required", "verified")
        ):
            return usual
        path = f"{usual.path}!{policy}"
        shape = self._paths.get(path)
        if shape is None:
            limits = structs.replace(usual.limits, tls=policy)
            origins = usual.origins | {"tls": origin}
            shape = structs.replace(usual, path=path, limits=limits, origins=origins)
            self._remember(shape)
        return shape

    def _remember(self, shape: Shape) -> None:
        if len(self._paths) >= CACHE_SIZE:
            self._paths.clear()
        self._paths[shape.path] = shape

    def _shape(self, source: str, site: Destination, domain: str) -> Shape:
        block = self._domain(domain)
        path = f"{source}>{site.name}" if source else site.name
        if block is not None:
            path += f"#{block.domain}"
        shape = self._paths.get(path)
        if shape is None:
            shape = self._merge(path, site, block, source)
            self._remember(shape)
        return shape

    def _merge(
        self, path: str, site: Destination, domain: ShapedDomain | None, source: str
    ) -> Shape:
        provider = self._provider(site.hosts)
        limits, origins = self._limits(provider, domain, source)
        if site.tls is not None:
            limits, origins["tls"] = structs.replace(limits, tls=site.tls), "route"
        name = provider.name if provider else ""
        group = self._group(provider, source) if provider and provider.shared is True else None
        return Shape(path, limits, origins, name, site.name, source, group)

    def _group(self, provider: Provider, source: str) -> Group:
        """What all sites of the provider share: what the domain of one is allowed is its own."""
        limits, _ = self._limits(provider, None, source)
        name = f"provider {provider.name}"
        return Group(f"{source}>{name}" if source else name, limits.shared)

    def _limits(
        self, provider: Provider | None, domain: ShapedDomain | None, source: str
    ) -> tuple[Limits, dict[str, str]]:
        """With the block that set each of them."""
        limits = {name: getattr(self._shaping, name) for name in LIMITS}
        origins = dict.fromkeys(LIMITS, "default")
        for origin, block in self._blocks(provider, domain, source):
            for name in LIMITS:
                value = getattr(block, name)
                if value is not UNSET:
                    limits[name], origins[name] = value, origin
        # msgspec encodes no subclasses of float.
        plain: dict[str, Any] = {
            name: float(value) if isinstance(value, Duration) else value
            for name, value in limits.items()
        }
        return Limits(**plain), origins

    def _blocks(
        self, provider: Provider | None, domain: ShapedDomain | None, source: str
    ) -> Iterator[tuple[str, Limited]]:
        """The blocks that apply, with their names; a later one overrules an earlier."""
        if provider is not None:
            yield f"provider {provider.name}", provider
        if domain is not None:
            yield f"domain {domain.domain}", domain
        blocks = [each for each in self._shaping.source if each.source == source]
        for block in blocks:
            if block.provider is UNSET:
                yield f"source {source}", block
        for block in blocks:
            if provider is not None and block.provider == provider.name:
                yield f"source {source} at {provider.name}", block

    def _domain(self, domain: str) -> ShapedDomain | None:
        name = DomainPattern(domain)
        blocks = self._shaping.domain
        return next((block for block in blocks if covers(block.domain, name)), None)

    def _provider(self, hosts: tuple[str, ...]) -> Provider | None:
        """Whose hosts these all are.

        Not of one alone: what a provider asks for (TLS, recipients) may be wrong for the hosts
        of others that the same domain names.
        """
        return next((each for each in self._providers if _has_all(each, hosts)), None)


def _has_all(provider: Provider, hosts: tuple[str, ...]) -> bool:
    suffixes = () if provider.mx is UNSET else provider.mx
    return bool(hosts) and all(
        any(host == suffix or host.endswith(f".{suffix}") for suffix in suffixes) for host in hosts
    )
