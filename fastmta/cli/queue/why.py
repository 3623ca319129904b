"""`fastmta queue why`: what a domain's mail is waiting for, in words."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
from msgspec.structs import replace

from fastmta.cli.client import ControlClient
from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, say
from fastmta.cli.queue.orders import answers
from fastmta.cli.queue.paths import about_path, with_allowances
from fastmta.cli.queue.suppressed import about_suppressed, look_up
from fastmta.cli.words import is_are, many, moment, span
from fastmta.config_reader import Duration
from fastmta.delivery.site import LOCAL
from fastmta.mail.address import normal_domain
from fastmta.queue.orders import Order
from fastmta.queue.requests import Holds, Kept, Waiting, Why

MAX_REPLIES = 3


@click.command()
@config_option
@click.argument("domain")
@json_option
def why(path: Path, domain: str, as_json: bool) -> None:
    """Say what the mail for DOMAIN is waiting for.

    It may be an address too.

    \b
    fastmta queue why -c FILE example.test
    """
    local, _, name = domain.removesuffix(".").rpartition("@")
    try:
        name = normal_domain(name)
        address = f"{local}@{name}" if local else ""
        config = load_or_refuse(path)
        suppressed = look_up(config, name, address)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="DOMAIN") from None
    with ControlClient(config.data_dir) as client:
        waiting = ask(client, name)
        holds = list(answers(client, Holds(), list[Order] | Kept))
    standing = next((each for each in holds if isinstance(each, list)), [])
    if as_json:
        print_json({"domain": name, **_facts(waiting), "suppressed": suppressed})
    else:
        now = time.time()
        for sentence in (
            *explain(name, waiting, standing, now),
            *about_suppressed(name, suppressed),
        ):
            say(sentence)
    if not total(waiting):
        raise SystemExit(1)


def ask(client: ControlClient, domain: str) -> Waiting:
    """What all workers say, with what they share."""
    waiting = together(list(answers(client, Why(domain), Waiting)))
    sites = {waiting.site, *(path.site for path in waiting.paths)} - {""}
    return replace(waiting, paths=with_allowances(client, waiting.paths, sites))


def together(parts: list[Waiting]) -> Waiting:
    """What all workers say, as one."""
    first, *others = sorted(parts, key=lambda each: each.last_time, reverse=True)
    for each in others:
        first = replace(
            first,
            paths=first.paths + each.paths,
            pauses=first.pauses + each.pauses,
            is_all=first.is_all and each.is_all,
            out=first.out + each.out,
            due=first.due + each.due,
            later=first.later + each.later,
            next=_earlier(first.next, each.next),
            attempts=max(first.attempts, each.attempts),
            oldest=_earlier(first.oldest, each.oldest),
            gives_up=_earlier(first.gives_up, each.gives_up),
            rerouted=dict(Counter(first.rerouted) + Counter(each.rerouted)),
            held=dict(Counter(first.held) + Counter(each.held)),
            replies=dict(Counter(first.replies) + Counter(each.replies)),
        )
    return first


def _earlier(one: float, other: float) -> float:
    """0 is never."""
    return min(filter(None, (one, other)), default=0.0)


def _facts(waiting: Waiting) -> dict[str, object]:
    facts = {name: getattr(waiting, name) for name in waiting.__struct_fields__}
    del facts["worker"]
    return {**facts, "held": {str(hold): count for hold, count in waiting.held.items()}}


def total(waiting: Waiting) -> int:
    return waiting.out + waiting.due + waiting.later + sum(waiting.held.values())


def explain(domain: str, waiting: Waiting, holds: list[Order], now: float) -> Iterator[str]:
    """Sentences for a tired operator; what is most likely the reason comes first."""
    count = total(waiting)
    least = "" if waiting.is_all else "at least "
    if not count:
        yield f"{least and 'as far as was counted, '}nothing in the queue is for {domain}"
    else:
        yield f"{least}{many(count, 'envelope')} {is_are(count)} in the queue for {domain}"
    yield from _about_holds(waiting, holds)
    yield from _about_site(domain, waiting)
    yield from _about_hosts(waiting, now)
    for path in waiting.paths:
        yield from about_path(path, now)
    yield from _about_waiting(waiting, now)
    yield from _about_replies(waiting, now)
    if count:
        yield from _about_schedule(waiting, now)


def _about_holds(waiting: Waiting, holds: list[Order]) -> Iterator[str]:
    known = {hold.number: hold for hold in holds}
    for number, count in sorted(waiting.held.items()):
        hold = known.get(number)
        why = f" ({hold.selector}, by {hold.by})" if hold else ""
        reason = f": {hold.reason}" if hold and hold.reason else ""
        yield f"hold {number}{why} keeps {count:,} of them{reason}"


def _about_site(domain: str, waiting: Waiting) -> Iterator[str]:
    by = f" by [[route]] {waiting.route.removeprefix('route ')}" if waiting.route else ""
    if waiting.site == LOCAL.name:
        yield f"it goes into mailboxes here (the site {waiting.site})"
    elif waiting.site:
        yield f"it goes to the site {waiting.site}{by}"
    elif waiting.problem.startswith("5"):
        yield f"it cannot be delivered and goes back when it is tried{by}: {waiting.problem}"
    else:
        yield f"where it goes{by} is not known now, so it waits: {waiting.problem}"
    for hop, count in waiting.rerouted.items():
        goes = "goes" if count == 1 else "go"
        yield f"{count:,} {goes} to {hop} instead: rerouted by an operator"


def _about_hosts(waiting: Waiting, now: float) -> Iterator[str]:
    # Each worker has its own memory of hosts; the longest pause counts.
    longest = {each.host: each for each in sorted(waiting.pauses, key=lambda each: each.until)}
    for pause in longest.values():
        left = span(pause.until - now)
        yield f"host {pause.host} is left alone for {left} more: {pause.reply}"


def _about_waiting(waiting: Waiting, now: float) -> Iterator[str]:
    if waiting.out:
        yield f"{waiting.out:,} {is_are(waiting.out)} on the way: ready to leave or being sent"
    if waiting.due:
        have = "has" if waiting.due == 1 else "have"
        yield f"{waiting.due:,} {is_are(waiting.due)} due and {have} to wait for room on the path"
    if waiting.later:
        wait = "waits" if waiting.later == 1 else "wait"
        when = f"in {span(waiting.next - now)}" if waiting.next > now else "now"
        yield (
            f"{waiting.later:,} {wait} for the next attempt, the first {when} "
            f"({moment(waiting.next)})"
        )


def _about_replies(waiting: Waiting, now: float) -> Iterator[str]:
    if waiting.last:
        yield f"the last answer, {span(now - waiting.last_time)} ago: {waiting.last}"
    replies = Counter(waiting.replies).most_common(MAX_REPLIES)
    if len(replies) > 1:
        for reply, count in replies:
            yield f"    {many(count, 'envelope')} got: {reply}"


def _about_schedule(waiting: Waiting, now: float) -> Iterator[str]:
    first, longest = Duration(waiting.first), Duration(waiting.longest)
    tries = {0: "not tried yet", 1: "tried once"}.get(
        waiting.attempts, f"tried up to {waiting.attempts} times"
    )
    by = f" (by [[retry.domain]] {waiting.retry})" if waiting.retry else ""
    yield (
        f"{tries}; after the first failure the next attempt comes in {first}, "
        f"then in twice that, up to {longest}{by}"
    )
    if waiting.gives_up > now:
        yield (
            f"the oldest came {span(now - waiting.oldest)} ago and goes back in "
            f"{span(waiting.gives_up - now)} ({moment(waiting.gives_up)})"
        )
