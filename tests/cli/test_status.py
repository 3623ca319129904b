"""fastmta status: what it says of a running server, and where none is."""

import json
import os
import signal
import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

from fastmta.cli import main
from tests.integration.servers import PROGRAM, Relay, relay, wait_until


def status(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", "-c", str(folder / "fastmta.toml"), *options])


def configure(folder: Path) -> None:
    (folder / "fastmta.toml").write_text(
        'hostname = "relay.example.test"\ndata_dir = "data"\n'
        '[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:2525"\n'
    )


def pids(one: Relay) -> list[int]:
    rows = [json.loads(line) for line in status(one.folder, "--json").output.splitlines()]
    return [row.get("pid", 0) for row in rows]


def test_no_server_is_running(tmp_path: Path) -> None:
    configure(tmp_path)
    result = status(tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"fastmta: no server is running with data_dir {tmp_path / 'data'}, "
        "start it with fastmta serve -c FILE\n"
    )


def test_what_is_there_is_no_socket_of_a_server(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "data" / "control").mkdir(parents=True)
    assert status(tmp_path).exit_code == 1


def test_a_running_server(tmp_path: Path) -> None:
    with relay(tmp_path, workers=2) as one:
        result = status(tmp_path, "--json")
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.exit_code == 0
        assert [row["worker"] for row in rows] == [0, 1]
        assert [row["shards"] for row in rows] == [[0], [1]]
        assert {row["queued"] for row in rows} == {0}
        assert len({row["config"] for row in rows}) == 1
        table = status(tmp_path)
        assert table.exit_code == 0
        assert str(rows[0]["pid"]) in table.stdout
        assert rows[0]["config"] in table.stdout  # whole, where there is no terminal
        assert max(map(len, table.stdout.splitlines())) <= 80
        assert stat_mode(one.data / "control") == 0o600
    assert not (one.data / "control").exists()


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_worker_that_dies_while_it_is_asked(tmp_path: Path) -> None:
    with relay(tmp_path, workers=2) as one:
        victim = pids(one)[1]
        os.kill(victim, signal.SIGSTOP)
        command = [str(PROGRAM), "status", "-c", str(tmp_path / "fastmta.toml"), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            # It prints when all is over, so it is the supervisor that tells when it has asked.
            wait_until(lambda: connections(one.data / "control") >= 2)
            os.kill(victim, signal.SIGKILL)
            rows = [json.loads(line) for line in process.stdout]
        assert process.returncode == 1
        assert rows[0]["worker"] == 0
        assert rows[1] in (
            {"worker": 1, "error": "ended in the middle of it"},
            {"worker": 1, "error": "is not running now"},
        )
        wait_until(lambda: len(pids(one)) == 2 and victim not in pids(one))


def connections(path: Path) -> int:
    """The sockets of this name: the one that listens, and one for each client."""
    return Path("/proc/net/unix").read_text().count(f" {path}\n")
