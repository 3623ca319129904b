"""What a TLS handshake on the way out costs, full and resumed: memory to memory, no sockets.

Both sides are OpenSSL by Python's ssl module, with the context that deliveries use, TLS 1.3 and a
P-256 certificate. Each side's time is what its own calls take, in processor time; medians of the
handshakes. "Kept" is what it costs to have the session of a full one for the next time.
"""

import ssl
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench import certificate
from fastmta.delivery.tls import Context, Tls
from fastmta.protocol.smtp_client import TlsPolicy

NAME = "localhost"
POLICIES: tuple[TlsPolicy, ...] = ("required", "verified")


class Cost(NamedTuple):
    """Microseconds."""

    client: float
    server: float
    kept: float


class Side:
    """One end, with the time that it has taken."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.seconds = 0.0
        began = time.thread_time()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server, None if server else NAME)
        self.seconds += time.thread_time() - began
        self.done = False

    def step(self, peer: "Side") -> None:
        self.incoming.write(peer.outgoing.read())
        began = time.thread_time()
        try:
            if self.done:
                self.tls.read(1)
            else:
                self.tls.do_handshake()
                self.done = True
        except ssl.SSLWantReadError:
            pass
        self.seconds += time.thread_time() - began


def shake_hands(ours: Context, theirs: ssl.SSLContext) -> tuple[bool, Cost]:
    """Whether it was resumed, and what it cost."""
    client, server = Side(ours, server=False), Side(theirs, server=True)
    while not (client.done and server.done):
        client.step(server)
        server.step(client)
    client.step(server)  # the tickets
    ours.remember(NAME, client.tls)
    began = time.thread_time()
    assert client.tls.session is not None
    kept = time.thread_time() - began
    costs = client.seconds, server.seconds, kept
    return client.tls.session_reused is True, Cost(*(1e6 * each for each in costs))


def measure(ours: Context, theirs: ssl.SSLContext, count: int, *, resumed: bool) -> Cost:
    """Medians of so many."""
    costs: list[Cost] = []
    while len(costs) < count:
        if not resumed:
            ours.forget()
        was_resumed, cost = shake_hands(ours, theirs)
        if was_resumed is resumed:  # to resume takes two that were not
            costs.append(cost)
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


@click.command(help=__doc__)
@click.option("--handshakes", type=click.IntRange(10), default=1000, show_default=True)
def main(handshakes: int) -> None:
    table = Table(box=MARKDOWN)
    for heading in ("µs of CPU", "client", "server", "kept"):
        table.add_column(heading, justify="left" if heading.startswith("µ") else "right")
    with tempfile.TemporaryDirectory() as folder:
        made = certificate.of(Path(folder))
        made.make()
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        theirs.load_cert_chain(*made)
        for policy in POLICIES:
            ours = Tls(made.certificate).context(policy)
            for resumed in (False, True):
                cost = measure(ours, theirs, handshakes, resumed=resumed)
                kind = "resumed" if resumed else "full"
                table.add_row(f"{policy}, {kind}", *(f"{each:.0f}" for each in cost))
    Console(width=100).print(table)
