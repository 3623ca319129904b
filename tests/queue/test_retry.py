"""The retry schedule, printed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Duration, Retry
from fastmta.queue.retry import interval, next_due

HOUR, DAY = 3600.0, 86400.0


def schedule(policy: Retry) -> list[float]:
    """Seconds after receipt of every attempt that fails, the first at 0."""
    times, now, attempts = [0.0], 0.0, 1
    while (due := next_due(policy, 0.0, attempts, now)) is not None:
        times.append(due)
        now, attempts = due, attempts + 1
    return times


def test_the_default_schedule_doubles_from_5_minutes_to_4_hours_for_5_days() -> None:
    times = schedule(Retry())
    minutes = [round(t / 60) for t in times]
    assert minutes[:9] == [0, 5, 15, 35, 75, 155, 315, 555, 795]
    assert {b - a for a, b in pairwise(minutes[6:-1])} == {240}
    assert times[-1] == 5 * DAY
    assert len(times) == 36


def test_the_last_attempt_is_made_when_the_time_is_over() -> None:
    policy = Retry(first=Duration(10), max_interval=Duration(10), give_up_after=Duration(25))
    assert schedule(policy) == [0, 10, 20, 25]


@pytest.mark.parametrize(
    ("attempts", "expected"), [(1, 300), (2, 600), (7, 4 * HOUR), (9999, 4 * HOUR)]
)
def test_intervals_double_up_to_a_bound(attempts: int, expected: float) -> None:
    assert interval(Retry(), attempts) == expected


@given(
    received=st.floats(0, 4e9),
    attempts=st.integers(1, 100_000),
    waited=st.floats(-1e6, 1e6),
)
def test_a_next_time_lies_ahead_and_not_behind_the_expiry(
    received: float, attempts: int, waited: float
) -> None:
    now = received + waited
    due = next_due(Retry(), received, attempts, now)
    if due is None:
        assert now >= received + 5 * DAY
    else:
        assert now < due <= received + 5 * DAY
