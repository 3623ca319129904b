"""Ready queues: in whose turn jobs leave, how many fit, and what an order takes out of them."""

import pytest

from fastmta.mail.envelope import Envelope, Priority
from fastmta.queue.ready import Job, ReadyQueue


def job(name: str, priority: Priority = Priority.NORMAL, tenant: str = "") -> Job:
    return Job(Envelope(1, 0, name, "to.test", [], 0.0, 0, priority=priority, tenant=tenant))


def names(queue: ReadyQueue) -> str:
    return " ".join(each.envelope.sender for each in iter(queue.take, None))


def test_one_tenant_and_priority_is_first_in_first_out_and_bounded() -> None:
    queue = ReadyQueue(3)
    assert [queue.put(job(name)) for name in "abcd"] == [True, True, True, False]
    assert len(queue) == 3
    assert names(queue) == "a b c"
    assert queue.take() is None


def test_urgent_mail_finds_room_in_a_queue_full_of_bulk_and_leaves_first() -> None:
    queue = ReadyQueue(100)
    while queue.put(job("b", Priority.BULK)):
        pass
    assert queue.put(job("u", Priority.URGENT))
    assert len(queue) == 101
    assert names(queue).startswith("u b b")


def test_tenants_take_turns_by_weight() -> None:
    queue = ReadyQueue(100, lambda tenant: 2 if tenant == "a" else 1)
    for number in range(4):
        for tenant in "ab":
            queue.put(job(f"{tenant}{number}", tenant=tenant))
    assert names(queue) == "a0 a1 b0 a2 a3 b1 b2 b3"


def test_after_turns_it_is_a_plain_queue_again() -> None:
    queue = ReadyQueue(2)
    for name, tenant in (("a", "x"), ("b", "y")):
        queue.put(job(name, tenant=tenant))
    assert names(queue) == "a b"
    assert [queue.put(job(name)) for name in "cde"] == [True, True, False]
    assert names(queue) == "c d"


def test_an_order_takes_what_matches_and_leaves_the_rest_in_its_order() -> None:
    queue = ReadyQueue(100)
    for number in range(6):
        queue.put(job(str(number), tenant="ab"[number % 2]))
    taken = queue.take_matching(lambda each: int(each.envelope.sender) % 3 == 0)
    assert sorted(each.envelope.sender for each in taken) == ["0", "3"]
    assert names(queue) == "2 1 4 5"
    queue.put(job("last"))
    assert [each.envelope.sender for each in queue.take_all()] == ["last"]
    assert not queue


@pytest.mark.parametrize("tenants", ["a", "ab"])
def test_an_order_loses_nothing_that_came_before_the_limit_was_lowered(tenants: str) -> None:
    queue = ReadyQueue(100)
    for number in range(8):
        queue.put(job(str(number), tenant=tenants[number % len(tenants)]))
    queue.limit = 2
    assert [each.envelope.sender for each in queue.take_matching(lambda _: False)] == []
    assert not queue.has_refused
    assert len(queue) == 8
    assert names(queue) == "0 1 2 3 4 5 6 7"


def test_who_was_refused_hears_of_room_once_half_of_it_is_free() -> None:
    queue = ReadyQueue(4)
    for _ in range(5):
        queue.put(job("b", Priority.BULK))
    for _ in range(4):
        queue.put(job("n"))
    assert queue.has_refused
    heard = []
    while left := queue.take():
        heard.append(bool(queue.regained(left)))
    # By weight four normal ones leave first; then, of four bulk ones, one is left.
    assert heard == [False] * 6 + [True, False]
    assert not queue.has_refused
