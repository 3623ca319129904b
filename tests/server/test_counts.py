"""Windows of what strangers did, beside a model that remembers each event."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config_reader import Rate
from fastmta.server.counts import PAGE, PARTS, Counts, Over, Row, Window

RATE = Rate(3, 60.0)
times = st.lists(st.floats(0, 500, allow_nan=False), max_size=60).map(sorted)


def window(rate: Rate = RATE, most: int = 100) -> Window:
    return Window(rate, most, 0.0)


def happen(one: Window, subject: str, *times: float) -> None:
    for time in times:
        one.add(subject, one.part(time), 1, time)


@given(times)
def test_no_window_has_more_than_the_rate_allows(asked: list[float]) -> None:
    one, taken = window(), list[float]()
    for time in asked:
        if not one.wait("a", time):
            happen(one, "a", time)
            taken.append(time)
    for first, fourth in zip(taken, taken[RATE.events :], strict=False):
        assert fourth - first >= RATE.seconds


@given(times)
def test_what_was_used_comes_back_a_part_late_at_most(happened: list[float]) -> None:
    one = window(Rate(1000, 60.0))
    happen(one, "a", *happened)
    for now in [*happened, 100.0, 250.0, 600.0]:
        if now < max(happened, default=0.0):
            continue
        exact = sum(now - 60.0 < time <= now for time in happened)
        late = sum(now - 60.0 * (1 + 1 / PARTS) - 1e-6 < time <= now for time in happened)
        assert exact <= one.used("a", now) <= late


@given(times, st.floats(0, 600, allow_nan=False))
def test_after_the_wait_one_more_is_allowed_and_not_before(
    happened: list[float], now: float
) -> None:
    one = window()
    now = max(now, *happened, 0.0)
    happen(one, "a", *happened)
    wait = one.wait("a", now)
    assert 0 <= wait <= 60.0 * (1 + 1 / PARTS) + 1e-6
    if wait > 1e-3:
        assert one.wait("a", now + wait - 1e-3)
    assert not one.wait("a", now + wait + 1e-6)


@given(st.permutations([(1, 2), (3, 1), (4, 5), (4, 1), (9, 2)]))
def test_what_others_tell_may_come_in_any_order(rows: list[tuple[int, int]]) -> None:
    one = window()
    for part, count in rows:
        one.add("a", part, count, 27.0)
    assert list(one.parts("a", 27.0)) == [(1, 2), (3, 1), (4, 6), (9, 2)]
    assert one.used("a", 27.0) == 11
    assert one.used("a", 74.9) == 8  # part 4 ends at 15 s
    assert one.used("a", 75.0) == 2


def test_what_is_told_too_late_does_not_count() -> None:
    one = window()
    one.add("a", 0, 5, 1000.0)
    assert one.used("a", 1000.0) == 0


def test_subjects_are_apart() -> None:
    one = window()
    happen(one, "a", 1.0, 1.0, 1.0)
    assert one.wait("a", 1.0)
    assert not one.wait("b", 1.0)


def test_the_table_is_bounded_and_the_oldest_go() -> None:
    one = window(most=100)
    happen(one, "first", 0.0)
    for number in range(10_000):
        happen(one, f"s{number}", 1.0)
        assert len(one) <= 100
    assert one.used("first", 1.0) == 0
    assert one.used("s9999", 1.0) == 1


def test_who_goes_on_stays_while_others_come_and_go() -> None:
    one = window(Rate(1000, 60.0), most=100)
    for number in range(500):
        happen(one, f"s{number}", 1.0)
        if number % 20 == 0:
            happen(one, "busy", 1.0)
    assert one.used("busy", 1.0) == 25


def test_subjects_without_effect_are_forgotten() -> None:
    one = window()
    happen(one, "a", 0.0)
    for now in (64.0, 128.0):
        one.turn(now)
    assert len(one) == 0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(subjects: Iterable[str], count: int) -> Counts:
    counts = Counts({"client.messages": Rate(5, 60.0)}, Clock())
    counts.add([Row("client.messages", each, int(1000 / 3), count) for each in subjects])
    return counts


def test_pages_tell_of_all_who_are_near_a_limit() -> None:
    counts = filled(map(str, range(2 * PAGE + 10)), 3)
    counts.add([Row("client.messages", "far", 333, 2)])
    pages = list(counts.pages())
    assert [len(page) for page in pages] == [PAGE, PAGE, 10]
    other = Counts({"client.messages": Rate(5, 60.0)}, Clock())
    for page in pages:
        other.add(page)
    assert list(other.pages()) == pages
    assert other["client.messages"].used("7", 1000.0) == 3
    assert other["client.messages"].used("far", 1000.0) == 0


def test_rows_of_a_limit_that_is_not_set_are_passed_over() -> None:
    counts = filled(["a"], 1)
    counts.add([Row("client.errors", "a", 333, 1)])
    assert len(counts) == 1


def test_who_is_over() -> None:
    counts = filled(["a", "b"], 4)
    assert list(counts.over()) == []
    counts.add([Row("client.messages", "b", 333, 2)])
    assert list(counts.over()) == [Over("client.messages", "b", 6, "5/m", 62.0)]
    counts.clear({"b"})
    assert list(counts.over()) == []
    assert counts["client.messages"].used("a", 1000.0) == 4


@pytest.mark.parametrize(
    ("rates", "used"),
    [
        ({"client.messages": Rate(9, 60.0)}, 4),
        ({"client.messages": Rate(5, 60.0), "client.errors": Rate(1, 1.0)}, 4),
        ({"client.messages": Rate(5, 3600.0)}, 0),
    ],
)
def test_another_configuration_keeps_what_has_the_same_time(
    rates: dict[str, Rate], used: int
) -> None:
    counts = filled(["a"], 4)
    counts.configure(rates)
    assert counts["client.messages"].used("a", 1000.0) == used
    assert counts["client.messages"].rate == rates["client.messages"]
