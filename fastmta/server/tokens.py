"""Bearer tokens: signed JWTs (RFC 7519), checked with the keys that their issuer publishes.

Keys are fetched off the hot path and kept: a login waits for them only where there are none, or
where the token names a key that is not known, and that not more than once a minute.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
import jwt
import msgspec
from jwt import PyJWK, PyJWKSet

from fastmta.config import OAuth
from fastmta.config_auth import keys_file

log = logging.getLogger(__name__)

REFRESH_AFTER = 3600.0  # seconds, of keys that were fetched
GONE_AFTER = 86400.0  # seconds in which they could not be fetched again
FETCH_AGAIN_AFTER = 60.0  # seconds between two fetches
FETCH_SECONDS = 10.0
MAX_OCTETS = 256 * 1024  # of a set of keys
MAX_KEYS = 100
LEEWAY = 60  # seconds that clocks may be apart

# Asymmetric ones alone: with HS256 a public key would be the secret (RFC 8725 section 2.1).
ALGORITHMS = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]


class Unavailable(ConnectionError):
    """Nobody can say now whether a token is good."""


class Issuer:
    """Who signs the tokens that are believed. Bound to the running loop."""

    def __init__(self, settings: OAuth) -> None:
        self._settings, self._keys = settings, Keys(settings.jwks)

    async def check_of(self, token: str) -> Callable[[], str | None] | None:
        """What finds out whom a token lets in, in some hundred microseconds and for any thread.

        None where its key is not the issuer's; ValueError for what is no token; Unavailable.
        """
        key = await self._keys.find(_key_id(token))
        return None if key is None else partial(_claimed_name, token, key, self._settings)

    async def close(self) -> None:
        await self._keys.close()


class Keys:
    """The keys of an issuer. Bound to the running loop."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._clock = address, clock
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched = self._tried = -GONE_AFTER
        self._task: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> PyJWK | None:
        """The key of a token, None where there is no such key; Unavailable without any."""
        age = self._clock() - self._fetched
        if age >= REFRESH_AFTER or kid not in self._keys:
            self._refresh()
            if self._task and (age >= GONE_AFTER or kid not in self._keys):
                await asyncio.wait([self._task])  # others wait for it too
        if self._clock() - self._fetched >= GONE_AFTER:
            raise Unavailable
        return self._keys.get(kid)

    def _refresh(self) -> None:
        """Fetch them, unless that is under way or was done just now."""
        if self._task and self._task.done():
            self._task = None
        if self._task is None and self._clock() - self._tried >= FETCH_AGAIN_AFTER:
            self._tried = self._clock()
            self._task = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = _read_keys(await _get(self._address))
            self._fetched = self._clock()
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
            log.error("cannot have the keys of %s: %s", self._address, error or type(error))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def _get(address: str) -> bytes:
    """What is there, at most MAX_OCTETS; ValueError where it is more."""
    if address.startswith("file:"):
        octets = await asyncio.to_thread(_read_file, keys_file(address))
    else:
        octets = await _get_over_http(address)
    if len(octets) > MAX_OCTETS:
        raise ValueError(f"more than {MAX_OCTETS} octets")
    return octets


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_OCTETS + 1)


async def _get_over_http(address: str) -> bytes:
    octets = bytearray()
    # Nothing is unpacked, and nobody is sent elsewhere: the address is all that is trusted.
    async with (
        asyncio.timeout(FETCH_SECONDS),
        aiohttp.ClientSession(
            auto_decompress=False, headers={"Accept-Encoding": "identity"}
        ) as session,
        session.get(address, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"answered with status {response.status}")
        async for piece in response.content.iter_any():
            octets += piece
            if len(octets) > MAX_OCTETS:
                break
    return bytes(octets)


class _Set(msgspec.Struct):
    keys: list[dict[str, object]]


def _read_keys(octets: bytes) -> dict[str | None, PyJWK]:
    """By their id; ValueError where none can be used."""
    try:
        found = msgspec.json.decode(octets, type=_Set).keys
        keys = PyJWKSet(found[:MAX_KEYS]).keys
    except (jwt.PyJWTError, RecursionError) as error:
        raise ValueError(f"no set of keys: {error}") from None
    return {key.key_id: key for key in keys if key.public_key_use in (None, "sig")}


def _key_id(token: str) -> str | None:
    """Which key a token says it is signed with; ValueError where it is no token."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError as error:
        raise ValueError(str(error)) from None
    return kid if kid is None else str(kid)


def _claimed_name(token: str, key: PyJWK, settings: OAuth) -> str | None:
    """Whom a token lets in, None where it is not good."""
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as error:
        log.debug("a token is not good: %s", error)
        return None
    name = claims.get(settings.claim)
    # OpenID Connect Core section 5.1: an address that its owner has not shown to be his.
    if settings.claim == "email" and claims.get("email_verified") in (False, "false"):
        return None
    return name if isinstance(name, str) else None
