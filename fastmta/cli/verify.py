"""`fastmta verify`: whether queue and mailboxes are whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import lmdb
import msgspec
from rich.console import Console
from rich.table import Table

from fastmta.cli.common import (
    config_option,
    in_words,
    json_option,
    load_as_user,
    print_json,
    refuse,
    say,
)
from fastmta.cli.progress import bars
from fastmta.cli.words import many, size
from fastmta.store.aside import FOLDER
from fastmta.store.env import Locked
from fastmta.store.findings import Part
from fastmta.store.verify import Told, parts_of
from fastmta.store.verify import repair as repair_files
from fastmta.store.verify import verify as verify_files


@click.command()
@config_option
@click.option("--repair", is_flag=True, help="Take out what is broken; no server may run.")
@click.option(
    "--backup",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Look at this backup, not at what the server keeps.",
)
@json_option
def verify(path: Path, repair: bool, backup: Path | None, as_json: bool) -> None:
    """Look at every row of the queue and the mailboxes, and whether they agree.

    The server may run; where it does not, the pages of the files are looked at too. With --repair
    what is broken goes into a folder below aside in the data directory, each message as far as
    it can be read, and all else goes on. With --json one object a line. Exit code 1 if something
    was wrong.
    """
    if repair and backup:
        raise click.UsageError("a backup is left as it is")
    folder = backup or load_as_user(path).data_dir
    try:
        if not parts_of(folder):
            refuse(f"there is no mail in {folder}")
        with bars() as told:
            found = list(_run(folder, repair, told))
    except Locked:
        refuse(f"a server is running with data_dir {folder}, or a command: end it before a repair")
    except (lmdb.Error, OSError) as error:
        refuse(in_words(error))
    if as_json:
        for part in found:
            print_json(_facts(part))
    else:
        _print(found, folder)
    if any(part.found for part in found):
        raise SystemExit(1)


def _run(folder: Path, repair: bool, told: Told) -> Iterator[Part]:
    return repair_files(folder, told) if repair else verify_files(folder, told)


def _facts(part: Part) -> dict[str, Any]:
    facts = msgspec.structs.asdict(part)
    return {"part": facts.pop("name"), **facts.pop("counts"), **facts}


def _print(found: list[Part], folder: Path) -> None:
    for part in found:
        for problem in part.problems:
            say(f"{part.name}: {problem}")
        if part.more:
            click.echo(f"{part.name}: and {part.more:,} more")
        for done in part.mended:
            say(f"{part.name}: repaired: {done}")
    Console(highlight=False, markup=False).print(_table(found))
    problems = sum(part.found for part in found)
    click.echo(many(problems, "problem") if problems else "all is well")
    if any(part.mended for part in found):
        click.echo(f"what was taken out is in {folder / FOLDER}")
    if aside := sum(part.aside for part in found):
        verb = "was" if aside == 1 else "were"
        click.echo(f"{many(aside, 'row')} that could not be read {verb} moved aside")
    if any(part.online for part in found):
        click.echo("a server runs, so the pages of the files were not looked at")


def _table(found: list[Part]) -> Table:
    table = Table("part", box=None, pad_edge=False, header_style="")
    for column in ("envelopes", "mailboxes", "messages", "size", "problems"):
        table.add_column(column, justify="right")
    for part in found:
        cells = [_count(part, name) for name in ("envelopes", "mailboxes", "messages")]
        octets = size(part.counts["octets"]) if "octets" in part.counts else ""
        table.add_row(part.name, *cells, octets, f"{part.found:,}")
    return table


def _count(part: Part, name: str) -> str:
    return f"{part.counts[name]:,}" if name in part.counts else ""
