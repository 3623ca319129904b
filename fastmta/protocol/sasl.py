"""SASL exchanges of a server without I/O (RFC 4422): octets in, what they come to out.

An exchange knows the octets alone: base64, "*" and reply codes are SMTP's, POP3's and IMAP's.
What it comes to is not yet proved, but for `Proven`: see `server.access`.

Always true: after anything but a Challenge an exchange is over and every further step fails; no
name, password or token that it gives holds a control.
"""

import re
import secrets
from collections.abc import Callable, Generator, Mapping
from enum import Enum
from typing import TypeAlias

from msgspec import Struct

from fastmta.protocol.sasl_text import prepare_name, prepare_password
from fastmta.protocol.scram import Conversation, Keys, Refused

# Octets of one response. RFC 4954 section 4 has 12288 of base64 on a line, which is as many.
MAX_RESPONSE = 9216


class Kind(Enum):
    """Why somebody is not let in; the value is what may be said of it."""

    MALFORMED = "Not as the mechanism has it"
    TOO_LONG = "Too long"
    CREDENTIALS = "Name or password wrong"  # or there is no such account, or it is disabled
    LATER = "Too many failures; try again later"
    BUSY = "Too many logins at a time; try again later"
    UNAVAILABLE = "Cannot look that up now; try again later"


class Challenge(Struct, frozen=True):
    """What the client is to answer."""

    text: bytes


class Password(Struct, frozen=True):
    authzid: str  # whom the client wants to act as; "": as `name`
    name: str
    password: str

    def __repr__(self) -> str:  # never in a log
        return f"Password({self.authzid!r}, {self.name!r}, ...)"


class Token(Struct, frozen=True):
    """A bearer token; who it is for is in it."""

    authzid: str
    token: str
    complaint: bytes  # the challenge that tells of a bad one (RFC 7628 section 3.2.2)

    def __repr__(self) -> str:
        return f"Token({self.authzid!r}, ...)"


class Proven(Struct, frozen=True):
    """The client has shown that it knows the password that the keys are of."""

    authzid: str
    name: str
    last: bytes  # a challenge that comes before the success, and is answered with nothing
    keys: Keys


class Failed(Struct, frozen=True):
    kind: Kind
    name: str = ""  # where the client got as far as that


Outcome: TypeAlias = Challenge | Password | Token | Proven | Failed
_Steps: TypeAlias = Generator[bytes, bytes, Outcome]


class Context(Struct, frozen=True):
    """What mechanisms need to know."""

    # For names that nobody has too, so that they look the same; None: nothing can be known now.
    keys_of: Callable[[str], Keys | None]
    bindings: Mapping[str, bytes] = {}  # of this connection: type -> data (RFC 5056)
    domain: str = ""  # of names that are written without one; "": none is added
    nonce: Callable[[], str] = secrets.token_urlsafe


class Exchange:
    """One attempt to log in."""

    def __init__(self, mechanism: str, context: Context) -> None:
        """KeyError for what is not in MECHANISMS."""
        self._steps = MECHANISMS[mechanism](context)
        self._first: bytes | None = next(self._steps)

    def begin(self, initial: bytes | None) -> Outcome:
        """Take the initial response (RFC 4422 section 3.2), or ask for it where there is none."""
        return Challenge(self._first or b"") if initial is None else self.step(initial)

    def step(self, response: bytes) -> Outcome:
        if len(response) > MAX_RESPONSE:
            self._steps.close()
            return Failed(Kind.TOO_LONG)
        try:
            return Challenge(self._steps.send(response))
        except StopIteration as end:
            outcome: Outcome | None = end.value
            return outcome or Failed(Kind.MALFORMED)
        except ValueError:
            return Failed(Kind.MALFORMED)


# Each mechanism yields challenges, the first of them for who sent no initial response.


def _plain(context: Context) -> _Steps:
    """RFC 4616 section 2."""
    authzid, name, password = (yield b"").split(b"\0")
    return _password(context, authzid, name, password)


def _login(context: Context) -> _Steps:
    """draft-murchison-sasl-login; Outlook waits for these very words."""
    name = yield b"Username:"
    password = yield b"Password:"
    return _password(context, b"", name, password)


def _password(context: Context, authzid: bytes, name: bytes, password: bytes) -> Outcome:
    found = Password(_name(context, authzid), _name(context, name), prepare_password(password))
    return found if found.name and found.password else Failed(Kind.CREDENTIALS)


def _name(context: Context, octets: bytes) -> str:
    name = prepare_name(octets)
    return f"{name}@{context.domain}" if name and context.domain and "@" not in name else name


def _scram(context: Context, plus: bool = False) -> _Steps:
    """RFC 5802 section 5."""
    name = ""
    try:
        client = Conversation((yield b""), plus, context.bindings)
        authzid = _name(context, client.authzid.encode())
        name = _name(context, client.name.encode())
        keys = context.keys_of(name)
        if keys is None:
            return Failed(Kind.UNAVAILABLE, name)
        last = client.finish((yield client.challenge(keys, context.nonce())))
    except Refused:
        return Failed(Kind.CREDENTIALS, name)
    return Proven(authzid, name, last, keys)


def _scram_plus(context: Context) -> _Steps:
    return _scram(context, plus=True)


# Control-A separates the pairs. RFC 6750 section 2.1 has the octets of a token.
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
_XOAUTH2 = re.compile(rb"user=([^\x01]*)\x01auth=([^\x01]*)\x01\x01")
_OAUTHBEARER = re.compile(rb"[ny],(?:a=([^,\x01]*))?,\x01((?:[A-Za-z]+=[^\x01]*\x01)+)\x01")
_PAIR_OF_AUTH = re.compile(rb"(?:^|\x01)auth=([^\x01]*)\x01")


def _xoauth2(context: Context) -> _Steps:
    """Google's, which Microsoft has too: https://developers.google.com/gmail/imap/xoauth2-protocol"""
    found = _XOAUTH2.fullmatch((yield b""))
    if not found:
        return Failed(Kind.MALFORMED)
    return _token(found[1], found[2], b'{"status":"400","schemes":"Bearer","scope":""}')


def _oauthbearer(context: Context) -> _Steps:
    """RFC 7628 section 3.1; host and port say nothing that the connection does not say."""
    found = _OAUTHBEARER.fullmatch((yield b""))
    pair = found and _PAIR_OF_AUTH.search(found[2])
    if not (found and pair):
        return Failed(Kind.MALFORMED)
    authzid = (found[1] or b"").replace(b"=2C", b",").replace(b"=3D", b"=")
    return _token(authzid, pair[1], b'{"status":"invalid_token"}')


def _token(authzid: bytes, value: bytes, complaint: bytes) -> Outcome:
    bearer = _BEARER.fullmatch(value)
    if not bearer:
        return Failed(Kind.MALFORMED)
    return Token(prepare_name(authzid), bearer[1].decode(), complaint)


# In the order in which they are offered: the strongest first (RFC 5802 section 6 for -PLUS).
MECHANISMS: dict[str, Callable[[Context], _Steps]] = {
    "SCRAM-SHA-256-PLUS": _scram_plus,
    "SCRAM-SHA-256": _scram,
    "OAUTHBEARER": _oauthbearer,
    "XOAUTH2": _xoauth2,
    "PLAIN": _plain,
    "LOGIN": _login,
}
