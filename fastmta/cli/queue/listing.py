"""`fastmta queue list` and `show`: read from the queue's files, whether the server runs or not."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import lmdb

from fastmta.cli.client import ControlClient, is_running
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, refuse, say
from fastmta.cli.queue.orders import answers
from fastmta.cli.queue.paths import obstacle, slowness, with_allowances
from fastmta.cli.queue.selecting import selectors
from fastmta.cli.words import moment, size, span
from fastmta.mail.dsn import header_section
from fastmta.mail.envelope import Envelope, TlsDemand, format_id
from fastmta.queue.requests import PathNow, Place, Places, Show
from fastmta.queue.selector import Selector, parse_envelope_id
from fastmta.store.view import SpoolView, shard_folders


@click.command("list")
@config_option
@selectors
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Envelopes to show."
)
@json_option
def list_(path: Path, selector: Selector, limit: int, as_json: bool) -> None:
    """Show the envelopes in the queue; with --json one object a line.

    \b
    fastmta queue list -c FILE --domain example.test --older-than 2h
    """
    matching = (each for each in _envelopes(path) if selector.matches(each, each.site))
    shown = islice(matching, limit + 1)
    if as_json:
        for envelope in islice(shown, limit):
            print_json(_facts(envelope))
        return
    envelopes = list(shown)
    if not envelopes:
        click.echo("nothing in the queue matches" if selector else "the queue is empty")
    for envelope in envelopes[:limit]:
        for line in _lines(envelope):
            say(line)
    if len(envelopes) > limit:
        click.echo(f"and more; --limit shows more than {limit}", err=True)


@click.command()
@config_option
@click.argument("id")
@json_option
def show(path: Path, id: str, as_json: bool) -> None:
    """Show one message.

    Its envelopes, its last answers, its header section. Where the server runs, also
    where each envelope is now.

    \b
    fastmta queue show -c FILE 01KB31BTZ6001
    """
    try:
        number, chosen = parse_envelope_id(id)
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
    live = _ask(path, Show(number, tuple({one.site for one in found if one.site})))
    if as_json:
        envelopes = [_facts(one) | _live_facts(one, live) for one in found]
        print_json({"id": format_id(number), "envelopes": envelopes, "header": text})
        return
    for envelope in found:
        _print_one(envelope, live)
    say(text)


class Live(NamedTuple):
    """What only the running server knows."""

    places: list[Place]
    paths: list[PathNow]  # that the envelopes are on, and those to their sites


def _ask(path: Path, request: Show) -> Live | None:
    """None where no server runs."""
    data_dir = load_or_refuse(path).data_dir
    if not is_running(data_dir):
        return None
    with ControlClient(data_dir) as client:
        told = list(answers(client, request, Places))
        paths = [path for each in told for path in each.paths]
        known = with_allowances(client, paths, request.sites)
        return Live([place for each in told for place in each.places], known)


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
        "priority": envelope.priority.name.lower(),
        "tenant": envelope.tenant,
        "campaign": envelope.campaign,
        "pool": envelope.pool,
        "tls": envelope.tls.name.lower(),
        "site": envelope.site,
        "held": envelope.held,
        "next_hop": envelope.next_hop,
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


def _lines(envelope: Envelope) -> Iterator[str]:
    """What it is, and below it what it waits for: two lines hold more than a table's cells."""
    now = time.time()
    to = ", ".join(recipient.address for recipient in envelope.recipients[:3])
    if (more := len(envelope.recipients) - 3) > 0:
        to += f" and {more} more"
    age, octets = span(now - envelope.received), size(envelope.size)
    yield f"{envelope.id:<16} {age:>7} {octets:>7}  <{envelope.sender}> to {to}"
    if envelope.held or envelope.last:
        yield f"{'':<16} {_waits(envelope, now)}"


def _waits(envelope: Envelope, now: float) -> str:
    """What it waits for, and why."""
    when = f"next in {span(envelope.due - now)}" if envelope.due > now else "next now"
    if envelope.held:
        when = _held(envelope)
    if envelope.last is None:
        return when
    tries = "once" if envelope.attempts == 1 else f"{envelope.attempts} times"
    return f"tried {tries}, {when}: {envelope.last.reply}"


def _held(envelope: Envelope) -> str:
    number, _, reason = envelope.held.partition(": ")
    return f"held by hold {number}" + (f" ({reason})" if reason else "")


# What the sender asked for, for people.
_TLS = {
    TlsDemand.NONE: "",
    TlsDemand.REQUIRED: "required by the sender (REQUIRETLS)",
    TlsDemand.OPTIONAL: "left out rather than not sent (TLS-Required: No)",
}


def _print_one(envelope: Envelope, live: Live | None) -> None:
    facts = {
        "id": envelope.id,
        "from": f"<{envelope.sender}>",
        "to": ", ".join(recipient.address for recipient in envelope.recipients),
        "received": f"{moment(envelope.received)} from {envelope.client or 'this server'}",
        "size": f"{envelope.size} octets",
        "priority": envelope.priority.name.lower(),
        "tenant": envelope.tenant,
        "campaign": envelope.campaign,
        "pool": envelope.pool,
        "tls": _TLS[envelope.tls],
        "attempts": str(envelope.attempts),
        "state": _state(envelope, live),
        "next hop": envelope.next_hop,
        "site": envelope.site,
    }
    if last := envelope.last:
        by = f" by {last.host}" if last.host else ""
        facts["last answer"] = f"{last.reply}{by}, {moment(last.time)}"
    for name, value in facts.items():
        if value:
            say(f"{name:<13} {value}")
    for path in _paths(envelope, live):
        for line in _about_path(path, time.time()):
            say(line)
    click.echo()


def _about_path(path: PathNow, now: float) -> Iterator[str]:
    """What it may do by the configuration, and what it may do now."""
    yield f"path {path.name}"
    if path.limits:
        yield f"    limits: {', '.join(_limits(path))}"
    for sentence in filter(None, (obstacle(path, now), *slowness(path, now))):
        yield f"    {sentence}"


def _state(envelope: Envelope, live: Live | None) -> str:
    """What becomes of it next."""
    if envelope.held:
        return _held(envelope)
    for place in _places(envelope, live):
        if place.state == "sending":
            return f"being sent, on the path {place.path}"
        path = _path_of(place, live)
        why = f", which waits for: {path.waits_for}" if path.waits_for != "ready" else ""
        return f"ready to leave, on the path {place.path}{why}"
    if envelope.due > time.time():
        return f"waits until {moment(envelope.due)}"
    return "due: it waits for room on its path" if envelope.due else "under way"


def _places(envelope: Envelope, live: Live | None) -> list[Place]:
    return [one for one in live.places if one.index == envelope.index] if live else []


def _path_of(place: Place, live: Live | None) -> PathNow:
    paths = (path for path in (live.paths if live else ()) if path.name == place.path)
    return next(paths, PathNow(name=place.path, site=place.path))


def _paths(envelope: Envelope, live: Live | None) -> list[PathNow]:
    """Those that it is on or was on."""
    names = {place.path for place in _places(envelope, live)}
    paths = live.paths if live else []
    return [one for one in paths if one.name in names or one.site == envelope.site]


def _limits(path: PathNow) -> Iterator[str]:
    """What a rule sets, and the connections; the rest is as it is for every path."""
    for name, value in path.limits.items():
        origin = path.origins.get(name, "default")
        if origin != "default" or name == "connections":
            yield f"{name.replace('_', ' ')} {value} ({origin})"


def _live_facts(envelope: Envelope, live: Live | None) -> dict[str, Any]:
    """Of the server, where one runs."""
    if live is None:
        return {}
    places = _places(envelope, live)
    return {
        "state": places[0].state if places else "held" if envelope.held else "waits",
        "paths": _paths(envelope, live),
    }
