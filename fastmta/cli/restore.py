"""`fastmta restore`: a backup goes back."""

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
from fastmta.cli.words import moment
from fastmta.store.backup import CannotCopy
from fastmta.store.env import Locked
from fastmta.store.restore import restore as bring_back


@click.command()
@config_option
@click.argument(
    "source", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="BACKUP"
)
@json_option
def restore(path: Path, source: Path, as_json: bool) -> None:
    """Bring BACKUP back into a data directory that has no mail; no server may run.

    What was sent after the backup was made is sent again. One that was cut short goes on when
    the same command is given again.
    """
    data_dir = load_as_user(path).data_dir
    try:
        with bars() as told:
            note = bring_back(source, data_dir, told)
    except Locked:
        refuse(f"a server is running with data_dir {data_dir}")
    except (CannotCopy, lmdb.Error, OSError) as error:
        refuse(in_words(error))
    if as_json:
        print_json({"restored": str(source), "made": note.made})
    else:
        click.echo(f"restored what there was at {moment(note.made)}")
