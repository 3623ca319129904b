"""What an idle session takes of a server's memory: after EHLO, of so many that are open at once.

Pages that processes share count once (PSS), which favours servers of many processes.
"""

import asyncio
from functools import partial
from pathlib import Path

import uvloop

from bench import processes, relay
from bench.load import Client, Load
from bench.peers import PLAIN, Peer
from bench.relay import Run

WARMING = 100  # sessions opened and closed before
GREETED = 120.0  # seconds until all have to be


class Idle(Client):
    def leave(self) -> None:
        self._transport.abort()


def measure(peer: Peer, sessions: int, base: Path) -> Run:
    port, next_hop = processes.free_port(), processes.free_port()
    with (
        relay.scratch(base) as folder,
        relay.receiving(next_hop, folder),  # some connect at once
        peer.running(folder, port, next_hop, 1, PLAIN) as root,
    ):
        octets = uvloop.run(_idle(port, sessions, root))
    return Run(claim="idle", load="idle", point={"sessions": sessions}, session=octets)


async def _idle(port: int, sessions: int, root: int) -> float:
    await _leave(await _open(port, WARMING))
    processes.settled(root)
    before = processes.resident(root)
    opened = await _open(port, sessions)
    processes.settled(root)
    after = processes.resident(root)
    await _leave(opened)
    return (after - before) / sessions


async def _open(port: int, count: int) -> list[Idle]:
    loop, load = asyncio.get_running_loop(), Load(0, 0)
    opened = [Idle(load) for _ in range(count)]
    async with asyncio.timeout(GREETED):
        for it in opened:
            await loop.create_connection(partial(_same, it), "127.0.0.1", port)
            await it.greeted
    if load.result.disconnects:
        raise RuntimeError(f"{load.result.disconnects} of {count} sessions were refused")
    return opened


def _same(client: Idle) -> Idle:
    return client


async def _leave(opened: list[Idle]) -> None:
    for it in opened:
        it.leave()
    await asyncio.gather(*(it.left for it in opened))
