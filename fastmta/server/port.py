"""A port that is listened on: what answers there may change, and nobody is turned away by that.

Each process has a queue of its own for connections that the kernel has accepted (SO_REUSEPORT),
and closing the last descriptor of the socket resets those that wait in it.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from fastmta.config import Endpoint, Network
from fastmta.server.opening import Opening
from fastmta.server.session import BACKLOG, Session, listening_socket, plain_address

log = logging.getLogger(__name__)

TAKE_SECONDS = 1.0  # that are waited for the last connections; their handshakes may take longer
_AT_ONCE = 64  # connections that are taken before others have their turn
_PAUSE = 1.0  # seconds without accepting when there are no descriptors left
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Port:
    """Call `serve` to begin; again, when something else is to come before the sessions.

    Where nothing does, the loop accepts connections by itself. Where a handshake or the header of
    a proxy does, they are accepted here, so that those can be counted that are not done with it.
    """

    def __init__(
        self,
        bind: Endpoint,
        session: Callable[[], Session],
        admits: Callable[[str], bool],
        held: int | None = None,
    ) -> None:
        """OSError if the address cannot be had; `admits` as in Opening.

        `held`: a descriptor that listens there already.
        """
        self._session, self._admits = session, admits
        self._listening = listening_socket(bind) if held is None else socket.socket(fileno=held)
        self._server: asyncio.Server | None = None
        self._opening: Opening | None = None
        self._watching = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """With the port that port 0 has become."""
        host, port = self._listening.getsockname()[:2]
        return host, port

    async def serve(
        self, tls: ssl.SSLContext | None = None, proxies: tuple[Network, ...] = ()
    ) -> None:
        """Take connections from now on: with TLS from the first octet where there is a context,
        behind a PROXY header those that come from `proxies`."""
        self._opening = Opening(self._session, self._admits, tls, proxies)
        if tls is not None or proxies:
            self._close_server()
            self._watch()
        elif self._server is None:
            self._unwatch()
            # A descriptor of its own: the queue of the kernel outlives the server.
            self._server = await asyncio.get_running_loop().create_server(
                lambda: self._session().protocol, sock=self._listening.dup(), backlog=BACKLOG
            )

    async def close(self) -> None:
        """Listen no longer; who has been accepted by the kernel is still served."""
        self._close_server()
        self._unwatch()
        while self._take():
            pass
        self._listening.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TAKE_SECONDS)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            loop = asyncio.get_running_loop()
            loop.add_reader(self._listening.fileno(), self._take_some)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            asyncio.get_running_loop().remove_reader(self._listening.fileno())

    def _take_some(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._take():
                return

    def _take(self) -> bool:
        """Take one connection; False if there is none."""
        try:
            accepted, peer = self._listening.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True  # it has gone already
        except OSError as error:
            self._wait_for_room(error)
            return False
        assert self._opening is not None
        accepted.setblocking(False)
        opening = self._opening.open(accepted, plain_address(peer[0]))
        self._tasks.add(task := asyncio.ensure_future(opening))
        task.add_done_callback(self._tasks.discard)
        return True

    def _wait_for_room(self, error: OSError) -> None:
        """The socket stays readable: without a pause this would be all that the loop does."""
        log.error("cannot take connections on %s: %s", self.address, error.strerror)
        if self._watching and error.errno in _NO_ROOM:
            self._unwatch()
            asyncio.get_running_loop().call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if self._server is None and self._listening.fileno() >= 0:
            self._watch()
