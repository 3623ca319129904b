"""Sockets that root bound before it was given up, held for all workers that are still to come.

The queue of a worker that dies goes on to its successor.
"""

import socket

from fastmta.config import Config, Endpoint
from fastmta.server.session import listening_socket


class Held:
    """Empty where root is not given up: workers listen by themselves then."""

    def __init__(self) -> None:
        self._workers: list[dict[Endpoint, socket.socket]] = []
        self._admin: dict[Endpoint, socket.socket] = {}

    def listen(self, config: Config, owner: int) -> None:
        """As root, for this user. OSError where an address cannot be had."""
        smtp = [each.bind for each in config.listener if each.service != "admin"]
        for _ in range(config.workers):
            self._workers.append({bind: listening_socket(bind, owner) for bind in smtp})
        for each in config.listener:
            if each.service == "admin":
                self._admin[each.bind] = listening_socket(each.bind, owner)

    def sockets(self, worker: int) -> dict[str, int]:
        """Address -> descriptor that this worker listens on."""
        held = self._workers[worker] if self._workers else {}
        return {str(bind): each.fileno() for bind, each in held.items()}

    def admin(self, bind: Endpoint) -> socket.socket | None:
        """The caller owns it."""
        return self._admin.pop(bind, None)

    def has(self, bind: Endpoint) -> bool:
        return any(bind in held for held in self._workers)

    def let_go(self, binds: set[Endpoint]) -> None:
        """Before workers stop to listen there: the kernel takes connections while any socket is
        open."""
        for held in self._workers:
            for bind in binds & held.keys():
                held.pop(bind).close()

    def close(self) -> None:
        """Hold no socket any longer."""
        self.let_go({bind for held in self._workers for bind in held})
