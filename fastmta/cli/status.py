"""fastmta status: how the workers of a running server stand."""

from pathlib import Path
from typing import Any

import click
from msgspec import msgpack, structs
from rich.console import Console
from rich.table import Table

from fastmta import control
from fastmta.cli.client import ControlClient
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json
from fastmta.cli.words import span


@click.command
@config_option
@json_option
def status(path: Path, as_json: bool) -> None:
    """Show how the workers of a running server stand; with --json one object a line.

    The exit code is 1 if not all of them answer.
    """
    answers: list[control.WorkerStatus] = []
    silent: dict[int, str] = {}
    with ControlClient(load_or_refuse(path).data_dir) as client:
        for each in client.run(control.Status()):
            if isinstance(each.message, control.Answer):
                answers.append(msgpack.decode(each.message.payload, type=control.WorkerStatus))
            elif isinstance(each.message, control.Ended) and each.message.error:
                silent[each.worker] = each.message.error
    answers.sort(key=lambda one: one.worker)
    if as_json:
        _print_json(answers, silent)
    else:
        _print_table(answers, silent)
    if silent:
        raise SystemExit(1)


def _print_json(answers: list[control.WorkerStatus], silent: dict[int, str]) -> None:
    for answer in answers:
        print_json(structs.asdict(answer))
    for worker, error in silent.items():
        print_json({"worker": worker, "error": error})


def _print_table(answers: list[control.WorkerStatus], silent: dict[int, str]) -> None:
    # Without a frame: it fits into 80 columns, where a terminal or a pipe has no more.
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("worker", "pid", "up", "shards", "sessions in", "connections out", "queued"):
        table.add_column(name, justify="right")
    table.add_column("config")
    for answer in answers:
        table.add_row(*map(str, _cells(answer)))
    Console().print(table)
    for worker, error in silent.items():
        click.echo(f"fastmta: worker {worker} {error}", err=True)


def _cells(answer: control.WorkerStatus) -> list[Any]:
    shards = ", ".join(map(str, answer.shards))
    numbers = (answer.sessions, answer.connections, answer.queued)
    return [answer.worker, answer.pid, span(answer.uptime), shards, *numbers, answer.config]
