"""Limits that workers share: exact, fair, and free again when a worker dies."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fastmta.config_reader import Rate
from fastmta.config_shaping import SlowDownRule
from fastmta.mail.reply import Reply
from fastmta.queue.adapt import SlowDownRules
from fastmta.queue.arbiter import Arbiter
from fastmta.queue.limits import News, Request, Shape
from fastmta.queue.permits import local_permits
from fastmta.queue.requests import Allowance
from tests.queue.exchange import Sender, Server, World, shape

HOUR = 3600.0


def most_in_a_window(times: list[float], rate: Rate) -> int:
    """The most events that any window of the rate's length has."""
    times = sorted(times)
    most = first = 0
    for last, time in enumerate(times):
        while times[first] + rate.seconds <= time:
            first += 1
        most = max(most, last - first + 1)
    return most


def senders(server: Server, limited: Shape, messages: int = 0) -> list[Sender]:
    made = [Sender(server, worker, limited) for worker in server.workers]
    for each in made:
        each.wants_messages = messages
        each.go()
    return made


def total_open(made: list[Sender]) -> int:
    return sum(each.open for each in made)


def test_a_limit_of_1_over_4_workers_is_never_2_and_all_have_their_turn() -> None:
    server = Server(4)
    made = [Sender(server, worker, shape(connections=1)) for worker in range(4)]
    for each in made:
        each.wants_connections = 3
        each.go()
    for _ in range(400):
        server.world.run(0.1)
        assert total_open(made) <= 1
    turns = [len(each.opened) for each in made]
    assert min(turns) >= 9
    assert max(turns) - min(turns) <= 1
    changes = sorted(time for each in made for time in each.opened)
    assert all(later - sooner > 0.99 for sooner, later in pairwise(changes[1:]))


def test_connections_are_shared_evenly_when_another_worker_comes() -> None:
    server = Server(2)
    first, second = (Sender(server, worker, shape(connections=8)) for worker in range(2))
    first.wants_connections = second.wants_connections = 100
    first.go()
    server.world.run(1)
    assert (first.open, second.open) == (8, 0)
    second.go()
    server.world.run(10)
    assert (first.open, second.open) == (4, 4)
    recalls = first.recalls
    server.world.run(10)
    assert (first.recalls, second.recalls) == (recalls, 0)


def test_a_dead_worker_gives_its_connections_back() -> None:
    server = Server(2)
    first, second = (Sender(server, worker, shape(connections=3)) for worker in range(2))
    first.wants_connections = 3
    first.go()
    server.world.run(1)
    assert first.open == 3
    server.kill(0)
    second.wants_connections = 3
    second.go()
    server.world.run(0.1)
    assert second.open == 3


def test_a_connection_that_was_granted_and_not_opened_comes_back() -> None:
    server = Server(2)
    first, second = (Sender(server, worker, shape(connections=1)) for worker in range(2))
    assert not first.permits.connect(first.shape, first)  # and then it wants none any more
    second.wants_connections = 1
    server.world.settle()
    second.go()
    server.world.run(2.1)
    assert second.open == 1


def test_a_path_that_is_forgotten_frees_all_that_it_had() -> None:
    server = Server(2)
    first, second = (Sender(server, worker, shape(connections=2)) for worker in range(2))
    first.wants_connections = second.wants_connections = 2
    first.go()
    server.world.run(0.5)
    first.permits.forget(first.shape, first)
    second.go()
    server.world.run(0.1)
    assert second.open == 2
    (report,) = server.loop.arbiter.report()
    assert (report.open, report.connections) == (2, 2)


def test_a_path_that_comes_and_goes_does_not_take_what_was_for_its_forerunner() -> None:
    """The grant for the first is under way when it is forgotten, and the second asks."""
    server = Server(1)
    path = Sender(server, 0, shape(connections=1))
    assert not path.permits.connect(path.shape, path)
    while not server.loop.arbiter.report():
        server.world._soon.popleft()()
    path.permits.forget(path.shape, path)
    path.wants_connections = 5
    path.go()
    server.world.run(5)
    assert path.open == 1


@pytest.mark.parametrize("text", ["60/m", "5000/h"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_rate_over_an_hour(text: str, workers: int) -> None:
    server = Server(workers)
    rate = Rate.parse(text)
    made = senders(server, shape(message_rate=rate), messages=100_000)
    server.world.run(2 * HOUR)
    begun = sorted(time for each in made for time in each.begun)
    allowed = rate.events / rate.seconds * 2 * HOUR
    assert 0.998 * allowed <= len(begun) <= allowed + 1
    assert most_in_a_window(begun, rate) <= rate.events
    # Smooth, not in bursts: what ten seconds have is little above their part of the whole.
    assert most_in_a_window(begun, Rate(0, 10.0)) <= 10 * rate.events / rate.seconds + 3
    shares = [len(each.begun) for each in made]
    assert max(shares) - min(shares) <= 0.01 * max(shares) + 1


@pytest.mark.parametrize("text", ["100/s", "1000/s", "1/h", "20000/d"])
def test_a_rate_is_reached_and_never_exceeded(text: str) -> None:
    server = Server(3)
    rate = Rate.parse(text)
    made = senders(server, shape(message_rate=rate), messages=100_000)
    seconds = max(3.0, min(4 * rate.seconds, 5 * HOUR))
    server.world.run(seconds)
    begun = [time for each in made for time in each.begun]
    assert len(begun) >= 0.95 * rate.events * seconds / rate.seconds
    assert most_in_a_window(begun, rate) <= rate.events
    assert server.messages <= 12 * seconds * min(1, rate.events / rate.seconds) + 20


def test_a_fast_rate_costs_few_messages() -> None:
    server = Server(1)
    (made,) = senders(server, shape(message_rate=Rate.parse("1000/s")), messages=100_000)
    server.world.run(10)
    assert len(made.begun) > 9900
    assert server.messages <= 110


def test_a_connection_rate_holds_over_all_workers() -> None:
    server = Server(2)
    rate = Rate.parse("30/m")
    made = [Sender(server, worker, shape(connection_rate=rate)) for worker in range(2)]
    for each in made:
        each.wants_connections = 1000
        each.go()
    for _ in range(240):
        server.world.run(1)
        for each in made:
            while each.open:
                each.close()
    opened = [time for each in made for time in each.opened]
    assert most_in_a_window(opened, rate) <= 30
    assert len(opened) >= 110


def test_without_a_rate_transactions_are_not_asked_for() -> None:
    server = Server(1)
    path = Sender(server, 0, shape())
    path.wants_connections = 1
    path.go()
    server.world.settle()
    before = server.messages
    path.wants_messages = 10_000
    path.go()
    server.world.run(5)
    assert len(path.begun) == 10_000
    assert server.messages == before


def test_a_lowered_limit_calls_connections_back() -> None:
    server = Server(2)
    made = [Sender(server, worker, shape(connections=10)) for worker in range(2)]
    for each in made:
        each.wants_connections = 5
        each.go()
    server.world.run(1)
    assert total_open(made) == 10
    for each in made:
        each.shape = shape(connections=4)
    made[0].wants_connections = 6  # one of them asks again, and so the new limit is known
    made[0].go()
    server.world.run(0.5)
    assert total_open(made) == 4
    server.world.run(30)
    assert total_open(made) == 4


def test_a_raised_limit_wakes_who_waits() -> None:
    server = Server(2)
    made = [Sender(server, worker, shape(connections=1)) for worker in range(2)]
    for each in made:
        each.wants_connections = 5
        each.go()
    server.world.run(5)
    assert total_open(made) == 1
    for each in made:
        each.shape = shape(connections=10)
        each.go()
    server.world.run(0.5)
    assert total_open(made) == 10


def test_a_rate_that_is_set_in_flight_holds_for_transactions_at_once() -> None:
    server = Server(1)
    path = Sender(server, 0, shape())
    path.wants_connections = 1
    path.go()
    server.world.run(1)
    rate = Rate.parse("10/m")
    path.shape = shape(message_rate=rate)
    path.wants_messages = 1000
    path.go()
    server.world.run(600)
    assert most_in_a_window(path.begun, rate) <= 10
    assert len(path.begun) >= 98
    path.shape = shape()
    path.go()
    server.world.run(1)
    assert path.wants_messages == 0


def test_the_strictest_limit_holds_while_workers_know_different_ones() -> None:
    server = Server(2)
    old, new = (Sender(server, worker, shape(connections=9)) for worker in range(2))
    new.shape = shape(connections=2)
    old.wants_connections = new.wants_connections = 9
    new.go()
    server.world.run(0.1)
    old.go()
    server.world.run(5)
    assert old.open + new.open == 2


def test_what_nobody_uses_is_forgotten_once_its_rate_does_not_matter() -> None:
    server = Server(1)
    path = Sender(server, 0, shape(message_rate=Rate.parse("2/h")))
    path.wants_messages = 1
    path.go()
    server.world.run(2)
    path.permits.forget(path.shape, path)
    server.world.run(1)
    arbiter = server.loop.arbiter
    assert arbiter.report() == []
    assert arbiter.next_time() is not None  # its one transaction still counts
    path.wants_messages = 2
    path.go()
    server.world.run(HOUR / 4)
    assert len(path.begun) == 1 or most_in_a_window(path.begun, Rate(2, HOUR)) <= 2
    path.permits.forget(path.shape, path)
    server.world.run(2 * HOUR)
    assert arbiter.next_time() is None


def test_the_table_of_paths_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmta.queue.arbiter.PATHS", 10)
    arbiter = Arbiter(World().clock)
    limits = shape(message_rate=Rate.parse("1/d")).limits.shared
    for visit in range(100):
        news = News(path=str(visit), visit=visit, limits=limits, wants_messages=True)
        gone = News(path=str(visit), visit=visit, gone=True)
        arbiter.handle(0, Request([news, gone]))
    assert len(arbiter._paths) == 10


def test_in_one_process_the_same_classes_are_wired_directly() -> None:
    world = World()
    permits = local_permits(world, world.clock)
    assert permits.send(shape(), Idle())
    assert not permits.connect(shape(), Idle())
    world.settle()
    assert permits.connect(shape(), Idle())
    permits.heard(shape(), Reply(250, "2.0.0", "OK"))


class Idle:
    def wake(self) -> None: ...
    def recall(self) -> None: ...


# Any schedule of what workers do, and of when they die.

STEP = st.one_of(
    st.tuples(st.just("messages"), st.integers(0, 3), st.integers(1, 40)),
    st.tuples(st.just("connect"), st.integers(0, 3), st.integers(0, 8)),
    st.tuples(st.just("close"), st.integers(0, 3), st.integers(1, 8)),
    st.tuples(st.just("forget"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("run"), st.just(0), st.sampled_from([0, 1, 30, 100, 1000, 5000])),
    st.tuples(st.just("step"), st.just(0), st.integers(1, 3)),
)


class Schedule:
    """Four workers at one path; what they did stays known when they are dead."""

    def __init__(self, limited: Shape, rate: Rate) -> None:
        self.server = Server(4)
        self.limited = limited
        self.rate = rate
        self.begun: list[float] = []
        self.opened: list[float] = []
        self.paths = [self._sender(worker) for worker in range(4)]

    def _sender(self, worker: int) -> Sender:
        sender = Sender(self.server, worker, self.limited)
        sender.begun, sender.opened = self.begun, self.opened
        return sender

    def do(self, what: str, worker: int, number: int) -> None:
        path = self.paths[worker]
        if what == "messages":
            path.wants_messages += number
            path.go()
        elif what == "connect":
            path.wants_connections = number
            path.go()
        elif what == "close":
            for _ in range(number):
                path.close()
        elif what == "forget":
            path.permits.forget(self.limited, path)
            path.open = path.wants_connections = path.wants_messages = 0
        elif what == "die":
            self.server.kill(worker)
            self.server.start(worker)
            self.paths[worker] = self._sender(worker)
        elif what == "run":
            self.server.world.run(number / 100)
        else:  # only some of what is under way arrives
            for _ in range(number):
                if self.server.world._soon:
                    self.server.world._soon.popleft()()

    def check(self) -> None:
        assert total_open(self.paths) <= self.limited.limits.connections
        assert most_in_a_window(self.begun, self.rate) <= self.rate.events
        assert most_in_a_window(self.opened, self.rate) <= self.rate.events


@settings(deadline=None)
@given(
    steps=st.lists(STEP, max_size=60),
    rate=st.builds(Rate, st.integers(1, 60), st.sampled_from([1.0, 60.0])),
    connections=st.integers(1, 4),
)
def test_no_limit_is_exceeded_in_any_schedule(
    steps: list[tuple[str, int, int]], rate: Rate, connections: int
) -> None:
    limited = shape(connections=connections, connection_rate=rate, message_rate=rate)
    schedule = Schedule(limited, rate)
    for step in steps:
        schedule.do(*step)
        schedule.check()
    # And nobody waits for ever.
    for worker, path in enumerate(schedule.paths):
        path.wants_messages = 3
        schedule.do("connect", worker, 0)
        schedule.do("close", worker, 8)
        path.go()
    schedule.server.world.run(14 * rate.seconds + 10)
    schedule.check()
    assert not any(path.wants_messages for path in schedule.paths)


# What operators are told.


def test_a_report_is_of_the_paths_that_were_asked_for_and_says_when_more_may_be_had() -> None:
    server = Server(1)
    paced = shape(message_rate=Rate.parse("60/h"), connection_rate=Rate.parse("60/h"))
    other = structs.replace(shape(), path="out1>mx1>mx2#a.test", site="mx1>mx2")
    for each in (Sender(server, 0, paced), Sender(server, 0, other)):
        each.wants_connections = each.wants_messages = 2
        each.go()
    server.world.run(1)
    (report,) = server.loop.allow(Allowance(paths=(paced.path,))).paths
    assert (report.path, report.open, report.waiting_to_send) == (paced.path, 1, 1)
    assert report.next_message == pytest.approx(59, abs=1)
    assert report.next_connection == pytest.approx(59, abs=1)
    (report,) = server.loop.allow(Allowance(sites=("mx1>mx2",))).paths
    assert (report.path, report.next_message) == (other.path, 0.0)
    assert not server.loop.allow(Allowance(sites=("mx2",))).paths
    assert len(server.loop.allow(Allowance()).paths) == 2


def test_of_too_many_paths_the_slowed_and_the_busiest_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastmta.queue.arbiter.REPORTED", 2)
    server = Server(1, SlowDownRules([SlowDownRule(pattern="slow")]))
    for name, connections in (("a", 1), ("b", 3), ("c", 2), ("d", 1)):
        path = Sender(server, 0, structs.replace(shape(), path=name, site=name))
        path.wants_connections = connections
        path.go()
        server.world.run(1)
        if name == "d":
            path.permits.heard(path.shape, Reply(421, "4.7.0", "slow down"))
    server.world.run(1)
    assert [each.path for each in server.loop.allow(Allowance()).paths] == ["d", "b"]
    asked = Allowance(sites=("a", "b", "c", "d"))
    assert len(server.loop.allow(asked).paths) == 2
