"""Which limits a path has: the blocks of [shaping] that apply to it, merged."""

from collections.abc import Iterator
from typing import Any, Protocol

from msgspec import UNSET

from fastmta.config_reader import DomainPattern, Duration, covers
from fastmta.config_shaping import LIMITS, Limited, Provider, ShapedDomain, Shaping
from fastmta.queue.limits import Group, Limits, Shape

CACHE_SIZE = 10_000  # (source, site, domain), and paths


class Destination(Protocol):
    """What a site is to the shaper."""

    @property
    def name(self) -> str:
        """Equal names mean the same hosts."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of its MX hosts."""


class Shaper:
    """Shapes by one configuration; equal paths give the same object, while it is remembered."""

    def __init__(self, shaping: Shaping) -> None:
        self._shaping = shaping
        self._providers = shaping.providers
        self._known: dict[tuple[str, str, str], Shape] = {}
        self._paths: dict[str, Shape] = {}

    def shape(self, source: str, site: Destination, domain: str) -> Shape:
        """The path on which mail for `domain` goes to `site`; `source` is "" where there is none.

        Asked for each message, so mostly one look-up.
        """
        key = source, site.name, domain if self._shaping.domain else ""
        shape = self._known.get(key)
        if shape is None:
            shape = self._shape(source, site, domain)
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            self._known[key] = shape
        return shape

    def _shape(self, source: str, site: Destination, domain: str) -> Shape:
        block = self._domain(domain)
        path = f"{source}>{site.name}" if source else site.name
        if block is not None:
            path += f"#{block.domain}"
        shape = self._paths.get(path)
        if shape is None:
            shape = self._merge(path, site, block, source)
            if len(self._paths) >= CACHE_SIZE:
                self._paths.clear()
            self._paths[path] = shape
        return shape

    def _merge(
        self, path: str, site: Destination, domain: ShapedDomain | None, source: str
    ) -> Shape:
        provider = self._provider(site.hosts)
        limits, origins = self._limits(provider, domain, source)
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
