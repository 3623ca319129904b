"""[shaping]: what paths may do, by default, provider, domain and source.

The providers and the slow-down replies that are shipped are read from fastmta/data in the form
of the configuration.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import re2
from msgspec import UNSET, Meta, UnsetType

from fastmta.config_reader import (
    DomainName,
    DomainPattern,
    Duration,
    Problem,
    Rate,
    Reader,
    Table,
    covers,
)

TlsPolicy = Literal["none", "opportunistic", "required", "verified"]
Connections = Annotated[int | UnsetType, Meta(ge=1, le=10_000)]
Messages = Annotated[int | UnsetType, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[Duration | UnsetType, Meta(gt=0, le=86400)]


class Limited(Table, frozen=True, kw_only=True):
    """The limits that each block may set; what it does not set is as without it."""

    connections: Connections = UNSET
    connection_rate: Rate | UnsetType = UNSET
    messages_per_connection: Messages = UNSET
    message_rate: Rate | UnsetType = UNSET
    recipients: Messages = UNSET
    ready: Messages = UNSET
    tls: TlsPolicy | UnsetType = UNSET
    connect_timeout: Seconds = UNSET
    command_timeout: Seconds = UNSET
    data_timeout: Seconds = UNSET
    end_timeout: Seconds = UNSET
    idle_timeout: Seconds = UNSET


LIMITS = Limited.__struct_fields__


class Provider(Limited, frozen=True, kw_only=True):
    name: str
    mx: tuple[DomainName, ...] | UnsetType = UNSET  # hosts of these names, or below them
    shared: bool | UnsetType = UNSET  # true: all its sites share one set of connections and rates


class ShapedDomain(Limited, frozen=True, kw_only=True):
    domain: DomainPattern


class ShapedSource(Limited, frozen=True, kw_only=True):
    source: str
    provider: str | UnsetType = UNSET


class SlowDownRule(Table, frozen=True, kw_only=True):
    """A reply that fits all that is set means "slow down"."""

    enhanced: str = ""  # "4.7.28"
    pattern: str = ""  # a regular expression, found anywhere in the reply in lower case
    provider: str = ""

    def __str__(self) -> str:
        """As people read it in reports."""
        found = " ".join(filter(None, (self.enhanced, self.pattern and f"/{self.pattern}/")))
        return f"{self.provider}: {found}" if self.provider else found


class Shaping(Table, frozen=True, kw_only=True):
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 32
    connection_rate: Rate | None = None
    messages_per_connection: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    message_rate: Rate | None = None
    recipients: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    ready: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    tls: TlsPolicy = "opportunistic"
    connect_timeout: Annotated[Duration, Meta(gt=0, le=86400)] = Duration(30)
    # RFC 5321 section 4.5.3.2; MAIL and RCPT have the 5 minutes of the greeting.
    command_timeout: Annotated[Duration, Meta(gt=0, le=86400)] = Duration(300)
    data_timeout: Annotated[Duration, Meta(gt=0, le=86400)] = Duration(180)
    end_timeout: Annotated[Duration, Meta(gt=0, le=86400)] = Duration(600)
    idle_timeout: Annotated[Duration, Meta(gt=0, le=86400)] = Duration(5)
    builtin_providers: bool = True
    adaptive: bool = True
    provider: tuple[Provider, ...] = ()
    domain: tuple[ShapedDomain, ...] = ()
    source: tuple[ShapedSource, ...] = ()
    slow_down: tuple[SlowDownRule, ...] = ()

    @property
    def providers(self) -> list[Provider]:
        """All that are known: those of the configuration first, then what is shipped.

        One of a shipped name keeps the place of the shipped one, and what it does not set.
        """
        shipped = (
            {each.name: each for each in shipped_providers()} if self.builtin_providers else {}
        )
        own = [each for each in self.provider if each.name not in shipped]
        for each in self.provider:
            if each.name in shipped:
                shipped[each.name] = _merged(shipped[each.name], each)
        return own + list(shipped.values())

    @property
    def slow_down_rules(self) -> list[SlowDownRule]:
        """Those of the configuration first; none where nothing adapts."""
        return [*self.slow_down, *shipped_slow_down_rules()] if self.adaptive else []


def _merged(shipped: Provider, own: Provider) -> Provider:
    fields = Provider.__struct_fields__
    values = {name: getattr(own, name) for name in fields}
    kept = {name: getattr(shipped, name) for name, value in values.items() if value is UNSET}
    return Provider(**(values | kept))


class _Shipped(Table, frozen=True, kw_only=True):
    provider: tuple[Provider, ...] = ()
    slow_down: tuple[SlowDownRule, ...] = ()


def _shipped(name: str) -> _Shipped:
    text = files("fastmta").joinpath("data", name).read_text("utf-8")
    reader = Reader(_Shipped, {}, Path())
    shipped = reader.table(_Shipped, tomllib.loads(text))
    assert shipped is not None, reader.problems
    return shipped


@cache
def shipped_providers() -> tuple[Provider, ...]:
    return _shipped("providers.toml").provider


@cache
def shipped_slow_down_rules() -> tuple[SlowDownRule, ...]:
    return _shipped("slow_down.toml").slow_down


def compile_pattern(pattern: str) -> Any:
    """Of a rule's pattern, for replies as octets; re2.error where it is none. By RE2, whose time
    grows with the reply alone: the peer chooses that, and the loop searches in it."""
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = True
    return re2.compile(pattern.encode(), options)


def together(rules: Iterable[SlowDownRule]) -> Any:
    """Found where one of the patterns is."""
    return compile_pattern("|".join(f"(?:{each.pattern})" for each in rules if each.pattern))


# What is to be true of the table, called by config_rules.


def uses_verified(shaping: Shaping) -> bool:
    """Whether some path wants certificates verified."""
    return "verified" in _tls_policies(shaping)


def is_strict(shaping: Shaping) -> bool:
    """Whether some path wants no mail to go without TLS."""
    return not {"required", "verified"}.isdisjoint(_tls_policies(shaping))


def _tls_policies(shaping: Shaping) -> set[TlsPolicy | UnsetType]:
    blocks: list[Limited] = [*shaping.providers, *shaping.domain, *shaping.source]
    return {shaping.tls, *(block.tls for block in blocks)}


def check_shaping(shaping: Shaping) -> Iterator[Problem]:
    yield from _check_providers(shaping)
    yield from _check_domains(shaping)
    yield from _check_sources(shaping)
    yield from _check_slow_downs(shaping)


def _check_providers(shaping: Shaping) -> Iterator[Problem]:
    known = {each.name for each in shipped_providers()} if shaping.builtin_providers else set()
    seen: dict[str, int] = {}
    for i, provider in enumerate(shaping.provider):
        key = f"shaping.provider[{i}]"
        first = seen.setdefault(provider.name, i)
        if first != i:
            yield Problem(f"{key}.name", f'"{provider.name}" is shaping.provider[{first}] too')
        yield from _check_name(f"{key}.name", provider.name)
        if provider.mx is UNSET and provider.name not in known:
            text = f'is missing, and no provider "{provider.name}" is shipped; write its MX hosts'
            yield Problem(f"{key}.mx", text)
        elif provider.mx == ():
            yield Problem(f"{key}.mx", "is empty: it matches no host; remove it")
        if provider.mx is UNSET and provider.shared is UNSET:
            yield from _check_effect(key, provider)
    yield from _check_suffixes(shaping)


def _check_suffixes(shaping: Shaping) -> Iterator[Problem]:
    earlier: list[tuple[str, DomainName]] = []
    for i, provider in enumerate(shaping.provider):
        suffixes = () if provider.mx is UNSET else provider.mx
        for j, suffix in enumerate(suffixes):
            for other, before in earlier:
                if suffix == before or suffix.endswith(f".{before}"):
                    key = f"shaping.provider[{i}].mx[{j}]"
                    text = f'"{suffix}" can never match: {other} with "{before}" comes first'
                    yield Problem(key, text)
                    break
            earlier.append((f"shaping.provider[{i}]", suffix))


def _check_domains(shaping: Shaping) -> Iterator[Problem]:
    for i, block in enumerate(shaping.domain):
        yield from _check_effect(f"shaping.domain[{i}]", block)
        for j, earlier in enumerate(shaping.domain[:i]):
            if covers(earlier.domain, block.domain):
                yield Problem(
                    f"shaping.domain[{i}].domain",
                    f'"{block.domain}" can never match: shaping.domain[{j}] with '
                    f'"{earlier.domain}" comes first; move this one above it or remove it',
                )
                break


def _check_sources(shaping: Shaping) -> Iterator[Problem]:
    providers = {each.name for each in shaping.providers}
    seen: dict[tuple[str, str], int] = {}
    for i, block in enumerate(shaping.source):
        key = f"shaping.source[{i}]"
        yield from _check_effect(key, block)
        yield from _check_name(f"{key}.source", block.source)
        provider = "" if block.provider is UNSET else block.provider
        first = seen.setdefault((block.source, provider), i)
        if first != i:
            text = f'"{block.source}" is shaping.source[{first}] too, for the same'
            yield Problem(f"{key}.source", text)
        if provider and provider not in providers:
            yield Problem(f"{key}.provider", f'no provider "{provider}" is known')


def _check_slow_downs(shaping: Shaping) -> Iterator[Problem]:
    if shaping.slow_down and not shaping.adaptive:
        text = "is without effect where adaptive = false; remove it"
        yield Problem("shaping.slow_down", text)
    rules = range(len(shaping.slow_down))
    yield from [found for i in rules for found in _check_slow_down(shaping, i)] or _check_size(
        shaping
    )


def _check_slow_down(shaping: Shaping, i: int) -> Iterator[Problem]:
    rule, key = shaping.slow_down[i], f"shaping.slow_down[{i}]"
    if not (rule.enhanced or rule.pattern):
        yield Problem(key, "fits every reply; write enhanced, pattern or both")
    if rule.enhanced and not re.fullmatch(r"[45]\.\d{1,3}\.\d{1,3}", rule.enhanced, re.ASCII):
        text = f'"{rule.enhanced}" is no enhanced code of a refusal; write one such as "4.7.28"'
        yield Problem(f"{key}.enhanced", text)
    if rule.provider and rule.provider not in {each.name for each in shaping.providers}:
        yield Problem(f"{key}.provider", f'no provider "{rule.provider}" is known')
    for j, earlier in enumerate(shaping.slow_down[:i]):
        if _hides(earlier, rule):
            yield Problem(key, f"can never match: shaping.slow_down[{j}] fits all that it does")
            break
    yield from _check_pattern(f"{key}.pattern", rule.pattern)


def _check_size(shaping: Shaping) -> Iterator[Problem]:
    try:
        together(shaping.slow_down_rules)
    except re2.error:
        yield Problem("shaping.slow_down", "patterns are too large together; write fewer")


def _hides(one: SlowDownRule, other: SlowDownRule) -> bool:
    """Whether the first fits whatever the second does, as far as the settings show it."""
    fields = SlowDownRule.__struct_fields__
    return all(getattr(one, name) in ("", getattr(other, name)) for name in fields)


def _check_pattern(key: str, pattern: str) -> Iterator[Problem]:
    try:
        compiled = compile_pattern(pattern)
    except re2.error as error:
        why = error.args[0]
        why = why.decode("utf-8", "replace") if isinstance(why, bytes) else why
        yield Problem(key, f"is no regular expression (RE2 syntax): {why}")
        return
    if re.sub(r"\\.", "", pattern) != re.sub(r"\\.", "", pattern).lower():
        yield Problem(key, "has capitals, but is compared with replies in lower case")
    elif pattern and compiled.search(b""):
        yield Problem(key, "fits every reply")


def _check_effect(key: str, block: Limited) -> Iterator[Problem]:
    if all(getattr(block, name) is UNSET for name in LIMITS):
        yield Problem(key, "is without effect: it sets no limit; set one or remove it")


def _check_name(key: str, name: str) -> Iterator[Problem]:
    """Names are parts of the names of paths, which have ">" and "#" of their own."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        yield Problem(key, "is no name; write letters, digits, dots and hyphens")
