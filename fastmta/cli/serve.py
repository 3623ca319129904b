"""`fastmta serve`: run the server until SIGTERM."""

import logging
from pathlib import Path

import click

from fastmta.cli.common import config_option, in_words, read_or_refuse, refuse


@click.command()
@config_option
def serve(path: Path) -> None:
    """Run the server in the foreground.

    SIGTERM drains: messages that are under way are finished, the rest stays safe in the queue.
    SIGHUP reads the configuration and the certificates anew, and reopens the disposition log;
    no connection is lost.
    """
    source, config = read_or_refuse(path)
    # Late: --help and a broken configuration need neither the loop nor the HTTP server.
    import uvloop

    from fastmta import log
    from fastmta.config_dkim import dkim_warnings
    from fastmta.supervisor import Supervisor
    from fastmta.worker_process import CannotStart

    log.set_up(config.log.level, "supervisor")
    for warning in dkim_warnings(config.dkim):
        logging.getLogger(__name__).warning("%s", warning)

    async def run() -> bool:
        return await Supervisor(path, source, config).run()

    try:
        ended_well = uvloop.run(run())
    except (CannotStart, OSError) as error:
        refuse(in_words(error))
    if not ended_well:
        raise SystemExit(1)
