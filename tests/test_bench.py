"""The bench: what it reports is what happened, and it leaves nothing behind."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench import fanout, peers, processes, report, scrape, tls_sessions
from bench.__main__ import main
from bench.load import HEAD, Load, Result, body_of
from bench.peers import PLAIN, Features, Peer
from bench.queue_depth import Depth
from bench.relay import Options, Run, contenders, judge, numbered, outside
from fastmta.config import Endpoint
from fastmta.sink import Behaviour, Counts, Mail, Sink
from tests.support import run

# A null relay that loses each tenth message, sends each seventh twice and spoils each eleventh.
UNFAITHFUL = """
import re, sys, uvloop
from bench.null_relay import Relay

class Unfaithful(Relay):
    def take(self, envelope, body):
        found = re.search(rb"X-Fastmta-Number: (\\d+)", body)
        number = int(found[1]) if found else 1
        if number % 11 == 0:
            body = body.replace(b"x", b"y")
        for _ in range(0 if number % 10 == 0 else 2 if number % 7 == 0 else 1):
            super().take(envelope, body)

uvloop.run(Unfaithful().run(int(sys.argv[1]), int(sys.argv[2])))
"""


class Unfaithful:
    __name__ = "unfaithful"
    missing = version = staticmethod(str)

    @staticmethod
    def can(features: Features) -> bool:
        return False

    @staticmethod
    @contextmanager
    def running(
        folder: Path, port: int, next_hop: int, workers: int, features: Features
    ) -> Iterator[int]:
        command = [sys.executable, "-c", UNFAITHFUL, str(port), str(next_hop)]
        with processes.running(command, folder / "output") as process:
            processes.greets(port, process)
            yield process.pid


def test_through_the_null_relay_all_arrive(tmp_path: Path) -> None:
    found = numbered(peers.load("null"), Options(messages=200, clients=7), tmp_path)
    assert (found.lost, found.duplicated, found.corrupt, found.refused) == (0, 0, 0, 0)
    assert found.seconds > 0
    assert found.peak_memory > 1 << 20
    assert 0 < found.accept_p50 <= found.accept_p99
    assert 0 < found.deliver_p50 <= found.deliver_p99


def test_what_runs_beside_plain() -> None:
    under_test = {name: peers.load(name) for name in ("fastmta", "null")}
    assert contenders(under_test, PLAIN) == {"fastmta": ("fastmta", PLAIN), "null": ("null", PLAIN)}
    features = Features(tls="in")
    assert contenders(under_test, features) == {
        "fastmta": ("fastmta", PLAIN),
        "fastmta, TLS in": ("fastmta", features),
        "null": ("null", PLAIN),
    }


@pytest.mark.parametrize("tls", ["in", "out"])
def test_tls_is_spoken_where_it_is_asked_for(tls: peers.Tls, tmp_path: Path) -> None:
    options = Options(messages=50, clients=3, features=Features(tls=tls))
    found = numbered(peers.load("fastmta"), options, tmp_path)
    assert (found.lost, found.duplicated, found.corrupt, found.refused) == (0, 0, 0, 0)
    lines = (tmp_path / "data" / "dispositions.jsonl").read_text().splitlines()
    events = [msgspec.json.decode(line) for line in lines]
    of = {"in": ("received", "protocol", "ESMTPS"), "out": ("delivered", "tls", "TLSv1.3")}[tls]
    told = [event[of[1]] for event in events if event["event"] == of[0]]
    assert sum(each.startswith(of[2]) for each in told) >= 50


def test_debians_tools_run_through_the_null_relay(tmp_path: Path) -> None:
    found = outside(peers.load("null"), Options(messages=200, clients=7), tmp_path)
    assert (found.load, found.messages) == ("outside", 200)
    assert found.rate > 0


def test_what_a_relay_loses_doubles_or_spoils_is_reported(tmp_path: Path) -> None:
    peer: Peer = Unfaithful()
    found = numbered(peer, Options(messages=100, clients=3, stall=0.5), tmp_path)
    # 70 is lost, not doubled; 77 is doubled, and both are spoilt.
    assert (found.lost, found.duplicated, found.corrupt) == (10, 13, 10)


def test_judge_counts_only_what_was_acknowledged_as_lost() -> None:
    found = judge(Run(), Result(acknowledged="1-5,8", refused=2), Counts(numbers="1-4,6-7"))
    assert (found.lost, found.refused) == (2, 2)


def test_a_peer_that_does_not_greet_is_told(tmp_path: Path) -> None:
    with (
        processes.running([sys.executable, "-c", ""], tmp_path / "output") as process,
        pytest.raises(RuntimeError, match="does not greet"),
    ):
        processes.greets(processes.free_port(), process)


# The load


def load(behaviour: Behaviour, messages: int = 20, size: int = 1000) -> tuple[Result, list[Mail]]:
    async def scenario() -> Result:
        async with Sink(behaviour, take=mails.append) as sink:
            return await Load(messages, size).run(Endpoint(*sink.endpoint), 3)

    mails: list[Mail] = []
    return run(scenario()), mails


def test_each_250_is_written_down_and_each_message_is_whole() -> None:
    result, mails = load(Behaviour())
    assert (result.acknowledged, result.refused, result.disconnects) == ("1-20", 0, 0)
    assert len(mails) == 20
    assert all(b"\r\n\r\n.a line" in mail.content for mail in mails)
    assert all(900 < len(mail.content) < 1100 for mail in mails)


def test_refused_messages_are_not_acknowledged() -> None:
    result, mails = load(Behaviour(tempfail=1.0))
    assert (result.acknowledged, result.refused, mails) == ("", 20, [])
    result, _ = load(Behaviour(max_size=10))
    assert (result.acknowledged, result.refused) == ("", 20)


def test_connections_that_end_early_are_counted() -> None:
    result, mails = load(Behaviour(close_after=2))
    assert (result.acknowledged, result.disconnects, len(mails)) == ("1-6", 3, 6)


@pytest.mark.parametrize("size", [600, 2048, 100_000])
def test_a_body_is_stuffed_and_has_its_size(size: int) -> None:
    body, _ = body_of(size)
    assert body.startswith(b"..a line")
    assert body.endswith(b"\r\n.\r\n")
    assert abs(len(HEAD) + 60 + len(body) - size) < size // 20 + 100


# Processes


def test_usage_counts_children_that_have_ended(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}]);"
        "print('done', flush=True); time.sleep(1000)"
    )
    log = tmp_path / "output"
    with processes.running([sys.executable, "-c", script], log) as process:
        wait_until(lambda: b"done" in log.read_bytes())
        usage = processes.usage(process.pid)
    assert usage.user + usage.system >= 0.25
    assert usage.since(usage).user == 0


def test_the_whole_tree_is_gone_at_the_end(tmp_path: Path) -> None:
    script = "sleep 1000 & setsid sleep 1001 & wait"
    with processes.running(["sh", "-c", script], tmp_path / "output") as process:
        wait_until(lambda: len(processes.tree(process.pid)) == 3)
        pids = processes.tree(process.pid)
    assert not any(alive(pid) for pid in pids)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


# The command


def test_the_command_shows_a_table_and_writes_every_run(tmp_path: Path) -> None:
    output = tmp_path / "runs.json"
    options = ["--messages=50", "--clients=3", "--repeats=2", "--peers=null"]
    command = ["relay", *options, "--dir", str(tmp_path), "--json", str(output)]
    line = [sys.executable, "-m", "bench", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "share of null" in done.stdout
    facts = msgspec.json.decode(output.read_bytes())
    assert [run["load"] for run in facts["runs"]] == ["outside", "numbered"] * 2
    assert facts["ratios"]["outside"]["CPU, times null"].get("null", 1.0) == 1.0
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    "command", [["relay", "--messages=10000000", "--peers=null"], ["head-of-line"]]
)
def test_an_interrupted_run_leaves_nothing_behind(command: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench", *command, "--dir", str(tmp_path)]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda pid=process.pid: len(processes.tree(pid)) == 4)  # type: ignore[misc]
        pids = processes.tree(process.pid)
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait() != 0
        # The load's own end may come a moment later: the relay under it is gone.
        wait_until(lambda pids=pids: not any(map(alive, pids)))  # type: ignore[misc]
        assert not list(tmp_path.iterdir())


def test_fanout_asks_once_for_each_name(tmp_path: Path) -> None:
    found = fanout.run(fanout.Options(messages=300, domains=60, sites=3, clients=5), tmp_path)
    assert (found.refused, found.lost, found.duplicated) == (0, 0, 0)
    assert found.queries == 60 + 3 * fanout.HOSTS * 2  # MX; A and AAAA
    assert 3 <= found.connections <= 3 * 32
    assert not list(tmp_path.iterdir())


def test_scrapes_are_measured_while_sites_become_known(tmp_path: Path) -> None:
    found = scrape.run(scrape.Options(sites=150, clients=5, workers=1), tmp_path)
    assert (found.messages, found.lost) == (150, 0)
    before, loaded, afterwards = found.phases
    assert before.scrapes == afterwards.scrapes == scrape.QUIET_SCRAPES
    assert loaded.scrapes > 0
    # 100 sites by name, each with three ends.
    assert afterwards.series - before.series >= 300
    assert 0 < afterwards.median <= afterwards.worst
    assert 0 < afterwards.collect_mean <= afterwards.collect_most


def test_ratios_compare_what_has_the_same_features() -> None:
    found = report.ratios(
        [
            Run(peer=peer, load="numbered", messages=100, seconds=seconds)
            for peer, seconds in {
                "fastmta": 1, "fastmta, TLS in": 2, "postfix": 10, "postfix, TLS in": 40
            }.items()
        ]
    )["numbered"]  # fmt: skip
    assert found["messages/s, times Postfix"]["fastmta, TLS in"] == 20
    assert found["messages/s, share of plain"] == {"fastmta, TLS in": 0.5, "postfix, TLS in": 0.25}


@pytest.mark.parametrize(
    "arguments",
    [
        ["relay", "--peers", "qmail"],
        ["relay", "--peers", ""],
        ["all", "--claims", "relay,spped"],
        ["all", "--seconds", "0"],
        ["all", "--out", "/proc/results"],
        ["relay", "--dir", "/proc/bench"],
        ["relay", "--json", "/nowhere/runs.json"],
        ["tls-sessions", "--clients", "0"],
    ],
)
def test_what_cannot_be_is_wrong_usage_before_anything_runs(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert f"Invalid value for '{arguments[1]}'" in done.output


def test_debians_tools_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    done = CliRunner().invoke(main, ["relay", "--peers", "null"])
    assert done.exit_code == 1
    assert "smtp-sink" in done.output


def test_ratios_are_of_medians() -> None:
    def runs(peer: str, *seconds: float) -> list[Run]:
        return [
            Run(peer=peer, load="outside", messages=100, seconds=s, user=10 * s, system=0)
            for s in seconds
        ]

    found = report.ratios([*runs("null", 1, 1, 9), *runs("postfix", 10, 10, 5)])["outside"]
    assert found["messages/s, times Postfix"] == {"null": 10, "postfix": 1}
    assert found["messages/s, share of null"] == {"null": 1, "postfix": 0.1}
    assert found["CPU, times null"] == {"null": 1, "postfix": 10}


# TLS sessions


def test_handshakes_and_idle_sessions_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_sessions, "WARM_UP", 8)
    for resumed in (False, True):
        found = tls_sessions.handshakes(tmp_path, 16, 2, resumed, "p256")
        assert found.rate > 0
    for tls in tls_sessions.MODES:
        took = tls_sessions.memories(tmp_path, 100, tls, "rsa2048")
        # In the clear a hundred may fit into what the process has already.
        assert took.idle > 0 < took.after or tls == "none"
    assert not list(tmp_path.iterdir())


# The deep queue


def test_a_deep_queue_is_measured_beside_an_empty_one(tmp_path: Path) -> None:
    output = tmp_path / "runs.json"
    sizes = ["--envelopes=300", "--domains=20", "--due=10", "--messages=50", "--repeats=1"]
    sizes.append("--rest=0")
    line = [sys.executable, "-m", "bench", "queue-depth", *sizes, "--dir", str(tmp_path)]
    done = subprocess.run(
        [*line, "--json", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "envelopes that wait" in done.stdout
    empty, deep = msgspec.json.decode(output.read_bytes(), type=list[Depth])
    assert (empty.envelopes, deep.envelopes) == (0, 300)
    assert empty.first == 0 < deep.first
    assert 0 < deep.anonymous < deep.resident
    assert [run.run.lost + run.run.duplicated + run.run.corrupt for run in (empty, deep)] == [0, 0]
    assert list(tmp_path.iterdir()) == [output]
