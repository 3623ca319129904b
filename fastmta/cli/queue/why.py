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
from fastmta.cli.words import is_are, many, moment, span
from fastmta.config_reader import Duration
from fastmta.mail.address import normal_domain
from fastmta.queue.orders import Order
from fastmta.queue.requests import Holds, Kept, PathNow, Waiting, Why

MAX_REPLIES = 3


@click.command()
@config_option
@click.argument("domain")
@json_option
def why(path: Path, domain: str, as_json: bool) -> None:
    """Say what the mail for DOMAIN is waiting for.

    \b
    fastmta queue why -c FILE example.test
    """
    try:
        domain = normal_domain(domain.removesuffix("."))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="DOMAIN") from None
    with ControlClient(load_or_refuse(path).data_dir) as client:
        found = list(answers(client, Why(domain), Waiting))
        holds = list(answers(client, Holds(), list[Order] | Kept))
    standing = next((each for each in holds if isinstance(each, list)), [])
    waiting = together(found)
    if as_json:
        print_json({"domain": domain, **_facts(waiting)})
    else:
        for sentence in explain(domain, waiting, standing, time.time()):
            say(sentence)
    if not total(waiting):
        raise SystemExit(1)


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
        yield from _about_path(path, now)
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
    if waiting.site:
        yield f"it goes to the site {waiting.site}"
    elif waiting.problem.startswith("5"):
        yield f"it cannot be delivered and goes back when it is tried: {waiting.problem}"
    else:
        yield f"where it goes is not known now, so it waits: {waiting.problem}"


def _about_hosts(waiting: Waiting, now: float) -> Iterator[str]:
    # Each worker has its own memory of hosts; the longest pause counts.
    longest = {each.host: each for each in sorted(waiting.pauses, key=lambda each: each.until)}
    for pause in longest.values():
        left = span(pause.until - now)
        yield f"host {pause.host} is left alone for {left} more: {pause.reply}"


def _about_path(path: PathNow, now: float) -> Iterator[str]:
    source = f" from {path.source}" if path.source else ""
    yield (
        f"path {path.name}{source}: {many(path.waiting, 'envelope')} ready to leave, "
        f"{path.busy} of {path.busy + path.idle} connections busy, "
        f"{path.delivered:.1f}/s delivered, {path.deferred:.1f}/s deferred"
    )
    if reason := _limit(path, now):
        yield f"    {reason}"
    if path.slowed_by:
        yield f"    it is slowed down: {path.slowed_by}"


def _limit(path: PathNow, now: float) -> str:
    """What keeps a path from doing more."""
    until = f" until {moment(path.until)}" if path.until > now else ""
    match path.waits_for:
        case "connection limit":
            return f"it has as many connections as it may have{_origin(path, 'connections')}"
        case "connection rate":
            return f"it may open no more connections{until}{_origin(path, 'connection_rate')}"
        case "message rate":
            return f"it may send no more messages{until}{_origin(path, 'message_rate')}"
        case "host paused":
            return f"its hosts did not answer, and are left alone{until}"
        case "no slots":
            return "this worker has no connection left for it: other paths have them all"
    return ""


def _origin(path: PathNow, limit: str) -> str:
    if limit not in path.limits:
        return ""
    return f": {path.limits[limit]}, by {path.origins.get(limit, 'default')}"


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
    yield (
        f"{tries}; after the first failure the next attempt comes in {first}, "
        f"then in twice that, up to {longest}"
    )
    if waiting.gives_up > now:
        yield (
            f"the oldest came {span(now - waiting.oldest)} ago and goes back in "
            f"{span(waiting.gives_up - now)} ({moment(waiting.gives_up)})"
        )
