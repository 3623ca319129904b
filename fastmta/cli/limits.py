"""`fastmta limits`: who is at a rate limit of [limits] now, in a running server."""

from pathlib import Path
from typing import TypeVar

import click
from msgspec import Struct, msgpack, structs
from rich.console import Console
from rich.table import Table

from fastmta import control
from fastmta.cli.client import ControlClient
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, refuse
from fastmta.cli.words import span, visible
from fastmta.limits_desk import Freed, Lift, Overs, WhoIsOver
from fastmta.server.counts import Over

T = TypeVar("T")


@click.group()
def limits() -> None:
    """Show who is at a rate limit now, and lift what counts against somebody."""


@limits.command("list")
@config_option
@json_option
def list_(path: Path, as_json: bool) -> None:
    """Show who may not go on now, the longest wait first.

    With --json one object a line.
    """
    answer = _ask(path, WhoIsOver(), Overs)
    over = sorted(answer.over, key=lambda one: -one.wait)
    if as_json:
        for one in over:
            print_json(structs.asdict(one))
    elif over:
        _print_table(over)
    else:
        click.echo("nobody is at a limit")
    if not answer.is_all:
        click.echo(f"and more than these {len(over):,}", err=True)


@limits.command()
@config_option
@click.argument("subject", metavar="ADDRESS|NETWORK|ACCOUNT")
@json_option
def clear(path: Path, subject: str, as_json: bool) -> None:
    """Forget what counts against somebody.

    That is an address and its network, a network, or an account. The exit code is 1 if that was
    at no limit.
    """
    freed = _ask(path, Lift(subject), Freed).over
    if not freed:
        refuse(f"{visible(subject)} was at no limit")
    for one in freed:
        if as_json:
            print_json(structs.asdict(one))
        else:
            click.echo(f"cleared: {one.limit} {one.rate} of {visible(one.subject)}")


def _ask(path: Path, request: Struct, kind: type[T]) -> T:
    with ControlClient(load_or_refuse(path).data_dir) as client:
        said = [each.message for each in client.run(request)]
    [answer] = (each for each in said if isinstance(each, control.Answer))
    return msgpack.decode(answer.payload, type=kind)


def _print_table(over: list[Over]) -> None:
    table = Table("who", "limit", "rate", "used", "free again in")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in over:
        table.add_row(visible(one.subject), one.limit, one.rate, str(one.used), span(one.wait))
    Console().print(table)
