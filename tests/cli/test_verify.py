"""`fastmta verify`, `backup` and `restore`: what they say, and their exit codes."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmta.cli import main
from fastmta.store import env as store_env
from fastmta.store import records
from tests.store import test_verify as spool
from tests.store.test_verify import WAITING, change, row_of

data = spool.data  # a shard with mail in each state

CONFIG = """
hostname = "relay.example.test"
data_dir = "{}"
listener = [{{ service = "smtp", bind = "127.0.0.1:2525" }}]
"""
LOSE_BODY = row_of("chunks", records.chunk_key(WAITING[0], 0), lambda row: row[:-1])


@pytest.fixture
def config(data: Path) -> Path:
    path = data.parent / "fastmta.toml"
    path.write_text(CONFIG.format(data))
    return path


def fastmta(config: Path, command: str, *words: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [command, "-c", str(config), *map(str, words)])
    assert done.exit_code == code, done.output
    return done


def test_what_is_whole_is_said_to_be(config: Path) -> None:
    said = fastmta(config, "verify").stdout
    assert said.splitlines()[1].split() == ["spool/0", "8", "8", "200", "KB", "0"]
    assert said.endswith("all is well\n")
    (part,) = map(json.loads, fastmta(config, "verify", "--json").stdout.splitlines())
    assert (part["part"], part["envelopes"], part["problems"]) == ("spool/0", 8, [])
    assert part["online"] is False


def test_a_problem_is_told_and_repaired(config: Path, data: Path) -> None:
    change(data, LOSE_BODY)
    said = fastmta(config, "verify", code=1).stdout
    assert "spool/0: envelope 0000000010000: " in said
    assert said.endswith("1 problem\n")
    assert not (data / "aside").exists()
    said = fastmta(config, "verify", "--repair", code=1).stdout
    assert "spool/0: repaired: envelope 0000000010000: " in said
    assert f"what was taken out is in {data / 'aside'}" in said
    assert "1 row that could not be read was moved aside" in fastmta(config, "verify").stdout


def test_repairs_as_json(config: Path, data: Path) -> None:
    change(data, LOSE_BODY)
    (part,) = map(
        json.loads, fastmta(config, "verify", "--repair", "--json", code=1).stdout.splitlines()
    )
    (mended,) = part["mended"]
    assert mended.startswith(part["problems"][0])


def test_a_server_that_runs_is_not_repaired(config: Path, data: Path) -> None:
    held = store_env.own(data / store_env.LOCK)
    done = fastmta(config, "verify", "--repair", code=1)
    assert "a server is running" in done.stderr
    assert "the pages of the files were not looked at" in fastmta(config, "verify").stdout
    os.close(held)


def test_a_target_that_cannot_be_made_is_told_in_words(config: Path, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "copy"
    said = fastmta(config, "backup", target, code=1).stderr
    assert said == f"fastmta: {target}.partial: No such file or directory\n"


def test_where_there_is_nothing(config: Path, data: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG.format(tmp_path / "nothing"))
    assert "there is no mail in" in fastmta(config, "verify", code=1).stderr
    assert "there is no mail in" in fastmta(config, "backup", tmp_path / "copy", code=1).stderr
    assert not (tmp_path / "copy").exists()
    assert "is no backup" in fastmta(config, "restore", data, code=1).stderr
    fastmta(config, "restore", tmp_path / "copy", code=2)
    fastmta(config, "verify", "--repair", "--backup", data, code=2)


def test_there_and_back(config: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert f"to {copy}" in fastmta(config, "backup", copy).stdout
    assert "is there already" in fastmta(config, "backup", copy, code=1).stderr
    assert fastmta(config, "verify", "--backup", copy).stdout.endswith("all is well\n")
    assert "move it away first" in fastmta(config, "restore", copy, code=1).stderr
    data.rename(tmp_path / "old")
    assert "restored what there was at 20" in fastmta(config, "restore", copy).stdout
    assert fastmta(config, "verify").stdout.endswith("all is well\n")
    other = tmp_path / "other"
    (said,) = map(json.loads, fastmta(config, "backup", other, "--json").stdout.splitlines())
    assert (said["backup"], said["octets"] > 200_000) == (str(other), True)
