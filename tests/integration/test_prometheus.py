"""Prometheus itself reads a relay under load, and every panel and alert has something to show."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.processes import free_port, tree
from grafana.__main__ import BOARDS
from grafana.watching import Load, Prometheus, concrete, prometheus
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
from tests.test_grafana import RULES, panels

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
        with (
            relay(folder, TABLES, *routes, workers=2) as running,
            Load(running.smtp, "a@signed.test", RECIPIENTS) as load,
        ):
            yield running, load


def operands(expression: str) -> list[str]:
    """What an alert compares: that is there also when all is well."""
    return [re.split(r"\s[<>]\s[\d.]+\s*$", part)[0] for part in re.split(r"\sand\s", expression)]


def test_operands_of_an_alert() -> None:
    assert operands("a / (b > 0) > 0.1 and sum(c) > 2") == ["a / (b > 0)", "sum(c)"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Relay, Prometheus, Load]]:
    folder = tmp_path_factory.mktemp("prometheus")
    make_certificate(folder, "DNS:relay.example.test")
    port, installed = free_port(), program("prometheus")
    with (
        loaded(folder) as (running, load),
        prometheus(folder / "prometheus", installed, port, running.admin) as server,
    ):
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
        if not server.has_data(concrete(target["expr"], WINDOW))
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
        for part in operands(concrete(rule["query"], WINDOW))
        if not server.has_data(part)
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


@pytest.mark.parametrize(
    "series",
    [
        'fastmta_source_blocked_total{source="system",end="failed"}',
        'fastmta_source_transactions_total{source="system",end="deferred"}',
        'fastmta_provider_transactions_total{provider="other",end="failed"}',
        'fastmta_slowed_path_connections{rule=~".*frequency limited.*"}',
        "fastmta_paths_slowed",
        'fastmta_mailbox_deliveries_total{end="stored"}',
        "fastmta_spool_disk_free_bytes - fastmta_spool_disk_floor_bytes",
    ],
)
def test_what_happened_is_told(watched: Watched, series: str) -> None:
    _, server, _ = watched
    assert max(server.values(series), default=0) > 0


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


def test_the_trial_shows_the_demo(tmp_path: Path) -> None:
    """As `grafana/try`, which only builds first."""
    command = [sys.executable, "-m", "grafana.trial", "--dir", str(tmp_path), "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) of (\d+) panels have data now", done.stdout)
    assert found
    assert int(found[1]) > 10
    page = (tmp_path / "panels.html").read_text() if "panels.html" in done.stdout else ""
    assert page.count("<a href=") == (int(found[2]) if page else 0)
