"""What the commands share: the mailboxes opened, and whose they are."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, ParamSpec

import click
import lmdb
import uvloop

from fastmta.cli.common import refuse
from fastmta.cli.words import visible
from fastmta.config import Config
from fastmta.store.accounts import Account, Accounts, name_of
from fastmta.store.mail_records import INBOX
from fastmta.store.mailboxes import Mailboxes, folder_of
from fastmta.store.records import Unreadable

P = ParamSpec("P")

mailbox_option = click.option(
    "--mailbox", "name", default=INBOX, metavar="NAME", help="INBOX if left out."
)


def address(text: str) -> str:
    """An argument that is an account's name or alias."""
    try:
        return name_of(text)
    except ValueError as error:
        raise click.BadParameter(visible(str(error))) from None


account_argument = click.argument("account", type=address, metavar="ADDRESS")


def with_loop(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A command that is a coroutine."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            uvloop.run(command(*args, **kwargs))
        except lmdb.Error as error:
            refuse(f"the mailboxes cannot be read or written: {error}")
        except OSError as error:
            refuse(f"{error.filename or 'the mailboxes'}: {error.strerror}")
        except Unreadable as error:
            refuse(f"a row of the mailboxes cannot be read: {error}")

    return run


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Mailboxes]:
    boxes = Mailboxes(folder_of(config.data_dir), lambda account: 0)
    try:
        yield boxes
    finally:
        await boxes.close()


def known(config: Config, address: str) -> Account:
    """The account that has an address; exit code 1 if nobody has it."""
    accounts = Accounts(config.data_dir / "accounts")
    try:
        found = accounts.owner_of(address)
    finally:
        accounts.close()
    if found is None:
        refuse(f"there is no account {visible(address)}")
    return found
