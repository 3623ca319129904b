"""`fastmta demo`: a mail server and a sink on this machine, and mail as it moves."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from fastmta.cli.common import refuse
from fastmta.cli.words import size

CONFIGURATION = """\
# Made by `fastmta demo`; try `fastmta check -c` on it, or change it and `fastmta serve -c` it.
hostname = "demo.test"
data_dir = "."
workers = 1

[[listener]]
service = "smtp"
bind = "127.0.0.1:{smtp}"

[[listener]]  # for who logs in; see `fastmta account list -c`
service = "submission"
bind = "127.0.0.1:{submission}"

[[listener]]
service = "submission"
bind = "127.0.0.1:{submissions}"
tls = "implicit"

[[listener]]
service = "pop3"
bind = "127.0.0.1:{pop3}"

[[listener]]
service = "pop3"
bind = "127.0.0.1:{pop3s}"
tls = "implicit"

[[listener]]
service = "admin"
bind = "127.0.0.1:{admin}"

[tls]  # made anew at each start
certificate = "certificate.pem"
key = "key.pem"

[domains."demo.test"]  # mail for it goes into mailboxes

[mailboxes]
postmaster = "alice@demo.test"

[pop3]
default_domain = "demo.test"  # "user bob" is enough

[[route]]  # all other mail goes to the sink, none to the world
domain = "*"
next_hop = ["127.0.0.1:{sink}"]

[headers]  # what a message may say of itself, for `fastmta queue`
tenant = "X-Tenant"
campaign = "X-Campaign"

[retry]  # short, so that retries can be watched
first = "5s"
max_interval = "30s"
give_up_after = "2m"
"""
PORTS = {
    **{"smtp": 2525, "submission": 2587, "submissions": 2465, "pop3": 2110, "pop3s": 2995},
    **{"admin": 2580, "sink": 2700},
}
# Any other event is an operator's order, and blue.
STYLES = {"received": "cyan", "delivered": "green", "deferred": "yellow", "bounced": "red"}

console = Console(highlight=False)


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-data"),
    show_default=True,
    help="Where the demo keeps its configuration, queue, log and mail.",
)
def demo(folder: Path) -> None:
    """Start a mail server with two users, and a sink in place of the world; show mail as it moves.

    Nothing leaves this machine. Ctrl-C ends it; the next start goes on with what is there.
    """
    import uvloop

    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        uvloop.run(_demo(folder))
    except OSError as error:
        refuse(f"{folder}: {error.strerror}")


async def _demo(folder: Path) -> None:
    from fastmta.sink import Behaviour, Mbox, Sink

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    ports = {service: _free_port(preferred) for service, preferred in PORTS.items()}
    await _prepare(folder, ports)
    with closing(Mbox(folder / "arrived.mbox")) as mbox:
        sink = Sink(Behaviour(), take=mbox.append)
        await sink.start("127.0.0.1", ports["sink"])
        watching = asyncio.ensure_future(_watch(folder / "dispositions.jsonl", mbox.flush))
        code = await _run(folder, ports, stop)
        watching.cancel()
        await sink.stop()
    if code:
        refuse(f"the server ended with {code}: see {folder / 'server.log'}")


async def _prepare(folder: Path, ports: dict[str, int]) -> None:
    from fastmta.cli.demo_people import make_accounts, make_certificate, welcome
    from fastmta.store.env import LOCK, Locked, own

    try:
        os.close(own(folder / LOCK))
    except Locked:
        refuse(f"a demo is running in {folder}: end it, or choose another --dir")
    (folder / "fastmta.toml").write_text(CONFIGURATION.format(**ports))
    (folder / "dispositions.jsonl").touch(0o600)
    make_certificate(folder)
    make_accounts(folder)
    await welcome(folder)


async def _run(folder: Path, ports: dict[str, int], stop: asyncio.Event) -> int:
    """The server from its start to its end, which is by itself or as `stop` says."""
    from fastmta.cli.demo_tour import introduce

    server = await _serve(folder)
    ended = asyncio.ensure_future(server.wait())
    while not (ended.done() or await _answers(ports["admin"])):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if not ended.done():
        introduce(console, folder, ports)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        console.print("\nending ...")
        server.terminate()
    return await ended


def _free_port(preferred: int) -> int:
    """The preferred port, or any other where it is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no port is free")


async def _serve(folder: Path) -> asyncio.subprocess.Process:
    # A session of its own: Ctrl-C is for the demo, which then ends the server in good order.
    with (folder / "server.log").open("ab") as stderr:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fastmta", "serve", "-c", str(folder / "fastmta.toml")),
            stderr=stderr,
            start_new_session=True,
        )


async def _answers(port: int) -> bool:
    """Whether the server is ready: its admin listener comes last."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _watch(path: Path, flush: Any) -> None:
    async for event in _events(path):
        if event["event"] == "delivered":
            flush()
        console.print(_line(event), soft_wrap=True)


async def _events(path: Path) -> AsyncIterator[dict[str, Any]]:
    """Lines as they are added to the disposition log from now on."""
    with path.open("rb") as log:
        log.seek(0, os.SEEK_END)
        rest = b""
        while True:
            *lines, rest = (rest + log.read()).split(b"\n")
            for line in filter(None, lines):
                yield msgspec.json.decode(line)
            await asyncio.sleep(0.1)


def _line(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    name = event["event"]
    style = STYLES.get(name, "blue")
    return f"{at}  [{style}]{name:<9}[/]  {event['id']}  {escape(_told(event))}"


def _told(event: dict[str, Any]) -> str:
    match event["event"]:
        case "received":
            to = ", ".join(event["recipients"])
            return f"<{event['sender']}> to {to}, {size(event['size'])}: safe on disk, queued"
        case "delivered":
            took = (event["time"] - event["received"]) * 1000
            by = f" by {event['host']}" if event["host"] else ""  # none: a mailbox
            return f"{event['recipient']}{by} in {took:.0f} ms: {_reply(event)}"
        case "deferred":
            wait = event["due"] - event["time"]
            return f"{event['recipient']}, again in {wait:.0f} s: {_reply(event)}"
        case "bounced":
            told = f", told the sender in {event['dsn']}" if event["dsn"] else ""
            return f"{event['recipient']}{told}: {_reply(event)}"
        case _:
            to = ", ".join(event.get("recipients") or [event["recipient"]])
            why = f": {event['reason']}" if event["reason"] else ""
            return f"{to}, by order {event['order']} of {event['by']}{why}"


def _reply(event: dict[str, Any]) -> str:
    return " ".join(filter(None, (str(event["code"]), event["enhanced"], event["reply"])))
