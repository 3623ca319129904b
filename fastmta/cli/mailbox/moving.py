"""`fastmta mailbox import`, `export` and `empty`."""

from pathlib import Path

import click

from fastmta.cli.common import config_option, json_option, load_as_user, print_json, refuse
from fastmta.cli.mailbox.common import (
    account_argument,
    address,
    known,
    mailbox_option,
    opened,
    with_loop,
)
from fastmta.cli.progress import bar
from fastmta.cli.words import many, visible
from fastmta.config import Config
from fastmta.mail.mbox import DIALECTS, Broken
from fastmta.store import mail_export, mail_import
from fastmta.store.accounts import Accounts
from fastmta.store.mail_export import Exists, MaildirTarget, MboxTarget, Target
from fastmta.store.mail_import import Failed, Import, source_key
from fastmta.store.mail_sources import Changed, Source, source_of
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.post import OutOfStep


@click.command("import")
@config_option
@account_argument
@click.argument("source", type=click.Path(exists=True, path_type=Path), metavar="PATH")
@mailbox_option
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    default="mboxrd",
    help='How an mbox file has lines that begin with "From "; mboxrd if left out.',
)
@click.option("--again", is_flag=True, help="Begin anew, with all that is imported already.")
@json_option
@with_loop
async def import_(
    path: Path, account: str, source: Path, name: str, dialect: str, again: bool, as_json: bool
) -> None:
    """Bring the messages of an mbox file or a Maildir into a mailbox.

    An import that was cut short goes on where it was when the same command is given again, and
    one that is done finds what has been added since. Quotas do not count.
    """
    config = load_as_user(path)
    owner = known(config, account).name
    try:
        origin = source_of(source, dialect)
        async with opened(config) as boxes:
            if again:
                await boxes.forget_progress(source_key(owner, name, origin))
            result = await _import(boxes, owner, name, origin)
    except (Broken, Changed, Failed) as error:
        refuse(visible(str(error)))
    except ValueError as error:  # no name for a mailbox
        refuse(visible(str(error)))
    except OutOfStep:
        refuse("another process imports this at the same time; what that one did counts")
    if as_json:
        print_json(result._asdict())
    else:
        _say("imported", result.imported, result.before)


async def _import(boxes: Mailboxes, owner: str, name: str, origin: Source) -> mail_import.Result:
    with bar("importing", origin.total, counts=origin.path.is_dir()) as told:
        return await Import(boxes, owner, name, origin).run(told)


@click.command()
@config_option
@account_argument
@click.argument("target", type=click.Path(path_type=Path), metavar="PATH")
@mailbox_option
@click.option("--maildir", is_flag=True, help="Write a Maildir, not an mbox file (mboxrd).")
@json_option
@with_loop
async def export(
    path: Path, account: str, target: Path, name: str, maildir: bool, as_json: bool
) -> None:
    """Write a mailbox into an mbox file, or a Maildir.

    One that was cut short goes on where it was when the same command is given again.
    Exit code 1 if a message could not be read; all others are there then.
    """
    config = load_as_user(path)
    owner = known(config, account).name
    where: Target = MaildirTarget(target) if maildir else MboxTarget(target)
    async with opened(config) as boxes:
        try:
            mailbox = await boxes.open(owner, name)
            with bar("exporting", len(mailbox), counts=True) as told:
                result = await mail_export.export(boxes, mailbox, where, told)
        except KeyError:
            refuse(f"{visible(owner)} has no mailbox {visible(name)}")
        except Exists as error:
            refuse(visible(str(error)))
    if as_json:
        print_json(result)
    else:
        _say("exported", result.exported, result.before)
    if result.damaged:
        refuse(*(f"message {uid} cannot be read and is left out" for uid in result.damaged))


@click.command()
@config_option
@click.argument("account", type=address, metavar="ADDRESS")
@click.option("--mailbox", "name", metavar="NAME", help="This one only; all if left out.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_loop
async def empty(path: Path, account: str, name: str | None, yes: bool) -> None:
    """Delete all messages of an account.

    Of one that was deleted, too, so that who gets its name next does not have them.
    """
    config = load_as_user(path)
    owner = _owner(config, account)
    async with opened(config) as boxes:
        found = [one async for one in boxes.names(owner) if name in (None, one[1])]
        if not found:
            refuse(f"{visible(owner)} has no {'mail' if name is None else visible(name)}")
        count = sum(mailbox.messages for _, _, mailbox in found if mailbox is not None)
        what = f"{many(count, 'message')} of {visible(owner)}"
        if not yes:
            click.confirm(f"Delete {what}?", abort=True)
        for _, each, _ in found:
            await _empty(boxes, owner, each)
    click.echo(f"deleted {what}")


def _owner(config: Config, address: str) -> str:
    """The account that has an address, or the address as the name of one that was deleted."""
    accounts = Accounts(config.data_dir / "accounts")
    try:
        found = accounts.owner_of(address)
    finally:
        accounts.close()
    return found.name if found is not None else address


async def _empty(boxes: Mailboxes, owner: str, name: str) -> None:
    mailbox = (await boxes.open(owner, name)).mailbox
    after = 0
    while page := await boxes.entries(mailbox, after):
        await boxes.expunge(mailbox, [uid for uid, _ in page])
        after = page[-1][0]


def _say(done: str, now: int, before: int) -> None:
    earlier = f", {before:,} were {done} before" if before else ""
    click.echo(f"{done} {many(now, 'message')}{earlier}")
