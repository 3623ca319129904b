"""Whose an address of a local domain is, and where mail for it goes on to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastmta.config import Config, Domain, DomainName, MailAddress, Mailboxes
from fastmta.mail.address import is_mailbox
from fastmta.mail.reply import Reply
from fastmta.store.accounts import Account, Accounts
from fastmta.store.directory import DISABLED, MAX_EXPANDED, TOO_BIG, UNKNOWN, Directory
from tests.store.test_accounts import HASH, KEYS


def config(catch_all: str = "", **settings: Any) -> Config:
    return Config(
        hostname=DomainName("mx.test"),
        data_dir=Path("/nowhere"),
        listener=(),
        domains={
            DomainName("a.test"): Domain(),
            DomainName("b.test"): Domain(catch_all=MailAddress(catch_all)),
        },
        mailboxes=Mailboxes(**settings),
    )


class Town:
    """Accounts and a directory of them."""

    def __init__(self, folder: Path) -> None:
        self.accounts = Accounts(folder / "accounts")
        self.directory = Directory(config(), self.accounts)

    def configure(self, catch_all: str = "", **settings: Any) -> None:
        self.directory = Directory(config(catch_all, **settings), self.accounts)

    def add(self, name: str, *aliases: str, quota: int = 0, **changes: Any) -> Account:
        self.accounts.add(name, HASH, KEYS, quota)
        if aliases:
            self.accounts.add_aliases(name, aliases)
        return self.accounts.change(name, **changes)

    def who(self, address: str) -> str:
        owner = self.directory.owner(address)
        return owner.name if owner else ""

    def where(self, address: str) -> tuple[list[str], list[tuple[str, str]]] | None:
        found = self.directory.expand(address)
        return (found.kept, [(one.account, one.target) for one in found.sent]) if found else None


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    opened = Town(tmp_path)
    yield opened
    opened.accounts.close()


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("bob@a.test", "bob@a.test"),
        ("BOB@A.Test", "bob@a.test"),
        ("info@b.test", "bob@a.test"),
        ("bob+lists@a.test", "bob@a.test"),
        ("info+x+y@b.test", "bob@a.test"),
        ("bob+@a.test", "bob@a.test"),
        ("carol+own@a.test", "carol+own@a.test"),
        ("carol+other@a.test", ""),
        ('"bob"@a.test', "bob@a.test"),
        ('"b\\ob+x"@a.test', "bob@a.test"),
        ('"bob smith"@a.test', ""),
        ("+bob@a.test", ""),
        ("bob@b.test", ""),
        ("bob-x@a.test", ""),
        ("bob%b.test@a.test", ""),
        ("postmaster@a.test", ""),
        ("postmaster+x@a.test", ""),
        ("x" * 400 + "@a.test", ""),
    ],
)
def test_whose_an_address_is(town: Town, address: str, who: str) -> None:
    town.add("bob@a.test", "info@b.test")
    town.add("carol+own@a.test")
    assert town.who(address) == who


def test_what_is_for_nobody_goes_to_postmaster_and_then_to_the_catch_all(town: Town) -> None:
    town.add("bob@a.test")
    town.add("eve@a.test")
    town.configure(catch_all="eve@a.test", postmaster="bob@a.test")
    assert town.who("PostMaster@a.test") == "bob@a.test"
    assert town.who("postmaster+x@b.test") == "bob@a.test"
    assert town.who("nobody@b.test") == "eve@a.test"
    assert town.who("nobody@a.test") == ""
    town.add("postmaster@b.test")
    assert town.who("postmaster@b.test") == "postmaster@b.test"


def test_a_catch_all_that_nobody_has_catches_nothing(town: Town) -> None:
    town.configure(catch_all="gone@a.test", postmaster="gone@a.test")
    assert town.who("x@b.test") == town.who("postmaster@a.test") == ""


def test_the_separator_is_a_setting(town: Town) -> None:
    town.add("bob@a.test")
    town.configure(separator="-")
    assert (town.who("bob-x@a.test"), town.who("bob+x@a.test")) == ("bob@a.test", "")
    town.configure(separator="")
    assert (town.who("bob@a.test"), town.who("bob+x@a.test")) == ("bob@a.test", "")


def test_which_addresses_are_local(town: Town) -> None:
    is_local = town.directory.is_local
    assert is_local("x@a.test") and is_local("x@A.TEST") and is_local('"x@c.test"@b.test')
    assert not any(map(is_local, ("x@c.test", "x@sub.a.test", "x@[192.0.2.1]", "x@a.test.c")))
    assert not is_local("postmaster@mx.test")
    town.configure(postmaster="bob@a.test")
    assert town.directory.is_local("PostMaster@mx.test")
    assert not town.directory.is_local("postmaster2@mx.test")


@given(st.text(max_size=40))
@example("0@\U00018d09")  # a letter of no known direction (RFC 5893)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_address_makes_it_stumble(town: Town, local: str) -> None:
    for address in (f"{local}@a.test", f'"{local}"@a.test', local):
        if is_mailbox(address):
            town.directory.is_local(address)
            town.directory.owner(address)
            town.directory.expand(address)


def test_what_can_never_be_delivered(town: Town) -> None:
    town.configure(max_message_size=1000)
    bob = town.add("bob@a.test", quota=500)
    town.add("shut@a.test", disabled=True)
    away = town.add("away@a.test", forward=("x@c.test",))

    def resolve(address: str, size: int) -> Account | Reply:
        return town.directory.resolve(address, size)

    assert resolve("bob@a.test", 500) == bob
    assert resolve("bob@a.test", 501) == TOO_BIG
    assert resolve("nobody@a.test", 1) == UNKNOWN
    assert resolve("shut@a.test", 1) == DISABLED
    assert resolve("away@a.test", 1001) == away  # it is not put into a mailbox
    town.configure(quota=300)
    assert town.directory.quota_of(away) == 300
    assert town.directory.quota_of(bob) == 500
    assert town.directory.quota_of_name("bob@a.test") == 500
    assert town.directory.quota_of_name("gone@a.test") == 0


# Forwarding


def test_who_forwards_and_who_keeps(town: Town) -> None:
    town.add("bob@a.test", "info@a.test", forward=("x@c.test", "y@c.test"))
    town.add("eve@a.test", forward=("x@c.test",), keep=True)
    town.add("carol@a.test")
    assert town.where("carol@a.test") is None
    assert town.where("nobody@a.test") is None
    both = [("bob@a.test", "x@c.test"), ("bob@a.test", "y@c.test")]
    assert town.where("bob@a.test") == town.where("info+x@a.test") == ([], both)
    assert town.where("eve+x@a.test") == (["eve+x@a.test"], [("eve@a.test", "x@c.test")])


def test_forwarding_is_followed_and_each_address_is_met_once(town: Town) -> None:
    town.add("bob@a.test", forward=("eve@a.test", "carol@a.test", "carol+x@a.test", "x@c.test"))
    town.add("eve@a.test", forward=("carol@a.test", "x@c.test", "gone@a.test"))
    town.add("carol@a.test")
    assert town.where("bob@a.test") == (
        ["carol@a.test", "gone@a.test"],
        [("bob@a.test", "x@c.test")],
    )


def test_loops_between_accounts_end(town: Town) -> None:
    town.add("bob@a.test", forward=("eve@a.test",))
    town.add("eve@a.test", forward=("bob+x@a.test",))
    assert town.where("bob@a.test") == (["eve@a.test"], [])
    town.add("amy@a.test", forward=("joe@a.test", "bob@a.test"))
    town.add("joe@a.test")
    kept, sent = town.where("amy@a.test")
    assert (sorted(kept), sent) == (["eve@a.test", "joe@a.test"], [])  # not joe's alone
    town.accounts.change("eve@a.test", keep=True)
    assert town.where("bob@a.test") == (["eve@a.test"], [])


def test_a_disabled_account_forwards_nothing(town: Town) -> None:
    town.add("bob@a.test", forward=("x@c.test",), disabled=True)
    town.add("eve@a.test", forward=("bob@a.test",))
    assert town.where("bob@a.test") is None
    assert town.where("eve@a.test") == (["bob@a.test"], [])  # the delivery says that it is shut


def test_an_address_does_not_grow_without_end(town: Town) -> None:
    for i in range(5):
        town.add(
            f"n{i}@a.test", forward=(f"n{i + 1}@a.test", *(f"{i}.{k}@c.test" for k in range(49)))
        )
    _, sent = town.where("n0@a.test") or ([], [])
    assert len(sent) < MAX_EXPANDED
