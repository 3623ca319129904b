"""`fastmta backup`: a copy of all that a server keeps, while it runs."""

from importlib.metadata import version
from pathlib import Path

import click
import lmdb

from fastmta.cli.common import (
    config_option,
    in_words,
    json_option,
    load_as_user,
    print_json,
    refuse,
)
from fastmta.cli.progress import bars
from fastmta.cli.words import size
from fastmta.store.backup import CannotCopy
from fastmta.store.backup import backup as copy
from fastmta.store.env import Locked


@click.command()
@config_option
@click.argument("target", type=click.Path(path_type=Path), metavar="TARGET")
@json_option
def backup(path: Path, target: Path, as_json: bool) -> None:
    """Copy queue, mailboxes, accounts, suppression list and holds to the folder TARGET.

    The server may run, and mail flows. TARGET is not there before, and is there only when all of
    it is safe on the disk. The disposition log and the configuration are not in it.
    """
    data_dir = load_as_user(path).data_dir
    try:
        with bars() as told:
            note = copy(data_dir, target.absolute(), version("fastmta"), told)
    except Locked:
        refuse(f"another backup to {target} is under way")
    except (CannotCopy, lmdb.Error, OSError) as error:
        refuse(in_words(error))
    octets = sum(part.octets for part in note.parts)
    if as_json:
        print_json({"backup": str(target), "octets": octets, "made": note.made})
    else:
        click.echo(f"copied {size(octets)} to {target}")
