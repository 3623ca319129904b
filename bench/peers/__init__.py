"""The servers under test, one module each, all with the same three functions."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

NAMES = ("fastmta", "null", "postfix")


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
    def running(self) -> Callable[[Path, int, int, int], AbstractContextManager[int]]:
        """Run it for a while: folder, port, port of the next hop, workers; gives the root pid."""


def load(name: str) -> Peer:
    return cast(Peer, import_module(f"bench.peers.{name}"))
