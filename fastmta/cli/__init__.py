"""The `fastmta` command; a subcommand's module is imported only when it runs.

Exit codes: 0 done, 1 "no", 2 wrong usage.
"""

from importlib import import_module

import click

# Name -> short help. `fastmta.cli.NAME` holds the click command NAME.
COMMANDS = {
    "account": "Show and change the accounts that may log in.",
    "backup": "Copy all that a server keeps, while it runs.",
    "check": "Say whether a configuration can be used.",
    "demo": "Try fastmta here: two users with mailboxes, on high ports.",
    "dkim": "Make keys for DKIM signatures, and check their DNS records.",
    "dns": "Show where mail for a domain goes.",
    "limits": "Show who is at a rate limit now, and lift it.",
    "mailbox": "Look into mailboxes; import and export them.",
    "queue": "Look into the queue: top, why, list; change it: hold, bounce, reroute.",
    "restore": "Bring a backup back, into an empty data directory.",
    "serve": "Run the server.",
    "suppression": "Show and change the addresses that get no mail.",
    "sink": "Run a receiving server that misbehaves as told.",
    "status": "Show how the workers of a running server stand.",
    "verify": "Look whether queue and mailboxes are whole; repair them.",
}


class Lazy(click.Group):
    """A group that knows its commands' names without their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"fastmta.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastmta", prog_name="fastmta")
def main() -> None:
    """A mail transfer agent: durable, fast, observable."""
