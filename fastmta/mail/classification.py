"""What a reply means, in one word, by the rules of data/bounces.toml."""

import re
import tomllib
from enum import StrEnum
from functools import cache, lru_cache
from importlib.resources import files

import msgspec
from msgspec import Struct

from fastmta.mail.reply import Reply

_MOST_TEXT = 1000  # characters that are looked at: a cause is named at the beginning
# Some hosts repeat the enhanced code on each line.
_NEXT_LINE = re.compile(r"\s*\n(?:[245]\.\d{1,3}\.\d{1,3}\s)?\s*")


class Category(StrEnum):
    """Why mail was not taken; docs/bounces.md says what to do about each."""

    BAD_MAILBOX = "bad-mailbox"
    BAD_DOMAIN = "bad-domain"
    INACTIVE = "inactive"
    FULL = "full"
    TOO_LARGE = "too-large"
    SPAM = "spam"
    VIRUS = "virus"
    CONTENT = "content"
    BLOCKLIST = "blocklist"
    AUTHENTICATION = "authentication"
    SENDER = "sender"
    POLICY = "policy"
    RELAYING = "relaying"
    RATE = "rate"
    GREYLIST = "greylist"
    ROUTING = "routing"
    CONNECTION = "connection"
    TLS = "tls"
    PROTOCOL = "protocol"
    SYSTEM = "system"
    EXPIRED = "expired"
    OPERATOR = "operator"  # no rule says so: an order of ours, not an answer
    OTHER = "other"


CATEGORIES = tuple(map(str, Category))


class _Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One [[rule]] of the file."""

    category: Category
    enhanced: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


class _Test(Struct, frozen=True):
    """A rule, ready to be asked; an empty pattern holds always."""

    category: Category
    codes: re.Pattern[str]
    text: re.Pattern[str]

    def holds(self, codes: str, text: str) -> bool:
        return self.codes.match(codes) is not None and self.text.search(text) is not None


def classify(reply: Reply) -> Category:
    """Of any reply at all, the negative ones are meant."""
    return _classify(reply.code, reply.enhanced, reply.text[:_MOST_TEXT])


# Most replies of a busy hour are alike: one host says the same of many.
@lru_cache(maxsize=4096)
def _classify(code: int, enhanced: str, text: str) -> Category:
    codes, text = f"{code} {enhanced} ", _NEXT_LINE.sub(" ", text).lower()
    for test in _tests():
        if test.holds(codes, text):
            return test.category
    return Category.OTHER


@cache
def _tests() -> tuple[_Test, ...]:
    content = files("fastmta").joinpath("data", "bounces.toml").read_text("utf-8")
    rules = msgspec.convert(tomllib.loads(content)["rule"], tuple[_Rule, ...])
    return tuple(_Test(rule.category, _of_codes(rule), _any_of(rule.text)) for rule in rules)


def _of_codes(rule: _Rule) -> re.Pattern[str]:
    """Over "550 5.1.1 ": the reply code, then the enhanced one where there is one."""
    codes = _wildcards(rule.codes, x=r"\d") or r"\d+"
    enhanced = _wildcards(rule.enhanced, x="[45]") or r"\S*"
    return re.compile(f"(?:{codes}) (?:{enhanced}) ")


def _wildcards(patterns: tuple[str, ...], x: str) -> str:
    return "|".join(re.escape(one).replace("x", x).replace(r"\*", r"\d*") for one in patterns)


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in patterns))
