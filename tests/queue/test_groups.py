"""Limits that many paths share beside their own: exact for both, fair, and told which refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fastmta.config_reader import Rate
from fastmta.config_shaping import SlowDownRule
from fastmta.mail.reply import Reply
from fastmta.queue.adapt import SlowDownRules
from fastmta.queue.limits import Group, Limits, Shape
from fastmta.queue.meter import Meter
from fastmta.queue.requests import Allowance
from fastmta.queue.shared_path import PathReport
from tests.queue.exchange import Sender, Server, shape
from tests.queue.test_arbiter import most_in_a_window, total_open

SLOW = SlowDownRules([SlowDownRule(pattern="slow down")])
BUSY = Reply(421, "4.7.0", "slow down")
FINE = Reply(250, "2.0.0", "OK")


def of_group(path: str, shared: Limits, **own: object) -> Shape:
    return structs.replace(shape(path, **own), site=path, group=Group("big", shared.shared))


def both(server: Server, **asked: tuple[str, ...]) -> tuple[PathReport, PathReport]:
    """The only path that is asked for, and the only group."""
    allowed = server.loop.allow(Allowance(**asked))
    ((path,), (group,)) = allowed.paths, allowed.groups
    return path, group


def test_the_connections_of_a_group_are_those_of_all_its_paths_in_all_workers() -> None:
    server = Server(2)
    shapes = [of_group(name, Limits(connections=3), connections=2) for name in "abc"]
    made = [Sender(server, worker, each) for worker in range(2) for each in shapes]
    for each in made:
        each.wants_connections = 2
        each.go()
    for _ in range(600):
        server.world.run(0.1)
        assert total_open(made) <= 3
        for name in "abc":
            assert total_open([each for each in made if each.shape.path == name]) <= 2
    turns = [len(each.opened) for each in made]
    assert min(turns) >= 5  # all have their turn
    assert total_open(made) == 3


def test_a_path_that_its_own_limit_holds_up_does_not_hold_up_the_others() -> None:
    server = Server(1)
    first = Sender(server, 0, of_group("a", Limits(connections=4), connections=1))
    other = Sender(server, 0, of_group("b", Limits(connections=4), connections=9))
    for each in (first, other):
        each.wants_connections = 9
        each.go()
    server.world.run(1)
    assert (first.open, other.open) == (1, 3)
    path, group = both(server, paths=("a",))
    assert (path.group, path.refused_by_group) == ("big", False)
    assert (group.path, group.open, group.connections) == ("big", 4, 4)
    path, _ = both(server, paths=("b",))
    assert path.refused_by_group


def test_what_one_path_gives_back_another_gets_at_once() -> None:
    server = Server(2)
    first = Sender(server, 0, of_group("a", Limits(connections=1)))
    other = Sender(server, 1, of_group("b", Limits(connections=1)))
    first.wants_connections = other.wants_connections = 1
    first.go()
    server.world.run(0.1)
    other.go()
    server.world.run(0.1)
    assert (first.open, other.open) == (0, 1)  # it was the other's turn
    other.close()  # and asks again, behind the first
    server.world.run(0.1)
    assert (first.open, other.open) == (1, 0)
    server.kill(0)
    server.world.run(0.1)
    assert other.open == 1


@pytest.mark.parametrize("own", [None, Rate.parse("1000/s"), Rate.parse("110/h")])
def test_a_rate_of_a_group_is_shared_evenly_and_never_exceeded(own: Rate | None) -> None:
    server = Server(2)
    rate = Rate.parse("600/h")
    names = "abcdef"
    made = [
        Sender(server, i % 2, of_group(name, Limits(message_rate=rate), message_rate=own))
        for i, name in enumerate(names)
    ]
    for each in made:
        each.wants_messages = 10_000
        each.go()
    server.world.run(2 * 3600)
    begun = [time for each in made for time in each.begun]
    assert most_in_a_window(begun, rate) <= 600
    assert 0.995 * 1200 <= len(begun) <= 1201
    shares = [len(each.begun) for each in made]
    assert max(shares) - min(shares) <= 2
    path, group = both(server, paths=("a",))
    assert path.refused_by_group
    assert 0 < group.next_message <= 6


def test_the_stricter_of_two_rates_holds() -> None:
    server = Server(1)
    rate = Rate.parse("60/h")
    group = Limits(message_rate=Rate.parse("100/s"))
    path = Sender(server, 0, of_group("a", group, message_rate=rate))
    other = Sender(server, 0, of_group("b", group))
    for each in (path, other):
        each.wants_messages = 10_000
        each.go()
    server.world.run(60)
    assert len(path.begun) <= 2
    assert len(other.begun) >= 0.95 * 6000
    assert most_in_a_window(path.begun + other.begun, Rate.parse("100/s")) <= 100


def test_a_slow_down_at_one_path_slows_all_of_its_group_and_all_recover() -> None:
    server = Server(2, SLOW)
    shapes = [of_group(name, Limits(connections=8), connections=8) for name in "ab"]
    made = [Sender(server, worker, each) for worker, each in enumerate(shapes)]
    for each in made:
        each.wants_connections = 4
        each.go()
    server.world.run(1)
    assert total_open(made) == 8
    made[0].permits.heard(shapes[0], BUSY)
    server.world.run(1)
    _, group = both(server, paths=("b",))
    assert (group.connections, total_open(made)) == (4, 4)
    assert group.slowed is not None and group.slowed.reply == str(BUSY)
    for _ in range(700):
        made[1].permits.heard(shapes[1], FINE)  # what the other delivers counts for the group
        server.world.run(1)
    _, group = both(server, paths=("b",))
    assert (group.connections, group.slowed) == (8, None)


def test_a_group_without_a_rate_is_slowed_to_half_of_what_it_did() -> None:
    server = Server(2, SLOW)
    made = [Sender(server, i, of_group(name, Limits())) for i, name in enumerate("ab")]
    for each in made:
        each.wants_connections = 1
        each.go()
    for _ in range(300):
        for each in made:
            each.permits.heard(each.shape, FINE)
        server.world.run(0.1)
    made[0].permits.heard(made[0].shape, BUSY)
    server.world.run(0.1)
    _, group = both(server, paths=("a",))
    assert group.rate == pytest.approx(10, rel=0.05)
    made[1].wants_messages = 10**6
    made[1].go()
    server.world.run(20)
    assert len(made[1].begun) == pytest.approx(200, rel=0.1)


def test_a_reload_may_put_a_path_into_a_group_and_take_it_out() -> None:
    server = Server(1)
    made = [Sender(server, 0, shape(name, connections=4)) for name in "ab"]
    for each in made:
        each.wants_connections = 4
        each.go()
    server.world.run(1)
    assert total_open(made) == 8
    for each in made:
        each.shape = of_group(each.shape.path, Limits(connections=2), connections=4)
        each.wants_connections = 5  # asks, and so tells of the new limits
        each.go()
    server.world.run(1)
    assert total_open(made) == 2
    for each in made:
        each.shape = shape(each.shape.path, connections=4)
        each.go()
    server.world.run(2)
    assert total_open(made) == 8


def test_a_group_that_nobody_uses_is_forgotten() -> None:
    server = Server(1)
    path = Sender(server, 0, of_group("a", Limits(message_rate=Rate.parse("2/h"))))
    path.wants_messages = 1
    path.go()
    server.world.run(2)
    path.permits.forget(path.shape, path)
    server.world.run(60)
    assert [each.path for each in server.loop.arbiter.groups()] == ["big"]  # its rate counts
    server.world.run(2 * 3600)
    assert server.loop.arbiter.groups() == []
    assert server.loop.arbiter.next_time() is None


def test_what_is_not_given_comes_back() -> None:
    meter = Meter(Rate.parse("100/s"), 100.0, 0.0)
    assert meter.take("a", 0.0) == 10
    meter.keep("a", 1)
    assert meter.take("b", 0.0) == 0
    assert meter.take("b", 0.01) == 10  # 9 came back, and one has grown


# Any schedule of what workers do, and of when they die.

STEP = st.one_of(
    st.tuples(st.just("messages"), st.integers(0, 8), st.integers(1, 40)),
    st.tuples(st.just("connect"), st.integers(0, 8), st.integers(0, 6)),
    st.tuples(st.just("close"), st.integers(0, 8), st.integers(1, 6)),
    st.tuples(st.just("forget"), st.integers(0, 8), st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("run"), st.just(0), st.sampled_from([0, 1, 30, 100, 1000, 5000])),
    st.tuples(st.just("step"), st.just(0), st.integers(1, 3)),
)


class Schedule:
    """Three workers at three paths of a group; what they did stays known when they are dead."""

    def __init__(self, own: Rate, shared: Rate) -> None:
        self.server = Server(3)
        self.own, self.shared = own, shared
        group = Limits(connections=4, message_rate=shared, connection_rate=shared)
        self.shapes = [
            of_group(name, group, connections=3, message_rate=own, connection_rate=own)
            for name in "abc"
        ]
        self.begun: list[list[float]] = [[], [], []]  # by path
        self.opened: list[list[float]] = [[], [], []]
        self.made = [self._sender(number) for number in range(9)]

    def _sender(self, number: int) -> Sender:
        path = number % 3
        sender = Sender(self.server, number // 3, self.shapes[path])
        sender.begun, sender.opened = self.begun[path], self.opened[path]
        return sender

    def do(self, what: str, number: int, count: int) -> None:
        sender = self.made[number]
        if what == "messages":
            sender.wants_messages += count
            sender.go()
        elif what == "connect":
            sender.wants_connections = count
            sender.go()
        elif what == "close":
            for _ in range(count):
                sender.close()
        elif what == "forget":
            sender.permits.forget(sender.shape, sender)
            sender.open = sender.wants_connections = sender.wants_messages = 0
        elif what == "die":
            self.server.kill(number)
            self.server.start(number)
            for each in range(3 * number, 3 * number + 3):
                self.made[each] = self._sender(each)
        elif what == "run":
            self.server.world.run(count / 100)
        else:  # only some of what is under way arrives
            for _ in range(count):
                if self.server.world._soon:
                    self.server.world._soon.popleft()()
        self.check()

    def check(self) -> None:
        assert total_open(self.made) <= 4
        for path in range(3):
            assert total_open(self.made[path::3]) <= 3
        for kind in (self.begun, self.opened):
            assert most_in_a_window([time for each in kind for time in each], self.shared) <= (
                self.shared.events
            )
            assert all(most_in_a_window(each, self.own) <= self.own.events for each in kind)

    def end(self) -> None:
        """Whatever was, nothing is lost: all get what they want in the end."""
        for each in self.made:
            each.wants_connections, each.wants_messages = 9, 0
            each.go()
        self.server.world.run(400)
        self.check()
        assert total_open(self.made) >= 3  # one may just have been called back, for others
        for each in self.made:
            each.wants_messages = 1
            each.go()
        self.server.world.run(400)
        self.check()
        assert not any(each.wants_messages for each in self.made)
        for group in self.server.loop.arbiter._groups.values():
            assert group.held == sum(path.held for path in self.server.loop.arbiter._paths.values())


RATES = st.sampled_from([Rate.parse(text) for text in ("3/s", "40/s", "5/m", "60/m")])


@settings(max_examples=40, deadline=None)
@given(own=RATES, shared=RATES, steps=st.lists(STEP, max_size=40))
def test_no_schedule_exceeds_either_limit_or_loses_anything(
    own: Rate, shared: Rate, steps: list[tuple[str, int, int]]
) -> None:
    schedule = Schedule(own, shared)
    for step in steps:
        schedule.do(*step)
    schedule.end()
