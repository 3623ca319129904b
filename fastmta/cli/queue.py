"""`fastmta queue`: what is in the queue, and why it waits."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click
import lmdb

from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, refuse
from fastmta.mail.dsn import header_section
from fastmta.mail.envelope import Envelope, format_id, parse_id
from fastmta.store.view import SpoolView, shard_folders


@click.group()
def queue() -> None:
    """List and show queued mail. The server may run or not."""


@queue.command("list")
@config_option
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Envelopes to show."
)
@json_option
def list_(path: Path, limit: int, as_json: bool) -> None:
    """Show the envelopes in the queue; with --json one object a line."""
    shown = islice(_envelopes(path), limit + 1)
    if as_json:
        for envelope in islice(shown, limit):
            print_json(_facts(envelope))
        return
    envelopes = list(shown)
    _print_list(envelopes[:limit])
    if len(envelopes) > limit:
        click.echo(f"and more; --limit shows more than {limit}", err=True)


@queue.command()
@config_option
@click.argument("id")
@json_option
def show(path: Path, id: str, as_json: bool) -> None:
    """Show one message: its envelopes, its last answers, its header section."""
    name, _, index = id.partition(".")
    try:
        number = parse_id(name)
        chosen = int(index) if index else None
    except ValueError as error:
        raise click.BadParameter(f"{error}; `fastmta queue list` shows the ids") from None
    found: list[Envelope] = []
    header = b""
    for view in _views(path):
        if of_message := view.envelopes_of(number):
            found = [one for one in of_message if chosen in (None, one.index)]
            header = header_section(view.beginning(number))
    if not found:
        refuse(f"{id} is not in the queue: it was delivered or returned, or never came here")
    text = header.decode("utf-8", "replace").replace("\r\n", "\n")
    if as_json:
        print_json({"id": name, "envelopes": [_facts(one) for one in found], "header": text})
        return
    for envelope in found:
        _print_one(envelope)
    click.echo(text)


def _views(path: Path) -> Iterator[SpoolView]:
    """The shards of a configuration's data directory, one after the other."""
    data_dir = load_or_refuse(path).data_dir
    folders = shard_folders(data_dir)
    if not folders:
        refuse(f"there is no queue in {data_dir}: no server has run with it yet")
    for folder in folders:
        try:
            view = SpoolView(folder)
        except lmdb.Error as error:
            refuse(f"{folder} cannot be read: {error}")
        yield view
        view.close()


def _envelopes(path: Path) -> Iterator[Envelope]:
    for view in _views(path):
        yield from view.envelopes()


def _facts(envelope: Envelope) -> dict[str, Any]:
    last = envelope.last
    return {
        "id": envelope.id,
        "message": format_id(envelope.message),
        "sender": envelope.sender,
        "domain": envelope.domain,
        "recipients": [recipient.address for recipient in envelope.recipients],
        "size": envelope.size,
        "received": envelope.received,
        "attempts": envelope.attempts,
        "due": envelope.due or None,
        "last": last and {"time": last.time, "host": last.host, "reply": str(last.reply)},
    }


def _print_list(envelopes: list[Envelope]) -> None:
    if not envelopes:
        click.echo("the queue is empty")
    for envelope in envelopes:
        for line in _lines(envelope):
            click.echo(line)


def _lines(envelope: Envelope) -> Iterator[str]:
    """What it is, and below it what it waits for: two lines hold more than a table's cells."""
    now = time.time()
    to = ", ".join(recipient.address for recipient in envelope.recipients[:3])
    if (more := len(envelope.recipients) - 3) > 0:
        to += f" and {more} more"
    age, octets = span(now - envelope.received), size(envelope.size)
    yield f"{envelope.id:<16} {age:>7} {octets:>7}  <{envelope.sender}> to {to}"
    if envelope.last:
        tries = "once" if envelope.attempts == 1 else f"{envelope.attempts} times"
        due = f"in {span(envelope.due - now)}" if envelope.due > now else "now"
        yield f"{'':<16} tried {tries}, next {due}: {envelope.last.reply}"


def _print_one(envelope: Envelope) -> None:
    last = envelope.last
    facts = {
        "id": envelope.id,
        "from": f"<{envelope.sender}>",
        "to": ", ".join(recipient.address for recipient in envelope.recipients),
        "received": f"{moment(envelope.received)} from {envelope.client or 'this server'}",
        "size": f"{envelope.size} octets",
        "attempts": str(envelope.attempts),
        "next attempt": moment(envelope.due) if envelope.attempts else "under way",
    }
    if last:
        by = f" by {last.host}" if last.host else ""
        facts["last answer"] = f"{last.reply}{by}, {moment(last.time)}"
    for name, value in facts.items():
        click.echo(f"{name:<13} {value}")
    click.echo()


def moment(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A length of time in its two largest units: "3d 4h", "5m 2s", "12s"."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def size(octets: int) -> str:
    """Octets in the unit that a person would say: "512 B", "4.2 KB", "25 MB"."""
    value, unit = float(octets), "B"
    for larger in ("KB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
