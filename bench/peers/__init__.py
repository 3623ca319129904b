"""The servers under test, one module each, all with the same four functions."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from msgspec import Struct

NAMES = ("fastmta", "null", "postfix", "exim", "opensmtpd", "haraka", "aiosmtpd")
FETCHED = Path(__file__).parents[2] / ".build" / "peers"  # by tools/bench_peers.py
SCALE = ("fastmta", "null", "haraka")  # those that have a number of workers
Tls = Literal["none", "in", "out"]
TLS = get_args(Tls)
Dkim = Literal["none", "rsa2048", "ed25519"]
DKIM = get_args(Dkim)


class Features(Struct, frozen=True, kw_only=True):
    """What a peer is to do beside relaying."""

    tls: Tls = "none"  # "in": the load asks for STARTTLS; "out": the sink offers it
    dkim: Dkim = "none"  # the key that signs, of `signing.of(folder)`

    def __str__(self) -> str:
        """ "TLS in, DKIM rsa2048"; "" for none."""
        named = {"TLS": self.tls, "DKIM": self.dkim}
        return ", ".join(f"{name} {value}" for name, value in named.items() if value != "none")


PLAIN = Features()


class Peer(Protocol):
    """What each of these modules is."""

    __name__: str

    @property
    def missing(self) -> Callable[[], str]:
        """Why it cannot run here, or nothing."""

    @property
    def version(self) -> Callable[[], str]:
        """What is measured, in a few words."""

    @property
    def can(self) -> Callable[[Features], bool]:
        """Whether it has these features."""

    @property
    def running(self) -> Callable[[Path, int, int, int, Features], AbstractContextManager[int]]:
        """Run it for a while: folder, port, port of the next hop, workers, features.

        Gives the root pid. Its certificate, where it needs one, is `certificate.of(folder)`.
        """


def load(name: str) -> Peer:
    return cast(Peer, import_module(f"bench.peers.{name}"))
