"""`fastmta demo`: what a newcomer does with it, and sees."""

import poplib
import re
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path

import pytest

from tests.integration.clients import Typist
from tests.integration.servers import LIMIT, PROGRAM, wait_until

ALICE, BOB = ("alice@demo.test", "thirsty"), ("bob@demo.test", "hungry")


class Demo:
    def __init__(self, cwd: Path) -> None:
        self.cwd, self.folder = cwd, cwd / "demo-data"

    def shown(self) -> str:
        return (self.cwd / "output").read_text()

    def wait_for(self, *words: str) -> None:
        wait_until(lambda: all(word in self.shown() for word in words))

    def port(self, service: str) -> int:
        found = re.search(rf"(?m)^{service} +127\.0\.0\.1:(\d+)", self.shown())
        assert found
        return int(found[1])

    def command(self, service: str) -> str:
        """What the table says to paste."""
        found = re.search(rf"(?m)^{service} .*\n  (.+)$", self.shown())
        assert found
        return found[1]

    def paste(self, service: str) -> str:
        done = subprocess.run(
            self.command(service), shell=True, cwd=self.cwd, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, done
        return done.stdout

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "certificate.pem")

    def send(self, recipient: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.port("smtp")) as client:
            client.sendmail("friend@example.test", recipient, "X-Campaign: c\r\n\r\nIt moves.\r\n")

    def submit(self, recipient: str, subject: str = "") -> None:
        """As alice."""
        with smtplib.SMTP("127.0.0.1", self.port("submission")) as client:
            client.starttls(context=self.context())
            client.login(*ALICE)
            text = f"From: {ALICE[0]}\r\nSubject: {subject}\r\n\r\nIt moves.\r\n"
            client.sendmail(ALICE[0], recipient, text)

    def mailbox(self, account: tuple[str, str]) -> list[EmailMessage]:
        """All that is in it, fetched through POP3."""
        client = poplib.POP3_SSL("127.0.0.1", self.port("pop3s"), context=self.context())
        client.user(account[0])
        client.pass_(account[1])
        numbers = range(1, client.stat()[0] + 1)
        fetched = [b"\r\n".join([*client.retr(number)[1], b""]) for number in numbers]
        client.quit()
        return [BytesParser(EmailMessage, policy=default).parsebytes(one) for one in fetched]

    def queue(self, command: str, *words: str) -> str:
        options = [str(PROGRAM), "queue", command, "-c", str(self.folder / "fastmta.toml"), *words]
        return subprocess.run(options, capture_output=True, text=True, check=True).stdout


@contextmanager
def demo(cwd: Path) -> Iterator[Demo]:
    with (cwd / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(PROGRAM), "demo"], cwd=cwd, stdout=output, stderr=subprocess.STDOUT
        )
    one = Demo(cwd)
    try:
        one.wait_for("Ctrl-C ends the demo")
        yield one
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, one.shown()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with demo(tmp_path_factory.mktemp("demo")) as one:
        yield one


# Every command of the table, as it is.


def test_anybody_writes_to_bob(running: Demo) -> None:
    assert "250 2.0.0" in running.paste("smtp")
    running.wait_for("<friend@example.test> to bob@demo.test", "bob@demo.test in ")


def test_alice_logs_in_and_writes_to_bob(running: Demo) -> None:
    assert "235 2.7.0" in running.paste("submission")
    running.wait_for("<alice@demo.test> to bob@demo.test")


def test_alice_writes_to_who_takes_no_mail(running: Demo) -> None:
    assert "TLS started" in running.paste("submissions")
    running.wait_for("bounced", "permfail@example.test, told the sender")


def test_bob_reads_his_mail_by_hand(running: Demo, tmp_path: Path) -> None:
    command = running.command("pop3").split()
    words = re.search(r"(?m)^ +then type: (.*)$", running.shown())
    assert words
    with chdir(running.cwd), Typist(command, tmp_path / "errors") as typist:
        for line in words[1].split(", "):
            typist.type(line.encode() + b"\n")
            typist.answer(rb"\+OK")
        typist.leave()


def test_alice_fetches_her_first_message(running: Demo) -> None:
    assert "Subject: Welcome to fastmta" in running.paste("pop3s")


def test_there_are_metrics(running: Demo) -> None:
    assert "fastmta_delivered_total" in running.paste("admin")


def test_one_can_look_into_the_queue(running: Demo) -> None:
    assert "in the queue" in running.paste("queue")


def test_what_goes_outside_is_in_the_sink(running: Demo) -> None:
    running.send("someone@example.test")
    running.wait_for("someone@example.test by 127.0.0.1")
    assert "It moves." in running.paste("sink")


def test_a_second_demo_leaves_the_first_one_as_it_is(running: Demo) -> None:
    configuration = (running.folder / "fastmta.toml").read_bytes()
    done = subprocess.run(
        [str(PROGRAM), "demo"], cwd=running.cwd, capture_output=True, text=True, timeout=LIMIT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"fastmta: a demo is running in {running.folder}: end it")
    assert (running.folder / "fastmta.toml").read_bytes() == configuration


# What becomes of mail.


def test_what_alice_submits_is_read_by_bob_through_pop3(running: Demo) -> None:
    running.submit("bob@demo.test", "from one to the other")
    running.wait_for("bob@demo.test in ")
    wait_until(lambda: subjects(running.mailbox(BOB)) >= {"from one to the other"})


def test_a_report_of_failure_comes_back_to_the_sender(running: Demo) -> None:
    running.submit("permfail@example.org")
    running.wait_for("permfail@example.org, told the sender")
    wait_until(lambda: reports(running.mailbox(ALICE), "permfail@example.org"))
    report = reports(running.mailbox(ALICE), "permfail@example.org")[0]
    assert "permfail@example.org" in report.get_body().get_content()  # type: ignore[union-attr]
    kinds = [part.get_content_type() for part in report.iter_parts()]
    assert kinds[:2] == ["text/plain", "message/delivery-status"]


def subjects(messages: list[EmailMessage]) -> set[str]:
    return {message["Subject"] for message in messages}


def reports(messages: list[EmailMessage], about: str) -> list[EmailMessage]:
    kind = "multipart/report"
    return [m for m in messages if m.get_content_type() == kind and about in m.as_string()]


def test_each_message_is_shown_also_where_an_operator_steers(running: Demo) -> None:
    running.send("tempfail@example.test")
    running.wait_for("deferred")
    assert "1 envelope is in the queue" in running.queue("why", "example.test")
    running.queue("hold", "--campaign", "c", "--reason", "[red]prices")
    running.wait_for("held", "tempfail@example.test, by order 1 of ", "[red]prices")
    running.queue("release", "--all")
    running.wait_for("released")
    running.queue("delete", "--all")
    running.wait_for("deleted")
    running.send("friend@example.test")
    running.wait_for("delivered", "friend@example.test by 127.0.0.1")


def test_a_second_start_finds_the_mail_of_the_first(tmp_path: Path) -> None:
    with demo(tmp_path) as one:
        one.submit("bob@demo.test", "the first")
        one.wait_for("bob@demo.test in ")
    with demo(tmp_path) as one:
        one.submit("bob@demo.test", "the second")
        one.wait_for("bob@demo.test in ")
        found = [message["Subject"] for message in one.mailbox(BOB)]
    assert found == ["Welcome to fastmta", "the first", "the second"]
    assert (tmp_path / "demo-data" / "key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_its_commands_are_in_one_piece(columns: int) -> None:
    shown = tour(columns)
    for line in shown.splitlines():
        is_long = line.startswith(("  ", "Everything is kept in "))
        assert is_long or len(line) <= columns, line
    assert re.search(r"(?m)^  swaks .* -tls .* -t bob@demo\.test$", shown)


def tour(columns: int) -> str:
    from rich.console import Console

    from fastmta.cli.demo import PORTS
    from fastmta.cli.demo_tour import introduce

    console = Console(width=columns, highlight=False)
    with console.capture() as capture:
        introduce(console, Path.cwd() / "demo-data", PORTS)
    return capture.get()
