"""The table [auth]: how clients log in, and whose tokens are believed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Meta

from fastmta.config_reader import Duration, Problem, Table

Mechanism = Literal[
    "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"
]
_OF_PASSWORDS = {"PLAIN", "LOGIN"}
_OF_TOKENS = {"OAUTHBEARER", "XOAUTH2"}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_LONGEST_MEMORY = 3600  # seconds


class OAuth(Table, frozen=True, kw_only=True):
    """Whose bearer tokens are believed: signed JWTs (RFC 7519, RFC 9068)."""

    jwks: str  # address of the keys (RFC 7517): https://, or file://
    issuer: str
    audience: str
    claim: str = "email"  # holds the account's name


class Auth(Table, frozen=True, kw_only=True):
    mechanisms: tuple[Mechanism, ...] = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN")
    # How long a password that was right is not hashed again; 0: never remembered.
    remember: Annotated[Duration, Meta(ge=0, le=_LONGEST_MEMORY)] = Duration(300)
    oauth: OAuth | None = None


def check_auth(auth: Auth) -> Iterator[Problem]:
    named = set(auth.mechanisms)
    if not named:
        yield Problem("auth.mechanisms", 'is empty: nobody could log in; write ["PLAIN", "LOGIN"]')
    for name in sorted(named):
        if auth.mechanisms.count(name) > 1:
            yield Problem("auth.mechanisms", f'"{name}" is there twice')
    if named and not named & _OF_PASSWORDS and auth.remember != Auth().remember:
        yield Problem("auth.remember", "is without effect: it is for PLAIN and LOGIN")
    tokens = sorted(named & _OF_TOKENS)
    if auth.oauth is None:
        for name in tokens:
            text = f'"{name}" needs a table [auth.oauth] with jwks, issuer and audience'
            yield Problem("auth.mechanisms", text)
        return
    if not tokens:
        text = 'is without effect: no mechanism takes a token; add "OAUTHBEARER" or "XOAUTH2"'
        yield Problem("auth.oauth", text)
    yield from _check_oauth(auth.oauth)


def _check_oauth(oauth: OAuth) -> Iterator[Problem]:
    for name in ("issuer", "audience", "claim"):
        if not getattr(oauth, name):
            yield Problem(f"auth.oauth.{name}", "is empty; no token has such a thing")
    try:
        yield from _check_address(oauth.jwks)
    except ValueError:  # of a bad port, or brackets that do not match
        yield Problem("auth.oauth.jwks", f'"{oauth.jwks}" is no address')


def _check_address(jwks: str) -> Iterator[Problem]:
    key, parts = "auth.oauth.jwks", urlsplit(jwks)
    is_local = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if not jwks.isprintable() or " " in jwks:
        yield Problem(key, "is no address: it holds spaces or controls")
    elif parts.scheme == "file":
        yield from _check_keys_file(key, jwks)
    elif not (parts.hostname and (parts.scheme == "https" or is_local)):
        text = 'write "https://HOST/PATH" or "file:///PATH": who can change keys can be anybody'
        yield Problem(key, f'"{jwks}": {text}')
    else:
        _ = parts.port  # ValueError where it is none


def _check_keys_file(key: str, jwks: str) -> Iterator[Problem]:
    path = keys_file(jwks)
    try:
        if not path.is_absolute():
            yield Problem(key, f'"{jwks}": write an absolute path: "file:///etc/fastmta/jwks.json"')
        else:
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        yield Problem(key, f"{path} cannot be read: {error.strerror}")


def keys_file(jwks: str) -> Path:
    """The file that a file:// address names; a host in it makes the path relative, and so wrong."""
    parts = urlsplit(jwks)
    return Path(parts.netloc + unquote(parts.path))
