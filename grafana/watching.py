"""Prometheus as a process, and mail for it to see; for `grafana/try` and for the tests."""

import json
import math
import poplib
import random
import re
import smtplib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from urllib.request import urlopen

from bench.processes import START_LIMIT, running

FOLDER = Path(__file__).parent
TIMEOUT = 30.0  # seconds
PAUSE = 0.02  # seconds between two messages
LOOKS = 5.0  # seconds between two looks into a mailbox


class Prometheus(NamedTuple):
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **query: str) -> Any:
        words = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        with urlopen(f"{self.url}/{path}?{words}", timeout=TIMEOUT) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        """What a query gives now; URLError if it is not well formed."""
        result = self.get("api/v1/query", query=expression)["result"]
        return [float(one["value"][1]) for one in result]

    def has_data(self, expression: str) -> bool:
        return not all(map(math.isnan, self.values(expression)))

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), urlopen(f"{self.url}/-/ready"):
                return
            time.sleep(0.05)
        raise RuntimeError("Prometheus does not start: see its log")


@contextmanager
def prometheus(folder: Path, program: str, port: int, admin: int) -> Iterator[Prometheus]:
    """With the configuration of this folder, but a look each second at the relay of this port."""
    folder.mkdir(exist_ok=True)
    text = (FOLDER / "prometheus.yml").read_text()
    for old, new in {
        "10s": "1s",
        "alerts.yml": str(FOLDER / "alerts.yml"),
        "127.0.0.1:2580": f"127.0.0.1:{admin}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, folder / "log") as process:
        server = Prometheus(port)
        server.wait(process)
        yield server


def concrete(expression: str, window: str) -> str:
    """A panel's query as Grafana asks it, with this window for rates."""
    expression = expression.replace("$__rate_interval", window).replace("$instance", ".*")
    assert "$" not in expression
    return re.sub(r"\[\d+[mh]\]", f"[{window}]", expression)


class Load:
    """A little mail, to recipients in turns, until it is told to end."""

    def __init__(self, port: int, sender: str, recipients: Sequence[str]) -> None:
        self._port, self._sender, self._recipients = port, sender, recipients
        self._end = threading.Event()
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        draw = random.Random(1)
        text = f"From: {self._sender}\r\nSubject: load\r\n\r\nHello\r\n"
        while not self._end.is_set():
            # A worker may die meanwhile, and its sessions with it.
            with (
                suppress(OSError, smtplib.SMTPException),
                smtplib.SMTP("127.0.0.1", self._port, timeout=TIMEOUT) as client,
            ):
                for _ in range(10):
                    client.sendmail(self._sender, [draw.choice(self._recipients)], text)
                    self.acknowledged += 1
                    self._end.wait(PAUSE)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(TIMEOUT)


class Fetch:
    """Somebody who looks into his mailbox now and then, and deletes what is there."""

    def __init__(self, port: int, user: str, password: str) -> None:
        self._port, self._user, self._password = port, user, password
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the demo's own
        while not self._end.is_set():
            with suppress(OSError, poplib.error_proto):
                client = poplib.POP3("127.0.0.1", self._port, TIMEOUT)
                client.stls(context)
                client.user(self._user)
                client.pass_(self._password)
                for number in range(1, client.stat()[0] + 1):
                    client.retr(number)
                    client.dele(number)
                client.quit()
            self._end.wait(LOOKS)

    def __enter__(self) -> "Fetch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(TIMEOUT)
