"""Mail into mailboxes by real processes: over SMTP in, out of the files again."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from smtplib import SMTP, SMTPRecipientsRefused
from typing import Any

import pytest

from fastmta.mail.dsn import parse_report
from fastmta.mail.message import parse
from fastmta.store import mail_records
from fastmta.store.env import open_environment
from tests.faults.strace import needs_strace, strace
from tests.integration.mailboxes import add_account, change_account, mail_of
from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Relay,
    assert_same,
    destination,
    program,
    relay,
    route,
)
from tests.integration.test_orders import order, queue

DOMAIN = '[domains."example.test"]\n'
MESSAGE = b"Subject: hello\r\nMessage-ID: <1@sender.test>\r\n\r\n.A line.\r\n..\r\n"
SENDER = "alice@sender.test"
STRANGERS = "[smtp]\nrelay_networks = []\n"
SOON = '[retry]\nfirst = "200ms"\nmax_interval = "200ms"\n'


@contextmanager
def server(
    folder: Path, *tables: str, accounts: tuple[str, ...] = (), **how: Any
) -> Iterator[Relay]:
    (folder / "data").mkdir(mode=0o700)
    for account in accounts:
        add_account(folder / "data", account)
    with relay(folder, DOMAIN, *tables, **how) as running:
        yield running


def send(
    running: Relay, *to: str, content: bytes = MESSAGE, sender: str = SENDER, **how: Any
) -> None:
    with SMTP("127.0.0.1", running.smtp, "client.test", timeout=LIMIT) as client:
        assert client.sendmail(sender, to, content, **how) == {}


def refused(running: Relay, *to: str, content: bytes = MESSAGE) -> dict[str, str]:
    """What RCPT says to each, where it refuses all."""
    with pytest.raises(SMTPRecipientsRefused) as raised:
        send(running, *to, content=content)
    return {
        address: f"{code} {text.decode().split()[0]}"
        for address, (code, text) in raised.value.recipients.items()
    }


def delivered(running: Relay, count: int) -> list[dict[str, Any]]:
    return running.wait_for(count, event="delivered", site="local")


def fastmta(running: Relay, *words: str) -> str:
    done = subprocess.run(
        [str(PROGRAM), *words, "-c", str(running.folder / "fastmta.toml")],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_swaks_puts_a_message_into_a_mailbox(tmp_path: Path) -> None:
    body = tmp_path / "message"
    body.write_bytes(MESSAGE.removesuffix(b"\r\n"))  # swaks adds it
    with server(tmp_path, STRANGERS, accounts=("bob@example.test",)) as running:
        subprocess.run(
            [
                *(program("swaks"), "--server", f"127.0.0.1:{running.smtp}", "--silent", "2"),
                *("--from", SENDER, "--to", "Bob+x@EXAMPLE.test", "--data", f"@{body}"),
            ],
            check=True,
            timeout=LIMIT,
        )
        [event] = delivered(running, 1)
        assert (event["recipient"], event["code"], event["host"]) == ("Bob+x@EXAMPLE.test", 250, "")
        [mail] = mail_of(running.data, "bob@example.test")["bob@example.test"]
        front = b"Return-Path: <alice@sender.test>\r\nDelivered-To: Bob+x@EXAMPLE.test\r\n"
        assert mail.startswith(front + b"Received: from ")
        assert_same(mail.removeprefix(front), MESSAGE)


def test_ten_users_of_one_message_have_it_stored_once(tmp_path: Path) -> None:
    users = tuple(f"n{i}@example.test" for i in range(10))
    long = MESSAGE + b"x" * 76 * 1000
    with server(tmp_path, accounts=users) as running:
        send(running, *users, content=long + b"\r\n")
        delivered(running, 10)
        running.stop()
    env, db = open_environment(tmp_path / "data" / "mail" / "0", mail_records.DATABASES)
    with env, env.begin() as txn:
        rows = {name: txn.stat(handle)["entries"] for name, handle in db.items()}
    assert (rows["entries"], rows["bodies"], rows["shares"]) == (10, 1, 1)
    assert rows["receipts"] == 0  # after a clean stop
    found = mail_of(tmp_path / "data", *users)
    for user, [mail] in found.items():
        front = f"Return-Path: <{SENDER}>\r\nDelivered-To: {user}\r\n".encode()
        assert_same(mail.removeprefix(front), long + b"\r\n")


def test_local_and_remote_recipients_of_one_message(tmp_path: Path) -> None:
    with destination() as hosts:
        tables = '[domains."other.test"]\n', route(hosts.port)
        accounts = "bob@example.test", "eve@other.test"
        with server(tmp_path, *tables, accounts=accounts) as running:
            send(running, "x@far.test", "bob@example.test", "eve@other.test")
            assert_same(hosts.mail_for("x@far.test").content, MESSAGE)
            delivered(running, 2)
            found = mail_of(running.data, *accounts)
            assert [len(each) for each in found.values()] == [1, 1]
            assert len(hosts.mail) == 1


def test_who_is_unknown_disabled_or_full_is_refused(tmp_path: Path) -> None:
    with server(tmp_path, STRANGERS, "[limits.client]\nerrors = '100/m'\n") as running:
        add_account(running.data, "bob@example.test", quota=10_000)
        add_account(running.data, "shut@example.test", disabled=True)
        addresses = "nobody@example.test", "shut@example.test", "x@far.test"
        assert refused(running, *addresses) == {
            "nobody@example.test": "550 5.1.1",
            "shut@example.test": "550 5.2.1",
            "x@far.test": "550 5.7.1",
        }
        assert refused(running, "bob@example.test", content=b"x" * 11_000) == {
            "bob@example.test": "552 5.2.3"
        }
        send(running, "bob@example.test", content=b"x" * 8_000)
        delivered(running, 1)
        assert refused(running, "bob@example.test", content=b"x" * 2_000) == {
            "bob@example.test": "452 4.2.2"
        }
        assert running.metric("fastmta_unknown_recipients_total") == 1
        with SMTP("127.0.0.1", running.smtp, "client.test", timeout=LIMIT) as client:
            assert client.verify("bob@example.test")[0] == 252
            client.ehlo()
            client.mail(SENDER)  # without SIZE it is known behind the end
            assert client.rcpt("bob@example.test")[0] == 250
            code, text = client.data(b"x" * 3_000)
            assert (code, text[:5]) == (452, b"4.2.2")
        change_account(running.data, "bob@example.test", quota=0)  # it counts at once
        send(running, "bob@example.test", content=b"x" * 20_000)


def test_a_mailbox_that_is_filled_meanwhile_waits_for_room(tmp_path: Path) -> None:
    with server(tmp_path, SOON, accounts=("eve@example.test",)) as running:
        add_account(running.data, "bob@example.test", quota=1_000)
        # Its SIZE is not told, and eve can have it: so it comes in.
        with SMTP("127.0.0.1", running.smtp, "client.test", timeout=LIMIT) as client:
            client.ehlo()
            for _ in range(2):
                client.mail(SENDER)
                for to in ("bob@example.test", "eve@example.test"):
                    assert client.rcpt(to)[0] == 250
                assert client.data(b"x" * 500)[0] == 250
        [event, *_] = running.wait_for(1, event="deferred")
        about = [event[key] for key in ("recipient", "site", "enhanced", "category")]
        assert about == ["bob@example.test", "local", "4.2.2", "full"]
        assert "mailbox is full" in queue(running, "why", "example.test").text
        assert "--site" and order(running, "hold", "--site", "local", "--json")
        order(running, "release", "--all", "--json")
        change_account(running.data, "bob@example.test", quota=10_000)
        delivered(running, 4)
        found = mail_of(running.data, "bob@example.test", "eve@example.test")
        assert [len(each) for each in found.values()] == [2, 2]


def test_success_is_reported_into_the_senders_mailbox(tmp_path: Path) -> None:
    """RFC 3461 section 5.2.3: final delivery, told with the original recipient."""
    users = "bob@example.test", "alice@example.test"
    with server(tmp_path, accounts=users) as running:
        with SMTP("127.0.0.1", running.smtp, "client.test", timeout=LIMIT) as client:
            client.ehlo()
            client.mail("alice@example.test", ["ENVID=e1"])
            client.rcpt("bob+x@example.test", ["NOTIFY=SUCCESS", "ORCPT=rfc822;B@first.test"])
            assert client.data(MESSAGE)[0] == 250
        delivered(running, 2)
        [report] = mail_of(running.data, *users)["alice@example.test"]
        assert report.startswith(b"Return-Path: <>\r\nDelivered-To: alice@example.test\r\n")
        notification = parse_report(parse(report))
        assert notification is not None
        [one] = notification.status.recipients
        assert (one.final, one.action, one.status) == ("bob+x@example.test", "delivered", "2.1.5")
        assert (one.original, notification.status.envelope_id) == ("rfc822;B@first.test", "e1")


def test_what_cannot_be_delivered_comes_back_into_the_senders_mailbox(tmp_path: Path) -> None:
    alice = "alice@example.test"
    with (
        destination(permfail=1.0) as hosts,
        server(tmp_path, route(hosts.port), accounts=(alice,)) as running,
    ):
        send(running, "x@far.test", sender=alice)
        delivered(running, 1)
        [report] = mail_of(running.data, alice)[alice]
        assert parse_report(parse(report)) is not None


def test_an_account_that_is_deleted_while_its_mail_waits(tmp_path: Path) -> None:
    with server(tmp_path, accounts=("bob@example.test", "alice@example.test")) as running:
        order(running, "hold", "--domain", "example.test", "--json")
        send(running, "bob@example.test", sender="alice@example.test")
        running.wait_for(1, event="held")
        fastmta(running, "account", "delete", "bob@example.test")
        order(running, "release", "--all", "--json")
        [event] = running.wait_for(1, event="bounced")
        assert (event["enhanced"], event["site"]) == ("5.1.1", "local")


def test_mail_without_a_sender_and_for_the_postmaster(tmp_path: Path) -> None:
    """RFC 5321 section 4.5.1: with our domain, and without any."""
    settings = '[mailboxes]\npostmaster = "bob@example.test"\n'
    with server(tmp_path, STRANGERS, settings, accounts=("bob@example.test",)) as running:
        with SMTP("127.0.0.1", running.smtp, "client.test", timeout=LIMIT) as client:
            client.ehlo()
            for address in ("postmaster@example.test", "postmaster"):
                client.docmd("MAIL FROM:<>")
                assert client.docmd(f"RCPT TO:<{address}>")[0] == 250
                assert client.data(MESSAGE)[0] == 250
        delivered(running, 2)
        found = mail_of(running.data, "bob@example.test")["bob@example.test"]
        assert all(each.startswith(b"Return-Path: <>\r\n") for each in found)
        assert {each.split(b"\r\n")[1] for each in found} == {
            b"Delivered-To: postmaster@example.test",
            b"Delivered-To: bob@example.test",
        }


# Forwarding


def test_forwarded_mail_goes_on_once_and_is_kept_where_that_is_wanted(tmp_path: Path) -> None:
    users = "bob@example.test", "eve@example.test"
    with destination() as hosts, server(tmp_path, route(hosts.port), accounts=users) as running:
        fastmta(running, "account", "forward", users[0], "robert@far.test", users[1])
        fastmta(running, "account", "forward", users[1], "evelyn@far.test", "--keep")
        send(running, "bob@example.test", "evelyn@far.test")
        running.wait_for(3, event="delivered")
        robert = hosts.mail_for("robert@far.test")
        assert robert.sender == SENDER
        assert robert.content.startswith(b"Delivered-To: bob@example.test\r\nReceived: ")
        assert len([mail for mail in hosts.mail if "evelyn@far.test" in mail.recipients]) == 1
        found = mail_of(running.data, *users)
        assert [len(each) for each in found.values()] == [0, 1]
        [received] = running.wait_for(1, event="received")
        [event] = running.wait_for(1, event="forwarded")
        assert event["original"] == received["id"] != event["id"]
        assert (event["account"], event["recipients"]) == ("bob@example.test", ["robert@far.test"])
        # What comes back stays.
        send(running, "bob@example.test", content=robert.content)
        delivered(running, 2)
        [mail] = mail_of(running.data, "bob@example.test")["bob@example.test"]
        assert mail.endswith(MESSAGE)
        assert running.metric("fastmta_forwarding_loops_total") == 1
        fastmta(running, "account", "forward", "bob@example.test", "--stop")
        send(running, "bob@example.test")
        delivered(running, 3)


def test_reports_are_forwarded_too(tmp_path: Path) -> None:
    with destination(permfail=1.0) as hosts, destination() as other:
        routes = route(other.port, "else.test"), route(hosts.port)
        with server(tmp_path, *routes, accounts=("alice@example.test",)) as running:
            fastmta(running, "account", "forward", "alice@example.test", "a@else.test")
            send(running, "x@far.test", sender="alice@example.test")
            report = other.mail_for("a@else.test")
            assert report.sender == ""
            assert report.content.startswith(b"Delivered-To: alice@example.test\r\n")
            assert parse_report(parse(report.content)) is not None


# The server


def test_reload_takes_new_domains_on_and_lets_old_ones_go(tmp_path: Path) -> None:
    with destination() as hosts, relay(tmp_path, route(hosts.port), workers=2) as running:
        send(running, "bob@example.test")
        assert hosts.mail_for("bob@example.test")
        add_account(running.data, "bob@example.test")
        running.reload("[[route]]", f"{DOMAIN}\n[[route]]")
        send(running, "bob+1@example.test")
        delivered(running, 1)
        assert refused(running, "nobody@example.test") == {"nobody@example.test": "550 5.1.1"}
        running.reload(DOMAIN, "")
        send(running, "nobody@example.test")
        assert hosts.mail_for("nobody@example.test")
        running.reload("[[route]]", f"{DOMAIN}\n[[route]]")
        send(running, "bob+2@example.test")
        delivered(running, 2)
        assert len(mail_of(running.data, "bob@example.test")["bob@example.test"]) == 2


def test_what_operators_see_of_it(tmp_path: Path) -> None:
    with server(tmp_path, accounts=("bob@example.test",)) as running:
        assert "site: local" in fastmta(running, "dns", "example.test")
        send(running, "bob@example.test")
        delivered(running, 1)
        top = queue(running, "top", "--once", "--json").json
        assert [path["site"] for path in top["paths"]] == ["local"]
        text = running.get("/metrics")[1]
        assert 'fastmta_mailbox_deliveries_total{end="stored"} 1' in text


@needs_strace
@pytest.mark.parametrize(("call", "which"), [("fdatasync", "3+2"), ("pwrite64", "5+11")])
def test_mail_waits_while_the_mailboxes_cannot_be_written(
    tmp_path: Path, call: str, which: str
) -> None:
    """Nothing is lost, nothing is there twice, and nobody has to do anything about it."""
    with server(tmp_path, SOON, accounts=("bob@example.test",)):
        pass  # the files are there
    failing = strace(tmp_path / "trace", call, f"error=EIO:when={which}")
    place = "-P", str(tmp_path / "data" / "mail" / "0" / "data.mdb")
    with relay(tmp_path, DOMAIN, SOON, program=(*failing, *place, str(PROGRAM))) as running:
        for i in range(30):
            send(running, "bob@example.test", content=b"Subject: n%d\r\n\r\n" % i)
        delivered(running, 30)
        assert running.wait_for(1, event="deferred", site="local", enhanced="4.3.0")
        running.stop()
    found = mail_of(tmp_path / "data", "bob@example.test")["bob@example.test"]
    assert sorted(each.splitlines()[-2] for each in found) == sorted(
        b"Subject: n%d" % i for i in range(30)
    )
