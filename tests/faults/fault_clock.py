"""The clock jumps a day forward, a day back, and again: mail flows on, and none is given up."""

import asyncio
import ssl
from pathlib import Path

from fastmta.sink import Behaviour
from tests.certificates import Certificate, make_certificate
from tests.faults.frame import Fault, Run
from tests.integration.ledger import Node, ending, load, read_reply, sink

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
DAY = 86_400  # seconds
CONNECTIONS = 3  # to the sink, of all workers together

TABLES = f"""
[tls]
certificate = "{{}}"
key = "{{}}"
[shaping]
connections = {CONNECTIONS}
"""


def _missing() -> str:
    return "" if LIBRARY.exists() else f"{LIBRARY} is not there"


class Clock:
    """What processes that were started behind `prefix` take for the time; not how fast it goes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    @property
    def prefix(self) -> list[str]:
        settings = {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": self._file,
            "FAKETIME_CACHE_DURATION": 1,  # seconds until they look again
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        }
        return ["env", *(f"{name}={value}" for name, value in settings.items())]

    def set(self, ahead: int) -> None:
        """So many seconds ahead of what it is."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+d}\n")
        new.replace(self._file)


async def _shake_hands(port: int, certificate: Certificate) -> None:
    """A session under TLS, checked by somebody whose clock is right."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await read_reply(reader)
    for command in (b"EHLO client.example.test\r\n", b"STARTTLS\r\n"):
        writer.write(command)
        assert await read_reply(reader) in (220, 250)
    trust = ssl.create_default_context(cafile=certificate.certificate)
    await writer.start_tls(trust, server_hostname="relay.example.test")
    writer.write(b"EHLO client.example.test\r\n")
    assert await read_reply(reader) == 250
    writer.close()


async def _run(run: Run) -> None:
    ledger = run.ledger
    certificate = make_certificate(run.folder / "tls", "DNS:relay.example.test")
    clock = Clock(run.folder / "clock")
    tables = TABLES.format(*certificate)
    behaviour = Behaviour(tempfail=0.3, max_connections=CONNECTIONS)
    async with (
        sink(ledger, behaviour, tls=certificate.context) as destination,
        ending(Node(run.folder, destination.endpoint[1], tables, workers=2)) as one,
    ):
        await one.start(*clock.prefix)
        for _ in run.each():
            async with load(ledger, one.port, clients=10):
                await ledger.acknowledges(50)
                clock.set(run.dice.choice((-DAY, 0, DAY)))
                await ledger.acknowledges(50)
            with run.recovering():
                await ledger.complete()
            await _shake_hands(one.port, certificate)
        assert await one.stop() == 0
        assert not destination.totals.refused  # workers lease connections from each other
        assert '"failed"' not in (one.data / "dispositions.jsonl").read_text()


FAULTS = [
    Fault(
        name="clock",
        about="the clock jumps a day forward and back; nothing waits for it, nothing expires",
        run=_run,
        short=2,
        long=15,
        missing=_missing,
    )
]
