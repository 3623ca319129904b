"""Limits of paths over all workers, as the sink sees them: each with real processes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from smtplib import SMTP

from fastmta.mail.envelope import parse_id
from tests.integration.servers import (
    LIMIT,
    Destination,
    Relay,
    Taken,
    destination,
    relay,
    route,
    wait_until,
)

WORKERS = 4
MESSAGE = "Subject: hello\r\n\r\nHello.\r\n"
# `fastmta` with a minute of recovery in a second: the times of queue/adapt.py are no settings.
IN_A_HURRY = (
    "from fastmta.queue import adapt\n"
    "from fastmta.cli import main\n"
    "adapt.HOLD = adapt.STEP = 1.0\n"
    'main(prog_name="fastmta")\n'
)


def shaping(**limits: object) -> str:
    settings = (
        f'{name} = "{x}"' if isinstance(x, str) else f"{name} = {x}" for name, x in limits.items()
    )
    return "\n".join(["[shaping]", *settings, ""])


def shard_of(id: str) -> int:
    """Which worker has it: the last octet of the number."""
    return parse_id(id) & 0xFF


class Sender:
    """A connection to one worker."""

    def __init__(self, running: Relay) -> None:
        self.client = SMTP("127.0.0.1", running.smtp, timeout=LIMIT)
        self.client.ehlo("client.test")

    def send(self, *recipients: str) -> str:
        """The id of the message."""
        self.client.mail("alice@sender.test")
        for recipient in recipients:
            self.client.rcpt(recipient)
        code, said = self.client.data(MESSAGE)
        assert code == 250, said
        return said.decode().rpartition(" ")[2]


@contextmanager
def one_of_each(running: Relay, workers: int = WORKERS) -> Iterator[dict[int, Sender]]:
    """A connection to each worker; the kernel chooses, so it takes some. Sends as many messages."""
    with ExitStack() as stack:
        found: dict[int, Sender] = {}
        for number in range(1000):
            sender = Sender(running)
            stack.callback(sender.client.close)
            found.setdefault(shard_of(sender.send(f"first{number}@example.test")), sender)
            if len(found) == workers:
                break
        yield found


@contextmanager
def load(running: Relay, clients: int = 4) -> Iterator[None]:
    """Mail comes in without end, more than is let out."""
    ending = threading.Event()
    numbers = count()

    def run() -> None:
        sender = Sender(running)
        while not ending.is_set():
            sender.send(*(f"user{next(numbers)}@example.test" for _ in range(5)))
            ending.wait(0.01)
        sender.client.quit()

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join(LIMIT)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_connection(pid: int, port: int) -> bool:
    """Whether a process has a connection to this port, by proc(5)."""
    ours = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(f"socket:[{row[9]}]" in ours and row[2].endswith(f":{port:04X}") for row in rows)


def assert_rate(taken: Sequence[Taken], since: float, rate: int, unaware: int = 0) -> None:
    """In no second from `since` on were more begun than `rate`, save a few that knew no better.

    What is begun is taken later, and never sooner: so the nth cannot be here before its time,
    and a machine that is slow changes nothing of that.
    """
    times = [each.time - since for each in taken if each.time > since][unaware:]
    early = [(n, at) for n, at in enumerate(times) if at < n // rate]
    assert not early, early[:10]


def test_a_limit_of_one_connection_is_one_over_four_workers_and_all_have_their_turn(
    tmp_path: Path,
) -> None:
    with (
        destination(delay=0.05, max_connections=1) as sink,
        relay(tmp_path, shaping(connections=1), route(sink.port), workers=WORKERS) as running,
        one_of_each(running) as senders,
    ):
        (busy, _), *others = senders.items()
        turns_of = [(busy, senders[busy])] * 25 + others * 2
        ids = [
            (worker, sender.send(f"user{n}@example.test"))
            for n, (worker, sender) in enumerate(turns_of)
        ]
        assert all(shard_of(id) == worker for worker, id in ids)
        wanted = {id for _, id in ids}
        delivered = running.wait(
            lambda events: (
                found
                if len(found := [e["id"] for e in events if e["event"] == "delivered"])
                == len([e for e in events if e["event"] == "received"])
                and wanted <= set(found)
                else []
            )
        )
        assert sink.refused == 0
        assert {taken.connections for taken in sink.taken} == {1}
        assert {event["event"] for event in running.events()} == {"received", "delivered"}
        # Who has much to send does not keep the connection until he is through.
        order = [shard_of(id) for id in delivered if id in wanted]
        assert order[-1] == busy


def test_a_worker_that_is_killed_gives_its_connection_back(tmp_path: Path) -> None:
    """It has the only one, with a transaction that would take for ever."""
    limits = shaping(connections=1, idle_timeout="100ms")
    with (
        destination(slow=3600.0) as sink,
        relay(tmp_path, limits, route(sink.port), workers=WORKERS) as running,
        one_of_each(running) as senders,
    ):
        wait_until(lambda: running.metric("fastmta_queue_envelopes") == 0)
        wait_until(lambda: not sink.connections)
        victim, *others = senders.values()
        stuck = victim.send("slow@example.test")
        wait_until(lambda: sink.connections)
        waiting = [sender.send("user@example.test") for sender in others]
        (holder,) = (pid for pid in children(running.process.pid) if has_connection(pid, sink.port))
        sink.behave(slow=0.0)
        os.kill(holder, signal.SIGKILL)
        running.wait(
            lambda events: (
                {e["id"] for e in events if e["event"] == "delivered"} >= {stuck, *waiting}
            )
        )
        assert {event["event"] for event in running.events()} == {"received", "delivered"}


def test_a_message_rate_holds_over_all_workers(tmp_path: Path) -> None:
    """The hour of tests/queue/test_arbiter.py in small, with everything that is in between."""
    rate, messages = 20, 30
    with (
        destination() as sink,
        relay(tmp_path, shaping(message_rate=f"{rate}/s"), route(sink.port), workers=2) as running,
        one_of_each(running, 2) as senders,
    ):
        wait_until(lambda: running.metric("fastmta_queue_envelopes") == 0)
        since = time.monotonic()
        for n in range(messages):
            for sender in senders.values():
                sender.send(f"user{n}@example.test")
        wait_until(lambda: running.metric("fastmta_queue_envelopes") == 0)
        assert_rate(sink.taken, since, rate)
        assert {shard_of(e["id"]) for e in running.events()} == {0, 1}
        assert {event["event"] for event in running.events()} == {"received", "delivered"}


def test_connections_that_a_reload_lowers_and_raises(tmp_path: Path) -> None:
    def settle_at(sink: Destination, connections: int) -> None:
        """So many open, at each of the next hundred messages."""
        before = len(sink.taken)
        wait_until(
            lambda: (
                len(last := sink.taken[before:][-100:]) == 100
                and {each.connections for each in last} == {connections}
            )
        )

    with (
        destination(delay=0.01) as sink,
        relay(tmp_path, shaping(connections=6), route(sink.port), workers=2) as running,
        load(running),
    ):
        settle_at(sink, 6)
        running.reload("connections = 6", "connections = 2")
        settle_at(sink, 2)
        running.reload("connections = 2", "connections = 9")
        settle_at(sink, 9)
    check_all_delivered(running, sink)


def test_a_message_rate_that_a_reload_lowers_and_raises(tmp_path: Path) -> None:
    limits = shaping(connections=2, message_rate="1000/s")
    with (
        destination() as sink,
        relay(tmp_path, limits, route(sink.port), workers=2) as running,
    ):
        with load(running, clients=2):
            wait_until(lambda: len(sink.taken) > 100)
            running.reload('"1000/s"', '"10/s"')
            # It is in force: what was granted before was for a tenth of a second.
            wait_until(lambda: len(taken_lately(sink)) <= 10)
            since = time.monotonic()
            wait_until(lambda: len([each for each in sink.taken if each.time > since]) > 20)
            assert_rate(sink.taken, since, 10, unaware=2)
            running.reload('"10/s"', '"10000/s"')
        wait_until(lambda: running.metric("fastmta_queue_envelopes") == 0)
    check_all_delivered(running, sink)


def test_a_rate_that_is_raised_frees_what_would_have_waited_for_hours(tmp_path: Path) -> None:
    """In memory, with no other mail that would make anybody ask again."""
    limits = shaping(message_rate="1/h")
    with (
        destination() as sink,
        relay(tmp_path, limits, route(sink.port), workers=2) as running,
        one_of_each(running, 2) as senders,
    ):
        for worker, sender in senders.items():
            sender.send(f"user{worker}@example.test")
        running.wait_for(1, event="delivered")
        assert len(sink.mail) == 1
        running.reload('"1/h"', '"10000/s"')
        wait_until(lambda: running.metric("fastmta_queue_envelopes") == 0)
    check_all_delivered(running, sink)


def taken_lately(sink: Destination) -> list[Taken]:
    now = time.monotonic()
    return [each for each in sink.taken if each.time > now - 1]


def check_all_delivered(running: Relay, sink: Destination) -> None:
    """The relay has ended: each recipient was delivered once or is in the queue, none deferred."""
    events = running.events()
    assert {event["event"] for event in events} == {"received", "delivered"}
    arrived = [recipient for mail in sink.mail for recipient in mail.recipients]
    delivered = [event["recipient"] for event in events if event["event"] == "delivered"]
    assert sorted(arrived) == sorted(delivered)
    assert len(set(arrived)) == len(arrived)


def test_a_host_that_wants_fewer_connections_gets_fewer_and_later_more(tmp_path: Path) -> None:
    """A minute of recovery is a second here; tests/queue/test_adapt.py prints the schedule."""
    hurried = (sys.executable, "-c", IN_A_HURRY)
    tables = shaping(connections=8), '[retry]\nfirst = "1s"\nmax_interval = "1s"\n'
    with (
        destination(delay=0.01) as sink,
        relay(tmp_path, *tables, route(sink.port), workers=2, program=hurried) as running,
        load(running),
    ):
        wait_until(lambda: sink.connections == 8)
        assert running.metric("fastmta_slow_downs_total") == 0
        sink.behave(delay=0.01, max_connections=6)
        before = len(sink.taken)
        sink.hang_up()  # those who come again are too many
        wait_until(lambda: sink.refused)
        wait_until(lambda: running.metric("fastmta_slow_downs_total") >= 1)
        wait_until(lambda: any(each.connections <= 4 for each in sink.taken[before + 50 :]))
        # Seconds later it may have recovered, tried a seventh, and been slowed again.
        wait_until(lambda: running.metric("fastmta_paths_slowed") == 1)
        assert max(each.connections for each in sink.taken[before + 50 :]) <= 6
        sink.behave(delay=0.01)
        wait_until(lambda: sink.connections == 8)
        wait_until(lambda: running.metric("fastmta_paths_slowed") == 0)
