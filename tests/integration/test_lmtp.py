"""LMTP as a next hop: what becomes of each recipient is in the disposition log."""

from collections.abc import Iterator
from pathlib import Path
from smtplib import SMTP

import pytest

from tests.certificates import Certificate, make_certificate
from tests.integration.dovecot import Dovecot, dovecot
from tests.integration.servers import LIMIT, Event, Relay, destination, relay

MESSAGE = b"Subject: to a list\r\n\r\nHello.\r\n.dot\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mx.test", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def mailboxes(certificate: Certificate) -> Iterator[Dovecot]:
    with dovecot(certificate) as running:
        yield running


def lmtp(*hops: str) -> str:
    listed = ", ".join(f'"{hop}"' for hop in hops)
    return f'[[route]]\ndomain = "lists.test"\nprotocol = "lmtp"\nnext_hop = [{listed}]\n'


def send(running: Relay, *names: str) -> dict[str, Event]:
    """One message to all of them; what became of each at the first attempt."""
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        client.sendmail("alice@sender.test", [f"{name}@lists.test" for name in names], MESSAGE)

    def found(events: list[Event]) -> dict[str, Event]:
        attempts = [e for e in reversed(events) if e.get("domain") == "lists.test"]
        ends = {e["recipient"].partition("@")[0]: e for e in attempts}
        return ends if ends.keys() >= set(names) else {}

    return running.wait(found)


def codes(ends: dict[str, Event]) -> dict[str, tuple[str, int, str]]:
    return {name: (end["event"], end["code"], end["enhanced"]) for name, end in ends.items()}


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_dovecot_answers_for_each_mailbox(
    mailboxes: Dovecot, transport: str, tmp_path: Path
) -> None:
    address: str = getattr(mailboxes, transport)
    before = len(mailboxes.mail("bob"))
    with relay(tmp_path, lmtp(address)) as running:
        ends = send(running, "bob", "full", "nobody", "carol")
        assert codes(ends) == {
            "bob": ("delivered", 250, "2.0.0"),
            "full": ("bounced", 552, "5.2.2"),  # behind the message
            "nobody": ("bounced", 550, "5.1.1"),  # at RCPT
            "carol": ("delivered", 250, "2.0.0"),
        }
        assert {end["site"] for end in ends.values()} == {f"lmtp:{address}"}
        host = address if transport == "unix" else "127.0.0.1 [127.0.0.1]"
        assert {end["host"] for end in ends.values()} == {host}
        # A unix socket leaves no machine; over TCP Dovecot offers STARTTLS.
        assert [bool(end["tls"]) for end in ends.values()] == [transport == "tcp"] * 4
        assert len(mailboxes.mail("bob")) == before + 1
        assert mailboxes.mail("bob")[0].replace(b"\n", b"\r\n").endswith(MESSAGE)


def test_the_next_hop_is_taken_where_the_socket_is_not_there(
    mailboxes: Dovecot, tmp_path: Path
) -> None:
    with relay(tmp_path, lmtp(f"unix:{tmp_path}/none", mailboxes.tcp)) as running:
        assert codes(send(running, "bob")) == {"bob": ("delivered", 250, "2.0.0")}


def test_a_socket_that_is_not_there_defers(tmp_path: Path) -> None:
    with relay(tmp_path, lmtp(f"unix:{tmp_path}/none")) as running:
        end = send(running, "bob")["bob"]
        assert (end["event"], end["code"], end["enhanced"]) == ("deferred", 451, "4.4.1")
        assert f"cannot connect to unix:{tmp_path}/none: " in end["reply"]


@pytest.mark.parametrize("without", [frozenset(), frozenset({"CHUNKING"})])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_mixed_answers_are_mixed_dispositions(
    transport: str, without: frozenset[str], tmp_path: Path
) -> None:
    host = "127.0.0.1" if transport == "tcp" else f"unix:{tmp_path}/lmtp"
    with destination(host, lmtp=True, without=without) as sink:
        address = f"{host}:{sink.port}" if sink.port else host
        with relay(tmp_path, lmtp(address)) as running:
            ends = send(running, "bob", "busy", "full", "tempfail", "permfail", "carol")
            assert codes(ends) == {
                "bob": ("delivered", 250, "2.0.0"),
                "busy": ("deferred", 451, "4.3.0"),
                "full": ("bounced", 552, "5.2.2"),
                "tempfail": ("deferred", 451, "4.3.0"),
                "permfail": ("bounced", 550, "5.1.1"),
                "carol": ("delivered", 250, "2.0.0"),
            }
            [mail] = sink.mail
            assert mail.recipients == ["bob@lists.test", "carol@lists.test"]
            assert mail.content.endswith(MESSAGE)
