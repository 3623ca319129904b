"""Who is let in: passwords, proofs and tokens, with a clock of our own and hashes counted."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import pytest
from argon2 import PasswordHasher
from scramp import ScramClient

from fastmta.config import Auth, Duration
from fastmta.protocol.sasl import Challenge, Failed, Kind, Password, Proven
from fastmta.protocol.scram import derive
from fastmta.server import access as module
from fastmta.server.access import Access, Refusal
from fastmta.store import passwords
from fastmta.store.accounts import Account, Accounts
from tests.store.test_accounts import elsewhere
from tests.support import run, until

AUTH = Auth()
MECHANISMS = ("LOGIN", "SCRAM-SHA-256-PLUS", "PLAIN", "SCRAM-SHA-256")
CLIENT = "192.0.2.1"
CHEAP = PasswordHasher(1, 8, 1)  # what counts here is how often, not how long
WRONG = Refusal(Kind.CREDENTIALS)
LATER = Refusal(Kind.LATER)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hashes:
    """Counts checks of passwords, and holds them up where that is asked for."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, stored: str, password: str) -> bool:
        self.stored.append(stored)
        self.go_on.wait(30)
        return passwords.check_password(stored, password)


class Door:
    """An Access with two accounts: bob, who is let in by "secret", and eve by "other"."""

    def __init__(self, folder: Path, settings: Auth) -> None:
        self.clock = Clock()
        self.accounts = Accounts(folder)
        for name, password in (("bob@a.test", "secret"), ("eve@a.test", "other")):
            keys = derive(password, b"salt" * 4, 4096)
            self.accounts.add(name, CHEAP.hash(password), keys)
        self.access = Access(settings, self.accounts, self.clock)

    async def login(
        self,
        password: str = "secret",
        name: str = "bob@a.test",
        client: str = CLIENT,
        authzid: str = "",
    ) -> str | Kind:
        """The name of who is let in, or why nobody is."""
        answer = await self.access.verify(Password(authzid, name, password), client)
        return answer.name if isinstance(answer, Account) else answer.kind

    async def prove(self, password: str = "secret", name: str = "bob@a.test") -> str | Kind:
        """The same by SCRAM."""
        client = ScramClient(["SCRAM-SHA-256"], name, password)
        exchange = self.access.exchange("SCRAM-SHA-256", {})
        assert exchange
        outcome = exchange.begin(client.get_client_first().encode())
        assert isinstance(outcome, Challenge)
        client.set_server_first(outcome.text.decode())
        outcome = exchange.step(client.get_client_final().encode())
        assert isinstance(outcome, Proven | Failed)
        answer = await self.access.verify(outcome, CLIENT)
        return answer.name if isinstance(answer, Account) else answer.kind


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    counting = Hashes()
    monkeypatch.setattr(module, "check_password", counting)
    return counting


@pytest.fixture
def door(tmp_path: Path):
    @asynccontextmanager
    async def opened(settings: Auth = AUTH) -> AsyncIterator[Door]:
        one = Door(tmp_path / "accounts", settings)
        try:
            yield one
        finally:
            await one.access.close()
            one.accounts.close()

    return opened


def test_who_is_let_in(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            assert await one.login() == "bob@a.test"
            assert await one.login("Secret") is Kind.CREDENTIALS
            assert await one.login(name="nobody@a.test") is Kind.CREDENTIALS
            assert await one.login("other", "eve@a.test") == "eve@a.test"

    run(scenario())


def test_nobody_acts_as_somebody_else(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            one.accounts.add_aliases("bob@a.test", ["info@a.test"])
            assert await one.login(authzid="bob@a.test") == "bob@a.test"
            assert await one.login(authzid="info@a.test") == "bob@a.test"
            assert await one.login(authzid="eve@a.test") is Kind.CREDENTIALS
            assert await one.login(name="info@a.test") is Kind.CREDENTIALS

    run(scenario())


def test_threat_11_an_unknown_user_costs_the_same(door, hashes: Hashes) -> None:
    """One hash each, with the cost of an account that is made today; also of who is disabled."""

    async def scenario() -> None:
        async with door() as one:
            one.accounts.change("eve@a.test", disabled=True)
            for name in ("bob@a.test", "nobody@a.test", "no address", "eve@a.test"):
                before = len(hashes.stored)
                assert await one.login("wrong", name) is Kind.CREDENTIALS
                assert len(hashes.stored) == before + 1
            assert await one.login("other", "eve@a.test") is Kind.CREDENTIALS
            unknown = hashes.stored[1].split("$")[:4]
            assert unknown == passwords.hash_password("x").split("$")[:4]

    run(scenario())


def test_threat_11_an_unknown_user_is_throttled_the_same(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            answers = []
            for name in ("bob@a.test", "nobody@a.test"):
                answers.append([await one.login("wrong", name, f"192.0.2.{n}") for n in range(12)])
            assert answers[0] == answers[1]
            assert answers[0] == [Kind.CREDENTIALS] * 10 + [Kind.LATER] * 2

    run(scenario())


def test_a_success_is_remembered_for_a_while(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door(Auth(remember=Duration(60))) as one:
            for _ in range(3):
                assert await one.login() == "bob@a.test"
                one.clock.now += 25
            assert len(hashes.stored) == 1
            assert await one.login() == "bob@a.test"  # not longer for being used
            assert len(hashes.stored) == 2
            assert await one.login("wrong") is Kind.CREDENTIALS
            assert await one.login("wrong") is Kind.CREDENTIALS
            assert len(hashes.stored) == 4  # what is wrong is not remembered

    run(scenario())


def test_nothing_is_remembered_where_that_is_wanted(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door(Auth(remember=Duration(0))) as one:
            assert [await one.login() for _ in range(3)] == ["bob@a.test"] * 3
            assert len(hashes.stored) == 3

    run(scenario())


def test_what_is_remembered_is_bounded(door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 1)

    async def scenario() -> None:
        async with door() as one:
            await one.login()
            await one.login("other", "eve@a.test")
            assert len(one.access._right._times) == 1

    run(scenario())


@pytest.mark.parametrize("change", ["delete('bob@a.test')", "change('bob@a.test', disabled=True)"])
def test_a_change_in_another_process_counts_at_once(door, tmp_path: Path, change: str) -> None:
    async def scenario() -> None:
        async with door() as one:
            assert await one.login() == "bob@a.test"
            await asyncio.to_thread(elsewhere, tmp_path / "accounts", change)
            assert await one.login() is Kind.CREDENTIALS
            assert await one.prove() is Kind.CREDENTIALS

    run(scenario())


def test_a_new_password_counts_at_once(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            assert await one.login() == "bob@a.test"
            keys = derive("new", b"salt" * 4, 4096)
            one.accounts.change("bob@a.test", password=CHEAP.hash("new"), scram=keys)
            assert await one.login() is Kind.CREDENTIALS
            assert await one.login("new") == "bob@a.test"

    run(scenario())


def test_a_password_that_changes_in_the_middle_of_a_proof(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            keys = one.accounts.keys_of("bob@a.test")
            one.accounts.change("bob@a.test", scram=derive("new", b"salt" * 4, 4096))
            proven = Proven("", "bob@a.test", b"v=", keys)
            assert await one.access.verify(proven, CLIENT) == WRONG

    run(scenario())


def test_scram(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            assert await one.prove() == "bob@a.test"
            assert await one.prove("wrong") is Kind.CREDENTIALS
            assert await one.prove(name="nobody@a.test") is Kind.CREDENTIALS
            assert hashes.stored == []

    run(scenario())


def test_threat_11_scram_is_throttled_too(door) -> None:
    """And a throttled client does not learn whether its last guess was right."""

    async def scenario() -> None:
        async with door() as one:
            guesses = [await one.prove("wrong") for _ in range(11)]
            assert guesses == [Kind.CREDENTIALS] * 10 + [Kind.LATER]
            assert await one.prove() is Kind.LATER

    run(scenario())


def test_threat_11_a_client_is_throttled_whoever_it_tries_to_be(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            answers = [
                await one.login("wrong", f"u{n}@a.test", f"2001:db8::{n:x}") for n in range(22)
            ]
            assert answers == [Kind.CREDENTIALS] * 20 + [Kind.LATER] * 2
            assert await one.login(client="2001:db8::ffff") is Kind.LATER
            assert await one.login(client="2001:db8:0:1::1") == "bob@a.test"
            one.clock.now += 10
            assert await one.login(client="2001:db8::ffff") == "bob@a.test"

    run(scenario())


def test_threat_11_an_account_is_throttled_wherever_it_is_tried_from(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            assert await one.login(client="198.51.100.1") == "bob@a.test"
            for n in range(10):
                await one.login("wrong", client=f"192.0.2.{n}")
            assert await one.login(client="192.0.2.99") is Kind.LATER
            # Who was let in from there before is not kept out by others.
            assert await one.login(client="198.51.100.1") == "bob@a.test"
            assert await one.login("wrong", client="198.51.100.1") is Kind.CREDENTIALS

    run(scenario())


def test_what_does_not_follow_its_mechanism_is_no_guess(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            for kind in (Kind.MALFORMED, Kind.TOO_LONG, Kind.UNAVAILABLE):
                answers = [await one.access.verify(Failed(kind), CLIENT) for _ in range(30)]
                assert answers == [Refusal(kind)] * 30
            assert await one.login() == "bob@a.test"

    run(scenario())


def test_equal_logins_at_a_time_are_one_hash(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            hashes.go_on.clear()
            logins = [asyncio.create_task(one.login(client=CLIENT)) for _ in range(30)]
            guesses = [asyncio.create_task(one.login("wrong")) for _ in range(30)]
            await until(lambda: len(hashes.stored) == 2)
            hashes.go_on.set()
            assert set(await asyncio.gather(*logins)) == {"bob@a.test"}
            assert set(await asyncio.gather(*guesses)) == {Kind.CREDENTIALS}
            assert len(hashes.stored) == 2
            assert one.access._under_way == {}

    run(scenario())


def test_a_password_that_changes_while_it_is_checked(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            hashes.go_on.clear()
            login = asyncio.create_task(one.login())
            await until(lambda: hashes.stored)
            one.accounts.change("bob@a.test", password=CHEAP.hash("new"))
            hashes.go_on.set()
            assert await login is Kind.CREDENTIALS

    run(scenario())


def test_threat_11_what_waits_is_bounded(
    door, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRANGERS", 3)
    monkeypatch.setattr(module, "MAX_WAITING", 4)

    async def scenario() -> None:
        async with door(Auth(remember=Duration(0))) as one:
            assert await one.login("other", "eve@a.test") == "eve@a.test"
            hashes.go_on.clear()
            waiting = [
                asyncio.create_task(one.login("x", f"u{n}@a.test", f"192.0.3.{n}"))
                for n in range(3)
            ]
            await until(lambda: one.access._waiting == 3)
            assert await one.login(client="198.51.100.1") is Kind.BUSY
            # Room is kept for who was here before; but not without a bound.
            friend = asyncio.create_task(one.login("other", "eve@a.test"))
            await until(lambda: one.access._waiting == 4)
            assert await one.login("another", "eve@a.test") is Kind.BUSY
            hashes.go_on.set()
            assert await asyncio.gather(*waiting) == [Kind.CREDENTIALS] * 3
            assert await friend == "eve@a.test"
            assert await one.login(client="198.51.100.1") == "bob@a.test"
            assert one.access._waiting == 0

    run(scenario())


def test_the_loop_goes_on_while_passwords_are_checked(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            hashes.go_on.clear()
            login = asyncio.create_task(one.login())
            await until(lambda: hashes.stored)
            assert not login.done()
            hashes.go_on.set()
            assert await login == "bob@a.test"

    run(scenario())


def test_threat_11_who_goes_away_in_the_middle_has_guessed(door, hashes: Hashes) -> None:
    async def scenario() -> None:
        async with door() as one:
            hashes.go_on.clear()
            for n in range(10):
                guess = asyncio.create_task(one.login(f"guess {n}", client=f"192.0.2.{n}"))
                await until(lambda n=n: one.access._waiting == n + 1)
                guess.cancel()
                await asyncio.gather(guess, return_exceptions=True)
            assert await one.login(client="192.0.2.99") is Kind.LATER
            hashes.go_on.set()

    run(scenario())


def test_a_disk_that_fails_is_no_wrong_password(door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise lmdb.DiskError("no")

    async def scenario() -> None:
        async with door() as one:
            monkeypatch.setattr(one.accounts, "get", fail)
            assert [await one.login() for _ in range(30)] == [Kind.UNAVAILABLE] * 30
            exchange = one.access.exchange("scram-sha-256", {})
            assert exchange
            assert exchange.begin(b"n,,n=bob,r=a") == Failed(Kind.UNAVAILABLE, "bob")

    run(scenario())


def test_what_is_offered(door) -> None:
    binding = {"tls-server-end-point": b"hash"}

    async def scenario() -> None:
        async with door(Auth(mechanisms=MECHANISMS)) as one:
            assert one.access.mechanisms({}) == ("SCRAM-SHA-256", "PLAIN", "LOGIN")
            assert one.access.mechanisms(binding)[0] == "SCRAM-SHA-256-PLUS"
            assert one.access.exchange("scram-sha-256-plus", {}) is None
            assert one.access.exchange("scram-sha-256-plus", binding)
            assert one.access.exchange("login", {})
            assert one.access.exchange("XOAUTH2", {}) is None
            assert one.access.exchange("EXTERNAL", {}) is None
            await one.access.reload(Auth(mechanisms=("SCRAM-SHA-256",)))
            assert one.access.mechanisms(binding) == ("SCRAM-SHA-256",)
            exchange = one.access.exchange("SCRAM-SHA-256", binding)
            assert exchange
            # A client that could bind is told of no -PLUS, and says so: nobody has cut it out.
            assert isinstance(exchange.begin(b"y,,n=bob,r=a"), Challenge)

    run(scenario())


def test_logins_are_counted(door) -> None:
    async def scenario() -> None:
        async with door() as one:
            before = dict(module.LOGINS.counts)
            remembered = module.REMEMBERED.value
            await one.login()
            await one.login()
            await one.login("wrong")
            await one.access.verify(Failed(Kind.MALFORMED), CLIENT)
            grown = {end: n - before[end] for end, n in module.LOGINS.counts.items() if n}
            assert {end: n for end, n in grown.items() if n} == {
                "accepted": 2,
                "rejected": 1,
                "malformed": 1,
            }
            assert module.REMEMBERED.value == remembered + 1

    run(scenario())


def test_threat_20_no_password_is_logged(door, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with door() as one:
            for _ in range(12):
                await one.login("hunter2")
            assert "bob@a.test" in caplog.text
            assert "hunter2" not in caplog.text
            assert "hunter2" not in repr(Password("", "bob", "hunter2"))

    run(scenario())
