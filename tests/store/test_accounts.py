"""Accounts: whose an address is, what stands in the way of a change, what other processes see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta.protocol.scram import Keys
from fastmta.store import accounts as module
from fastmta.store import passwords
from fastmta.store.accounts import Account, Accounts, Refused, name_of
from fastmta.store.records import Unreadable

KEYS = Keys(b"salt" * 4, 4096, b"s" * 32, b"k" * 32)
HASH = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock):
    opened = Accounts(tmp_path / "accounts", clock)
    yield opened
    opened.close()


def add(accounts: Accounts, name: str, *aliases: str) -> Account:
    account = accounts.add(name, HASH, KEYS)
    if aliases:
        accounts.add_aliases(name, aliases)
    return account


def test_what_is_added_is_there_as_it_was(accounts: Accounts, clock: Clock) -> None:
    account = accounts.add("bob@example.test", HASH, KEYS, quota=1000)
    assert account == Account("bob@example.test", HASH, KEYS, clock.now, clock.now, quota=1000)
    assert accounts.get("bob@example.test") == account
    assert accounts.get("eve@example.test") is None
    assert accounts.get("") is None
    assert accounts.get("x" * 600) is None


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("Bob@Example.TEST", "bob@example.test"),
        ("bob@bücher.test", "bob@xn--bcher-kva.test"),
        ("JÜRGEN@example.test", "jürgen@example.test"),
        ("bob@[IPv6:2001:DB8::0]", "bob@[IPv6:2001:db8::]"),
    ],
)
def test_the_name_of_an_address(address: str, name: str) -> None:
    assert name_of(address) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bob",
        "@a.test",
        "bob@",
        "bob@a b",
        "b\nob@a.test",
        "\udcff",
        "b@-ü.test",
        "b\u2066@a.test",
    ],
)
def test_threat_05_what_is_no_address_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        name_of(text)


@given(st.text(max_size=40))
@example("0@\U00012544")  # assigned to nothing
@example("\u03a1\u0313@a.test")  # rho with psili is one code point in small letters alone
def test_any_text_is_a_name_or_not(text: str) -> None:
    try:
        name = name_of(text)
    except ValueError:
        return
    assert name_of(name) == name
    assert name.isprintable()


def test_an_alias_belongs_to_one_account(accounts: Accounts) -> None:
    add(accounts, "bob@a.test", "info@a.test", "sales@a.test")
    add(accounts, "eve@a.test")
    owner = accounts.owner_of("Info@A.test")
    assert owner is not None
    assert (owner.name, owner.aliases) == ("bob@a.test", ("info@a.test", "sales@a.test"))
    assert accounts.owner_of("bob@a.test") == owner
    assert owner.owns("SALES@a.test")
    assert not owner.owns("eve@a.test")
    assert not owner.owns("what")
    assert accounts.owner_of("nobody@a.test") is None
    assert accounts.owner_of("no address") is None
    assert accounts.get("info@a.test") is None  # nobody logs in as an alias


@pytest.mark.parametrize("taken", ["eve@a.test", "bob@a.test", "info@a.test"])
def test_an_address_that_is_taken(accounts: Accounts, taken: str) -> None:
    add(accounts, "bob@a.test", "info@a.test")
    add(accounts, "eve@a.test")
    with pytest.raises(Refused, match="already"):
        add(accounts, taken)
    with pytest.raises(Refused, match="already"):
        accounts.add_aliases("eve@a.test", ["new@a.test", taken])
    assert accounts.owner_of("new@a.test") is None  # all of them or none


def test_an_alias_that_it_has_is_no_fault(accounts: Accounts) -> None:
    add(accounts, "bob@a.test", "info@a.test")
    accounts.add_aliases("bob@a.test", ["info@a.test", "sales@a.test"])
    owner = accounts.get("bob@a.test")
    assert owner
    assert owner.aliases == ("info@a.test", "sales@a.test")


def test_aliases_go_one_by_one_or_with_their_account(accounts: Accounts) -> None:
    add(accounts, "bob@a.test", "info@a.test", "sales@a.test")
    accounts.remove_aliases("bob@a.test", ["info@a.test"])
    assert accounts.owner_of("info@a.test") is None
    with pytest.raises(Refused, match=r"info@a\.test is no alias of bob@a\.test"):
        accounts.remove_aliases("bob@a.test", ["sales@a.test", "info@a.test"])
    assert accounts.owner_of("sales@a.test")
    accounts.delete("bob@a.test")
    assert accounts.owner_of("sales@a.test") is None
    add(accounts, "sales@a.test")


def test_aliases_are_bounded(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALIASES", 3)
    add(accounts, "bob@a.test", "1@a.test", "2@a.test")
    with pytest.raises(Refused, match="at most 3"):
        accounts.add_aliases("bob@a.test", ["3@a.test", "4@a.test"])
    assert accounts.owner_of("3@a.test") is None


def test_a_change_says_when(accounts: Accounts, clock: Clock) -> None:
    add(accounts, "bob@a.test")
    clock.now += 60
    assert accounts.change("bob@a.test", disabled=True, quota=5).changed == clock.now
    account = accounts.get("bob@a.test")
    assert account
    assert (account.disabled, account.quota, account.created) == (True, 5, clock.now - 60)


@pytest.mark.parametrize("change", ["change", "delete", "add_aliases", "remove_aliases"])
def test_an_account_that_is_not_there(accounts: Accounts, change: str) -> None:
    more = [["x@a.test"]] if "aliases" in change else []
    with pytest.raises(Refused, match=r"there is no account nobody@a\.test"):
        getattr(accounts, change)("nobody@a.test", *more)


def test_many_are_listed_in_order(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    names = [f"u{n}@a.test" for n in range(9)]
    for name in reversed(names):
        add(accounts, name)
    assert list(accounts.names()) == names


@pytest.mark.parametrize("row", [b"", b"\x07what", b"\x01what"])
def test_a_row_of_another_release_is_told_and_kept(accounts: Accounts, row: bytes) -> None:
    with accounts._env.begin(write=True) as txn:
        txn.put(b"bob@a.test", row, db=accounts._db["accounts"])
    with pytest.raises(Unreadable):
        accounts.get("bob@a.test")
    with pytest.raises(Unreadable):
        accounts.change("bob@a.test", quota=1)
    with pytest.raises(Refused, match="already"):
        add(accounts, "bob@a.test")
    assert list(accounts.names()) == ["bob@a.test"]


def test_a_row_of_today_reads_in_later_releases(accounts: Accounts) -> None:
    """As this release wrote it first; it has to stay readable."""
    row = bytes.fromhex(
        "0198aa626f6240612e74657374a46861736894c40473616c74cd1000c40173c4016b"
        "cb41dad2748000000 0cb41dad2748000000091ab696e666f40612e7465737405c2".replace(" ", "")
    )
    with accounts._env.begin(write=True) as txn:
        txn.put(b"bob@a.test", row, db=accounts._db["accounts"])
    keys = Keys(b"salt", 4096, b"s", b"k")
    when = 1_800_000_000.0
    assert accounts.get("bob@a.test") == Account(
        "bob@a.test", "hash", keys, when, when, ("info@a.test",), 5
    )


def test_files_are_for_their_owner_alone(accounts: Accounts, tmp_path: Path) -> None:
    folder = tmp_path / "accounts"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"accounts": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600}


CHANGE = """
import sys
from fastmta.store.accounts import Accounts
from fastmta.store.passwords import scram_keys
from pathlib import Path
accounts = Accounts(Path(sys.argv[1]))
exec(f"accounts.{sys.argv[2]}")
print(accounts.keys_of("nobody@a.test").salt.hex())
"""


def elsewhere(folder: Path, change: str) -> str:
    """Change accounts in another process; gives the salt that it has for somebody unknown."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGE, str(folder), change],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return done.stdout.strip()


def test_what_another_process_changes_counts_at_once(accounts: Accounts, tmp_path: Path) -> None:
    add(accounts, "bob@a.test")
    salt = elsewhere(tmp_path / "accounts", "add_aliases('bob@a.test', ['info@a.test'])")
    assert accounts.owner_of("info@a.test")
    assert accounts.keys_of("nobody@a.test").salt.hex() == salt
    elsewhere(tmp_path / "accounts", "delete('bob@a.test')")
    assert accounts.get("bob@a.test") is None


def test_threat_11_who_is_unknown_looks_like_an_account(accounts: Accounts) -> None:
    """The same salt each time, and as many iterations as those who are known have."""
    one, again, other = map(accounts.keys_of, ("x@a.test", "x@a.test", "y@a.test"))
    assert one.salt == again.salt != other.salt
    real = passwords.scram_keys("password")
    assert len(one.salt) == len(real.salt)
    assert one.iterations == real.iterations
    assert len(one.stored) == len(real.stored)
    assert one.stored != again.stored  # nobody can prove a password for it


def test_threat_11_passwords_are_argon2id() -> None:
    stored = passwords.hash_password("secret")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.check_password(stored, "secret")
    assert not passwords.check_password(stored, "Secret")
    assert not passwords.check_password("what", "secret")
    # Who is unknown has a hash of the same form, and so the same cost.
    nobody = passwords.unknown_hash()
    assert not passwords.check_password(nobody, "secret")
    assert nobody.split("$")[:4] == stored.split("$")[:4]
    assert len(nobody) == len(stored)


def test_threat_20_no_secret_is_shown(accounts: Accounts) -> None:
    account = add(accounts, "bob@a.test")
    assert HASH not in f"{account!r} {account}"


# Forwarding


def test_an_account_forwards_to_what_was_said_last(accounts: Accounts) -> None:
    add(accounts, "bob@a.test")
    accounts.forward("bob@a.test", ["x@c.test", "y@c.test", "x@c.test"], keep=True)
    found = accounts.get("bob@a.test")
    assert found is not None
    assert (found.forward, found.keep, found.keeps) == (("x@c.test", "y@c.test"), True, True)
    found = accounts.forward("bob@a.test", ["z@c.test"], keep=False)
    assert (found.forward, found.keep, found.keeps) == (("z@c.test",), False, False)
    found = accounts.forward("bob@a.test", [], keep=True)
    assert (found.forward, found.keep, found.keeps) == ((), False, True)


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (["nobody"], "is no address"),
        (["a\r\nb@c.test"], "is no address"),
        (["x@c.test", "BOB@a.test"], "cannot forward to itself"),
        ([f"n{i}@c.test" for i in range(module.MAX_FORWARD + 1)], "at most 50"),
        (["x" * 600 + "@c.test"], "is no address"),
    ],
)
def test_where_nothing_can_be_forwarded_to(
    accounts: Accounts, targets: list[str], why: str
) -> None:
    add(accounts, "bob@a.test")
    with pytest.raises(Refused, match=why):
        accounts.forward("bob@a.test", targets, keep=False)
    found = accounts.get("bob@a.test")
    assert found is not None and not found.forward
