"""Prometheus itself reads a relay under load, and every panel and alert has something to show."""

import json
import math
import os
import random
import re
import signal
import smtplib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from bench.processes import free_port, tree
from grafana.__main__ import BOARDS
from tests.certificates import make_certificate
from tests.integration.mailboxes import add_account
from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Relay,
    destination,
    program,
    relay,
    route,
    rude_host,
    wait_until,
)
from tests.test_grafana import ALERTS, RULES, panels

ROOT = Path(__file__).parent.parent.parent
SCRAPES = int(os.environ.get("FASTMTA_SCRAPES", "25"))  # one a second
WINDOW = "15s"  # for what looks at minutes else; the test has no more
TABLES = """
[domains."example.test"]

[retry]
first = "1s"
max_interval = "2s"

[shaping]
message_rate = "5000/s"

[[dkim]]
domain = "signed.test"
selector = "s"
key = "dkim.pem"

[tls]
certificate = "certificate.pem"
key = "key.pem"
"""
RECIPIENTS = [
    *("local@example.test", "here@one.test", "there@two.test", "permfail@one.test"),
    *("tempfail@two.test", "somebody@slow.test", "somebody@listed.test"),
]


class Prometheus(NamedTuple):
    port: int

    def get(self, path: str, **query: str) -> Any:
        words = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        with urlopen(f"http://127.0.0.1:{self.port}/{path}?{words}", timeout=LIMIT) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        """What a query gives; URLError if it is not well formed."""
        result = self.get("api/v1/query", query=expression)["result"]
        return [float(one["value"][1]) for one in result]

    def is_ready(self) -> bool:
        with suppress(URLError), urlopen(f"http://127.0.0.1:{self.port}/-/ready"):
            return True
        return False


@contextmanager
def prometheus(folder: Path, admin: int) -> Iterator[Prometheus]:
    text = (ROOT / "grafana" / "prometheus.yml").read_text()
    for old, new in {
        "10s": "1s",
        "alerts.yml": str(ALERTS),
        "127.0.0.1:2580": f"127.0.0.1:{admin}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        running = Prometheus(port)
        wait_until(running.is_ready, lambda: process.poll() is None)
        yield running
    finally:
        process.terminate()
        process.wait()


class Load:
    """Mail with all fates, a little of it, until it is told to end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        draw = random.Random(1)
        while not self._end.is_set():
            # A worker is killed meanwhile, and its sessions with it.
            with (
                suppress(OSError, smtplib.SMTPException),
                smtplib.SMTP("127.0.0.1", self._port, timeout=LIMIT) as client,
            ):
                for _ in range(10):
                    sender, to = "a@signed.test", draw.choice(RECIPIENTS)
                    client.sendmail(sender, [to], f"From: {sender}\r\n\r\nHello\r\n")
                    self.acknowledged += 1
                    self._end.wait(0.02)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(LIMIT)


@contextmanager
def loaded(folder: Path) -> Iterator[tuple[Relay, Load]]:
    command = [str(PROGRAM), "dkim", "generate", "signed.test", "--out", str(folder / "dkim.pem")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "data").mkdir(mode=0o700)
    add_account(folder / "data", "local@example.test")
    with (
        rude_host(b"450 4.7.1 Ip frequency limited\r\n") as slow,
        rude_host(b"554 5.7.1 blocked using zen.spamhaus.org\r\n") as listed,
        destination() as one,
        destination() as two,
    ):
        routes = [
            *(route(slow, "slow.test"), route(listed, "listed.test")),
            *(route(one.port, "one.test"), route(two.port)),
        ]
        with relay(folder, TABLES, *routes, workers=2) as running, Load(running.smtp) as load:
            yield running, load


def shortened(expression: str) -> str:
    """As Grafana asks it, for as long as the test has data."""
    expression = expression.replace("$__rate_interval", WINDOW).replace("$instance", ".*")
    assert "$" not in expression
    return re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", expression)


def operands(expression: str) -> list[str]:
    """What an alert compares: that is there also when all is well."""
    return [re.split(r"\s[<>]\s[\d.]+\s*$", part)[0] for part in re.split(r"\sand\s", expression)]


def test_operands_of_an_alert() -> None:
    assert operands("a / (b > 0) > 0.1 and sum(c) > 2") == ["a / (b > 0)", "sum(c)"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Relay, Prometheus, Load]]:
    folder = tmp_path_factory.mktemp("prometheus")
    make_certificate(folder, "DNS:relay.example.test")
    with loaded(folder) as (running, load), prometheus(folder, running.admin) as server:
        scraped = "sum(count_over_time(fastmta_workers[5m]))"
        wait_until(lambda: sum(server.values(scraped)) >= SCRAPES / 2)
        os.kill(tree(running.process.pid)[1], signal.SIGKILL)
        wait_until(lambda: sum(server.values(scraped)) >= SCRAPES)
        yield running, server, load


Watched = tuple[Relay, Prometheus, Load]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_panel_has_data(watched: Watched, board: Any) -> None:
    _, server, _ = watched
    empty = [
        f"{panel['title']}: {target['expr']}"
        for panel in panels(board)
        for target in panel["targets"]
        if all(map(math.isnan, server.values(shortened(target["expr"]))))
    ]
    assert empty == []


def test_every_alert_has_data_and_can_be_evaluated(watched: Watched) -> None:
    _, server, _ = watched
    rules = [rule for group in server.get("api/v1/rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [name for name, *_ in RULES]
    assert {rule["health"] for rule in rules} == {"ok"}
    empty = [
        part
        for rule in rules
        for part in operands(shortened(rule["query"]))
        if all(map(math.isnan, server.values(part)))
    ]
    assert empty == []


def received_of(server: Prometheus) -> float:
    [received] = server.values("sum(fastmta_smtp_in_messages_total)")
    return received


def test_what_a_panel_shows_is_so(watched: Watched) -> None:
    _, server, load = watched
    before = load.acknowledged
    # What a worker counted between a scrape and its death is lost.
    received = wait_until(lambda: max(0.0, received_of(server) - (before - 60)))
    assert received + before - 60 <= load.acknowledged + 2
    assert server.values("fastmta_worker_restarts_total") == [1]
    assert server.values("fastmta_workers_ready") == [2]


def test_no_counter_falls_when_a_worker_dies(watched: Watched) -> None:
    _, server, _ = watched
    names: list[str] = server.get("api/v1/label/__name__/values")
    grow = [name for name in names if re.fullmatch("fastmta_.+_(total|bucket|count|sum)", name)]
    assert len(grow) > 50
    fallen = [name for name in grow if any(server.values(f"resets({name}[5m]) > 0"))]
    assert fallen == []


def test_promtool_has_nothing_to_say_of_the_metrics(watched: Watched) -> None:
    running, _, _ = watched
    status, text = running.get("/metrics")
    assert status == 200
    command = [program("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
