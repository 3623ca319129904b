"""What services of every protocol share: their ports, their sessions, and how they stop."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import lru_cache
from ipaddress import ip_address

from fastmta.config import Endpoint, Listener, Network, TlsMode
from fastmta.metrics import Counter
from fastmta.protocol.smtp_limits import Load
from fastmta.server import room
from fastmta.server.port import Port
from fastmta.server.session import Session, Sessions
from fastmta.server.tls import ServerTls

LEAST_HELD = 1 << 20  # octets that may be held whatever there seems to be left of memory
STRESS_TIMEOUT = 10.0  # seconds; what is left of a client's time under stress


class Service:
    """The listeners of one worker that speak one protocol."""

    def __init__(
        self, sessions: Sessions, load: Load, tls: ServerTls | None, refused: Counter
    ) -> None:
        """`refused` counts connections that are not let in."""
        self.sessions, self.load, self.tls = sessions, load, tls
        self.most_held = load.max_held  # where memory has room for it
        self.sessions.on_sweep = self._note_stress
        self.held: dict[str, int] = {}  # address -> descriptor, where it listens already
        self._refused = refused
        self._ports: dict[Endpoint, Port] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: Listener) -> tuple[str, int]:
        """Listen; gives the address, with the port that port 0 has become."""
        raise NotImplementedError

    def why_refused(self, client: str) -> bytes:
        """What a new client hears who is not let in, or nothing."""
        raise NotImplementedError

    async def _listen(
        self, listener: Listener, mode: TlsMode, make: Callable[[], Session]
    ) -> tuple[str, int]:
        """`make` makes sessions."""
        self.sessions.start()
        bind = listener.bind
        port = self._ports.get(bind)
        if port is None:
            held = self.held.pop(str(bind), None)
            port = self._ports[bind] = Port(bind, make, self._admits, held)
        context = self.tls.context(listener.service) if self.tls and mode == "implicit" else None
        await port.serve(context, listener.proxy_networks)
        return port.address

    async def _listen_on(self, listeners: Collection[Listener]) -> list[str]:
        """Listen on these and no others; gives those that could not be had, and why."""
        problems = []
        for listener in listeners:
            try:
                await self.start(listener)
            except OSError as error:
                problems.append(f"cannot listen on {listener.bind}: {error.strerror}")
        for bind in self._ports.keys() - {each.bind for each in listeners}:
            await self._ports.pop(bind).close()
        return problems

    async def drain(self, limit: float) -> None:
        """Stop listening, let what is in flight end, for `limit` seconds at most."""
        self.load.draining = True
        while self._ports:
            await self._ports.popitem()[1].close()
        await self.sessions.drain(limit)
        self.sessions.stop()

    def run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _admits(self, client: str) -> bool:
        if self.why_refused(client):
            self._refused.value += 1
            return False
        return True

    def _note_stress(self) -> None:
        self.load.stressed = self.sessions.is_stressed
        # What is held is copied on its way: to be joined, and to be written.
        left = max(LEAST_HELD, self.load.held + room.memory() / 4)
        self.load.max_held = int(min(self.most_held, left))


def membership(networks: Sequence[Network]) -> Callable[[str], bool]:
    """Whether a client is in one of these; it remembers those who came lately."""

    def is_in(client: str) -> bool:
        if not (client and networks):
            return False
        address = ip_address(client)
        return any(address in network for network in networks)

    return lru_cache(maxsize=4096)(is_in)
