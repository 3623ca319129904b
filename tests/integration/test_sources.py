"""Which address mail leaves from: the sink sees the client, the disposition log has the source."""

from collections import Counter
from pathlib import Path
from smtplib import SMTP

from tests.integration.servers import LIMIT, Relay, destination, relay, route

ONE, TWO = "127.0.0.2", "127.0.0.3"
ELSEWHERE = "192.0.2.25"  # RFC 5737: not an address of any machine
MESSAGE = "Subject: hello\r\n\r\nHello.\r\n"


def source(name: str, address: str) -> str:
    hostname = f"{name}.example.test"
    return f'[[source]]\nname = "{name}"\naddresses = ["{address}"]\nhostname = "{hostname}"\n'


def pool(shares: str) -> str:
    return f'[[pool]]\nname = "default"\nsources = {{ {shares} }}\n'


def send(running: Relay, messages: int) -> None:
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        for number in range(messages):
            client.sendmail("alice@sender.test", f"user{number}@example.test", MESSAGE)


def test_sources_have_their_share_each_with_its_address_and_name(tmp_path: Path) -> None:
    tables = source("one", ONE), source("two", TWO), pool("one = 3, two = 1")
    with destination() as sink, relay(tmp_path, *tables, route(sink.port)) as running:
        send(running, 40)
        events = running.wait_for(40, event="delivered")
        assert Counter(event["source"] for event in events) == {"one": 30, "two": 10}
        assert Counter((mail.client, mail.hello) for mail in sink.mail) == {
            (ONE, "one.example.test"): 30,
            (TWO, "two.example.test"): 10,
        }


def test_mail_of_a_bad_source_leaves_from_the_other(tmp_path: Path) -> None:
    """None is deferred, not even what had been given to the bad one before it was known."""
    tables = source("good", ONE), source("bad", ELSEWHERE), pool("good = 1, bad = 9")
    with destination() as sink, relay(tmp_path, *tables, route(sink.port)) as running:
        send(running, 40)
        events = running.wait_for(40, event="delivered")
        assert {event["source"] for event in events} == {"good"}
        assert {event["event"] for event in running.events()} == {"received", "delivered"}
        assert {(mail.client, mail.hello) for mail in sink.mail} == {(ONE, "good.example.test")}
        told = f"no mail leaves from {ELSEWHERE}: it is not on this machine"
        assert running.stderr().count(told) == 1
        assert running.metric("fastmta_source_addresses_set_aside") == 1


def test_mail_that_has_only_a_bad_source_waits_until_it_gets_another(tmp_path: Path) -> None:
    tables = source("bad", ELSEWHERE), pool("bad = 1"), '[retry]\nfirst = "1s"\n'
    with destination() as sink, relay(tmp_path, *tables, route(sink.port)) as running:
        send(running, 3)
        deferred = running.wait_for(3, event="deferred")
        assert {(event["code"], event["enhanced"]) for event in deferred} == {(451, "4.3.5")}
        assert all(ELSEWHERE in event["reply"] for event in deferred)
        assert not sink.mail and not sink.connections
        running.reload(f'["{ELSEWHERE}"]', f'["{ONE}"]')
        running.wait_for(3, event="delivered", source="bad")
        assert {mail.client for mail in sink.mail} == {ONE}
