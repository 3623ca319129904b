"""Passwords as they are stored: argon2id, and the keys of SCRAM."""

import secrets
from base64 import b64encode

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from fastmta.protocol.scram import KEY_SIZE, Keys, derive

# 19 MiB, two passes, one lane: the least that OWASP's password storage sheet recommends. The
# library's own default is six times as slow: at 35 ms two threads check 57 logins a second.
MEMORY, PASSES, LANES = 19 * 1024, 2, 1  # KiB, passes, threads
_HASHER = PasswordHasher(PASSES, MEMORY, LANES)

# Who steals the file may try passwords on these keys too. RFC 7677 section 4 asks for about 0.1 s
# and at least 4096; the client has to do them at each login.
ITERATIONS = 100_000
SALT_SIZE = 16  # octets


def hash_password(password: str) -> str:
    """Takes about 35 ms and 19 MiB; `password` is prepared (protocol.sasl_text)."""
    return _HASHER.hash(password)


def check_password(stored: str, password: str) -> bool:
    """As long as `hash_password`; releases the GIL."""
    try:
        return _HASHER.verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return False


def scram_keys(password: str) -> Keys:
    return derive(password, secrets.token_bytes(SALT_SIZE), ITERATIONS)


def unknown_hash() -> str:
    """What nobody's password matches, at the same cost."""
    salt, digest = (
        b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (SALT_SIZE, 32)
    )
    return f"$argon2id$v=19$m={MEMORY},t={PASSES},p={LANES}${salt}${digest}"


def unknown_keys(salt: bytes) -> Keys:
    """Keys that nobody's password matches."""
    return Keys(salt, ITERATIONS, secrets.token_bytes(KEY_SIZE), secrets.token_bytes(KEY_SIZE))


def generate() -> str:
    """A password of 120 random bits that can be typed."""
    return secrets.token_urlsafe(15)
