"""What several commands share: the configuration option, JSON output, how to say "no"."""

from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from fastmta.cli.words import visible
from fastmta.config import Config, ConfigError, Source, read
from fastmta.privileges import CannotBecome, become, make_folder, owner_of, to_become

config_option = click.option(
    "-c",
    "--config",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def refuse(*lines: str) -> NoReturn:
    """Say why not on standard error and leave with 1."""
    for line in lines:
        click.echo(f"fastmta: {line}", err=True)
    raise SystemExit(1)


def in_words(error: Exception) -> str:
    """What an operator is told of it; of an error of the system the file, and no number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def load_or_refuse(path: Path) -> Config:
    """The configuration, or one line for each problem and exit code 1."""
    return read_or_refuse(path)[1]


def load_as_user(path: Path) -> Config:
    """The same, for what writes in the data directory: root becomes the user whose it is."""
    config = load_or_refuse(path)
    try:
        if identity := to_become(config) or owner_of(config.data_dir):
            make_folder(config.data_dir, identity)
            become(identity)
    except CannotBecome as error:
        refuse(str(error))
    return config


def read_or_refuse(path: Path) -> tuple[Source, Config]:
    """The same, with the text that it was read from."""
    try:
        source = read(path)
        return source, source.parse()
    except ConfigError as error:
        refuse(*(f"{path}: {problem}" for problem in error.problems))


def say(text: str) -> None:
    """A line on standard output that may hold what others wrote."""
    click.echo(visible(text))


def print_json(value: Any) -> None:
    """One value as one line on standard output."""
    click.echo(msgspec.json.encode(value))
