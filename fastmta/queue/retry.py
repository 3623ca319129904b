"""When to try again, as a pure function of how often and how long it was tried."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

from fastmta.config import Retry
from fastmta.config_reader import DomainPattern, covers

JITTER = 0.2  # of a pause, added at the most
_REMEMBERED = 10_000  # domains whose policy is known


class Policy(Protocol):
    """Times in seconds; `config.Retry` is one."""

    @property
    def first(self) -> float: ...
    @property
    def max_interval(self) -> float: ...
    @property
    def give_up_after(self) -> float: ...


PolicyFor = Callable[[str], Policy]  # of a destination domain, in normal form


def policies(retry: Retry) -> PolicyFor:
    """By the first [[retry.domain]] that matches; what it leaves out is as in [retry]."""
    if not retry.domain:
        return lambda domain: retry
    rules = [(rule.domain, retry.merged(rule)) for rule in retry.domain]

    @lru_cache(maxsize=_REMEMBERED)
    def policy_for(domain: str) -> Policy:
        name = DomainPattern(domain)
        return next((policy for pattern, policy in rules if covers(pattern, name)), retry)

    return policy_for


def rule_of(retry: Retry, domain: str) -> str:
    """The pattern of the [[retry.domain]] that a domain has its policy from; "": of none."""
    name = DomainPattern(domain)
    return next((str(rule.domain) for rule in retry.domain if covers(rule.domain, name)), "")


def interval(policy: Policy, attempts: int) -> float:
    """Seconds to wait after the given number of attempts (1 or more): doubling, then steady.

    RFC 5321 section 4.5.4.1: two attempts in the first hour, then every two or three hours.
    """
    # 2 ** 64 exceeds every interval that can be written down; more would overflow a float.
    return min(policy.first * 2.0 ** min(attempts - 1, 64), policy.max_interval)


# Seconds after the expiry in which an attempt that falls due on it may still be made.
LAST_ATTEMPT = 3600.0


def is_expired(policy: Policy, received: float, due: float, now: float) -> bool:
    """Whether no attempt will be made any more, wherever the envelope waits."""
    expiry = received + policy.give_up_after
    return now >= expiry + (LAST_ATTEMPT if due == expiry else 0.0)


def spread(message: int, attempts: int) -> float:
    """By how much a pause is longer than its interval: 1 to 1 + JITTER, the same at each run.

    What was deferred together does not come back together, nor in the same company. Never
    shorter: a host that greylists counts from the attempt.
    """
    digest = blake2b(b"%x %d" % (message, attempts), digest_size=4).digest()
    return 1 + JITTER * int.from_bytes(digest) / 2**32


def next_due(
    policy: Policy, message: int, received: float, attempts: int, now: float
) -> float | None:
    """The time of the next attempt; None when the last one was made.

    The last attempt is made when `give_up_after` has passed, not just before.
    """
    expiry = received + policy.give_up_after
    if now >= expiry:
        return None
    return min(now + interval(policy, attempts) * spread(message, attempts), expiry)
