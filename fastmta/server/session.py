"""What sessions of every protocol share: admission, flow control, deadlines, sockets."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from math import inf
from typing import cast

from fastmta.config import Endpoint
from fastmta.server import room

BACKLOG = 4096  # connections that the kernel makes before we take them
_SWEEP = 1.0  # seconds; how late a deadline may be noticed


# Why a session does not read; it reads again when no reason is left. Plain bits: an IntFlag costs
# more than all else that a read does here.
HOLD_WRITE = 1  # the client does not read what we write
HOLD_PENDING = 2  # enough is buffered behind what somebody else has to finish
HOLD_HANDSHAKE = 4
HOLD_CROWD = 8  # other mail has to leave first, see `Flow`


class Session:
    """One connection. Subclasses speak the protocol; `sessions` knows when time is up."""

    __slots__ = ("_hold", "client", "sessions", "since", "transport")

    transport: asyncio.Transport

    def __init__(self, sessions: "Sessions") -> None:
        self.sessions = sessions
        self.client = ""  # the peer's IP address, or the one that a proxy has told
        self.since = sessions.now  # when it was last the client's turn anew
        self._hold = 0

    @property
    def protocol(self) -> asyncio.Protocol:
        """Itself, as the loop knows it: a compiled class has no base in Python."""
        return cast(asyncio.Protocol, self)

    def begin(self, transport: asyncio.BaseTransport) -> None:
        """Call it first in connection_made: there is a connection, and who is at its end."""
        self.transport = cast(asyncio.Transport, transport)
        self.sessions.forget(self)
        self.sessions.note_descriptor(transport.get_extra_info("socket").fileno())
        self.client = self.client or client_address(transport)

    def sweep(self, now: float) -> None:
        """Called each second: act when a deadline has passed."""
        raise NotImplementedError

    def drain(self) -> None:
        """Called when the service stops: close if nothing is in flight, else soon after."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Called at the end of the time that draining has: close now."""
        self.transport.abort()

    def hold(self, reason: int) -> None:
        if not self._hold and not self.transport.is_closing():
            self.transport.pause_reading()
        self._hold |= reason

    def release(self, reason: int) -> None:
        if not self._hold & reason:
            return
        self._hold &= ~reason
        if not self._hold and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def is_write_held(self) -> bool:
        return bool(self._hold & HOLD_WRITE)

    def pause_writing(self) -> None:
        self.hold(HOLD_WRITE)

    def resume_writing(self) -> None:
        self.release(HOLD_WRITE)


class Sessions:
    """All sessions of one service, within their limits, and the one clock that they share.

    `now` is the loop's time as of the last sweep: exact to a second, and free to read.
    """

    def __init__(self, limit: int, limit_per_client: int) -> None:
        self.limit = limit
        self.limit_per_client = limit_per_client
        self.now = 0.0
        self.on_sweep: Callable[[], None] | None = None
        self._open: set[Session] = set()
        self._descriptors = inf  # those from this number on are not for sessions
        self._is_crowded = False  # the latest connection had one of these
        self._expected: set[Session] = set()  # without a connection as yet, see Opening
        self._per_client: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_full(self) -> bool:
        return self._is_crowded or self._in_use >= self.limit

    @property
    def is_stressed(self) -> bool:
        """Nine tenths are in use: who is slow or errs has to go sooner."""
        return self._in_use * 10 >= self.limit * 9

    @property
    def can_expect(self) -> bool:
        """Whether one more may be on its way; when all are in use it can be told so."""
        return len(self._expected) < self.limit

    @property
    def _in_use(self) -> int:
        return len(self._open) + len(self._expected)

    def note_descriptor(self, number: int) -> None:
        """Of a connection that has come, before it is let in."""
        self._is_crowded = number >= self._descriptors

    def has_too_many(self, client: str) -> bool:
        return self._per_client[client] >= self.limit_per_client

    def add(self, session: Session) -> None:
        self._open.add(session)
        self._per_client[session.client] += 1
        self._empty.clear()

    def remove(self, session: Session) -> None:
        if session not in self._open:
            return
        self._open.remove(session)
        self._uncount(session.client)
        if not self._open:
            self._empty.set()

    def rename(self, session: Session, client: str) -> None:
        """Count it as this client's from now on."""
        self._uncount(session.client)
        session.client = client
        self._per_client[client] += 1

    def expect(self, session: Session) -> None:
        """Count a session whose connection is being opened, until it begins or `forget`."""
        self._expected.add(session)
        self._per_client[session.client] += 1

    def forget(self, session: Session) -> None:
        if session in self._expected:
            self._expected.remove(session)
            self._uncount(session.client)

    def _uncount(self, client: str) -> None:
        self._per_client[client] -= 1
        if not self._per_client[client]:
            del self._per_client[client]

    def each(self, do: Callable[[Session], None]) -> None:
        """Call this for every session that is open."""
        for session in tuple(self._open):
            do(session)

    def start(self) -> None:
        """Begin to sweep; call it in the loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._sweep()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        assert self._loop is not None
        self.now = now = self._loop.time()
        self._descriptors = room.descriptors()
        self._timer = self._loop.call_later(_SWEEP, self._sweep)
        if self.on_sweep is not None:
            self.on_sweep()
        for session in tuple(self._open):
            session.sweep(now)

    async def drain(self, limit: float) -> None:
        """Ask all sessions to end, wait for them for `limit` seconds, then end them."""
        for session in tuple(self._open):
            session.drain()
        try:
            async with asyncio.timeout(limit):
                await self._empty.wait()
        except TimeoutError:
            for session in tuple(self._open):
                session.abandon()
            await self._empty.wait()


def listening_socket(bind: Endpoint, owner: int = -1) -> socket.socket:
    """A socket that several processes may listen on together (SO_REUSEPORT).

    The kernel lets sockets of one user share a port: `owner` is that user where it is not us.
    """
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        os.fchown(listening.fileno(), owner, -1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(tuple(bind))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def client_address(transport: asyncio.BaseTransport) -> str:
    """The peer's IP address, "" when it has gone already."""
    peer = transport.get_extra_info("peername")
    return plain_address(str(peer[0])) if peer else ""


def plain_address(host: str) -> str:
    """Without a scope; ::ffff:192.0.2.1 is 192.0.2.1."""
    if host.startswith("::ffff:"):
        mapped = ip_address(host)
        host = str(getattr(mapped, "ipv4_mapped", None) or mapped)
    return host.partition("%")[0]


def has_spoken(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer has sent something that nobody has read yet; if so it is read away.

    Closing a socket with unread octets makes the kernel send RST, which can overtake a reply.
    """
    handle = transport.get_extra_info("socket")
    peer = socket.socket(handle.family, handle.type, handle.proto, fileno=handle.fileno())
    try:
        return bool(peer.recv(1 << 16, socket.MSG_DONTWAIT))
    except OSError:
        return False
    finally:
        peer.detach()
