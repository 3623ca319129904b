"""A dispatcher with what it settled, and hosts to send to."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from fastmta.config import parse
from fastmta.delivery.dispatcher import Bounds, Dispatcher
from fastmta.delivery.hosts import Hosts
from fastmta.delivery.site import Host, Site
from fastmta.delivery.source import Sources
from fastmta.delivery.tls import Tls
from fastmta.mail.disposition import Disposition
from fastmta.mail.envelope import Envelope, Recipient, TlsDemand
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_steps import Timeouts
from fastmta.queue.limits import Holder, Limits, Shape
from fastmta.queue.ready import Job
from tests.delivery.mx import Answer

CONTENT = b"Subject: x\r\n\r\n.hello\r\n"
BASIC = """
hostname = "me.test"
data_dir = "/tmp"
[[listener]]
service = "smtp"
bind = "127.0.0.1:25"

[headers]
tenant = "X-Tenant"
"""


class Rationed:
    """Permits with so many connections, and messages as long as there are any."""

    def __init__(self, messages: int = 1 << 30) -> None:
        self.messages = messages
        self.open: Counter[str] = Counter()
        self.heard_replies: list[Reply] = []
        self.refused: set[Holder] = set()
        self.holders: set[Holder] = set()

    def connect(self, shape: Shape, holder: Holder) -> bool:
        self.holders.add(holder)
        if self.open[shape.path] >= shape.limits.connections:
            self.refused.add(holder)
            return False
        self.open[shape.path] += 1
        return True

    def disconnect(self, shape: Shape, holder: Holder) -> None:
        assert self.open[shape.path] > 0, "given back twice"
        self.open[shape.path] -= 1

    def send(self, shape: Shape, holder: Holder) -> bool:
        if self.messages:
            self.messages -= 1
            return True
        self.refused.add(holder)
        return False

    def heard(self, shape: Shape, reply: Reply) -> None:
        self.heard_replies.append(reply)

    def forget(self, shape: Shape, holder: Holder) -> None:
        assert not self.open[shape.path], "permits that nobody gave back"
        self.holders.discard(holder)
        self.refused.discard(holder)

    def grant(self, messages: int) -> None:
        self.messages += messages
        waiting, self.refused = self.refused, set()
        for holder in waiting:
            holder.wake()


class Hasty(Limits, frozen=True):
    """With times of its own for each step."""

    own: Timeouts = Timeouts()

    @property
    def timeouts(self) -> Timeouts:
        return self.own


class Relay:
    """Everything has its defaults but what is given."""

    def __init__(
        self,
        limits: Limits | None = None,
        bounds: Bounds | None = None,
        timeouts: Timeouts | None = None,
        permits: Rationed | None = None,
        hosts: Hosts | None = None,
        tls: Tls | None = None,
        sources: str = "",  # tables of the configuration
    ) -> None:
        self.settled: list[tuple[Job, list[Disposition]]] = []
        self.sources: list[str] = []  # of those, in order
        self.room: list[str] = []  # paths that have room again
        self.stored: dict[int, list[bytes]] = {}
        self.read_up_to = 0  # the newest chunk that was asked for
        self.on_settle: Callable[[], object] = lambda: None
        self.on_room: Callable[[], object] = lambda: None
        self.limits = limits or Limits()
        if timeouts is not None:
            self.limits = Hasty(own=timeouts, **structs.asdict(self.limits))
        self.permits = permits or Rationed()
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(
            self._settle,
            self._read,
            sources=Sources(parse(BASIC + sources, Path("/tmp")), loop.time),
            shape=self._shape,
            permits=self.permits,
            room=self._room,
            hosts=hosts,
            bounds=bounds or Bounds(),
            tls=tls,
        )
        self._expected = 0
        self._enough = asyncio.Event()
        self.sent = 0

    def _shape(self, source: str, site: Site, domain: str, tls: TlsDemand) -> Shape:
        return Shape(f"{source}>{site.name}" if source else site.name, self.limits, {})

    def _settle(self, job: Job, site: str, source: str, dispositions: list[Disposition]) -> None:
        assert all(job is not other for other, _ in self.settled), "settled twice"
        assert len(dispositions) == len(job.envelope.recipients)
        self.settled.append((job, dispositions))
        self.sources.append(source)
        if len(self.settled) >= self._expected:
            self._enough.set()
        self.on_settle()

    def _room(self, path: str) -> None:
        self.room.append(path)
        self.on_room()

    async def _read(self, message: int, chunk: int) -> list[bytes]:
        await asyncio.sleep(0)
        self.read_up_to = chunk
        return self.stored[message][chunk : chunk + 4]

    def offer(self, site: Site, *, stored: bool = False, **changes: object) -> str:
        """One more message; its id is in its content."""
        self.sent += 1
        content = changes.pop("content", None) or b"Id: %d\r\n" % self.sent + CONTENT
        assert isinstance(content, bytes)
        recipients = [Recipient("r@b.test")]
        mail = Envelope(self.sent, 0, "s@a.test", "b.test", recipients, 0.0, len(content))
        for name, value in changes.items():
            setattr(mail, name, value)
        parts = [content[at : at + 30000] for at in range(0, len(content), 30000)]
        if stored:
            self.stored[self.sent] = parts
        return self.dispatcher.submit(site, Job(mail, None if stored else parts))

    def submit(self, site: Site, *, stored: bool = False, **changes: object) -> bool:
        return self.offer(site, stored=stored, **changes) == ""

    async def until_settled(self, count: int) -> None:
        self._expected = count
        self._enough.clear()
        if len(self.settled) < count:
            await self._enough.wait()

    async def send(self, site: Site, count: int = 1, **changes: object) -> list[Disposition]:
        """Messages that are at hand, as fast as they are taken; how their first recipients ended.

        Of one that was not taken when it was offered the next is offered once there is room.
        """
        before, left = len(self.settled), count
        again = asyncio.Event()
        self.on_room = again.set
        while left:
            again.clear()
            if self.submit(site, **changes):  # type: ignore[arg-type]
                left -= 1
            else:
                await again.wait()
        await self.until_settled(before + count)
        return [dispositions[0] for _, dispositions in self.settled[before:]]


def site(*tiers: Host | tuple[Host, ...], name: str = "b.test") -> Site:
    return Site(name, tuple(tier if isinstance(tier, tuple) else (tier,) for tier in tiers))


def refusing(name: str = "down.test", address: str = "127.0.0.1") -> Host:
    """A host where nothing listens."""
    with socket.socket() as unused:
        unused.bind((address, 0))
        return Host(name, (address,), unused.getsockname()[1])


def saying(replies: dict[str, bytes]) -> Answer:
    """An answer by verb, the same each time."""
    return lambda session, command: replies.get(command.split(" ")[0])
