"""A port that is listened on: what answers there may change, and nobody is turned away by that.

Each process has a queue of its own for connections that the kernel has accepted (SO_REUSEPORT),
and closing the last descriptor of the socket resets those that wait in it.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from fastmta.config import Endpoint
from fastmta.server.session import listening_socket

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 30.0
TAKE_SECONDS = 1.0  # that are waited for the last connections; their handshakes may take longer


class Port:
    """Call `serve` to begin; again, when the context for implicit TLS is another."""

    def __init__(
        self, bind: Endpoint, session: Callable[[], asyncio.Protocol], held: int | None = None
    ) -> None:
        """`held`: a descriptor that listens there already. OSError if the address cannot be had."""
        self._session = session
        self._listening = listening_socket(bind) if held is None else socket.socket(fileno=held)
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """With the port that port 0 has become."""
        host, port = self._listening.getsockname()[:2]
        return host, port

    async def serve(self, tls: ssl.SSLContext | None) -> None:
        """Take connections from now on, with TLS from the first octet where there is a context."""
        if self._server is not None and tls is self._tls:
            return
        before, self._tls = self._server, tls
        # A descriptor of its own: the queue of the kernel outlives the server.
        self._server = await asyncio.get_running_loop().create_server(
            self._session,
            sock=self._listening.dup(),
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
        )
        if before is not None:
            before.close()

    async def close(self) -> None:
        """Listen no longer; who has been accepted by the kernel is still served."""
        if self._server is not None:
            self._server.close()
        while accepted := self._accept():
            self._tasks.add(task := asyncio.ensure_future(self._take(accepted)))
            task.add_done_callback(self._tasks.discard)
        self._listening.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TAKE_SECONDS)

    def _accept(self) -> socket.socket | None:
        while True:
            try:
                return self._listening.accept()[0]
            except BlockingIOError:
                return None
            except ConnectionAbortedError:
                continue  # it has gone already
            except OSError as error:
                log.error("connections are lost on %s: %s", self.address, error.strerror)
                return None

    async def _take(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._session,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
            )
        except OSError as error:
            log.info("no TLS: %s", error)
