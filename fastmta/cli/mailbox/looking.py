"""`fastmta mailbox list` and `show`."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fastmta.cli.common import config_option, json_option, load_as_user, print_json, refuse, say
from fastmta.cli.mailbox.common import (
    account_argument,
    address,
    known,
    mailbox_option,
    opened,
    with_loop,
)
from fastmta.cli.words import moment, size, visible
from fastmta.mail.message import parse
from fastmta.store.mail_reading import Snapshot
from fastmta.store.mail_records import Entry, Flags, Mailbox
from fastmta.store.mailboxes import Mailboxes
from fastmta.store.records import Unreadable


@click.command("list")
@config_option
@click.argument("account", type=address, required=False, metavar="[ADDRESS]")
@json_option
@with_loop
async def list_(path: Path, account: str | None, as_json: bool) -> None:
    """Show mailboxes, all or those of one account.

    With --json one object a line. Exit code 1 if one of them is damaged.
    """
    config = load_as_user(path)
    owner = known(config, account).name if account else ""
    damaged: list[str] = []
    table = _table("account", "mailbox", "messages", "size")
    async with opened(config) as boxes:
        async for account_name, name, mailbox in boxes.names(owner):
            if mailbox is None:
                damaged.append(visible(f"{name} of {account_name} is damaged"))
            if as_json:
                print_json(_facts(account_name, name, mailbox))
            elif mailbox is not None:
                words = (visible(account_name), visible(name), f"{mailbox.messages:,}")
                table.add_row(*words, size(mailbox.octets))
    if not as_json and table.row_count:
        Console(highlight=False, markup=False).print(table)
    elif not as_json and not damaged:
        click.echo("there are no mailboxes")
    if damaged:
        refuse(*damaged)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        right = column in ("messages", "size")
        table.add_column(column, overflow="fold", justify="right" if right else "left")
    return table


def _facts(account: str, name: str, mailbox: Mailbox | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"account": account, "mailbox": name, "damaged": mailbox is None}
    if mailbox is not None:
        for field in ("messages", "octets", "uidvalidity", "uidnext", "modseq"):
            facts[field] = getattr(mailbox, field)
    return facts


@click.command()
@config_option
@account_argument
@click.argument("uid", type=click.IntRange(1), required=False)
@mailbox_option
@json_option
@with_loop
async def show(path: Path, account: str, uid: int | None, name: str, as_json: bool) -> None:
    """Show the messages of a mailbox, or one message as it is stored.

    With --json one object a line for each message; one message is always shown as it is.
    """
    config = load_as_user(path)
    owner = known(config, account).name
    async with opened(config) as boxes:
        try:
            mailbox = await boxes.open(owner, name)
        except KeyError:
            refuse(f"{visible(owner)} has no mailbox {visible(name)}")
        if uid is None:
            await _show_all(boxes, mailbox, as_json)
        else:
            await _show_one(boxes, mailbox, uid)


async def _show_one(boxes: Mailboxes, mailbox: Snapshot, uid: int) -> None:
    number = 0
    try:
        while pieces := await boxes.read(mailbox.mailbox, uid, number):
            _show_octets(b"".join(pieces))
            number += len(pieces)
    except KeyError:
        refuse(f"there is no message {uid}")
    except Unreadable as error:
        refuse(f"message {uid} cannot be read: {error}")
    sys.stdout.flush()


def _show_octets(octets: bytes) -> None:
    """As they are, but not to a terminal: what it would not print could move its cursor."""
    if sys.stdout.isatty():
        text = octets.replace(b"\r\n", b"\n").decode("utf-8", "replace")
        click.echo(visible(text), nl=False)
    else:
        sys.stdout.buffer.write(octets)


async def _show_all(boxes: Mailboxes, mailbox: Snapshot, as_json: bool) -> None:
    after = 0
    while page := await boxes.entries(mailbox.mailbox, after):
        for uid, entry in page:
            try:
                facts = await _message_facts(boxes, mailbox.mailbox, uid, entry)
            except KeyError:  # it is gone
                continue
            if as_json:
                print_json(facts)
            else:
                say(_line(facts))
        after = page[-1][0]


def _line(facts: dict[str, Any]) -> str:
    words = (f"{facts['uid']:>6}", moment(facts["date"]), f"{size(facts['size']):>7}")
    flags = " ".join([*facts["flags"], *facts["keywords"]])
    return f"{'  '.join(words)}  {facts['from'][:30]:<30}  {facts['subject'][:50]}  {flags}"


async def _message_facts(boxes: Mailboxes, mailbox: int, uid: int, entry: Entry) -> dict[str, Any]:
    try:
        text = b"".join(await boxes.read(mailbox, uid))
    except Unreadable:
        text = b"Subject: (damaged)\r\n\r\n"
    end = text.find(b"\r\n\r\n")
    headers = parse(text[: end if end >= 0 else len(text)]).headers
    return {
        "uid": uid,
        "date": entry.date,
        "size": entry.size,
        "flags": [flag.name.lower() for flag in Flags if entry.flags & flag and flag.name],
        "keywords": entry.keywords,
        "from": headers.text("From"),
        "subject": headers.text("Subject"),
    }
