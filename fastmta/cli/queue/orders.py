"""`fastmta queue hold`, `release`, `retry`, `delete`, `bounce`, `reroute`: the operator's hand."""

import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec
from msgspec import msgpack, structs

from fastmta import control
from fastmta.cli.client import ControlClient
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, say
from fastmta.cli.queue.selecting import Span, selectors
from fastmta.cli.words import is_are, many, moment
from fastmta.config import parse_hop
from fastmta.queue.orders import EVERY_WORKER, RETURNED, Action, Order, parse_reply
from fastmta.queue.requests import Give, Given, Holds, Kept, Result
from fastmta.queue.selector import Selector

F = TypeVar("F", bound=Callable[..., Any])

DONE = {
    Action.HOLD: "held",
    Action.RELEASE: "released",
    Action.RETRY: "due now",
    Action.DELETE: "deleted",
    Action.BOUNCE: "returned",
    Action.REROUTE: "rerouted",
}

all_option = click.option("--all", "everything", is_flag=True, help="All that is in the queue.")
worker_option = click.option(
    "--worker", type=click.IntRange(0, 255), metavar="N", help="In this worker alone."
)
reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why, for the disposition log and the others."
)


def ordering(command: F) -> F:
    """The options that all changing commands have."""
    for option in (json_option, worker_option, all_option, selectors, config_option):
        command = option(command)
    return command


class Common(NamedTuple):
    """Where and how a command is to be done."""

    path: Path
    worker: int | None
    everything: bool
    as_json: bool


def common(given: dict[str, Any]) -> Common:
    """Taken out of what click gave."""
    return Common(*(given.pop(name) for name in ("path", "worker", "everything", "as_json")))


@click.command()
@click.option("--for", "span", type=Span(), metavar="TIME", help="Release it by itself after: 2h.")
@reason_option
@ordering
def hold(selector: Selector, span: float | None, reason: str, **given: Any) -> None:
    """Keep mail back, what is in the queue and what is still to come.

    The hold stands until `queue release`, also over restarts; `queue holds` lists what stands.
    Nothing that it matches leaves once this command has returned.

    \b
    fastmta queue hold -c FILE --campaign summer-sale --reason "wrong prices"
    """
    until = time.time() + span if span is not None else 0.0
    give(common(given), Action.HOLD, selector, reason=reason, until=until)


@click.command()
@click.option("--hold", "number", type=click.IntRange(1), metavar="N", help="End this hold.")
@reason_option
@ordering
def release(selector: Selector, number: int | None, reason: str, **given: Any) -> None:
    """Let held mail go: it is due now.

    Holds whose mail is all matched end. What another hold still keeps stays.

    \b
    fastmta queue release -c FILE --campaign summer-sale
    fastmta queue release -c FILE --hold 3
    """
    if number and selector:
        raise click.UsageError("--hold names the mail already; leave the other selectors out")
    give(common(given), Action.RELEASE, selector, reason=reason, hold=number or 0)


@click.command()
@reason_option
@ordering
def retry(selector: Selector, reason: str, **given: Any) -> None:
    """Try now what waits for its next attempt.

    Hosts that were left alone because they did not answer are tried again too. When the mail
    expires does not change.

    \b
    fastmta queue retry -c FILE --site "*.example.test" --reply "greylist"
    """
    give(common(given), Action.RETRY, selector, reason=reason)


@click.command()
@reason_option
@ordering
def delete(selector: Selector, reason: str, **given: Any) -> None:
    """Remove mail without telling its senders.

    The disposition log says who did it and why.

    \b
    fastmta queue delete -c FILE --sender spam@example.test --reason "hacked account"
    """
    give(common(given), Action.DELETE, selector, reason=reason)


@click.command()
@click.option(
    "--reason",
    "answer",
    default=RETURNED,
    show_default=True,
    metavar="REPLY",
    help="What the sender is told.",
)
@click.option("--no-report", is_flag=True, help="Do not tell the sender.")
@ordering
def bounce(selector: Selector, answer: str, no_report: bool, **given: Any) -> None:
    """Give mail back to its senders.

    \b
    fastmta queue bounce -c FILE --domain gone.test --reason "550 5.1.2 the domain has closed"
    """
    try:
        argument = str(parse_reply(answer))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--reason") from None
    give(
        common(given),
        Action.BOUNCE,
        selector,
        argument=argument,
        reason=argument,
        report=not no_report,
    )


@click.command()
@click.option("--to", required=True, metavar="HOST:PORT", help="The next hop, or mx: as by DNS.")
@reason_option
@ordering
def reroute(selector: Selector, to: str, reason: str, **given: Any) -> None:
    """Send mail to another host; it is due now.

    Mail that is held stays held, and goes there once it is released.

    \b
    fastmta queue reroute -c FILE --domain example.test --to 192.0.2.7:25
    fastmta queue reroute -c FILE --domain example.test --to mx
    """
    give(common(given), Action.REROUTE, selector, reason=reason, argument=_next_hop(to))


def _next_hop(to: str) -> str:
    if to.lower() == "mx":
        return ""
    try:
        parse_hop(to)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or mx", param_hint="--to") from None
    return to


@click.command()
@config_option
@json_option
def holds(path: Path, as_json: bool) -> None:
    """List the holds that stand, with how much each keeps.

    \b
    fastmta queue holds -c FILE
    """
    with ControlClient(load_or_refuse(path).data_dir) as client:
        standing, kept = _standing(client)
    if as_json:
        for each in standing:
            print_json(_hold_facts(each, kept))
        return
    if not standing:
        click.echo("nothing is held")
    for each in standing:
        _print_hold(each, kept)


def _standing(client: ControlClient) -> tuple[list[Order], list[Kept]]:
    standing: list[Order] = []
    kept: list[Kept] = []
    for answer in answers(client, Holds(), list[Order] | Kept):
        if isinstance(answer, Kept):
            kept.append(answer)
        else:
            standing = answer
    return standing, kept


def _hold_facts(order: Order, kept: list[Kept]) -> dict[str, Any]:
    return {
        "hold": order.number,
        "selector": {
            name: value for name, value in structs.asdict(order.selector).items() if value
        },
        "reason": order.reason,
        "by": order.by,
        "time": order.time,
        "until": order.until or None,
        "worker": None if order.worker == EVERY_WORKER else order.worker,
        "envelopes": sum(each.envelopes.get(order.number, 0) for each in kept),
        "complete": all(each.is_all for each in kept),
    }


def _print_hold(order: Order, kept: list[Kept]) -> None:
    envelopes = sum(each.envelopes.get(order.number, 0) for each in kept)
    least = "" if all(each.is_all for each in kept) else "at least "
    say(f"hold {order.number}: {order.selector}")
    where = "" if order.worker == EVERY_WORKER else f" in worker {order.worker}"
    click.echo(f"    keeps {least}{many(envelopes, 'envelope')}{where}")
    why = f": {order.reason}" if order.reason else ""
    say(f"    since {moment(order.time)}, by {order.by}{why}")
    if order.until:
        click.echo(f"    until {moment(order.until)}")


def give(where: Common, action: Action, selector: Selector, *, hold: int = 0, **about: Any) -> None:
    """Have the running server do it; leaves with 1 where there was nothing to do."""
    if not (selector or hold or where.everything):
        raise click.UsageError("say which mail: give selectors, or --all for all of it")
    order = Order(
        action=action,
        selector=selector,
        hold=hold,
        by=_operator(),
        worker=EVERY_WORKER if where.worker is None else where.worker,
        **about,
    )
    given, results, failed = order, [], {}
    with ControlClient(load_or_refuse(where.path).data_dir) as client, progress(action) as show:
        for each in client.run(Give(order), where.worker):
            message = each.message
            if isinstance(message, control.Progress):
                show(each.worker, message.done, message.total)
            elif isinstance(message, control.Answer):
                answer = msgpack.decode(message.payload, type=Given | Result)
                if isinstance(answer, Given):
                    given = answer.order
                else:
                    results.append(answer)
            elif message.error:
                failed[each.worker] = message.error
    _report(given, results, failed, where.as_json)
    moved = sum(each.envelopes for each in results)
    if failed or not (moved or action is Action.HOLD or given.ends):
        raise SystemExit(1)


def _report(order: Order, results: list[Result], failed: dict[int, str], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "order": order.number,
                "action": order.action,
                "envelopes": sum(each.envelopes for each in results),
                "recipients": sum(each.recipients for each in results),
                "kept": sum(each.kept for each in results),
                "under_way": sum(each.under_way for each in results),
                "released": order.ends,
                "workers": sorted(results, key=lambda each: each.worker),
                "failed": {str(worker): error for worker, error in failed.items()},
            }
        )
        return
    for line in sentences(order, results):
        say(line)
    for worker, error in failed.items():
        click.echo(f"fastmta: worker {worker} {error}", err=True)
    if failed and order.action is Action.HOLD:
        click.echo("fastmta: the hold stands: it is in force there from its next start", err=True)
    if failed and order.ends:
        click.echo("fastmta: no hold has ended: release again what is not yet free", err=True)


def sentences(order: Order, results: list[Result]) -> Iterator[str]:
    """What was done, for people."""
    moved = sum(each.envelopes for each in results)
    recipients = sum(each.recipients for each in results)
    verb = DONE[order.action]
    if moved:
        each = ", ".join(
            f"{one.envelopes:,} in worker {one.worker}"
            for one in sorted(results, key=lambda one: one.worker)
        )
        where = f": {each}" if len(results) > 1 else ""
        yield f"{verb}: {many(moved, 'envelope')} for {many(recipients, 'recipient')}{where}"
    kept = sum(each.kept for each in results)
    if not moved and not kept and order.action is not Action.HOLD:
        yield "nothing in the queue matches" if not order.ends else "nothing was held any more"
    yield from _about_holds(order, moved, kept)
    if left := sum(each.under_way for each in results):
        yield (
            f"{many(left, 'envelope')} {is_are(left)} still being sent after 30 s: "
            "what is not delivered "
            + ("is held" if order.action is Action.HOLD else "stays as it is")
        )


def _about_holds(order: Order, moved: int, kept: int) -> Iterator[str]:
    if order.action is Action.HOLD:
        until = f" until {moment(order.until)}" if order.until else ""
        also = "" if moved else ", and matches nothing in the queue now"
        yield f"hold {order.number} stands{until}{also}"
        yield f"end it with: fastmta queue release --hold {order.number}"
    if order.ends:
        numbers = ", ".join(map(str, order.ends))
        yield f"ended: hold {numbers}" if len(order.ends) == 1 else f"ended: holds {numbers}"
    if kept:
        other = "another hold keeps" if order.action is Action.RELEASE else "a hold keeps"
        them = "it" if kept == 1 else "them"
        yield f"{many(kept, 'envelope')} stayed: {other} {them}; see fastmta queue holds"


@contextmanager
def progress(action: Action) -> Iterator[Callable[[int, int, int], None]]:
    """A bar on standard error while it takes long, where a person looks."""
    if not sys.stderr.isatty():
        yield lambda worker, seen, total: None
        return
    from rich.console import Console  # late: most commands need none
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    parts: dict[int, tuple[int, int]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(f"{action}: envelopes looked at", total=None)

        def show(worker: int, seen: int, total: int) -> None:
            parts[worker] = seen, total
            completed, of = (sum(part) for part in zip(*parts.values(), strict=True))
            bars.update(bar, completed=completed, total=of)

        yield show


def _operator() -> str:
    """Who gives the order."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def answers(client: ControlClient, request: msgspec.Struct, kind: Any) -> Iterator[Any]:
    """What a request gives, where nothing is worth a progress bar; leaves with 1 where a worker
    fails."""
    failed = {}
    for each in client.run(request):
        if isinstance(each.message, control.Answer):
            yield msgpack.decode(each.message.payload, type=kind)
        elif isinstance(each.message, control.Ended) and each.message.error:
            failed[each.worker] = each.message.error
    for worker, error in failed.items():
        click.echo(f"fastmta: worker {worker} {error}", err=True)
    if failed:
        raise SystemExit(1)
