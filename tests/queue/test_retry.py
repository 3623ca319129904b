"""The retry schedule, printed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Duration, Retry, RetryDomain
from fastmta.config_reader import DomainPattern
from fastmta.queue.retry import JITTER, Policy, interval, next_due, policies, rule_of, spread

HOUR, DAY = 3600.0, 86400.0
FIRST = 1_700_000_000_000 << 20 | 1 << 8  # an id, as the spool gives it


def schedule(policy: Policy, message: int = FIRST) -> list[float]:
    """Seconds after receipt of every attempt that fails, the first at 0."""
    times, now, attempts = [0.0], 0.0, 1
    while (due := next_due(policy, message, 0.0, attempts, now)) is not None:
        times.append(due)
        now, attempts = due, attempts + 1
    return times


def minutes(policy: Policy, message: int) -> list[float]:
    return [round(t / 60, 1) for t in schedule(policy, message)]


def test_the_default_schedule_doubles_from_5_minutes_to_4_hours_for_5_days() -> None:
    """Of one message, and of the next: a pause is up to a fifth longer, by the message's id."""
    one, other = minutes(Retry(), FIRST), minutes(Retry(), FIRST + 256)
    assert one[:9] == [0.0, 5.2, 15.6, 37.1, 81.8, 162.5, 340.5, 627.5, 896.8]
    assert other[:9] == [0.0, 5.8, 16.6, 40.5, 84.7, 166.5, 338.2, 620.0, 900.5]
    for times in (one, other):
        assert times[-1] == 5 * DAY / 60
        assert all(240 <= b - a <= 288 for a, b in pairwise(times[7:-1]))


def test_the_last_attempt_is_made_when_the_time_is_over() -> None:
    policy = Retry(first=Duration(10), max_interval=Duration(10), give_up_after=Duration(25))
    times = schedule(policy)
    assert len(times) == 4 and times[-1] == 25


@pytest.mark.parametrize(
    ("attempts", "expected"), [(1, 300), (2, 600), (7, 4 * HOUR), (9999, 4 * HOUR)]
)
def test_intervals_double_up_to_a_bound(attempts: int, expected: float) -> None:
    assert interval(Retry(), attempts) == expected


def test_what_was_deferred_together_comes_back_evenly_spread_and_in_other_company() -> None:
    """Ten thousand messages of one second: each tenth of the time that pauses differ by has its
    share, and who was close after one attempt is not after the next."""
    messages = [FIRST + (n << 8) for n in range(10_000)]
    first, second = ([spread(m, attempts) for m in messages] for attempts in (1, 2))
    for factors in (first, second):
        tenths = [int((factor - 1) / JITTER * 10) for factor in factors]
        assert all(800 < tenths.count(n) < 1200 for n in range(10))
    together = [b for a, b in zip(first, second, strict=True) if a < 1 + JITTER / 10]
    assert max(together) - min(together) > 0.9 * JITTER


@given(
    message=st.integers(0, 2**64 - 1),
    received=st.floats(0, 4e9),
    attempts=st.integers(1, 100_000),
    waited=st.floats(-1e6, 1e6),
)
def test_a_next_time_lies_ahead_and_not_behind_the_expiry(
    message: int, received: float, attempts: int, waited: float
) -> None:
    now = received + waited
    due = next_due(Retry(), message, received, attempts, now)
    if due is None:
        assert now >= received + 5 * DAY
    else:
        assert now < due <= received + 5 * DAY
        least = min(now + interval(Retry(), attempts), received + 5 * DAY)
        assert due >= least


def test_the_first_rule_that_matches_sets_what_it_names() -> None:
    def rule(domain: str, **settings: Duration) -> RetryDomain:
        return RetryDomain(domain=DomainPattern(domain), **settings)

    retry = Retry(
        max_interval=Duration(HOUR),
        domain=(
            rule("slow.test", first=Duration(600)),
            rule("*.test", give_up_after=Duration(DAY), max_interval=Duration(1800)),
        ),
    )
    policy_for = policies(retry)

    def times(domain: str) -> tuple[float, float, float]:
        policy = policy_for(domain)
        return policy.first, policy.max_interval, policy.give_up_after

    assert times("slow.test") == (600, HOUR, 5 * DAY)
    assert times("a.test") == (300, 1800, DAY)
    assert times("else.example") == times("[192.0.2.1]") == (300, HOUR, 5 * DAY)
    assert policy_for("a.test") is policy_for("b.test")
    names = [rule_of(retry, domain) for domain in ("slow.test", "a.test", "else.example")]
    assert names == ["slow.test", "*.test", ""]
