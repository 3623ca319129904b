"""What becomes of mail when its host misbehaves: the disposition log is the witness.

Each with real processes: the relay, and a sink that does what it is told.
"""

import smtplib
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.processes import free_port
from fastmta.mail.dsn import parse_report
from fastmta.mail.message import parse
from tests.integration.servers import (
    LIMIT,
    Event,
    Relay,
    destination,
    relay,
    route,
    wait_until,
)

SENDER = "alice@sender.test"
SOON = '[retry]\nfirst = "1s"\nmax_interval = "1s"\n'


def send(running: Relay, *recipients: str, sender: str = SENDER) -> None:
    with smtplib.SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        client.sendmail(sender, recipients, "Subject: hello\r\n\r\nHello.\r\n")


def ends(events: list[Event], kind: str) -> Counter[str]:
    return Counter(e["recipient"] for e in events if e["event"] == kind)


def test_a_temporary_failure_then_success(tmp_path: Path) -> None:
    with destination(tempfail=1.0) as sink, relay(tmp_path, SOON, route(sink.port)) as running:
        send(running, "bob@example.test")
        running.wait_for(2, event="deferred", code=451, enhanced="4.3.0")
        sink.behave()
        sink.hang_up()
        (delivered,) = running.wait_for(1, event="delivered")
        assert delivered["attempts"] == len(running.wait_for(2, event="deferred"))
        assert len(sink.mail) == 1


def test_a_permanent_failure_is_told_to_the_sender(tmp_path: Path) -> None:
    with destination() as sink, relay(tmp_path, route(sink.port)) as running:
        send(running, "permfail@example.test")
        (bounced,) = running.wait_for(1, event="bounced")
        assert (bounced["code"], bounced["enhanced"]) == (550, "5.1.1")
        report = parse_report(parse(sink.mail_for(SENDER).content))
        assert report is not None
        assert [one.final for one in report.status.recipients] == ["permfail@example.test"]
        (delivered,) = running.wait_for(1, event="delivered")
        assert delivered["recipient"] == SENDER


def test_the_recipients_of_one_transaction_end_differently(tmp_path: Path) -> None:
    recipients = ["bob", "carol", "tempfail", "permfail", "dave"]
    with destination() as sink, relay(tmp_path, SOON, route(sink.port)) as running:
        send(running, *(f"{name}@example.test" for name in recipients))
        running.wait_for(1, event="bounced", recipient="permfail@example.test")
        running.wait_for(2, event="deferred", recipient="tempfail@example.test")
        delivered = ends(running.events(), "delivered")
        delivered.pop(SENDER, None)
        assert delivered == {f"{name}@example.test": 1 for name in ("bob", "carol", "dave")}
        (taken,) = (mail for mail in sink.mail if SENDER not in mail.recipients)
        assert len(taken.recipients) == 3


def test_recipients_over_the_limit_of_the_host_go_in_further_transactions(tmp_path: Path) -> None:
    """RFC 5321 section 4.5.3.1.10: 452 means that the transaction is full, not the mailbox."""
    recipients = {f"user{n}@example.test" for n in range(25)}
    with destination(max_recipients=10) as sink, relay(tmp_path, route(sink.port)) as running:
        send(running, *recipients)
        running.wait_for(25, event="delivered")
        assert sorted(len(mail.recipients) for mail in sink.mail) == [5, 10, 10]
        assert {one for mail in sink.mail for one in mail.recipients} == recipients
        assert not ends(running.events(), "deferred")


@pytest.mark.parametrize("step", ["connect", "mail", "rcpt", "data", "body", "end"])
def test_a_host_that_hangs_up(tmp_path: Path, step: str) -> None:
    """It may have taken the message where it hangs up after its end; then it comes again."""
    with (
        destination(drop=1.0, drop_at=step) as sink,
        relay(tmp_path, SOON, route(sink.port)) as running,
    ):
        send(running, "bob@example.test")
        deferred = running.wait_for(1, event="deferred")
        assert {each["code"] for each in deferred} == {451}, deferred
        sink.behave()
        (delivered,) = running.wait_for(1, event="delivered")
        assert delivered["attempts"] >= 1
        sink.mail_for("bob@example.test")


def test_a_host_that_closes_an_idle_connection(tmp_path: Path) -> None:
    with destination() as sink, relay(tmp_path, route(sink.port)) as running:
        for n in range(5):
            send(running, f"user{n}@example.test")
            running.wait_for(n + 1, event="delivered")
            wait_until(lambda: sink.connections == 1)
            sink.hang_up()
            wait_until(lambda: sink.connections == 0)
        assert not ends(running.events(), "deferred")
        assert len(sink.mail) == 5


def test_a_broken_first_host(tmp_path: Path) -> None:
    with destination() as sink:
        hops = f'next_hop = ["127.0.0.1:{free_port()}", "127.0.0.1:{sink.port}"]'
        with relay(tmp_path, f'[[route]]\ndomain = "*"\n{hops}\n') as running:
            for n in range(20):
                send(running, f"user{n}@example.test")
            running.wait_for(20, event="delivered")
            assert not ends(running.events(), "deferred")


def test_a_dead_host_beside_a_living_one_is_left_alone(tmp_path: Path) -> None:
    """It is found dead once, by the first who tries; nobody waits for it after that."""
    with destination(delay=0.001) as sink:
        hops = f'next_hop = ["127.0.0.1:{free_port()}", "127.0.0.1:{sink.port}"]'
        short = "[shaping]\nmessages_per_connection = 2\n"
        with relay(tmp_path, short, f'[[route]]\ndomain = "*"\n{hops}\n') as running:
            for n in range(20):
                send(running, *(f"user@d{n}x{m}.test" for m in range(10)))
            running.wait_for(200, event="delivered")
            assert running.metric("fastmta_delivery_connections_total") >= 100
            assert running.metric("fastmta_delivery_connections_failed_total") == 1
            assert running.metric("fastmta_delivery_hosts_paused") == 1
            assert not ends(running.events(), "deferred")


@contextmanager
def silent_host() -> Iterator[int]:
    """A port that takes connections, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        yield listening.getsockname()[1]


def test_dead_sites_hold_up_nobody_else(tmp_path: Path) -> None:
    """One refuses and one is silent, and both have more mail before that of the good one."""
    dead = free_port()
    with (
        destination() as sink,
        silent_host() as silent,
        relay(
            tmp_path,
            route(dead, "*.dead.test"),
            route(silent, "*.silent.test"),
            route(sink.port),
        ) as running,
    ):
        for n in range(10):
            send(running, *(f"user@d{n}x{m}.dead.test" for m in range(100)))
            send(running, *(f"user@d{n}x{m}.silent.test" for m in range(100)))
        for n in range(200):
            send(running, f"user{n}@good.test")
        running.wait_for(200, event="delivered")
        running.wait_for(500, event="deferred")
        # None of those for the silent host has ended, for it has five minutes.
        sites = {e["site"] for e in running.events() if e["event"] == "deferred"}
        assert sites == {f"127.0.0.1:{dead}"}


def test_expiry(tmp_path: Path) -> None:
    retry = '[retry]\nfirst = "1s"\nmax_interval = "1s"\ngive_up_after = "2s"\n'
    with destination() as sink, relay(tmp_path, retry, route(sink.port)) as running:
        send(running, "tempfail@example.test")
        (bounced,) = running.wait_for(1, event="bounced")
        assert (bounced["code"], bounced["enhanced"]) == (554, "5.4.7")
        assert bounced["time"] >= bounced["received"] + 2
        assert "451 4.3.0" in bounced["reply"]  # the last answer
        report = parse_report(parse(sink.mail_for(SENDER).content))
        assert report is not None and report.status.recipients[0].status == "5.4.7"


def test_a_restart_with_a_deep_queue(tmp_path: Path) -> None:
    """All of it is there, and leaves once its host takes it, each message once."""
    port, batches, batch = free_port(), 30, 100
    with relay(tmp_path, SOON, route(port), workers=2) as running:
        for n in range(batches):
            send(running, *(f"user@b{n}x{m}.test" for m in range(batch)))
        running.wait_for(batches * batch, event="deferred")
    with destination(port=port) as sink:
        with relay(tmp_path, SOON, route(port), workers=2) as running:
            running.wait_for(batches * batch, event="delivered")
        arrived = Counter(one for mail in sink.mail for one in mail.recipients)
    assert len(arrived) == batches * batch
    assert set(arrived.values()) == {1}
