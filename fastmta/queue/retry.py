"""When to try again, as a pure function of how often and how long it was tried."""

from typing import Protocol


class Policy(Protocol):
    """Times in seconds; `config.Retry` is one."""

    @property
    def first(self) -> float: ...
    @property
    def max_interval(self) -> float: ...
    @property
    def give_up_after(self) -> float: ...


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


def next_due(policy: Policy, received: float, attempts: int, now: float) -> float | None:
    """The time of the next attempt; None when the last one was made.

    The last attempt is made when `give_up_after` has passed, not just before.
    """
    expiry = received + policy.give_up_after
    if now >= expiry:
        return None
    return min(now + interval(policy, attempts), expiry)
