"""Who is let in: what a SASL exchange came to is checked here, for every protocol alike.

A session asks `exchange` for each login, feeds it, and hands what it comes to to `verify`:

    Challenge                    goes out, and its answer is the next step
    Password, Token, Failed      `verify`; a Refusal with a `last` says that as a challenge first,
                                 reads whatever answers it, and is then told
    Proven                       `verify`; then `last` is said as a challenge, the answer is read
                                 (it is empty), and then the success

Always true: nothing here waits on the loop; nobody who is not throttled learns from an answer, or
from how long it took, whether there is an account; what waits or is remembered has a bound.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, TypeVar

import lmdb
from msgspec import Struct

from fastmta import metrics
from fastmta.config import Auth
from fastmta.protocol.sasl import (
    MECHANISMS,
    Context,
    Exchange,
    Failed,
    Kind,
    Password,
    Proven,
    Token,
)
from fastmta.protocol.sasl_text import prepare_name
from fastmta.protocol.scram import Keys
from fastmta.server.throttle import Throttle, network_of
from fastmta.store.accounts import Account, Accounts
from fastmta.store.passwords import check_password, unknown_hash
from fastmta.store.records import Unreadable

if TYPE_CHECKING:
    from fastmta.server.tokens import Issuer

log = logging.getLogger(__name__)

THREADS = 2  # each hash takes 19 MiB while it is made
MAX_WAITING = 64  # checks: with two threads about a second's
STRANGERS = 48  # of them, for who has not logged in lately from where he comes from
MAX_REMEMBERED = 10_000
KNOWN_FOR = 86400.0  # seconds after a login, in which others' failures do not keep an account shut
CLIENT_FREE, CLIENT_PAUSE = 20, 900.0  # failures of a network without consequence; longest pause
ACCOUNT_FREE, ACCOUNT_PAUSE = 10, 300.0

LOGINS = metrics.counters(
    "fastmta_logins_total",
    "Attempts to log in, by their end",
    "end",
    ("accepted", "rejected", "throttled", "busy", "unavailable", "malformed"),
)
REMEMBERED = metrics.counter(
    "fastmta_logins_remembered_total", "Passwords that were known to be right without hashing"
)
WAITING = metrics.gauge("fastmta_logins_waiting", "Passwords and tokens that are being checked")
_ENDS = {
    Kind.MALFORMED: "malformed",
    Kind.TOO_LONG: "malformed",
    Kind.CREDENTIALS: "rejected",
    Kind.LATER: "throttled",
    Kind.BUSY: "busy",
    Kind.UNAVAILABLE: "unavailable",
}

T = TypeVar("T")
Attempt: TypeAlias = Password | Token | Proven | Failed


class Refusal(Struct, frozen=True):
    """Nobody is let in; what may be said of it is `kind.value`."""

    kind: Kind
    last: bytes = b""  # a challenge that comes before it


_WRONG = Refusal(Kind.CREDENTIALS)


class _Memory:
    """Keys with a time at which they are forgotten; the oldest give way."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: OrderedDict[object, float] = OrderedDict()

    def add(self, key: object, seconds: float) -> None:
        if seconds > 0:
            self._times[key] = self._clock() + seconds
            self._times.move_to_end(key)
        if len(self._times) > MAX_REMEMBERED:
            self._times.popitem(last=False)

    def __contains__(self, key: object) -> bool:
        return self._times.get(key, 0.0) > self._clock()

    def clear(self) -> None:
        self._times.clear()


class Access:
    """One worker's door. Bound to the running loop."""

    def __init__(
        self, settings: Auth, accounts: Accounts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts, self._clock = accounts, clock
        self._clients = Throttle(CLIENT_FREE, CLIENT_PAUSE, clock)
        self._names = Throttle(ACCOUNT_FREE, ACCOUNT_PAUSE, clock)
        self._right = _Memory(clock)  # digests of what was proved
        self._known = _Memory(clock)  # network and name of who logged in
        self._secret, self._nobody = os.urandom(32), unknown_hash()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="access")
        self._under_way: dict[object, asyncio.Task[Account | Refusal]] = {}
        self._waiting = 0
        self._settings, self._issuer = settings, _issuer(settings)

    async def reload(self, settings: Auth) -> None:
        """Go on with other settings; what is under way ends as it began."""
        if settings == self._settings:
            return
        old, self._settings, self._issuer = self._issuer, settings, _issuer(settings)
        self._right.clear()
        if old is not None:
            await old.close()

    async def close(self) -> None:
        """What is still being checked is not waited for."""
        for login in self._under_way.values():
            login.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        if self._issuer is not None:
            await self._issuer.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # The exchange.

    def mechanisms(self, bindings: Mapping[str, bytes]) -> tuple[str, ...]:
        """What is offered, the strongest first; `bindings` are the connection's (RFC 5056)."""
        return tuple(
            name
            for name in MECHANISMS
            if name in self._settings.mechanisms and (bindings or not name.endswith("-PLUS"))
        )

    def exchange(
        self, mechanism: str, bindings: Mapping[str, bytes], domain: str = ""
    ) -> Exchange | None:
        """Begin to log in; None for a mechanism, in whatever case, that is not offered.

        `domain` is that of names that are written without one.
        """
        name, offered = mechanism.upper(), self.mechanisms(bindings)
        if name not in offered:
            return None
        # Where -PLUS is not offered, a client that could bind is right to think that we cannot.
        bound = bindings if "SCRAM-SHA-256-PLUS" in offered else {}
        return Exchange(name, Context(self._scram_keys, bound, domain))

    def _scram_keys(self, name: str) -> Keys | None:
        try:
            return self._accounts.keys_of(name)
        except (lmdb.Error, Unreadable) as error:
            log.error("cannot read the account %s: %s", name, error)
            return None

    def named(self, name: str) -> Account | None:
        """An account that somebody else has checked the login of; None where it may not enter."""
        try:
            account = self._accounts.get(name)
        except (lmdb.Error, Unreadable) as error:
            log.error("cannot read the account %s: %s", name, error)
            return None
        return account if _may_enter(account, "") else None

    # What it came to.

    async def verify(self, attempt: Attempt, client: str) -> Account | Refusal:
        """Whether somebody is let in; `client` is the address that he comes from."""
        network = network_of(client)
        if isinstance(attempt, Password | Token):
            answer = await self._verify_once(attempt, network)
        else:
            answer = await self._verify(attempt, network)
        LOGINS.count("accepted" if isinstance(answer, Account) else _ENDS[answer.kind])
        return answer

    async def _verify_once(self, attempt: Password | Token, network: str) -> Account | Refusal:
        """Once for all equal ones at a time: a client may open thirty connections at its start.

        It goes on where who asked goes away, so that what was guessed counts.
        """
        key = (network, attempt)
        login = self._under_way.get(key)
        if login is None:
            login = self._under_way[key] = asyncio.create_task(self._verify(attempt, network))
            login.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(login)

    async def _verify(self, attempt: Attempt, network: str) -> Account | Refusal:
        if isinstance(attempt, Failed) and attempt.kind is not Kind.CREDENTIALS:
            return Refusal(attempt.kind)  # nothing was guessed
        name = "" if isinstance(attempt, Token) else attempt.name
        known = (network, name) in self._known
        if not self._admit(network, name, known):
            return Refusal(Kind.LATER)
        answer: Account | Refusal = _WRONG
        try:
            answer = await self._check(attempt, known)
        finally:
            self._settle(network, name, known, answer)
        return answer

    def _admit(self, network: str, name: str, known: bool) -> bool:
        if not self._clients.admit(network):
            return False
        if name and not known and not self._names.admit(name):
            self._clients.settle(network, failed=False)
            return False
        return True

    def _settle(self, network: str, name: str, known: bool, answer: Account | Refusal) -> None:
        failed = isinstance(answer, Refusal) and answer.kind is Kind.CREDENTIALS
        if pause := self._clients.settle(network, failed=failed):
            log.warning("logins from %s are refused for %.0f s: too many failures", network, pause)
        pause = self._names.settle(name, failed=failed) if name and not known else 0.0
        if pause:
            log.warning("logins as %s are refused for %.0f s: too many failures", name, pause)
        if isinstance(answer, Account):
            self._known.add((network, answer.name), KNOWN_FOR)

    async def _check(self, attempt: Attempt, known: bool) -> Account | Refusal:
        try:
            match attempt:
                case Password():
                    return await self._check_password(attempt, known)
                case Token():
                    return await self._check_token(attempt)
                case Proven():
                    return self._check_proof(attempt)
                case Failed():
                    return _WRONG
        except (lmdb.Error, Unreadable) as error:
            log.error("cannot read accounts: %s", error)
            return Refusal(Kind.UNAVAILABLE)

    def _check_proof(self, attempt: Proven) -> Account | Refusal:
        account = self._accounts.get(attempt.name)
        if not _may_enter(account, attempt.authzid) or account.scram != attempt.keys:
            return _WRONG
        return account

    # Passwords.

    async def _check_password(self, attempt: Password, known: bool) -> Account | Refusal:
        account = self._accounts.get(attempt.name)
        stored = account.password if account else self._nobody
        # The stored hash is part of it: what was proved of another password is worth nothing.
        text = "\0".join((stored, attempt.name, attempt.password)).encode()
        digest = blake2b(text, key=self._secret).digest()
        if digest in self._right:
            REMEMBERED.value += 1
        else:
            check = self._submit(partial(check_password, stored, attempt.password), known)
            if check is None:
                return Refusal(Kind.BUSY)
            if not await check:
                return _WRONG
            account = self._accounts.get(attempt.name)
            if account is None or account.password != stored:  # changed meanwhile
                return _WRONG
            self._right.add(digest, self._settings.remember)
        return account if _may_enter(account, attempt.authzid) else _WRONG

    def _submit(self, work: Callable[[], T], known: bool) -> asyncio.Future[T] | None:
        if self._waiting >= (MAX_WAITING if known else STRANGERS):
            return None
        self._waiting += 1
        WAITING.value = self._waiting
        check = asyncio.get_running_loop().run_in_executor(self._threads, work)
        check.add_done_callback(self._checked)
        return check

    def _checked(self, check: asyncio.Future[T]) -> None:
        self._waiting -= 1
        WAITING.value = self._waiting

    # Tokens.

    async def _check_token(self, attempt: Token) -> Account | Refusal:
        refusal = Refusal(Kind.CREDENTIALS, attempt.complaint)
        if self._issuer is None:  # reloaded meanwhile
            return refusal
        try:
            work = await self._issuer.check_of(attempt.token)
            if work is None:
                return refusal
            check = self._submit(work, known=False)
            if check is None:
                return Refusal(Kind.BUSY)
            name = prepare_name((await check or "").encode())
        except ConnectionError:
            return Refusal(Kind.UNAVAILABLE)
        except ValueError:  # no token, or no name in it
            return refusal
        account = self._accounts.get(name)
        return account if _may_enter(account, attempt.authzid) else refusal


def _issuer(settings: Auth) -> "Issuer | None":
    if settings.oauth is None:
        return None
    # Late: 18 MB and half a second that only who takes tokens should pay.
    from fastmta.server.tokens import Issuer

    return Issuer(settings.oauth)


def _may_enter(account: Account | None, authzid: str) -> TypeGuard[Account]:
    """Nobody acts as somebody else (RFC 4422 section 3.4.1)."""
    if account is None or account.disabled:
        return False
    return not authzid or account.owns(authzid)
