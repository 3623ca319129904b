"""`fastmta demo`: what a newcomer does with it, and sees."""

import re
import signal
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.servers import PROGRAM, wait_until


class Demo:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._output = folder / "output"

    def shown(self) -> str:
        return self._output.read_text()

    def wait_for(self, *words: str) -> None:
        wait_until(lambda: all(word in self.shown() for word in words))

    def send(self, recipient: str) -> None:
        found = re.search(r"smtp\W+127\.0\.0\.1:(\d+)", self.shown())
        assert found
        with smtplib.SMTP("127.0.0.1", int(found[1])) as client:
            client.sendmail("me@demo.test", recipient, "X-Campaign: c\r\n\r\nIt moves.\r\n")

    def send_logged_in(self, recipient: str) -> None:
        found = re.search(r"log in as (\S+) with (\S+)", self.shown())
        port = re.search(r"submission\W+127\.0\.0\.1:(\d+)", self.shown())
        assert found and port
        with smtplib.SMTP("127.0.0.1", int(port[1])) as client:
            trusted = self.folder / "certificate.pem"
            client.starttls(context=ssl.create_default_context(cafile=trusted))
            client.login(*found.groups())
            client.sendmail(found[1], recipient, f"From: {found[1]}\r\n\r\nIt moves.\r\n")

    def queue(self, command: str, *words: str) -> str:
        options = [str(PROGRAM), "queue", command, "-c", str(self.folder / "fastmta.toml"), *words]
        return subprocess.run(options, capture_output=True, text=True, check=True).stdout


@contextmanager
def demo(folder: Path) -> Iterator[Demo]:
    with (folder / "output").open("wb") as output:
        command = [str(PROGRAM), "demo", "--dir", str(folder)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    one = Demo(folder)
    try:
        one.wait_for("Ctrl-C ends the demo")
        yield one
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, one.shown()


def test_each_message_is_shown_also_where_an_operator_steers(tmp_path: Path) -> None:
    with demo(tmp_path) as one:
        one.send("tempfail@example.test")
        one.wait_for("deferred")
        assert "1 envelope is in the queue" in one.queue("why", "example.test")
        one.queue("hold", "--campaign", "c", "--reason", "[red]prices")
        one.wait_for("held", "tempfail@example.test, by order 1 of ", "[red]prices")
        one.queue("release", "--all")
        one.wait_for("released")
        one.queue("delete", "--all")
        one.wait_for("deleted")
        one.send("friend@example.test")
        one.wait_for("delivered", "friend@example.test by 127.0.0.1")


def test_who_logs_in_may_send_at_each_start(tmp_path: Path) -> None:
    for number in range(2):
        with demo(tmp_path) as one:
            one.send_logged_in(f"friend{number}@example.test")
            one.wait_for(f"friend{number}@example.test by 127.0.0.1")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
