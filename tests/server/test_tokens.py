"""Bearer tokens: whose keys are believed, how they are fetched, which tokens open a door."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from fastmta.config import Auth, OAuth
from fastmta.protocol.sasl import Kind, Token
from fastmta.protocol.scram import Keys as ScramKeys
from fastmta.server import tokens
from fastmta.server.access import Access, Refusal
from fastmta.server.tokens import FETCH_AGAIN_AFTER, GONE_AFTER, REFRESH_AFTER, Keys, Unavailable
from fastmta.store.accounts import Account, Accounts
from tests.support import run, until

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ec.generate_private_key(ec.SECP256R1())
SMALL = rsa.generate_private_key(65537, 1024)
ISSUER, AUDIENCE = "https://login.example.test", "mail.example.test"


def public(kid: str | None, key: Any, **more: str) -> dict[str, object]:
    """A key as its issuer publishes it."""
    kind: Any = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }[next(each for each in PRIVATE if isinstance(key, each))]
    named = {} if kid is None else {"kid": kid}
    return {**kind.to_jwk(key.public_key(), as_dict=True), **named, **more}


PRIVATE = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
KEYS = {
    "keys": [
        public("rsa", RSA, alg="RS256", use="sig"),
        public("ec", EC),
        public("ed", ED),
        public("small", SMALL, alg="RS256"),
        public("locks", OTHER, use="enc"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"},
        {"kty": "what", "kid": "unknown"},
    ]
}


def claims(**other: object) -> dict[str, object]:
    """Those of a good token; None leaves one out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "email": "bob@a.test"}
    return {name: value for name, value in {**good, **other}.items() if value is not None}


def token(key: Any = EC, alg: str = "ES256", kid: str | None = "ec", **other: object) -> str:
    return jwt.encode(claims(**other), key, alg, headers=None if kid is None else {"kid": kid})


def unsigned() -> str:
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none", "kid": "ec"}, claims())
    )
    return f"{head}.{body}."


def signed_with_what_is_public() -> str:
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "kid": "rsa"}, claims())
    )
    algorithm = jwt.get_algorithm_by_name("HS256")
    mac = algorithm.sign(f"{head}.{body}".encode(), pem)
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """An HTTP server with keys."""

    def __init__(self) -> None:
        self.body: bytes = json.dumps(KEYS).encode()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.go_on.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@asynccontextmanager
async def issuer() -> AsyncIterator[Issuer]:
    one = Issuer()
    application = web.Application()
    application.router.add_get("/keys", one.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    one.address = f"http://{host}:{port}/keys"
    try:
        yield one
    finally:
        await runner.cleanup()


@asynccontextmanager
async def door(folder: Path, jwks: str, claim: str = "email") -> AsyncIterator[Access]:
    accounts = Accounts(folder / "accounts")
    for name in ("bob@a.test", "eve@a.test"):
        accounts.add(name, "hash", ScramKeys(b"salt", 4096, b"s", b"k"))
    accounts.add_aliases("bob@a.test", ["info@a.test"])
    accounts.change("eve@a.test", disabled=True)
    oauth = OAuth(jwks=jwks, issuer=ISSUER, audience=AUDIENCE, claim=claim)
    access = Access(Auth(mechanisms=("OAUTHBEARER", "XOAUTH2"), oauth=oauth), accounts)
    try:
        yield access
    finally:
        await access.close()
        accounts.close()


@pytest.fixture
def jwks(tmp_path: Path) -> str:
    path = tmp_path / "keys of an issuer.json"
    path.write_text(json.dumps(KEYS))
    return path.as_uri()


async def login(access: Access, text: str, authzid: str = "", client: str = "192.0.2.1") -> object:
    answer = await access.verify(Token(authzid, text, b"complaint"), client)
    return answer.name if isinstance(answer, Account) else answer


# Made when they are used: they do not last.
@pytest.mark.parametrize(
    ("make", "authzid"),
    [
        (lambda: token(), ""),
        (lambda: token(), "bob@a.test"),
        (lambda: token(), "info@a.test"),
        (lambda: token(RSA, "RS256", "rsa"), ""),
        (lambda: token(ED, "EdDSA", "ed"), ""),
        (lambda: token(aud=["else.example.test", AUDIENCE]), ""),
        (lambda: token(email="Bob@A.test", email_verified=True), ""),
        (lambda: token(exp=time.time() - 30), ""),  # clocks may be apart
    ],
)
def test_a_good_token_opens_the_account_that_it_names(
    tmp_path: Path, jwks: str, make: Callable[[], str], authzid: str
) -> None:
    async def scenario() -> None:
        async with door(tmp_path, jwks) as access:
            assert await login(access, make(), authzid) == "bob@a.test"

    run(scenario())


@pytest.mark.parametrize(
    ("make", "authzid"),
    [
        (lambda: token(OTHER), ""),
        (lambda: token(exp=time.time() - 3600), ""),
        (lambda: token(exp=None), ""),
        (lambda: token(nbf=time.time() + 3600), ""),
        (lambda: token(iss="https://evil.test"), ""),
        (lambda: token(iss=None), ""),
        (lambda: token(aud="else.example.test"), ""),
        (lambda: token(aud=None), ""),
        (lambda: token(email=None), ""),
        (lambda: token(email=["bob@a.test"]), ""),
        (lambda: token(email="bob@a.test\n"), ""),
        (lambda: token(email=""), ""),
        (lambda: token(email="nobody@a.test"), ""),
        (lambda: token(email="eve@a.test"), ""),
        (lambda: token(email_verified=False), ""),
        (lambda: token(), "eve@a.test"),
        (lambda: token(OTHER, kid="locks"), ""),
        (lambda: token(kid=None), ""),
        (lambda: token(kid="unheard of"), ""),
        (lambda: token(RSA, "PS256", "rsa"), ""),
        (lambda: token(b"secret secret secret secret secret", "HS256", "shared"), ""),
        (unsigned, ""),
        (signed_with_what_is_public, ""),
        (lambda: token()[:-8], ""),
        (lambda: token() + ".a", ""),
        (lambda: "a.b.c", ""),
        (lambda: "a", ""),
        (lambda: "..", ""),
    ],
)
def test_threat_11_another_token_opens_nothing(
    tmp_path: Path, jwks: str, make: Callable[[], str], authzid: str
) -> None:
    async def scenario() -> None:
        async with door(tmp_path, jwks) as access:
            assert await login(access, make(), authzid) == Refusal(Kind.CREDENTIALS, b"complaint")

    run(scenario())


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits long")
def test_threat_11_a_key_that_is_too_small_proves_nothing(tmp_path: Path, jwks: str) -> None:
    async def scenario() -> None:
        async with door(tmp_path, jwks) as access:
            text = token(SMALL, "RS256", "small")
            assert await login(access, text) == Refusal(Kind.CREDENTIALS, b"complaint")

    run(scenario())


def test_another_claim_may_hold_the_name(tmp_path: Path, jwks: str) -> None:
    async def scenario() -> None:
        async with door(tmp_path, jwks, "upn") as access:
            assert await login(access, token(upn="bob@a.test", email="x")) == "bob@a.test"
            assert isinstance(await login(access, token()), Refusal)

    run(scenario())


def test_threat_11_guessing_tokens_is_throttled_by_client(tmp_path: Path, jwks: str) -> None:
    async def scenario() -> None:
        async with door(tmp_path, jwks) as access:
            for n in range(20):
                await login(access, f"a.b.{n}")
            assert await login(access, token()) == Refusal(Kind.LATER)
            assert await login(access, token(), client="192.0.2.2") == "bob@a.test"

    run(scenario())


def test_keys_are_fetched_over_http_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with issuer() as there, door(tmp_path, there.address) as access:
            names = [login(access, token(), client=f"192.0.2.{n}") for n in range(9)]
            assert await asyncio.gather(*names) == ["bob@a.test"] * 9
            assert there.asked == 1

    run(scenario())


def test_a_new_key_is_fetched_but_not_for_every_token() -> None:
    async def scenario() -> None:
        async with issuer() as there:
            clock = Clock()
            keys = Keys(there.address, clock)
            assert await keys.find("ec")
            there.body = json.dumps({"keys": [public("new", EC)]}).encode()
            assert await keys.find("new") is None
            clock.now += FETCH_AGAIN_AFTER
            assert await keys.find("new")
            assert await keys.find("ec") is None  # taken back
            assert there.asked == 2
            await keys.close()

    run(scenario())


def test_keys_are_refreshed_while_logins_go_on() -> None:
    async def scenario() -> None:
        async with issuer() as there:
            clock = Clock()
            keys = Keys(there.address, clock)
            assert await keys.find("ec")
            clock.now += REFRESH_AFTER
            there.go_on.clear()
            there.body = json.dumps({"keys": [public("new", EC)]}).encode()
            assert await keys.find("ec")  # at once, by what is known
            await until(lambda: there.asked == 2)
            there.go_on.set()
            await until(lambda: "new" in keys._keys)
            await keys.close()

    run(scenario())


def test_an_issuer_that_does_not_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with issuer() as there:
            clock = Clock()
            keys = Keys(there.address, clock)
            there.status = 500
            with pytest.raises(Unavailable):
                await keys.find("ec")
            there.status = 200
            with pytest.raises(Unavailable):  # not asked again so soon
                await keys.find("ec")
            clock.now += FETCH_AGAIN_AFTER
            assert await keys.find("ec")
            there.status = 500
            clock.now += GONE_AFTER - 1
            assert await keys.find("ec")
            clock.now += FETCH_AGAIN_AFTER
            with pytest.raises(Unavailable):
                await keys.find("ec")
            await keys.close()

    run(scenario())


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (302, b"", {"Location": "/keys"}),
        (200, b"", {}),
        (200, b"[]", {}),
        (200, b'{"keys": []}', {}),
        (200, b'{"keys": {}}', {}),
        (200, b'{"keys": [{"kty": "what"}]}', {}),
        (200, b"[" * 100_000, {}),
        (200, b'{"keys": ' + b"[" * 100_000, {}),
        (200, json.dumps(KEYS).encode() + b" " * tokens.MAX_OCTETS, {}),
    ],
)
def test_threat_21_what_is_no_set_of_keys(
    status: int, body: bytes, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with issuer() as there:
            there.status, there.body, there.headers = status, body, headers
            keys = Keys(there.address)
            with pytest.raises(Unavailable):
                await keys.find("ec")
            assert there.asked == 1
            assert "cannot have the keys" in caplog.text
            await keys.close()

    run(scenario())


def test_nobody_waits_for_keys_at_the_end() -> None:
    async def scenario() -> None:
        async with issuer() as there:
            there.go_on.clear()
            keys = Keys(there.address)
            waiting = asyncio.create_task(keys.find("ec"))
            await until(lambda: there.asked)
            await keys.close()
            with pytest.raises(Unavailable):
                await waiting
            there.go_on.set()

    run(scenario())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys = Keys((tmp_path / "none.json").as_uri())
        with pytest.raises(Unavailable):
            await keys.find("ec")
        await keys.close()

    run(scenario())
