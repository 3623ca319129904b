"""Back-off of who fails to log in, with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.server import throttle
from fastmta.server.throttle import FIRST_PAUSE, FORGET_AFTER, Throttle, network_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(one: Throttle, key: str = "a", times: int = 1) -> float:
    pause = 0.0
    for _ in range(times):
        assert one.admit(key)
        pause = one.settle(key, failed=True)
    return pause


def test_threat_11_pauses_grow_and_end(clock: Clock) -> None:
    one = Throttle(3, 60.0, clock)
    schedule = []
    assert fail(one, times=2) == 0.0
    for _ in range(6):
        pause = fail(one)
        schedule.append(pause)
        assert not one.admit("a")
        clock.now += pause - 0.01
        assert not one.admit("a")
        clock.now += 0.01
    assert schedule == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert one.admit("b")


def test_threat_11_failures_under_way_count(clock: Clock) -> None:
    """A hundred guesses at a time are not a hundred guesses."""
    one = Throttle(3, 60.0, clock)
    assert [one.admit("a") for _ in range(5)] == [True, True, True, False, False]
    one.settle("a", failed=False)
    assert one.admit("a")
    fails = [one.settle("a", failed=True) for _ in range(3)]
    assert fails == [0.0, 0.0, 4.0]
    clock.now += 4.0
    assert [one.admit("a"), one.admit("a")] == [True, False]  # then one by one


def test_a_success_leaves_nothing_behind(clock: Clock) -> None:
    one = Throttle(3, 60.0, clock)
    assert one.admit("a")
    one.settle("a", failed=False)
    assert len(one) == 0


def test_threat_11_a_success_forgives_nothing(clock: Clock) -> None:
    """Else an attacker with an account of his own would guess at others between its logins."""
    one = Throttle(3, 60.0, clock)
    fail(one, times=2)
    assert one.admit("a")
    one.settle("a", failed=False)
    assert fail(one) == FIRST_PAUSE


def test_failures_are_forgotten(clock: Clock) -> None:
    one = Throttle(3, 60.0, clock)
    fail(one, times=3)
    clock.now += FORGET_AFTER
    assert fail(one, times=3) == FIRST_PAUSE


def test_threat_11_the_table_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 10)
    one = Throttle(1, 60.0, clock)
    for n in range(100):
        fail(one, str(n))
    assert len(one) <= 10
    assert one.admit("0")
    assert not one.admit("99")


def test_what_gave_way_can_still_be_settled(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 1)
    one = Throttle(1, 60.0, clock)
    assert one.admit("a")
    assert one.admit("b")
    one.settle("a", failed=False)
    assert one.settle("b", failed=True) == FIRST_PAUSE


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 100)), max_size=60))
def test_no_pause_is_longer_than_the_longest(steps: list[tuple[str, bool, float]]) -> None:
    clock = Clock()
    one = Throttle(3, 60.0, clock)
    for key, failed, seconds in steps:
        if one.admit(key):
            assert 0.0 <= one.settle(key, failed=failed) <= 60.0
        clock.now += seconds
    clock.now += 60.0
    assert all(map(one.admit, "abc"))


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_threat_11_what_counts_as_one_client(client: str, network: str) -> None:
    assert network_of(client) == network
