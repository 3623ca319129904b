"""SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: what is read, said and compared.

The library scramp was looked at first. Its server refuses every authzid, takes a channel binding
on the mechanism without -PLUS, bounds nothing and needs ssl objects; as a client it is the other
side in the tests.
"""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping

from msgspec import Struct

KEY_SIZE = 32  # octets of SHA-256

# RFC 5802 section 7; a nonce that is longer than this is no nonce. What stands in front of the
# name and is not `a=` is the extension "m", which nobody has defined: refused like all else.
_CLIENT_FIRST = re.compile(
    r"(?P<header>(?P<flag>n|y|p=[A-Za-z0-9.-]{1,64}),(?:a=(?P<authzid>[^,\0]+))?,)"
    r"(?P<bare>n=(?P<name>[^,\0]+),r=(?P<nonce>[!-+\--~]{1,256})(?:,[A-Za-z]=[^,\0]+)*)"
)
_CLIENT_FINAL = re.compile(
    r"(?P<signed>c=(?P<binding>[A-Za-z0-9+/=]+),r=(?P<nonce>[!-+\--~]+)(?:,[A-Za-z]=[^,\0]+)*)"
    r",p=(?P<proof>[A-Za-z0-9+/=]+)"
)
_BAD_ESCAPE = re.compile(r"=(?!2C|3D)")


class Keys(Struct, frozen=True, array_like=True):
    """What a server stores of a password (RFC 5802 section 3)."""

    salt: bytes
    iterations: int
    stored: bytes
    server: bytes


def derive(password: str, salt: bytes, iterations: int) -> Keys:
    """The keys of a prepared password; takes the time that its iterations take."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = _hmac(salted, b"Client Key")
    return Keys(salt, iterations, hashlib.sha256(client).digest(), _hmac(salted, b"Server Key"))


class Refused(Exception):
    """The exchange failed as a wrong password does (RFC 5802 section 6: the server MUST fail)."""


class Conversation:
    """One client that proves that it knows a password. Malformed messages are a ValueError."""

    def __init__(self, first: bytes, plus: bool, bindings: Mapping[str, bytes]) -> None:
        """Read the client's first message; `bindings`: type -> data, of what was offered."""
        found = _CLIENT_FIRST.fullmatch(first.decode())
        if not found:
            raise ValueError("no first message of SCRAM")
        self.authzid = _unescape(found["authzid"] or "")
        self.name = _unescape(found["name"])
        self._bare, self._nonce = found["bare"], found["nonce"]
        self._bound = found["header"].encode() + _binding(found["flag"], plus, bindings)
        self._first = ""

    def challenge(self, keys: Keys, nonce: str) -> bytes:
        """The server's first message."""
        self._keys = keys
        self._nonce += nonce
        salt = b64encode(keys.salt).decode()
        self._first = f"r={self._nonce},s={salt},i={keys.iterations}"
        return self._first.encode()

    def finish(self, final: bytes) -> bytes:
        """The server's last message, where the client's proves the password; else Refused."""
        found = _CLIENT_FINAL.fullmatch(final.decode())
        if not found:
            raise ValueError("no final message of SCRAM")
        binding = b64decode(found["binding"], validate=True)
        proof = b64decode(found["proof"], validate=True)
        signed = f"{self._bare},{self._first},{found['signed']}".encode()
        if not (
            hmac.compare_digest(binding, self._bound)
            and found["nonce"] == self._nonce
            and self._proves(proof, signed)
        ):
            raise Refused
        return b"v=" + b64encode(_hmac(self._keys.server, signed))

    def _proves(self, proof: bytes, signed: bytes) -> bool:
        signature = _hmac(self._keys.stored, signed)
        if len(proof) != len(signature):
            return False
        client = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        return hmac.compare_digest(hashlib.sha256(client).digest(), self._keys.stored)


def _binding(flag: str, plus: bool, bindings: Mapping[str, bytes]) -> bytes:
    """The channel's data that the client has to know (RFC 5802 section 6)."""
    if flag.startswith("p="):
        data = bindings.get(flag[2:], b"")
        if not (plus and data):
            raise ValueError("a channel binding that is not offered")
        return data
    if plus:
        raise ValueError("the mechanism wants a channel binding")
    if flag == "y" and bindings:  # it could, and thinks that we cannot: somebody cut out our offer
        raise Refused
    return b""


def _unescape(name: str) -> str:
    if _BAD_ESCAPE.search(name):
        raise ValueError("a bad escape in a name")
    return name.replace("=2C", ",").replace("=3D", "=")


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")
