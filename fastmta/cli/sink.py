"""`fastmta sink`: a receiving SMTP or LMTP server that misbehaves as told."""

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.table import Table

from fastmta.cli.common import in_words, json_option, print_json, refuse
from fastmta.config import Duration, NextHop
from fastmta.sink import FATES, KEYWORDS, STEPS, Behaviour, Counts, Mbox, Sink

SHARE = click.FloatRange(0, 1)


def _parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """A click callback that reads an option's text with `parse`."""

    def callback(context: click.Context, parameter: click.Parameter, value: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _listen(value: str) -> NextHop:
    """As anywhere, but for port 0: any free one."""
    host, _, port = value.rpartition(":")
    return NextHop.parse(f"{host}:1")._replace(port=0) if port == "0" else NextHop.parse(value)


def _keywords(value: str) -> frozenset[str]:
    names = frozenset(filter(None, value.upper().replace(" ", "").split(",")))
    if unknown := names - set(KEYWORDS):
        raise ValueError(f"{', '.join(sorted(unknown))}: not among {', '.join(KEYWORDS)}")
    return names


@click.command(
    epilog=f"A recipient whose local part is {', '.join(sorted(FATES))} (or one of these with"
    " +anything behind it) meets that fate."
)
@click.option(
    "--listen",
    default="127.0.0.1:2700",
    show_default=True,
    callback=_parsed(_listen),
    metavar="HOST:PORT",
    help='Where to listen; port 0 takes a free one. "unix:/run/lmtp" is a unix socket.',
)
@click.option("--lmtp", is_flag=True, help="Speak LMTP: an answer for each recipient.")
@click.option(
    "--tls",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=2,
    metavar="CERTIFICATE KEY",
    help="Offer STARTTLS with these, in PEM form.",
)
@click.option("--hostname", default="sink.example.test", show_default=True)
@click.option("--tempfail", type=SHARE, default=0.0, help="Share of recipients answered 451.")
@click.option("--permfail", type=SHARE, default=0.0, help="Share of recipients answered 550.")
@click.option("--drop", type=SHARE, default=0.0, help="Share of transactions cut short.")
@click.option(
    "--drop-at",
    type=click.Choice(STEPS),
    default="body",
    show_default=True,
    help="The step of a transaction at which the connection is dropped.",
)
@click.option("--seed", default=0, help="What the shares are drawn from.")
@click.option(
    "--delay",
    default="0s",
    callback=_parsed(Duration.parse),
    metavar="TIME",
    help='Wait before each reply, as in "50ms".',
)
@click.option(
    "--slow",
    default="5s",
    show_default=True,
    callback=_parsed(Duration.parse),
    metavar="TIME",
    help="Wait before the reply to the recipient slow@.",
)
@click.option(
    "--close-after",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Answer 421 after so many messages on one connection.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Answer 421 to connections over so many.",
)
@click.option(
    "--max-recipients",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Answer 452 to recipients over so many in a transaction.",
)
@click.option("--max-size", type=click.IntRange(1), default=1 << 30, metavar="OCTETS")
@click.option(
    "--without",
    default="",
    callback=_parsed(_keywords),
    metavar="KEYWORD,...",
    help=f"EHLO keywords not to offer, of {', '.join(KEYWORDS)}.",
)
@click.option("--mbox", type=click.Path(dir_okay=False, path_type=Path), help="Keep the mail here.")
@click.option(
    "--count-header",
    default="X-Fastmta-Number",
    show_default=True,
    metavar="NAME",
    help="The field that numbers messages, to count distinct ones and duplicates.",
)
@click.option(
    "--exit-after",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Stop once so many messages were taken.",
)
@json_option
def sink(
    listen: NextHop,
    tls: tuple[Path, Path] | None,
    mbox: Path | None,
    count_header: str,
    exit_after: int,
    as_json: bool,
    **behaviour: Any,
) -> None:
    """Take mail like a real destination, misbehave as told, and count honestly.

    Counts are printed at the end (SIGINT, SIGTERM) and on SIGUSR1.
    """
    if behaviour["tempfail"] + behaviour["permfail"] > 1:
        raise click.UsageError("--tempfail and --permfail add up to more than 1")
    with closing(_mbox(mbox)) if mbox else nullcontext() as box:
        server = Sink(
            Behaviour(**behaviour),
            take=box.append if box else None,
            number=count_header.encode(),
            tls=_context(*tls) if tls else None,
        )
        show = print_json if as_json else _show_table

        def report() -> None:
            if box:
                box.flush()
            show(server.counts)

        try:
            uvloop.run(_serve(server, listen, exit_after, report))
        except OSError as error:
            refuse(f"cannot listen on {listen}: {_reason(error)}")


def _mbox(path: Path) -> Mbox:
    try:
        return Mbox(path)
    except OSError as error:
        refuse(in_words(error))


def _reason(error: OSError) -> str:
    """As errno(3) has it; uvloop tells the address once more, and look-ups have numbers below 0."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        refuse(f"{certificate} and {key} cannot be loaded: {error.reason}")
    return context


async def _serve(
    server: Sink, listen: NextHop, exit_after: int, report: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, report)
    await server.start(*listen)
    print(f"sink: listening on {NextHop(*server.endpoint)}", file=sys.stderr, flush=True)
    if exit_after:
        loop.create_task(server.arrived(exit_after)).add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    await server.stop(grace=1.0 if exit_after else 0.0)
    report()


def _show_table(counts: Counts) -> None:
    table = Table("what", "count", title="sink")
    table.columns[1].justify = "right"
    for name, value in _rows(counts):
        table.add_row(name, value)
    Console().print(table)


def _rows(counts: Counts) -> Iterable[tuple[str, str]]:
    for name in counts.__struct_fields__:
        value = getattr(counts, name)
        yield name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sink()
