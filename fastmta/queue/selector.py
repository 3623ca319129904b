"""Which envelopes an operator means: a value that goes over the wire, and the test it stands for.

A criterion with several patterns matches where any of them does; all criteria have to match.
Patterns know `*` and `?`, and do not tell upper case from lower.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from fnmatch import translate
from functools import lru_cache
from typing import Any

import re2
from msgspec import Struct, structs

from fastmta.mail.address import normal_domain
from fastmta.mail.envelope import Envelope, Priority, parse_id

MAX_PATTERNS = 1000  # of one criterion
MAX_PATTERN = 1000  # characters
NULL_SENDER = "<>"
_PATTERNS = ("domain", "site", "sender", "tenant", "campaign", "pool", "id")

Test = Callable[[str], Any]  # truthy where a text matches


class Selector(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An empty criterion is no criterion; without any, every envelope matches.

    What an operator wrote becomes one through `checked`.
    """

    domain: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    sender: tuple[str, ...] = ()  # an address, a domain, a pattern of either, or "<>"
    tenant: tuple[str, ...] = ()
    campaign: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    id: tuple[str, ...] = ()  # of a message, or of one of its envelopes: "01J...", "01J....2"
    priority: tuple[Priority, ...] = ()
    reply: str = ""  # RE2 syntax, searched in the last reply: "421 4.7.0 Try again later"
    held: bool = False
    before: float = 0.0  # received before, seconds since the epoch; 0 is no criterion
    after: float = 0.0

    def matches(self, envelope: Envelope, site: str) -> bool:
        """Whether this envelope is meant; `site` is the name of where it goes."""
        return (
            fits(self.domain, envelope.domain)
            and fits(self.tenant, envelope.tenant)
            and fits(self.campaign, envelope.campaign)
            and fits(self.pool, envelope.pool)
            and fits(self.site, site)
            and fits(self.sender, envelope.sender or NULL_SENDER)
            and (not self.id or _has_id(self.id, envelope))
            and (not self.priority or envelope.priority in self.priority)
            and (not self.held or bool(envelope.held))
            and (not self.before or envelope.received < self.before)
            and (not self.after or envelope.received > self.after)
            and (not self.reply or _reply_matches(self.reply, envelope))
        )

    def covers(self, other: "Selector") -> bool:
        """Whether all that `other` matches is matched here, as far as the criteria show it."""
        return all(
            _covers(name, getattr(self, name), getattr(other, name))
            for name in self.__struct_fields__
            if name != "held"  # what one stands for is whatever it holds
        )

    def __bool__(self) -> bool:
        """Whether there is any criterion."""
        return self != _EVERYTHING

    def __str__(self) -> str:
        """As it would be written on the command line."""
        words: list[str] = []
        for name, value in structs.asdict(self).items():
            words += _written(name, value)
        return " ".join(words) or "--all"


_EVERYTHING = Selector()


def checked(selector: Selector) -> Selector:
    """The same with its domains in A-labels; ValueError, with a sentence for the operator, where
    a criterion cannot be used."""
    for name in _PATTERNS:
        patterns = getattr(selector, name)
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"--{name}: at most {MAX_PATTERNS} can be given at once")
        if any(len(pattern) > MAX_PATTERN for pattern in patterns):
            raise ValueError(f"--{name}: a pattern has at most {MAX_PATTERN} characters")
    for one in selector.id:
        parse_envelope_id(one)
    if len(selector.reply) > MAX_PATTERN:
        raise ValueError(f"--reply: an expression has at most {MAX_PATTERN} characters")
    _expression(selector.reply)
    return structs.replace(
        selector,
        domain=tuple(map(_domain_form, selector.domain)),
        sender=tuple(map(_sender_form, selector.sender)),
    )


def parse_envelope_id(text: str) -> tuple[int, int | None]:
    """The message, and which of its envelopes (None: all); ValueError for anything else."""
    name, dot, index = text.partition(".")
    if dot and not (index.isascii() and index.isdigit() and len(index) <= 5):
        raise ValueError(f"{index!r} is no number of an envelope: {text!r}")
    return parse_id(name), int(index) if dot else None


def fits(patterns: tuple[str, ...], text: str) -> bool:
    """Whether any of the patterns matches, or there are none."""
    return not patterns or bool(_test(patterns)(text))


@lru_cache(maxsize=256)
def _test(patterns: tuple[str, ...]) -> Test:
    """One expression for all patterns. What `fnmatch` makes of `*` is never tried twice."""
    each = (translate(pattern.replace("[", "[[]")) for pattern in patterns)
    return re.compile("|".join(each), re.IGNORECASE).match


def _sender_form(pattern: str) -> str:
    """A pattern without "@" is one of domains."""
    if pattern in ("", NULL_SENDER):
        return NULL_SENDER
    local, at, domain = pattern.rpartition("@")
    return f"{local if at else '*'}@{_domain_form(domain)}"


def _domain_form(pattern: str) -> str:
    """In A-labels, as envelopes have it, where it is a name that has them."""
    try:
        return pattern if pattern.isascii() else normal_domain(pattern)
    except ValueError:
        return pattern


@lru_cache(maxsize=256)
def _ids(ids: tuple[str, ...]) -> frozenset[tuple[int, int | None]]:
    return frozenset(map(parse_envelope_id, ids))


def _has_id(ids: tuple[str, ...], envelope: Envelope) -> bool:
    wanted, message = _ids(ids), envelope.message
    return (message, None) in wanted or (message, envelope.index) in wanted


@lru_cache(maxsize=64)
def _expression(text: str) -> Any:
    """Compiled by RE2, whose time grows with the reply alone: the loop searches with it."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(text, options)
    except re2.error as error:
        detail = error.args[0]
        why = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise ValueError(f"{text!r} is no regular expression (RE2 syntax): {why}") from None


def _reply_matches(text: str, envelope: Envelope) -> bool:
    if envelope.last is None:
        return False
    # RE2 takes UTF-8 only, and a peer sends what it likes.
    reply = str(envelope.last.reply).encode("utf-8", "replace").decode()
    return bool(_expression(text).search(reply))


def _covers(name: str, ours: Any, theirs: Any) -> bool:
    """One criterion: none covers any, and none but none covers none."""
    if ours == theirs or not ours:
        return True
    if not theirs:
        return False
    if name == "before":
        return bool(theirs <= ours)
    if name == "after":
        return bool(theirs >= ours)
    if name in ("reply", "id", "priority"):
        return isinstance(ours, tuple) and set(theirs) <= set(ours)
    return all(any(_pattern_covers(one, other) for one in ours) for other in theirs)


def _pattern_covers(one: str, other: str) -> bool:
    """`*` matches whatever stands in the other; `?` only where there is no `*` to stand for."""
    return one.lower() == other.lower() or ("?" not in one and bool(_test((one,))(other)))


def _written(name: str, value: Any) -> Iterable[str]:
    if not value:
        return ()
    if name == "held":
        return ("--held",)
    if name in ("before", "after"):
        return (f"received {name} {datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC",)
    values = value if isinstance(value, tuple) else (value,)
    return (f"--{name} {_quoted(one)}" for one in values)


def _quoted(value: Any) -> str:
    text = value.name.lower() if isinstance(value, Priority) else str(value)
    return text if re.fullmatch(r"[\w.@*?:+-]+", text) else f"'{text}'"
