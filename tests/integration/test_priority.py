"""Who is first where there is more mail than can go: urgent mail, and tenants by their weight."""

import time
from collections import Counter
from itertools import chain
from pathlib import Path
from smtplib import SMTP

import pytest

from fastmta.mail.envelope import Priority
from tests.integration.servers import LIMIT, Event, Relay, destination, relay, route
from tests.store.backlog import fill, waiting

DEEP = 100_000
DOMAINS = 50
FIELDS = '[headers]\npriority = "X-Priority"\n'


def shard(folder: Path) -> Path:
    """Where the only worker's mail is."""
    found = folder / "data" / "spool" / "0"
    found.mkdir(parents=True)
    return found


def send(running: Relay, recipient: str, priority: str) -> None:
    message = f"Subject: code\r\nX-Priority: {priority}\r\n\r\n123456\r\n"
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        client.sendmail("alice@sender.test", recipient, message)


def overtaken_by(events: list[Event], recipient: str) -> int:
    """Deliveries between the reception of this one's message and its own, in the log's order."""
    kinds = [
        (event["event"], event.get("recipient") or event["recipients"][0])
        for event in events
        if event["event"] in ("received", "delivered")
    ]
    begin, end = kinds.index(("received", recipient)), kinds.index(("delivered", recipient))
    return sum(kind == "delivered" for kind, _ in kinds[begin:end])


def test_an_urgent_message_passes_a_hundred_thousand_that_wait(tmp_path: Path) -> None:
    """All of them bulk, due, and for the host that the urgent one is for."""
    now = time.time()
    backlog = (
        waiting(number, f"d{number % DOMAINS}.test", now - 60, priority=Priority.BULK)
        for number in range(1, DEEP + 1)
    )
    fill(shard(tmp_path), backlog)
    one = "[shaping]\nconnections = 1\n"
    with (
        destination(delay=0.001) as sink,
        relay(tmp_path, one, FIELDS, route(sink.port)) as running,
    ):
        for number in range(5):  # once to a domain of the others', and to some of its own
            running.wait_for(500 * (number + 1), event="delivered")
            recipient = f"urgent{number}@{'d0.test' if number == 0 else f'u{number}.test'}"
            send(running, recipient, "urgent")
            running.wait_for(1, event="delivered", recipient=recipient)
            assert overtaken_by(running.events(), recipient) < DEEP / 500
        # Most of the others did wait, and none of them was set back.
        assert running.metric("fastmta_queue_envelopes") > DEEP / 2
        assert {event["event"] for event in running.events()} == {"received", "delivered"}
        before = len(sink.mail)
        running.wait(lambda _: len(sink.mail) > before + 500)


@pytest.mark.parametrize(("weight", "share"), [(1, 0.5), (3, 0.75)])
def test_tenants_share_a_path_by_weight_whatever_each_has(
    tmp_path: Path, weight: int, share: float
) -> None:
    """One has ten domains and three times the mail, the other one domain and came later."""
    now, counted = time.time(), 1000
    great = (
        waiting(n, f"d{n % 10}.test", now - 60, tenant="great", received=now - 90)
        for n in range(1, 9001)
    )
    small = (
        waiting(n, "only.test", now - 30, tenant="small", received=now - 60)
        for n in range(9001, 12001)
    )
    fill(shard(tmp_path), chain(great, small))
    one = "[shaping]\nconnections = 1\n"
    weights = f'[headers]\ntenant = "X-Tenant"\n[tenants.small]\nweight = {weight}\n'
    settings = (one, weights) if weight > 1 else (one,)
    with destination(delay=0.001) as sink, relay(tmp_path, *settings, route(sink.port)) as running:
        running.wait_for(counted, event="delivered")
        first = running.events()[:counted]
        of = Counter("small" if e["domain"] == "only.test" else "great" for e in first)
        assert share - 0.1 < of["small"] / counted < share + 0.1, of
