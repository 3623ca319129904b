"""`fastmta queue`: what is in the queue, why it waits, and the operator's hand on it."""

import click

from fastmta.cli.queue.listing import list_, show
from fastmta.cli.queue.orders import bounce, delete, hold, holds, release, reroute, retry
from fastmta.cli.queue.top import top
from fastmta.cli.queue.why import why

COMMANDS = (list_, show, why, top, hold, holds, release, retry, reroute, bounce, delete)


class InOrder(click.Group):
    """Its commands as a person meets them: looking first, then changing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [str(command.name) for command in COMMANDS]


@click.group(cls=InOrder)
def queue() -> None:
    """Look into the queue, and change what is in it.

    list and show read the queue's files, whether the server runs or not; the others speak to the
    running server. Commands that change something take selectors: all that are given have to
    match, and of one that is given several times any. They know * and ?, and do not tell upper
    case from lower.
    """


for command in COMMANDS:
    queue.add_command(command)
