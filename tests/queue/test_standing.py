"""Holds on disk, and which of them a release ends."""

import json
from pathlib import Path

import pytest

from fastmta.queue.orders import MAX_HOLDS, Action, Order, Orders
from fastmta.queue.selector import Selector
from fastmta.queue.standing import FILE, CannotStand, Standing
from tests.queue.mail import envelope

ALL = Selector()
ACME, OTHER = Selector(tenant=("acme",)), Selector(tenant=("other",))


def hold(selector: Selector, **fields: object) -> Order:
    return Order(action=Action.HOLD, selector=selector, **fields)  # type: ignore[arg-type]


def release(selector: Selector = ALL, **fields: object) -> Order:
    return Order(action=Action.RELEASE, selector=selector, **fields)  # type: ignore[arg-type]


def test_a_hold_outlives_the_process(tmp_path: Path) -> None:
    first = Standing(tmp_path).given(hold(ACME, reason="complaints", by="eve"))
    assert first.number == 1
    standing = Standing(tmp_path)
    assert standing.holds == [first]
    standing.end([1])
    assert Standing(tmp_path).holds == []


def test_no_number_is_given_twice(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    numbers = [standing.given(hold(ACME)).number]
    standing.end(numbers)
    numbers.append(Standing(tmp_path).given(release(ACME)).number)
    numbers.append(Standing(tmp_path).given(hold(ACME)).number)
    assert numbers == [1, 2, 3]


def test_only_a_hold_stands(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.given(Order(action=Action.DELETE, selector=ACME))
    assert standing.holds == []


def test_a_release_ends_the_holds_that_it_covers(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    for selector in (ACME, OTHER, Selector(tenant=("acme",), domain=("a.test",))):
        standing.given(hold(selector))
    assert standing.given(release(ACME)).ends == (1, 3)
    assert standing.given(release()).ends == (1, 2, 3)
    assert standing.given(release(hold=2)).ends == (2,)
    # Until it is done they stand: a release that is cut short is none.
    assert len(Standing(tmp_path).holds) == 3


def test_a_release_on_one_worker_ends_what_is_for_that_one(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.given(hold(ACME))
    standing.given(hold(ACME, worker=1))
    assert standing.given(release(ACME, worker=1)).ends == (2,)


def test_there_is_no_such_hold(tmp_path: Path) -> None:
    with pytest.raises(CannotStand, match="there is no hold 5"):
        Standing(tmp_path).given(release(hold=5))


def test_holds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_HOLDS > 100
    monkeypatch.setattr("fastmta.queue.standing.MAX_HOLDS", 2)
    standing = Standing(tmp_path)
    standing.given(hold(ACME))
    standing.given(hold(ACME))
    with pytest.raises(CannotStand, match="2 holds stand already"):
        standing.given(hold(ACME))


def test_the_time_of_a_hold_is_over(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.given(hold(ACME, until=10.0))
    standing.given(hold(OTHER))
    standing.given(hold(OTHER, until=4e12))
    assert [order.number for order in standing.expired()] == [1]
    assert standing.next_end() == 10.0


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2}', b'{"holds": [{"number": 1}]}'])
def test_what_cannot_be_read_is_not_taken_for_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CannotStand, match=FILE):
        Standing(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"action": "delete", "selector": {}}, "order 1 is to delete; only a hold stands"),
        ({"action": "hold", "selector": {"reply": "((("}}, "hold 1: .*no regular expression"),
        ({"action": "hold", "selector": {"id": ["x"]}}, "hold 1: .*13 characters"),
    ],
)
def test_what_stands_is_a_hold_that_can_be_used(
    tmp_path: Path, order: dict[str, object], says: str
) -> None:
    """It is done to all mail that matches: an edited file must not delete it, nor stop it all."""
    content = {"version": 1, "last": 1, "holds": [order | {"number": 1}]}
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(CannotStand, match=says):
        Standing(tmp_path)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (hold(Selector(reply="(((")), "no regular expression"),
        (hold(Selector(id=("x",))), "13 characters"),
        (Order(action=Action.BOUNCE, selector=ACME, argument="450 later"), "500 to 599"),
    ],
)
def test_what_another_program_sent_is_checked_too(tmp_path: Path, order: Order, says: str) -> None:
    standing = Standing(tmp_path)
    with pytest.raises(CannotStand, match=says):
        standing.given(order)
    assert not standing.holds


def test_a_write_that_was_cut_short_leaves_the_old_file(tmp_path: Path) -> None:
    standing = Standing(tmp_path)
    standing.given(hold(ACME))
    (tmp_path / FILE).with_suffix(".new").write_bytes(b"{")
    assert [order.number for order in Standing(tmp_path).holds] == [1]
    assert Standing(tmp_path).given(hold(ACME)).number == 2


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    Standing(tmp_path).given(hold(ACME))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_what_is_in_force() -> None:
    orders, mail = Orders(), envelope(1, tenant="acme")
    assert not orders.any
    orders.stand([hold(ACME, number=1)])
    found = orders.find(mail, "")
    assert orders.any and found is not None and found.number == 1
    assert orders.find(envelope(2), "") is None
    assert orders.find(envelope(3, tenant="acme", held="1"), "") is None
    orders.stand([])
    assert not orders.any and orders.find(mail, "") is None


def test_a_command_goes_before_a_hold_and_ends() -> None:
    orders, mail = Orders(), envelope(1, tenant="acme")
    orders.stand([hold(ACME, number=1)])
    delete = Order(action=Action.DELETE, selector=ACME, number=2)
    tally = orders.begin(delete)
    assert orders.find(mail, "") is delete
    orders.count(delete, mail)
    assert (tally.envelopes, tally.recipients) == (1, 1)
    orders.end(delete)
    found = orders.find(mail, "")
    assert found is not None and found.number == 1


@pytest.mark.parametrize("action", [Action.RETRY, Action.RELEASE])
def test_what_is_only_for_mail_that_waits(action: Action) -> None:
    """Else what was just tried would be tried again at once."""
    orders = Orders()
    orders.begin(Order(action=action, selector=Selector(), number=2))
    assert not orders.any
