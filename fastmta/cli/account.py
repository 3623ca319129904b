"""`fastmta account`: who may log in. A server may run or not; what changes counts at once.

Passwords are never taken from the command line: other users of the machine can read that.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import lmdb
from rich.console import Console
from rich.table import Table

from fastmta.cli.common import config_option, json_option, load_as_user, print_json, refuse
from fastmta.cli.words import moment, visible
from fastmta.protocol.sasl_text import MAX_PASSWORD, prepare_password
from fastmta.store import passwords
from fastmta.store.accounts import Account, Accounts, Refused, name_of
from fastmta.store.records import Unreadable

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_LARGEST = 1 << 60  # octets

F = TypeVar("F", bound=Callable[..., object])


def _address(text: str) -> str:
    try:
        return name_of(text)
    except ValueError as error:
        raise click.BadParameter(visible(str(error))) from None


def _octets(text: str) -> int:
    found = _SIZE.fullmatch(text.upper())
    octets = int(found[1]) << _SHIFTS[found[2]] if found else _LARGEST + 1
    if octets > _LARGEST:
        raise click.BadParameter(f'{visible(text)}: write octets, or "500M", "1G"; 0 is no quota')
    return octets


name_argument = click.argument("name", type=_address, metavar="ADDRESS")


def password_options(command: F) -> F:
    for option, text in (
        ("--generate", "Make a password up and print it."),
        ("--password-stdin", "Read the password from the first line of standard input."),
    ):
        command = click.option(option, is_flag=True, help=text)(command)
    return command


@click.group()
def account() -> None:
    """Show and change the accounts that may log in. The server may run or not."""


@account.command()
@config_option
@name_argument
@click.option(
    "--quota", type=_octets, default="0", metavar="SIZE", help='As in "1G"; no quota if left out.'
)
@password_options
def add(path: Path, name: str, quota: int, password_stdin: bool, generate: bool) -> None:
    """Make an account; its password is asked for."""
    with _open(path) as accounts:
        accounts.check_free(name)  # before a password is asked for
        password = _password(name, password_stdin, generate)
        accounts.add(name, passwords.hash_password(password), passwords.scram_keys(password), quota)
    if generate:
        click.echo(password)


@account.command()
@config_option
@name_argument
@password_options
def passwd(path: Path, name: str, password_stdin: bool, generate: bool) -> None:
    """Set another password; the old one is not good any more at once."""
    with _open(path) as accounts:
        _known(accounts, name)
        password = _password(name, password_stdin, generate)
        stored, keys = passwords.hash_password(password), passwords.scram_keys(password)
        accounts.change(name, password=stored, scram=keys)
    if generate:
        click.echo(password)


@account.command("set")
@config_option
@name_argument
@click.option("--quota", type=_octets, metavar="SIZE", help='As in "1G"; 0 for none.')
@click.option(
    "--disable/--enable", "disabled", default=None, help="Whether it may log in, and gets mail."
)
def set_(path: Path, name: str, quota: int | None, disabled: bool | None) -> None:
    """Change the quota of an account, or shut it and open it again."""
    given = {"quota": quota, "disabled": disabled}
    values = {key: value for key, value in given.items() if value is not None}
    if not values:
        raise click.UsageError("write --quota, --disable or --enable")
    with _open(path) as accounts:
        accounts.change(name, **values)


@account.command()
@config_option
@name_argument
def delete(path: Path, name: str) -> None:
    """Take an account away with its aliases; its mail stays.

    Who gets its name later has that mail, unless `fastmta mailbox empty` takes it away.
    """
    with _open(path) as accounts:
        accounts.delete(name)
    click.echo(f"its mail stays, if it has any: see fastmta mailbox empty {visible(name)}")


@account.command()
@config_option
@name_argument
@click.argument("aliases", nargs=-1, required=True, type=_address, metavar="ALIAS...")
@click.option("--delete", is_flag=True, help="Take them away.")
def alias(path: Path, name: str, aliases: tuple[str, ...], delete: bool) -> None:
    """Give an account more addresses, or take them away.

    They are those of its mailbox, and which it may send from.
    """
    with _open(path) as accounts:
        change = accounts.remove_aliases if delete else accounts.add_aliases
        change(name, aliases)


@account.command()
@config_option
@name_argument
@click.argument("targets", nargs=-1, metavar="[TARGET...]")
@click.option("--keep", is_flag=True, help="A copy goes into its mailbox too.")
@click.option("--stop", is_flag=True, help="Its mail stays here from now on.")
def forward(path: Path, name: str, targets: tuple[str, ...], keep: bool, stop: bool) -> None:
    """Send the mail of an account on to TARGET, and to no others.

    \b
    fastmta account forward -c FILE bob@example.test robert@example.org --keep
    """
    if stop == bool(targets) or (stop and keep):
        raise click.UsageError("write one TARGET or more, or --stop")
    with _open(path) as accounts:
        accounts.forward(name, targets, keep=keep)


@account.command("list")
@config_option
@click.argument("names", nargs=-1, type=_address, metavar="[ADDRESS...]")
@json_option
def list_(path: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Show accounts, all or those that are named.

    With --json one object a line. Exit code 1 if one of them is not there or cannot be read.
    """
    problems: list[str] = []
    found: list[Account] = []
    with _open(path) as accounts:
        for name in names or accounts.names():
            try:
                one = _known(accounts, name)
            except (Refused, Unreadable) as error:
                problems.append(f"{name}: {error}" if isinstance(error, Unreadable) else f"{error}")
                continue
            if as_json:
                print_json(_facts(one))
            else:
                found.append(one)
    if not as_json:
        _print_table(found)
    if problems:
        refuse(*map(visible, problems))


# The accounts, and what is asked for.


@contextmanager
def _open(path: Path) -> Iterator[Accounts]:
    folder = load_as_user(path).data_dir / "accounts"
    try:
        accounts = Accounts(folder)
        try:
            yield accounts
        finally:
            accounts.close()
    except Refused as error:
        refuse(visible(str(error)))
    except OSError as error:
        refuse(f"{error.filename or folder}: {error.strerror}")
    except (lmdb.Error, Unreadable) as error:
        refuse(f"{folder}: {error}")


def _known(accounts: Accounts, name: str) -> Account:
    found = accounts.get(name)
    if found is None:
        raise Refused(f"there is no account {name}")
    return found


def _password(name: str, from_stdin: bool, generate: bool) -> str:
    """A prepared password, from where it is to come."""
    if from_stdin and generate:
        raise click.UsageError("--password-stdin and --generate exclude each other")
    if generate:
        return passwords.generate()
    if from_stdin:
        text = sys.stdin.buffer.read(MAX_PASSWORD + 3).removesuffix(b"\n").removesuffix(b"\r")
    elif sys.stdin.isatty():
        typed = click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True)
        text = typed.encode("utf-8", "surrogateescape")
    else:
        raise click.UsageError("no terminal to ask on; write --password-stdin or --generate")
    return _prepared(text)


def _prepared(text: bytes) -> str:
    try:
        password = prepare_password(text)
    except ValueError:
        refuse(f"this password holds controls, or is longer than {MAX_PASSWORD} octets")
    if not password:
        refuse("this password is empty")
    return password


# What is shown.


def _facts(one: Account) -> dict[str, Any]:
    return {
        "name": one.name,
        "aliases": one.aliases,
        "quota": one.quota,
        "disabled": one.disabled,
        "forward": one.forward,
        "keep": one.keep,
        "created": one.created,
        "changed": one.changed,
    }


def _size(octets: int) -> str:
    for unit in ("T", "G", "M", "K"):
        if octets and octets % (1 << _SHIFTS[unit]) == 0:
            return f"{octets >> _SHIFTS[unit]}{unit}"
    return str(octets) if octets else "none"


def _print_table(found: list[Account]) -> None:
    if not found:
        click.echo("there are no accounts")
        return
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("account", "quota", "changed", "state", "aliases"):
        table.add_column(column, overflow="fold")
    for one in found:
        state = "disabled" if one.disabled else "open"
        aliases = visible(" ".join(one.aliases))
        if one.forward:
            state += (
                f", forwards{' a copy' if one.keep else ''} to {visible(' '.join(one.forward))}"
            )
        table.add_row(visible(one.name), _size(one.quota), moment(one.changed), state, aliases)
    Console(highlight=False, markup=False).print(table)
