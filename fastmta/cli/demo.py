"""`fastmta demo`: a relay and a sink on this machine, and mail as it moves."""

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
from rich.table import Table

from fastmta.cli.common import refuse
from fastmta.cli.words import size

NAME, PASSWORD = "me@demo.test", "demo"  # who may log in

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
service = "admin"
bind = "127.0.0.1:{admin}"

[tls]  # made anew at each start
certificate = "certificate.pem"
key = "key.pem"

[[route]]  # all mail goes to the sink, none to the world
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
PORTS = {"smtp": 2525, "submission": 2587, "admin": 2580, "sink": 2700}
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
    """Start a relay and a sink that takes all its mail, and show each message's way.

    Nothing leaves this machine. Ctrl-C ends it; what is queued then goes on at the next start.
    """
    import uvloop

    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        uvloop.run(_demo(folder))
    except OSError as error:
        refuse(f"{folder}: {error.strerror}")


async def _demo(folder: Path) -> None:
    from fastmta.cli.demo_login import make_account, make_certificate
    from fastmta.sink import Behaviour, Mbox, Sink

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    ports = {service: _free_port(preferred) for service, preferred in PORTS.items()}
    configuration = folder / "fastmta.toml"
    configuration.write_text(CONFIGURATION.format(**ports))
    make_certificate(folder)
    make_account(folder, NAME, PASSWORD)
    with closing(Mbox(folder / "arrived.mbox")) as mbox:
        sink = Sink(Behaviour(), take=mbox.append)
        await sink.start("127.0.0.1", ports["sink"])
        journal = folder / "dispositions.jsonl"
        journal.touch(0o600)
        watching = asyncio.ensure_future(_watch(journal, mbox.flush))
        server = await _serve(configuration)
        ended = asyncio.ensure_future(server.wait())
        while not (ended.done() or await _answers(ports["admin"])):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        _introduce(folder, ports)
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not ended.done():
            console.print("\nending ...")
            server.terminate()
        code = await ended
        await sink.stop()
    if code:
        refuse(f"the server ended with {code}")


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


async def _serve(configuration: Path) -> asyncio.subprocess.Process:
    # A session of its own: Ctrl-C is for the demo, which then ends the server in good order.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fastmta", "serve", "-c", str(configuration)),
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


def _introduce(folder: Path, ports: dict[str, int]) -> None:
    command = _shown_command()
    table = Table("service", "address", "what for", title="fastmta demo", title_justify="left")
    table.add_row("smtp", f"127.0.0.1:{ports['smtp']}", "give it mail for any address")
    submission = f"127.0.0.1:{ports['submission']}"
    table.add_row("submission", submission, f"log in as {NAME} with {PASSWORD}")
    table.add_row("sink", f"127.0.0.1:{ports['sink']}", "where all of it goes: it stays here")
    table.add_row(
        "admin", f"127.0.0.1:{ports['admin']}", f"http://127.0.0.1:{ports['admin']}/metrics"
    )
    console.print(table)
    console.print(f"Everything is kept in [bold]{escape(str(folder))}[/]")
    console.print(f"  arrived.mbox        what the sink took: less {_short(folder)}/arrived.mbox")
    console.print("  fastmta.toml        the configuration, for the commands below")
    console.print("  dispositions.jsonl  what is shown below, as JSON\n")
    console.print("Send a message from another terminal:\n")
    to = "friend@example.test"
    console.print(
        f"  [bold]printf 'Subject: hello\\n\\nIt moves.\\n' | curl -sS --crlf"
        f" smtp://127.0.0.1:{ports['smtp']} --mail-from me@demo.test --mail-rcpt {to} -T -[/]",
        soft_wrap=True,
    )
    console.print(
        f"  [bold]swaks --server 127.0.0.1:{ports['smtp']} --from me@demo.test --to {to}[/]",
        soft_wrap=True,
    )
    console.print("\nOr log in first, under TLS:\n")
    console.print(
        f"  [bold]printf 'From: {NAME}\\n\\nIt moves.\\n' | curl -sS --crlf --ssl-reqd --cacert"
        f" {_short(folder)}/certificate.pem -u {NAME}:{PASSWORD} smtp://{submission}"
        f" --mail-from {NAME} --mail-rcpt {to} -T -[/]\n",
        soft_wrap=True,
    )
    console.print(
        "Mail to tempfail@, permfail@, slow@, 421@ or drop@ any domain meets that fate. Then look"
        " into the queue, and steer it:\n",
        soft_wrap=True,
    )
    for words in ("top", "why example.test", "hold --domain example.test", "release --all"):
        name, _, rest = words.partition(" ")
        line = f"  [bold]{command} queue {name} -c {_short(folder)}/fastmta.toml {rest}".rstrip()
        console.print(f"{line}[/]", soft_wrap=True)
    console.print("\nCtrl-C ends the demo.\n")


def _shown_command() -> str:
    """How this program was called, as a person would type it from here."""
    return _short(Path(sys.argv[0]).absolute())


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


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
            return f"{event['recipient']} by {event['host']} in {took:.0f} ms: {_reply(event)}"
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
