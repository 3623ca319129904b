"""The suppression list between real processes: what comes in, what fails, what is refused."""

import json
import signal
import smtplib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fastmta.store.suppression import SuppressionFile
from tests.integration.servers import (
    PROGRAM,
    Relay,
    destination,
    relay,
    route,
    rude_host,
    wait_until,
)

SUPPRESSION = "[suppression]\n"
BOUNCES = (
    '[bounces]\naddresses = ["bounces@relay.example.test", "*@b.example.test"]\n'
    'complaints = ["fbl@relay.example.test"]\n'
)
MESSAGE = b"Subject: hello\r\n\r\nHello\r\n"
BOUNCE = (
    b"From: MAILER-DAEMON@mx.example.test\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
    b"--b\r\n\r\nI am sorry.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; mx.example.test\r\n\r\n"
    b"Final-Recipient: rfc822; %b\r\nAction: %b\r\nStatus: 5.1.1\r\n"
    b"Diagnostic-Code: smtp; 550 5.1.1 no such user\r\n"
    b"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <one@relay.test>\r\n--b--\r\n"
)
COMPLAINT = (
    b"From: abuse@isp.example.test\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r\n\r\n'
    b"--b\r\n\r\nSomebody complained.\r\n--b\r\nContent-Type: message/feedback-report\r\n\r\n"
    b"Feedback-Type: %b\r\nVersion: 1\r\nSource-IP: 192.0.2.1\r\n"
    b"Original-Rcpt-To: <%b>\r\n--b--\r\n"
)


def send(one: Relay, recipient: str, content: bytes = MESSAGE, sender: str = "") -> None:
    with smtplib.SMTP("127.0.0.1", one.smtp) as client:
        client.sendmail(sender, [recipient], content)


def rcpt(one: Relay, recipient: str) -> tuple[int, str]:
    with smtplib.SMTP("127.0.0.1", one.smtp) as client:
        client.helo("client.test")
        client.mail("a@example.test")
        code, text = client.rcpt(recipient)
        return code, text.decode()


def command(one: Relay | Path, *words: str, code: int = 0, text: str = "") -> str:
    folder = one.folder if isinstance(one, Relay) else one
    done = subprocess.run(
        [str(PROGRAM), "suppression", words[0], "-c", str(folder / "fastmta.toml"), *words[1:]],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def listed(one: Relay) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command(one, "list", "--json").splitlines()]


def test_a_bounce_that_comes_in_suppresses_the_address(tmp_path: Path) -> None:
    with relay(tmp_path, SUPPRESSION, BOUNCES) as one:
        assert rcpt(one, "bob@dest.test")[0] == 250
        send(one, "bounces@relay.example.test", BOUNCE % (b"Bob@dest.test", b"failed"))
        # Acknowledged is durable: the very next question hears of it.
        code, text = rcpt(one, "bob@DEST.test")
        assert code == 550
        assert text.startswith("5.1.1 <bob@DEST.test> suppressed: bounce (bad-mailbox) on 20")
        (event,) = one.wait_for(1, event="bounce-received")
        assert event["recipient"] == "bounces@relay.example.test"
        assert event["address"] == "Bob@dest.test"
        assert event["permanent"] is True
        assert (event["category"], event["reporter"]) == ("bad-mailbox", "mx.example.test")
        assert event["original"] == "one@relay.test"
        (entry,) = listed(one)
        assert entry["source"] == event["id"]
        assert 'fastmta_reports_received_total{kind="bounce"} 1.0' in one.get("/metrics")[1]
        assert not [e for e in one.events() if e["event"] == "received"]  # it is not queued
        send(one, "any+1@b.example.test", BOUNCE % (b"eve@dest.test", b"delayed"))
        one.wait_for(2, event="bounce-received")
        assert rcpt(one, "eve@dest.test")[0] == 250


def test_a_complaint_suppresses_and_a_failed_signature_does_not(tmp_path: Path) -> None:
    with relay(tmp_path, SUPPRESSION, BOUNCES) as one:
        send(one, "fbl@relay.example.test", COMPLAINT % (b"auth-failure", b"bob@dest.test"))
        assert rcpt(one, "bob@dest.test")[0] == 250
        send(one, "fbl@relay.example.test", COMPLAINT % (b"abuse", b"bob@dest.test"))
        assert "complaint (abuse)" in rcpt(one, "bob@dest.test")[1]
        assert len(one.wait_for(2, event="complaint", address="bob@dest.test")) == 2
        # An address for complaints takes no bounces, and what says nothing is told too.
        send(one, "fbl@relay.example.test", BOUNCE % (b"eve@dest.test", b"failed"))
        assert rcpt(one, "eve@dest.test")[0] == 250
        one.wait_for(1, event="report-unknown")


def test_reports_come_from_anybody_and_nothing_else_does(tmp_path: Path) -> None:
    closed = '[smtp]\nrelay_networks = ["192.0.2.0/24"]\n'
    with relay(tmp_path, SUPPRESSION, BOUNCES, closed) as one:
        send(one, "bounces@relay.example.test", BOUNCE % (b"bob@dest.test", b"failed"))
        for address in (
            "bob@dest.test",  # nor is anything said of the list
            "eve@dest.test",
            "bounces%dest.test@relay.example.test",
            "bounces@relay.example.test.dest.test",
            "bounces@b.relay.example.test",
            "x@sub.b.example.test",
            '"bounces@relay.example.test"@dest.test',
            "postmaster",
        ):
            code, text = rcpt(one, address)
            assert (code, text) == (550, "5.7.1 Relaying denied"), address
        with smtplib.SMTP("127.0.0.1", one.smtp) as client:
            refused = client.sendmail(
                "",
                ["bounces@relay.example.test", "eve@dest.test"],
                BOUNCE % (b"x@y.test", b"failed"),
            )
        assert list(refused) == ["eve@dest.test"]
        assert {entry["address"] for entry in listed(one)} == {"bob@dest.test", "x@y.test"}


def test_our_own_failures_feed_it(tmp_path: Path) -> None:
    answer = b"550 5.1.1 user unknown\r\n"
    with rude_host(answer) as port, relay(tmp_path, SUPPRESSION, route(port)) as one:
        assert rcpt(one, "bob@dest.test")[0] == 250
        send(one, "bob@dest.test")
        (event,) = one.wait_for(1, event="bounced", category="bad-mailbox")
        entry = wait_until(lambda: listed(one))[0]
        assert (entry["address"], entry["reason"]) == ("bob@dest.test", "bounce")
        assert (entry["source"], entry["reply"]) == (event["id"], "550 5.1.1 user unknown")
        assert entry["expires"] - entry["added"] == 90 * 86400
        assert rcpt(one, "bob@dest.test")[0] == 550
        assert 'fastmta_bounced_total{category="bad-mailbox"} 1.0' in one.get("/metrics")[1]


def test_a_failure_of_another_kind_does_not(tmp_path: Path) -> None:
    answer = b"550 5.7.1 blocked using zen.spamhaus.org\r\n"
    with rude_host(answer) as port, relay(tmp_path, SUPPRESSION, route(port)) as one:
        send(one, "bob@dest.test")
        one.wait_for(1, event="bounced", category="blocklist")
        assert rcpt(one, "bob@dest.test")[0] == 250
        assert listed(one) == []


def test_drop_leaves_out_with_a_record(tmp_path: Path) -> None:
    with (
        destination() as sink,
        relay(tmp_path, SUPPRESSION + 'on_match = "drop"\n', route(sink.port)) as one,
    ):
        command(one, "add", "bob@dest.test", "@gone.test")
        with smtplib.SMTP("127.0.0.1", one.smtp) as client:
            assert client.sendmail("a@x.test", ["bob@dest.test", "eve@dest.test"], MESSAGE) == {}
            assert client.sendmail("a@x.test", ["any@gone.test"], MESSAGE) == {}
        mail = sink.mail_for("eve@dest.test")
        assert mail.recipients == ["eve@dest.test"]
        told = one.wait_for(2, event="suppressed", reason="manual", sender="a@x.test")
        assert [event["recipient"] for event in told] == ["bob@dest.test", "any@gone.test"]
        one.wait_for(1, event="delivered")
        assert len(sink.mail) == 1
        assert 'fastmta_suppressed_total{action="drop"} 2.0' in one.get("/metrics")[1]


def test_two_workers_see_each_others_entries(tmp_path: Path) -> None:
    with relay(tmp_path, SUPPRESSION, BOUNCES, workers=2) as one:
        for n in range(8):
            recipient = f"u{n}@dest.test"
            send(one, "bounces@relay.example.test", BOUNCE % (recipient.encode(), b"failed"))
            # The kernel spreads connections over the workers: both have answered soon.
            assert {rcpt(one, recipient)[0] for _ in range(10)} == {550}


def test_entries_survive_a_restart(tmp_path: Path) -> None:
    with relay(tmp_path, SUPPRESSION, BOUNCES) as one:
        send(one, "bounces@relay.example.test", BOUNCE % (b"bob@dest.test", b"failed"))
    with relay(tmp_path, SUPPRESSION) as one:
        assert rcpt(one, "bob@dest.test")[0] == 550
        command(one, "delete", "BOB@dest.test")
        assert rcpt(one, "bob@dest.test")[0] == 250


def test_without_the_table_nothing_is_suppressed(tmp_path: Path) -> None:
    with relay(tmp_path, BOUNCES) as one:
        send(one, "bounces@relay.example.test", BOUNCE % (b"bob@dest.test", b"failed"))
        one.wait_for(1, event="bounce-received")
        assert rcpt(one, "bob@dest.test")[0] == 250
    assert not (tmp_path / "data" / "suppression").exists()


def test_a_reload_that_changes_it_is_told(tmp_path: Path) -> None:
    with relay(tmp_path, SUPPRESSION) as one:
        command(one, "add", "bob@dest.test")
        configuration = tmp_path / "fastmta.toml"
        configuration.write_text(configuration.read_text() + 'on_match = "drop"\n')
        one.process.send_signal(signal.SIGHUP)
        told = "reload: worker 0: suppression takes effect at the next start"
        wait_until(lambda: told in (tmp_path / "stderr").read_text())
        assert rcpt(one, "bob@dest.test")[0] == 550


CONFIGURATION = (
    'hostname = "relay.example.test"\ndata_dir = "data"\n'
    '[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:2525"\n'
)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_hundred_thousand_entries_in_and_out(form: str, tmp_path: Path) -> None:
    (tmp_path / "fastmta.toml").write_text(CONFIGURATION)
    given, taken = tmp_path / f"given.{form}", tmp_path / f"taken.{form}"
    addresses = [f"user{n}@d{n % 100}.test" for n in range(100_000)]
    with given.open("w") as file:
        if form == "csv":
            file.write("address,reason,category,added\n")
            file.writelines(f"{one},bounce,bad-mailbox,1700000000\n" for one in addresses)
        else:
            file.writelines(
                f'{{"address":"{one}","reason":"complaint","added":1700000000}}\n'
                for one in addresses
            )
    assert command(tmp_path, "import", str(given)) == "100000 imported, 0 refused\n"
    command(tmp_path, "export", str(taken))
    lines = taken.read_text().splitlines()
    assert len(lines) == 100_000 + (form == "csv")
    (tmp_path / "data").rename(tmp_path / "before")
    assert command(tmp_path, "import", str(taken)) == "100000 imported, 0 refused\n"
    before = SuppressionFile(tmp_path / "before" / "suppression")
    after = SuppressionFile(tmp_path / "data" / "suppression")
    assert list(after.entries()) == list(before.entries())
    assert sorted(one.address for one in after.entries()) == sorted(addresses)
    before.close(), after.close()


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "fastmta.toml").write_text(CONFIGURATION)
    text = "address,reason\nbob@dest.test,manual\nnobody,manual\neve@dest.test,because\n,\n"
    out = command(tmp_path, "import", "-", "--format", "csv", "--json", text=text, code=1)
    assert json.loads(out) == {"imported": 1, "refused": 3}
    assert command(tmp_path, "show", "bob@dest.test").startswith("address   bob@dest.test\n")
    command(tmp_path, "show", "eve@dest.test", code=1)
    command(tmp_path, "delete", "eve@dest.test", code=1)
    command(tmp_path, "add", "no address", code=2)
    command(tmp_path, "add", "@dest.test", "--for", "30d", "--note", "they asked")
    command(tmp_path, "add", "eva@dest.test", "--note", "\x1b[2J")
    assert r"\x1b[2J" in command(tmp_path, "show", "eva@dest.test")
    assert "they asked" in command(tmp_path, "list", "--domain", "dest.test")
    assert command(tmp_path, "list", "--domain", "other.test") == "nothing is suppressed\n"
