"""Whose turn it is, printed as a schedule."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from fastmta.store.turns import Turns

URGENT, NORMAL, BULK = range(3)


def schedule(turns: Turns[str]) -> str:
    return " ".join(iter(turns.take, None))


def filled(*items: tuple[int, str, int]) -> Turns[str]:
    """So many of a priority and a tenant: "a1", "a2", ..."""
    turns: Turns[str] = Turns()
    for priority, tenant, count in items:
        for number in range(1, count + 1):
            turns.put(priority, tenant, f"{tenant}{number}")
    return turns


def test_one_tenant_of_one_priority_is_first_in_first_out() -> None:
    assert schedule(filled((BULK, "a", 5))) == "a1 a2 a3 a4 a5"


def test_tenants_take_turns() -> None:
    turns = filled((NORMAL, "a", 5), (NORMAL, "b", 2), (NORMAL, "c", 1))
    assert schedule(turns) == "a1 b1 c1 a2 b2 a3 a4 a5"


def test_a_tenant_that_weighs_more_has_more_turns_in_a_row() -> None:
    turns: Turns[str] = Turns(lambda tenant: 3 if tenant == "a" else 1)
    for number in range(5):
        for tenant in "ab":
            turns.put(NORMAL, tenant, f"{tenant}{number}")
    assert schedule(turns) == "a0 a1 a2 b0 a3 a4 b1 b2 b3 b4"


def test_priorities_take_turns_by_weight() -> None:
    turns = filled((BULK, "b", 4), (NORMAL, "n", 10), (URGENT, "u", 40))
    names = "".join(name[0] for name in iter(turns.take, None))
    assert names == "u" * 16 + "nnnnb" + "u" * 16 + "nnnnb" + "u" * 8 + "nnbb"


def test_what_is_urgent_waits_for_five_others_at_the_most() -> None:
    turns = filled((BULK, "b", 1000), (NORMAL, "n", 1000))
    for _ in range(333):
        turns.take()
    turns.put(URGENT, "u", "urgent")
    assert "urgent" in [turns.take() for _ in range(6)]


def test_alone_a_priority_uses_up_no_turns() -> None:
    turns = filled((URGENT, "u", 100))
    for _ in range(99):
        turns.take()
    turns.put(NORMAL, "n", "n1")
    assert schedule(turns) == "u100 n1"


def test_what_is_given_back_comes_next() -> None:
    turns = filled((NORMAL, "a", 2), (NORMAL, "b", 2))
    assert (turns.take(), turns.take()) == ("a1", "b1")
    turns.put_first(NORMAL, "b", "b1")
    assert schedule(turns) == "b1 a2 b2"


def test_only_priorities_up_to_the_last_that_is_asked_for() -> None:
    turns = filled((NORMAL, "n", 1), (URGENT, "u", 1))
    assert [turns.take(URGENT), turns.take(URGENT)] == ["u1", None]
    assert (len(turns), turns.of(NORMAL)) == (1, 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_nothing_is_lost_or_doubled(steps: list[tuple[int, str, bool]]) -> None:
    turns: Turns[int] = Turns()

    def taken() -> Iterator[int]:
        for number, (priority, tenant, take) in enumerate(steps):
            turns.put(priority, tenant, number)
            if take and (item := turns.take()) is not None:
                yield item
        yield from iter(turns.take, None)

    assert sorted(taken()) == list(range(len(steps)))
    assert len(turns) == 0
