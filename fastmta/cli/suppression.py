"""`fastmta suppression`: the addresses that get no mail. A server may run or not."""

import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import lmdb
import msgspec
from msgspec import Struct, structs
from rich.console import Console
from rich.progress import Progress

from fastmta.cli.common import config_option, json_option, load_as_user, print_json, refuse, say
from fastmta.cli.words import moment
from fastmta.config import Duration
from fastmta.store.suppression import BATCH, REASONS, Entry, Reason, SuppressionFile, key_of

T = TypeVar("T")
_CONSOLE = Console(stderr=True)


class Line(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An entry as files have it: one JSON object, or one row of CSV with these columns."""

    address: str
    reason: Reason = "manual"
    added: float = 0.0  # seconds since the epoch; 0 or left out: now
    expires: float = 0.0  # 0 or left out: never
    category: str = ""
    source: str = ""
    reply: str = ""


_MOST_TOLD = 20  # lines of a file that are said to be wrong, one by one
_COLUMNS = Line.__struct_fields__


@click.group()
def suppression() -> None:
    """Show and change the addresses that get no mail. The server may run or not."""


format_option = click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "jsonl"]),
    help="Form of the file; by its name if left out.",
)
addresses_argument = click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")


@suppression.command("list")
@config_option
@click.option("--domain", default="", help="Only addresses of this domain.")
@click.option("--reason", type=click.Choice(REASONS), help="Only those with this reason.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@json_option
def list_(path: Path, domain: str, reason: str | None, limit: int, as_json: bool) -> None:
    """Show entries, by domain; with --json one object a line."""
    with _open(path) as entries:
        found = (one for one in entries.entries(domain) if reason in (None, one.reason))
        shown = list(islice(found, limit + 1))
    for entry in shown[:limit]:
        if as_json:
            print_json(_facts(entry))
        else:
            say(_line(entry))
    if not shown and not as_json:
        click.echo("nothing is suppressed")
    if len(shown) > limit:
        click.echo(f"and more; --limit shows more than {limit}", err=True)


@suppression.command()
@config_option
@click.argument("address")
@json_option
def show(path: Path, address: str, as_json: bool) -> None:
    """Show what keeps mail from an address.

    That is its own entry, or its domain's.
    """
    _check(address)
    with _open(path) as entries:
        entry = entries.find(address)
    if entry is None:
        refuse(f"{address} is not suppressed")
    if as_json:
        print_json(_facts(entry))
        return
    for name, value in _facts(entry).items():
        if name in ("added", "expires"):
            value = moment(value) if value else "never"
        if value:
            say(f"{name:<9} {value}")


@suppression.command()
@config_option
@addresses_argument
@click.option("--for", "lasting", default="", help='How long, as in "30d"; for ever if left out.')
@click.option("--note", default="", help="A word for whoever asks why.")
def add(path: Path, addresses: tuple[str, ...], lasting: str, note: str) -> None:
    """Suppress addresses; @example.test is a whole domain."""
    now = time.time()
    expires = now + _seconds(lasting) if lasting else 0.0
    for address in addresses:
        _check(address)
    with _open(path) as entries:
        entries.add(Entry(one, "manual", now, expires, reply=note) for one in addresses)


@suppression.command()
@config_option
@addresses_argument
def delete(path: Path, addresses: tuple[str, ...]) -> None:
    """Take addresses off the list; exit code 1 if one was not on it."""
    for address in addresses:
        _check(address)
    with _open(path) as entries:
        missing = [one for one in addresses if not entries.delete(one)]
    if missing:
        refuse(*(f"{one} is not on the list" for one in missing))


@suppression.command("import")
@config_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@format_option
@json_option
def import_(path: Path, file: str, kind: str | None, as_json: bool) -> None:
    """Add the entries of a file.

    It has CSV with a header line, or JSON lines; "-" is standard input. Lines that cannot be
    read are told and left out; exit code 1 if there were any.
    """
    split, parse = _READERS[_format(file, kind)]
    tally = _Tally()
    with _open(path) as entries, click.open_file(file, errors="backslashreplace") as source:
        parsed = _with_progress(_parse(split(source), parse, tally), "importing", None)
        while batch := list(islice(parsed, BATCH)):
            entries.add(batch)
    if as_json:
        print_json({"imported": tally.good, "refused": tally.bad})
    else:
        click.echo(f"{tally.good} imported, {tally.bad} refused")
    if tally.bad:
        raise SystemExit(1)


class _Tally:
    good = bad = 0


def _parse(items: Iterable[Any], parse: Callable[[Any], Line], tally: _Tally) -> Iterator[Entry]:
    for number, item in enumerate(items, 1):
        try:
            entry = _entry(parse(item))
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            tally.bad += 1
            if tally.bad <= _MOST_TOLD:
                click.echo(f"fastmta: entry {number}: {error}", err=True)
        else:
            tally.good += 1
            yield entry


@suppression.command()
@config_option
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@format_option
def export(path: Path, file: str, kind: str | None) -> None:
    """Write all entries to a file, or to standard output."""
    with _open(path) as entries, click.open_file(file, "w", encoding="utf-8") as target:
        lines = (
            Line(**structs.asdict(one))
            for one in _with_progress(entries.entries(), "exporting", entries.count())
        )
        if _format(file, kind) == "csv":
            writer = csv.writer(target)
            writer.writerow(_COLUMNS)
            writer.writerows(structs.astuple(line) for line in lines)
        else:
            for line in lines:
                target.write(msgspec.json.encode(line).decode() + "\n")


# The list, and what goes in.


@contextmanager
def _open(path: Path) -> Iterator[SuppressionFile]:
    folder = load_as_user(path).data_dir / "suppression"
    try:
        entries = SuppressionFile(folder)
        try:
            yield entries
        finally:
            entries.close()
    except OSError as error:  # of the list, or of a file that goes in or out
        refuse(f"{error.filename or folder}: {error.strerror}")
    except (lmdb.Error, csv.Error) as error:
        refuse(f"{folder}: {error}")


def _check(address: str) -> None:
    try:
        key_of(address)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(text: str) -> float:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _entry(line: Line) -> Entry:
    """ValueError for what is no address."""
    key_of(line.address)
    values = structs.asdict(line)
    return Entry(**{**values, "added": line.added or time.time()})


# Files.


def _format(file: str, kind: str | None) -> str:
    return kind or ("csv" if file.lower().endswith(".csv") else "jsonl")


def _of_row(row: dict[str, str]) -> Line:
    given = {name: value for name, value in row.items() if value}
    return msgspec.convert(given, Line, strict=False)


def _split_lines(source: IO[str]) -> Iterator[str]:
    return (line for line in source if line.strip())


# form of a file -> what splits it, and what makes an entry of one piece
_READERS: dict[str, tuple[Callable[[IO[str]], Iterable[Any]], Callable[[Any], Line]]] = {
    "csv": (csv.DictReader, _of_row),
    "jsonl": (_split_lines, msgspec.json.Decoder(Line).decode),
}


def _with_progress(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """A bar on standard error where a person looks on."""
    if not sys.stderr.isatty():
        yield from items
        return
    with Progress(console=_CONSOLE) as progress:
        task = progress.add_task(what, total=total)
        for number, item in enumerate(items, 1):
            yield item
            if number % BATCH == 0:
                progress.update(task, completed=number)


# What is shown.


def _facts(entry: Entry) -> dict[str, Any]:
    return structs.asdict(entry)


def _line(entry: Entry) -> str:
    until = f"until {moment(entry.expires)}" if entry.expires else "for ever"
    why = " ".join(filter(None, (entry.reason, entry.category)))
    return f"{entry.address:<40} {why:<20} {until}  {entry.reply[:60]}".rstrip()
