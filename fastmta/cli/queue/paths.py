"""What paths do and may do, as operators read it: of all workers, with what they share."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from fastmta.cli.client import ControlClient
from fastmta.cli.queue.orders import answers
from fastmta.cli.words import many, moment, pace, span
from fastmta.delivery.site import LOCAL
from fastmta.queue.requests import Allowance, Allowances, PathNow
from fastmta.queue.shared_path import Cause, PathReport


def with_allowances(
    client: ControlClient, paths: list[PathNow], sites: Iterable[str]
) -> list[PathNow]:
    """What workers say of paths, as one of each name, with what it may do now.

    Paths to these sites that no worker has any more, but whose limits are remembered, are added.
    """
    request = Allowance(tuple({path.name for path in paths}), tuple(sites))
    if not (request.paths or request.sites):
        return []
    return together(paths, allowances(client, request))


def allowances(client: ControlClient, request: Allowance) -> Allowances:
    (allowed,) = answers(client, request, Allowances)
    assert isinstance(allowed, Allowances)
    return allowed


def together(paths: list[PathNow], allowed: Allowances) -> list[PathNow]:
    """One of each name, the workers' in the order in which they come."""
    shared = {report.path: report for report in allowed.paths}
    groups = {report.path: report for report in allowed.groups}
    by_name: dict[str, list[PathNow]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    known = [replace(_sum(each), shared=shared.pop(name, None)) for name, each in by_name.items()]
    known += [_remembered(report) for report in shared.values()]
    return [
        replace(each, group=groups.get(each.shared.group) if each.shared else None)
        for each in known
    ]


def _remembered(report: PathReport) -> PathNow:
    """No worker has anything of it now."""
    return PathNow(report.path, report.site, report.source, shared=report)


def _sum(parts: list[PathNow]) -> PathNow:
    latest = max(parts, key=lambda part: part.last_time)
    stuck = max(parts, key=lambda part: (part.waits_for != "ready", part.waiting))
    return replace(
        latest,
        waiting=sum(part.waiting for part in parts),
        busy=sum(part.busy for part in parts),
        idle=sum(part.idle for part in parts),
        opening=sum(part.opening for part in parts),
        capacity=sum(part.capacity for part in parts),
        delivered=round(sum(part.delivered for part in parts), 2),
        deferred=round(sum(part.deferred for part in parts), 2),
        waits_for=stuck.waits_for,
        until=stuck.until,
    )


# In words.


def about_path(path: PathNow, now: float) -> Iterator[str]:
    """What it does, what keeps it from doing more, and who has slowed it down."""
    if path.name == LOCAL.name:
        yield (
            f"{many(path.waiting, 'envelope')} on the way into mailboxes here, "
            f"{path.delivered:.1f}/s delivered, {path.deferred:.1f}/s deferred"
        )
        return
    used = path.waiting or path.busy or path.idle or path.opening
    idle = f"path {path.name}: nothing is ready to leave, no connection is open"
    yield _activity(path) if used else idle
    if reason := obstacle(path, now):
        yield f"    {reason}"
    for sentence in slowness(path, now):
        yield f"    {sentence}"


def _activity(path: PathNow) -> str:
    return (
        f"path {path.name}: {many(path.waiting, 'envelope')} ready to leave, "
        f"{path.busy} of {path.busy + path.idle} connections busy, "
        f"{path.delivered:.1f}/s delivered, {path.deferred:.1f}/s deferred"
    )


def obstacle(path: PathNow, now: float) -> str:
    """What keeps mail that is ready from leaving; "": nothing."""
    shared = path.shared
    if path.group is not None and shared is not None and shared.refused_by_group:
        return _obstacle_of_group(path.waits_for, path.group, now)
    match path.waits_for:
        case "connection limit" if path.until:  # what the host itself allows
            return f"its hosts take no more connections; another is tried {_at(path.until, now)}"
        case "connection limit":
            return f"it has as many connections as it may have{_present(path)}"
        case "connection rate":
            return (
                f"connection rate{_limit(path, 'connection_rate')}: "
                f"the next one may be opened {_in(shared.next_connection if shared else 0.0, now)}"
            )
        case "message rate":
            return (
                f"message rate{_limit(path, 'message_rate')}: "
                f"the next one may begin {_in(shared.next_message if shared else 0.0, now)}"
            )
        case "host paused":
            return (
                f"its hosts did not answer and are left alone; one is tried {_at(path.until, now)}"
            )
        case "no slots":
            return "this worker has no connection left for it: other paths have them all"
    return ""


def _obstacle_of_group(waits_for: str, group: PathReport, now: float) -> str:
    who = f"what all paths of {group.path} share"
    if waits_for == "message rate":
        limit = f" {pace(group.rate)}" if group.rate else ""
        return f"message rate{limit}, {who}: the next one may begin {_in(group.next_message, now)}"
    if group.open < group.connections:
        return (
            f"connection rate, {who}: the next one may be opened {_in(group.next_connection, now)}"
        )
    return f"it waits for a connection, {who}: {group.open} open of {group.connections}"


def _present(path: PathNow) -> str:
    """How many are open of how many, and which rule says so where nobody has slowed the path."""
    shared = path.shared
    if shared is None:
        return f": connections{_limit(path, 'connections')}"
    said = f": {shared.open} open of {shared.connections}"
    return said if shared.slowed else f"{said} ({_origin(path, 'connections')})"


def _limit(path: PathNow, name: str) -> str:
    """As it is configured, and where; a rate may be there only because the path is slowed."""
    if name in path.limits:
        return f" {path.limits[name]} ({_origin(path, name)})"
    return f" {pace(path.shared.rate)}" if path.shared and path.shared.rate else ""


def _origin(path: PathNow, name: str) -> str:
    return path.origins.get(name, "default")


def _in(seconds: float, now: float) -> str:
    return _at(now + seconds, now) if seconds else "as soon as there is room"


def _at(when: float, now: float) -> str:
    """A moment that is near, as people look for it: how long, and by the clock."""
    return f"in {span(when - now)} ({moment(when)})" if when - now >= 1 else "within a second"


def slowness(path: PathNow, now: float) -> Iterator[str]:
    """What a path may do less than it is configured for, who asked for it, and when more comes."""
    if path.shared is not None and path.shared.slowed is not None:
        yield from _slowness("slowed down", path.shared, path.shared.slowed, now)
    if path.group is not None and path.group.slowed is not None:
        who = f"slowed down with all paths of {path.group.path}"
        yield from _slowness(who, path.group, path.group.slowed, now)


def _slowness(who: str, shared: PathReport, cause: Cause, now: float) -> Iterator[str]:
    yield f"{who}: for now {present(shared)}, {shared.open} open"
    yield f"    asked for by {cause.reply} (rule {cause.rule}), {_ago(cause.time, now)}"
    step = f"in {span(shared.next_step)}" if shared.next_step else "with the next delivery"
    yield f"    a tenth comes back each minute in which it delivers, the next {step}"


def present(report: PathReport) -> str:
    """What a path may do now, of what it is configured for."""
    said = f"{report.connections} of {many(report.configured_connections, 'connection')}"
    if report.rate is None:
        return said
    whole = f" of {pace(report.configured_rate)}" if report.configured_rate else ""
    return f"{said} and {pace(report.rate)}{whole}"


def _ago(when: float, now: float) -> str:
    return f"{span(now - when)} ago ({moment(when)})"
