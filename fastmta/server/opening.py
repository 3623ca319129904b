"""What comes before a session: the header of a proxy, the handshake of implicit TLS."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from ipaddress import ip_address

from fastmta.config import Network
from fastmta.protocol.proxy import LONGEST_V2, BadHeader, ProxyHeader
from fastmta.server.session import Session
from fastmta.server.tls import FAILED, HANDSHAKE_SECONDS, UnderTls

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0  # the specification wants 3 at least, for a segment that is sent again


class Opening:
    """How a port opens connections. Those under way are counted (Sessions.expect)."""

    def __init__(
        self,
        session: Callable[[], Session],
        admits: Callable[[str], bool],
        tls: ssl.SSLContext | None,
        proxies: tuple[Network, ...],
    ) -> None:
        """`admits` an address to a handshake, or not; `proxies` have to say for whom they speak."""
        self._session, self._admits = session, admits
        self._tls, self._proxies = tls, proxies

    async def open(self, accepted: socket.socket, peer: str) -> None:
        """Until the session has its transport, or the connection is closed."""
        session = self._session()
        session.sessions.note_descriptor(accepted.fileno())
        try:
            if self._is_proxy(peer):
                peer = await self._told(session, accepted) or peer
            session.client = peer
            if self._tls is None:
                await _connect(session, accepted)
            elif self._admits(peer):
                await self._shake_hands(session, accepted)
            else:
                accepted.close()  # without a handshake there is no telling why
        except (OSError, BadHeader) as error:  # all timeouts among them
            log.info("no session with %s: %s", peer, error)
            accepted.close()
        except BaseException:
            accepted.close()
            raise
        finally:
            session.sessions.forget(session)

    def _is_proxy(self, peer: str) -> bool:
        return bool(self._proxies) and any(ip_address(peer) in each for each in self._proxies)

    async def _told(self, session: Session, accepted: socket.socket) -> str:
        """For whom the proxy speaks; "": for itself."""
        if not session.sessions.can_expect:
            raise BadHeader("too many proxies have not said for whom they speak")
        session.sessions.expect(session)
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                return await read_header(accepted)
        except TimeoutError:
            raise BadHeader("the PROXY header takes too long") from None
        finally:
            session.sessions.forget(session)

    async def _shake_hands(self, session: Session, accepted: socket.socket) -> None:
        session.sessions.expect(session)
        try:
            await _connect(session, accepted, self._tls)
        except OSError:
            FAILED.value += 1
            raise


async def _connect(
    session: Session, accepted: socket.socket, tls: ssl.SSLContext | None = None
) -> None:
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: UnderTls(session.protocol) if tls else session.protocol,
        accepted,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
    )


async def read_header(accepted: socket.socket) -> str:
    """The client that a proxy names, "" for none; BadHeader, OSError.

    Not one octet behind the header is taken from the socket: what follows may be a handshake,
    which has to begin with a socket that nobody has read from.
    """
    header = ProxyHeader()
    while not header.is_complete:
        try:
            seen = accepted.recv(LONGEST_V2, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(accepted)
            continue
        if not seen:
            raise BadHeader("the connection ended before the PROXY header did")
        accepted.recv(header.feed(seen))
    return header.client


async def _readable(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(accepted.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(accepted.fileno())
