"""`fastmta mailbox`: the mail of accounts. A server may run or not."""

import click

from fastmta.cli.mailbox.looking import list_, show
from fastmta.cli.mailbox.moving import empty, export, import_

COMMANDS = (list_, show, import_, export, empty)


class InOrder(click.Group):
    """Its commands as a person meets them: looking first, then changing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [str(command.name) for command in COMMANDS]


@click.group(cls=InOrder)
def mailbox() -> None:
    """Look into mailboxes, and bring mail in and out.

    The server may run or not; what changes is seen at once.
    """


for command in COMMANDS:
    mailbox.add_command(command)
