"""What is fuzzed of what stands around dialogues: proxies, logins and the configuration."""

import tomllib
from pathlib import Path
from unicodedata import category

from fastmta import config
from fastmta.config_reader import ConfigError
from fastmta.protocol.proxy import BadHeader, ProxyHeader
from fastmta.protocol.sasl import MECHANISMS, Challenge, Context, Exchange, Failed, Proven
from fastmta.protocol.smtp_xclient import NAMES, read_claims
from tests.fuzz.smtp_targets import cut
from tests.protocol import proxy_oracle
from tests.protocol.pop3_dialogue import KEYS

FOLDER = Path("/nonexistent")


def fuzz_proxy(data: bytes) -> None:
    try:
        expected = proxy_oracle.read(data)
    except proxy_oracle.Bad:
        expected = 0, "bad"
    for pieces in ([data], cut(data)):
        assert _proxied(pieces) == expected


def _proxied(pieces: list[bytes]) -> tuple[int, str] | None:
    header, taken = ProxyHeader(), 0
    for piece in pieces:
        try:
            taken += header.feed(piece)
        except BadHeader:
            return 0, "bad"
        if header.is_complete:
            return taken, header.client
    return None


def fuzz_xclient(data: bytes) -> None:
    """Its argument comes without controls and in ASCII, or is refused before."""
    argument = bytes(octet for octet in data if 31 < octet < 127)
    words = [word.partition(b"=") for word in argument.split()]
    names = [name.decode().upper() for name, _, _ in words]
    try:
        claims = read_claims(argument)
    except ValueError:
        return
    assert set(names) <= set(NAMES)
    assert len(set(names)) == len(names) > 0
    assert all(value for _, _, value in words)
    assert (claims.address is None) == ("ADDR" not in names)
    assert claims.login.isprintable()


def fuzz_sasl(data: bytes) -> None:
    """Each line is a response to the mechanism that the first octet chooses."""
    name = list(MECHANISMS)[data[0] % len(MECHANISMS)] if data else "PLAIN"
    exchange = Exchange(name, Context(lambda name: KEYS, nonce=lambda: "nonce"))
    first, *rest = data[1:].split(b"\n")
    outcome = exchange.begin(first or None)
    for response in rest:
        over = not isinstance(outcome, Challenge)
        outcome = exchange.step(response)
        assert not over or isinstance(outcome, Failed)
    assert not isinstance(outcome, Proven) or b"p=" in data
    told = [getattr(outcome, field, "") for field in ("authzid", "name", "password", "token")]
    # Unassigned code points pass, or newer emoji could be in no password; controls never do.
    assert not any(category(character) == "Cc" for text in told for character in text)
    if name == "PLAIN" and type(outcome).__name__ == "Password":  # RFC 4616 section 2
        assert max(line.count(b"\0") for line in data[1:].split(b"\n")) == 2


def fuzz_config(data: bytes) -> None:
    """Whatever is accepted says what it said, and no key of it was passed over."""
    text = data.decode("utf-8", "replace")
    try:
        found = config.parse(text, FOLDER)
    except ConfigError as error:
        assert str(error)
        return
    assert config.parse(text, FOLDER) == found
    for name, value in tomllib.loads(text).items():
        _said(getattr(found, name), value)


def _said(found: object, written: object) -> None:
    if isinstance(written, list):
        assert len(written) == len(found)  # type: ignore[arg-type]
        for one, value in zip(found, written, strict=True):  # type: ignore[call-overload]
            _said(one, value)
    elif isinstance(written, dict) and not isinstance(found, dict):
        for name, value in written.items():
            _said(getattr(found, name), value)
    elif isinstance(written, bool | int):
        assert found == written
