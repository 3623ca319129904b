"""`fastmta mailbox`: the mail of accounts. A server may run or not."""

import click

from fastmta.cli.mailbox.looking import list_, show, verify
from fastmta.cli.mailbox.moving import empty, export, import_

COMMANDS = (list_, show, import_, export, empty, verify)


class InOrder(click.Group):
    """Its commands as a person meets them: looking first, then changing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [str(command.name) for command in COMMANDS]


@click.group(cls=InOrder)
def mailbox() -> None:
    """Look into mailboxes, bring mail in and out, and check the files.

    The server may run or not; what changes is seen at once.
    """


for command in COMMANDS:
    mailbox.add_command(command)
