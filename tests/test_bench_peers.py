"""The benchmark beside other servers: each relays for real, and what is told is what was found."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import fastmta.cli
from bench import (
    accept,
    ceiling,
    cgroup,
    compare,
    idle,
    markdown,
    peers,
    plots,
    processes,
    relay,
    report,
    stalls,
    suite,
    syscalls,
)
from bench import sweep as sweeps
from bench.__main__ import main
from bench.load import Load
from bench.peers import FETCHED, Features
from bench.relay import Options, Run, numbered, scratch, send
from bench.report import Machine, Results
from fastmta.config import Endpoint
from fastmta.sink import Behaviour, Mail, Sink
from tests.support import run

OTHERS = [name for name in peers.NAMES if name not in ("fastmta", "null")]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where users of other servers may enter, which pytest's own folders do not allow."""
    base = FETCHED.parent / "tests"
    base.mkdir(parents=True, exist_ok=True)
    with scratch(base) as path:
        yield path


@pytest.mark.parametrize("name", OTHERS)
def test_each_peer_that_is_there_relays(name: str, folder: Path) -> None:
    peer = peers.load(name)
    if reason := peer.missing():
        pytest.skip(reason)
    assert re.search(r"\d\.\d", peer.version())
    found = numbered(peer, Options(messages=20, clients=2), folder)
    assert (found.lost, found.duplicated, found.corrupt, found.refused) == (0, 0, 0, 0)
    assert found.cpu > 0
    assert found.resident > 1 << 20


@pytest.mark.parametrize("name", ["exim", "opensmtpd", "haraka"])
def test_peers_speak_tls_where_they_say_so(name: str, folder: Path) -> None:
    peer, features = peers.load(name), Features(tls="out")
    if reason := peer.missing():
        pytest.skip(reason)
    found = numbered(peer, Options(messages=5, clients=1, features=features), folder)
    assert (found.lost, found.refused) == (0, 0)


def test_what_is_not_there_is_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.load("haraka"), "missing", lambda: "not fetched")
    options = ["--messages=20", "--clients=2", "--repeats=1", "--peers=haraka,null"]
    output = tmp_path / "runs.json"
    command = ["relay", *options, "--dir", str(tmp_path), "--json", str(output)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "NOT MEASURED: haraka: not fetched" in done.output
    assert msgspec.json.decode(output.read_bytes())["absent"] == {"haraka": "not fetched"}


# Measures


def test_processes_without_parents_are_counted(tmp_path: Path) -> None:
    """A child whose parent has gone is in no tree."""
    if not (group := cgroup.create()):
        pytest.skip("no control groups here")
    group.remove()
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)"
    orphan = f'sh -c \'exec "$0" -c "$1" & \' {sys.executable} "{burn}"; exec sleep 1000'
    log = tmp_path / "output"
    with processes.running(["sh", "-c", orphan], log) as process:
        for _ in processes.tries(60):
            if b"done" in log.read_bytes():
                break
        usage = processes.usage(process.pid)
    assert usage.user + usage.system >= 0.25


def test_system_calls_and_flushes_are_counted(tmp_path: Path) -> None:
    if reason := syscalls.missing():
        pytest.skip(reason)
    found = syscalls.measure(peers.load("fastmta"), Options(messages=50, clients=2), tmp_path)
    assert found.calls > 4  # it has to read and to write, in and out
    assert found.flushes > 0
    null = tmp_path / "null"
    null.mkdir()
    assert syscalls.measure(peers.load("null"), Options(messages=50, clients=2), null).flushes == 0


def test_a_table_of_strace_is_read() -> None:
    table = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300           3       100        10 read
 40.00    0.000200         100         2           fdatasync
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500           4       102        10 total
"""
    assert syscalls.parse(table) == {"read": 100, "fdatasync": 2, "total": 102}


@pytest.mark.parametrize("name", ["fastmta", "null"])
def test_mail_is_taken_in_while_none_can_leave(name: str, tmp_path: Path) -> None:
    found = accept.measure(peers.load(name), Options(messages=30, clients=3), tmp_path)
    assert (found.messages, found.refused) == (30, 0)
    assert found.rate > 0
    assert found.accept_p99 > 0
    if name == "fastmta":
        command = ["queue", "list", "-c", str(tmp_path / "fastmta.toml"), "--json"]
        done = CliRunner().invoke(fastmta.cli.main, command, catch_exceptions=False)
        assert len(done.output.splitlines()) == 30 + relay.WARM_UP * 3


def test_the_lag_of_the_loop_is_read(tmp_path: Path) -> None:
    found = stalls.measure(Options(messages=200, clients=3), tmp_path)
    assert found.looks > 0
    assert 0 < found.half <= found.most <= found.all
    assert found.stalls <= found.looks


def test_idle_sessions_are_opened_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "WARMING", 2)
    found = idle.measure(peers.load("fastmta"), 20, tmp_path)
    assert found.point == {"sessions": 20}
    assert found.session != 0


def test_the_ceiling_of_the_tools(tmp_path: Path) -> None:
    found = ceiling.measure(Options(messages=100, clients=3), tmp_path)
    assert found.rate > 0
    assert "LESS THAN TWICE the fastest" in ceiling.verdict(100.0, 51.0)
    assert "LESS" not in ceiling.verdict(100.0, 50.0)


def test_a_load_of_some_messages_a_second_is_spread() -> None:
    async def scenario() -> float:
        async with Sink(Behaviour(), take=mails.append) as sink:
            result = await Load(20, 1000, rate=100.0).run(Endpoint(*sink.endpoint), 3)
        assert result.accept_p50 <= result.accept_p99 <= result.accept_p999
        return result.seconds

    mails: list[Mail] = []
    assert run(scenario()) > 0.2 - 0.002  # the loop's timers know milliseconds
    assert len(mails) == 20


# The suite


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken:
        __name__ = "broken"
        missing = version = staticmethod(str)
        can = staticmethod(lambda features: True)

        @staticmethod
        @contextmanager
        def running(*rest: object) -> Iterator[int]:
            raise RuntimeError("does not start")
            yield 0

    plan = suite.Plan(claims=("relay", "idle"), repeats=1, seconds=0.5, sessions=5, base=tmp_path)
    its = suite.Suite(plan, {"broken": Broken(), "null": peers.load("null")})  # type: ignore[dict-item]
    runs = [its.run(step) for step in its.steps()]
    assert [run.peer for run in runs] == ["broken", "null"] * 2
    assert "does not start" in runs[0].failed
    assert "does not start" in runs[2].failed
    assert runs[1].messages > sweeps.FEWEST  # as many as the run before has taught
    assert not runs[1].failed


def test_points_become_options() -> None:
    options = sweeps.at(Options(), {"clients": 7})
    assert options.clients == 7
    assert sweeps.at(options, {"tls": "in"}).features == Features(tls="in")
    null = {"null": peers.load("null")}
    assert [step.point for step in sweeps.steps("tls", null)] == [{"tls": "none"}]
    assert not list(sweeps.steps("workers", {"postfix": peers.load("postfix")}))


def test_a_pace_learns_what_a_peer_can_do() -> None:
    pace = sweeps.Pace(2.0)
    assert pace.messages("a", Options()) == 600
    pace.learn("a", Run(messages=5000, seconds=1.0))
    assert pace.messages("a", Options()) == 10_000
    assert pace.messages("a", Options(clients=1)) == 600
    assert pace.messages("a", Options(size=1 << 20)) == 400
    assert pace.messages("b", Options()) == 600


def test_a_run_that_ended_too_soon_is_made_again_for_longer(tmp_path: Path) -> None:
    pace = sweeps.Pace(2.0)
    pace.learn("null", Run(messages=10, seconds=1.0))
    step = sweeps.Step("null", peers.load("null"), "clients", {"clients": 20})
    run = sweeps.measure(step, Options(), pace, tmp_path)
    assert run.failed == ""
    assert run.messages > 2 * 100  # as many as the slowest have to send
    assert (run.lost, run.duplicated) == (0, 0)
    assert pace.rate("null") == run.rate


# What is written


def results(**rates: float) -> Results:
    machine = Machine(
        cpus=2, cpu="Z80", kernel="6", python="3", filesystem="ext4", fdatasyncs=1, load=0.0
    )
    runs = []
    for peer, rate in rates.items():
        for claim, point in (
            ("relay", {}), ("clients", {"clients": 1}), ("clients", {"clients": 100}),
            ("latency", {"load": "half"}), ("queue-depth", {"envelopes": 0}),
        ):  # fmt: skip
            runs.append(
                Run(
                    peer=peer, claim=claim, point=point, messages=100, seconds=100 / rate,
                    user=1e5 / rate, accept_p50=1 / rate, accept_p99=2 / rate, accept_p999=3 / rate,
                )
            )  # fmt: skip
    runs.append(Run(peer="exim", claim="relay", failed="it did not start"))
    return Results(
        command="bench", machine=machine, versions={}, absent={"haraka": "no npm"}, runs=runs
    )


def test_the_markdown_has_every_figure_and_every_absence() -> None:
    measured = results(fastmta=2000, postfix=100)
    measured.runs.append(
        Run(peer="postfix", claim="clients", point={"clients": 9}, messages=100, lost=3, corrupt=1)
    )
    text = markdown.of(measured)
    assert "| messages a second | 2,000 | 100 | failed |" in text
    assert "| messages a second | 100 | 2,000 | 100 |" in text
    assert "- haraka was not measured: no npm" in text
    assert "- exim, relay failed: it did not start" in text
    assert "- postfix, clients 9: 3 lost, 1 corrupt of 100 messages" in text


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = plots.draw(results(fastmta=2000, postfix=100).runs, tmp_path)
    assert [path.stem for path in drawn] == ["throughput", "cpu", "latency", "queue-depth"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert all(path.with_suffix(".svg").exists() for path in drawn)


def test_a_regression_fails_and_a_gain_does_not(tmp_path: Path) -> None:
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    fast.write_bytes(msgspec.json.encode(results(fastmta=2000, postfix=100)))
    slow.write_bytes(msgspec.json.encode(results(fastmta=1500, postfix=100)))
    worse = CliRunner().invoke(main, ["compare", str(fast), str(slow)])
    assert worse.exit_code == 1
    assert "WORSE" in worse.output
    assert CliRunner().invoke(main, ["compare", str(slow), str(fast)]).exit_code == 0
    mild = ["compare", str(fast), str(slow), "--threshold", "0.5"]
    assert CliRunner().invoke(main, mild).exit_code == 0
    assert (
        CliRunner().invoke(main, ["compare", str(fast), str(slow), "--peer=postfix"]).exit_code == 0
    )


def test_options_that_differ_are_told(tmp_path: Path) -> None:
    paths = []
    for sessions in (200, 2000):
        measured = results(fastmta=2000, postfix=100)
        measured.options = {"sessions": sessions, "repeats": 3}
        paths.append(tmp_path / f"{sessions}.json")
        paths[-1].write_bytes(msgspec.json.encode(measured))
    said = CliRunner().invoke(main, ["compare", *map(str, paths)]).output
    assert "sessions differs: 200 and 2000\n" in said
    assert "repeats" not in said


def test_what_cannot_be_compared_is_no_success(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.json", tmp_path / "broken.json"
    good.write_bytes(msgspec.json.encode(results(fastmta=2000, postfix=100)))
    broken.write_bytes(b'{"command": "bench"}')
    for arguments, told in (
        ([str(good), str(good), "--peer=qmail"], "has no run of qmail"),
        ([str(good), str(broken)], "broken.json holds no results"),
    ):
        done = CliRunner().invoke(main, ["compare", *arguments])
        assert done.exit_code == 1
        assert told in done.output


def test_what_is_lost_is_always_a_regression() -> None:
    whole, lossy = Run(peer="fastmta", messages=1, seconds=1), Run(peer="fastmta", lost=1)
    found = compare.changes([whole], [lossy], 0.5)
    assert [(each.measure, each.worse) for each in found] == [("lost", True)]


def test_runs_that_overlap_are_no_regression() -> None:
    def runs(*rates: float) -> list[Run]:
        return [Run(peer="fastmta", messages=100, seconds=100 / rate) for rate in rates]

    (change,) = compare.changes(runs(100, 50, 100), runs(60, 60, 60), 0.2)
    assert not change.worse
    (change,) = compare.changes(runs(100, 90, 100), runs(60, 60, 60), 0.2)
    assert change.worse


def test_a_failed_run_has_one_line() -> None:
    assert report.told(Run(failed="no")) == "FAILED: no"


def test_why_a_load_failed_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"the load failed: .*refused"):
        send(processes.free_port(), Options(messages=1, clients=1))
