"""`fastmta account`: what it does, a real terminal, and what it says where it cannot."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmta.cli.account import account as group
from fastmta.store.accounts import Account, Accounts
from fastmta.store.passwords import check_password

PROGRAM = Path(sys.executable).parent / "fastmta"
CONFIG = """
hostname = "relay.example.test"
data_dir = "data"
listener = [{ service = "smtp", bind = "127.0.0.1:2525" }]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fastmta.toml"
    path.write_text(CONFIG)
    return path


def account(config: Path, *words: str, code: int = 0, text: bytes = b"") -> Result:
    """Run a command that has no terminal, in this process: starting one takes half a second."""
    command, *rest = words
    done = CliRunner().invoke(group, [command, "-c", str(config), *rest], input=text)
    assert done.exit_code == code, done.stderr
    return done


def stored(config: Path, name: str) -> Account:
    accounts = Accounts(config.parent / "data" / "accounts")
    try:
        found = accounts.get(name)
    finally:
        accounts.close()
    assert found is not None
    return found


def add(config: Path, *names: str) -> None:
    for name in names:
        account(config, "add", name, "--password-stdin", text=b"secret\n")


def listed(config: Path, *words: str, code: int = 0) -> list[dict[str, object]]:
    lines = account(config, "list", "--json", *words, code=code).stdout.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("text", [b"pass word", b"pass word\n", b"pass word\r\n"])
def test_a_password_from_standard_input(config: Path, text: bytes) -> None:
    done = account(config, "add", "Bob@Example.test", "--password-stdin", text=text)
    assert done.stdout == ""
    found = stored(config, "bob@example.test")
    assert check_password(found.password, "pass word")
    assert found.scram.iterations >= 4096  # RFC 7677 section 4
    assert found.quota == 0


def test_a_password_that_is_made_up(config: Path) -> None:
    password = account(config, "add", "bob@a.test", "--generate").stdout.rstrip("\n")
    assert len(password) >= 20
    assert check_password(stored(config, "bob@a.test").password, password)


def typed(config: Path, *words: str, answers: list[bytes]) -> tuple[int, bytes]:
    """Run a command on a terminal and answer its questions; its exit code, and all that it said."""
    ours, theirs = pty.openpty()
    command = [PROGRAM, "account", words[0], "-c", config, *words[1:]]
    # Without a session of its own it would ask on the terminal that the tests run on.
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            octets = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        said += octets
        if octets.rstrip().endswith(b":") and answers:
            os.write(ours, answers.pop(0) + b"\n")
    os.close(ours)
    return child.wait(), said


def test_a_password_from_a_terminal_is_asked_for_twice_and_hidden(config: Path) -> None:
    code, said = typed(config, "add", "bob@a.test", answers=[b"first", b"other", *2 * [b"secret"]])
    assert code == 0, said
    assert b"secret" not in said
    assert check_password(stored(config, "bob@a.test").password, "secret")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"two\nlines\n", "holds controls"),
        (b"nul\0", "holds controls"),
        (b"\xff", "holds controls"),
        (b"x" * 2000, "is longer than 1024 octets"),
    ],
)
def test_threat_11_a_password_that_is_none(config: Path, text: bytes, problem: str) -> None:
    done = account(config, "add", "bob@a.test", "--password-stdin", code=1, text=text)
    assert problem in done.stderr
    assert listed(config) == []


def test_no_password_is_read_from_the_command_line(config: Path) -> None:
    account(config, "add", "bob@a.test", "secret", code=2)
    account(config, "add", "bob@a.test", "--password", "secret", code=2)
    done = account(config, "add", "bob@a.test", code=2)
    assert "no terminal to ask on; write --password-stdin or --generate" in done.stderr
    account(config, "add", "bob@a.test", "--password-stdin", "--generate", code=2)


@pytest.mark.parametrize("address", ["bob", "@a.test", "bob@", "bob@a.test\n", "b ob@a.test", ""])
def test_what_is_no_address(config: Path, address: str) -> None:
    done = account(config, "add", address, "--generate", code=2)
    assert "is no address; write bob@example.test" in done.stderr


def test_what_exists_already(config: Path) -> None:
    add(config, "bob@a.test", "eve@a.test")
    account(config, "alias", "bob@a.test", "info@a.test")
    done = account(config, "add", "BOB@a.test", "--generate", code=1)
    assert done.stderr == "fastmta: bob@a.test is an account already\n"
    done = account(config, "add", "info@a.test", "--generate", code=1)
    assert done.stderr == "fastmta: info@a.test is an alias of bob@a.test already\n"
    done = account(config, "alias", "eve@a.test", "new@a.test", "info@a.test", code=1)
    assert done.stderr == "fastmta: info@a.test is an alias of bob@a.test already\n"
    assert [one["aliases"] for one in listed(config)] == [["info@a.test"], []]


@pytest.mark.parametrize(
    "words",
    [
        ("passwd", "nobody@a.test"),
        ("passwd", "nobody@a.test", "--generate"),
        ("set", "nobody@a.test", "--disable"),
        ("delete", "nobody@a.test"),
        ("alias", "nobody@a.test", "info@a.test"),
        ("alias", "nobody@a.test", "info@a.test", "--delete"),
        ("list", "nobody@a.test"),
    ],
)
def test_an_account_that_is_not_there(config: Path, words: tuple[str, ...]) -> None:
    done = account(config, *words, code=1)
    assert done.stderr == "fastmta: there is no account nobody@a.test\n"


def test_another_password(config: Path) -> None:
    add(config, "bob@a.test")
    before = stored(config, "bob@a.test")
    account(config, "passwd", "bob@a.test", "--password-stdin", text=b"new\n")
    after = stored(config, "bob@a.test")
    assert check_password(after.password, "new")
    assert after.scram != before.scram
    assert after.changed > before.changed == before.created


@pytest.mark.parametrize(
    ("written", "octets"),
    [("1G", 1 << 30), ("500m", 500 << 20), ("3K", 3072), ("12345", 12345), ("0", 0)],
)
def test_a_quota(config: Path, written: str, octets: int) -> None:
    account(config, "add", "bob@a.test", "--generate", "--quota", written)
    account(config, "add", "eve@a.test", "--generate")
    account(config, "set", "eve@a.test", "--quota", written)
    assert [one["quota"] for one in listed(config)] == [octets, octets]


@pytest.mark.parametrize("written", ["", "-1", "1X", "G", "1.5G", "9999999999T", "1 G"])
def test_what_is_no_quota(config: Path, written: str) -> None:
    done = account(config, "add", "bob@a.test", "--generate", "--quota", written, code=2)
    assert 'write octets, or "500M", "1G"' in done.stderr


def test_an_account_is_shut_and_opened(config: Path) -> None:
    add(config, "bob@a.test")
    account(config, "set", "bob@a.test", "--disable")
    assert stored(config, "bob@a.test").disabled
    account(config, "set", "bob@a.test", "--quota", "1G")
    assert stored(config, "bob@a.test").disabled
    account(config, "set", "bob@a.test", "--enable")
    assert not stored(config, "bob@a.test").disabled
    account(config, "set", "bob@a.test", code=2)


def test_aliases(config: Path) -> None:
    add(config, "bob@a.test")
    account(config, "alias", "bob@a.test", "Sales@a.test", "info@a.test")
    account(config, "alias", "bob@a.test", "sales@a.test", "--delete")
    assert [one["aliases"] for one in listed(config)] == [["info@a.test"]]
    done = account(config, "alias", "bob@a.test", "sales@a.test", "--delete", code=1)
    assert done.stderr == "fastmta: sales@a.test is no alias of bob@a.test\n"
    assert "fastmta mailbox empty bob@a.test" in account(config, "delete", "bob@a.test").stdout
    assert listed(config) == []


def test_forwarding_begins_and_ends(config: Path) -> None:
    add(config, "bob@a.test")
    account(config, "forward", "Bob@a.test", "x@c.test", "y@c.test", "--keep")
    [facts] = listed(config)
    assert (facts["forward"], facts["keep"]) == (["x@c.test", "y@c.test"], True)
    table = " ".join(account(config, "list").stdout.split())
    assert "open, forwards a copy to x@c.test y@c.test" in table
    account(config, "forward", "bob@a.test", "z@c.test")
    [facts] = listed(config)
    assert (facts["forward"], facts["keep"]) == (["z@c.test"], False)
    account(config, "forward", "bob@a.test", "--stop")
    assert listed(config)[0]["forward"] == []
    for words in ([], ["x@c.test", "--stop"], ["--keep", "--stop"]):
        account(config, "forward", "bob@a.test", *words, code=2)
    done = account(config, "forward", "bob@a.test", "bob@a.test", code=1)
    assert "cannot forward to itself" in done.stderr
    account(config, "forward", "nobody@a.test", "x@c.test", code=1)


def test_what_is_listed(config: Path) -> None:
    assert account(config, "list").stdout == "there are no accounts\n"
    add(config, "bob@a.test", "eve@a.test")
    account(config, "set", "eve@a.test", "--disable", "--quota", "2G")
    table = account(config, "list").stdout.splitlines()
    assert table[0].split() == ["account", "quota", "changed", "state", "aliases"]
    assert table[2].startswith("eve@a.test  2G")
    assert "disabled" in table[2]
    facts = listed(config, "Eve@a.test")
    assert [sorted(one) for one in facts] == [
        ["aliases", "changed", "created", "disabled", "forward", "keep", "name", "quota"]
    ]
    assert listed(config, "bob@a.test", "nobody@a.test", code=1)


def test_a_row_that_cannot_be_read_is_told(config: Path) -> None:
    add(config, "bob@a.test")
    accounts = Accounts(config.parent / "data" / "accounts")
    with accounts._env.begin(write=True) as txn:
        txn.put(b"eve@a.test", b"\x09", db=accounts._db["accounts"])
    accounts.close()
    done = account(config, "list", "--json", code=1)
    assert json.loads(done.stdout)["name"] == "bob@a.test"
    assert done.stderr == "fastmta: eve@a.test: version 9 is not known to this release\n"
    account(config, "passwd", "eve@a.test", "--generate", code=1)


def test_a_folder_that_cannot_be_had(config: Path) -> None:
    (config.parent / "data").mkdir()
    (config.parent / "data" / "accounts").write_text("no folder")
    done = account(config, "list", code=1)
    assert "accounts" in done.stderr
    assert "Traceback" not in done.stderr
