"""What is to be true of a configuration as a whole: each rule gives the problems that it finds."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET, structs

from fastmta import config_outbound as outbound
from fastmta.config_abuse import check_abuse
from fastmta.config_auth import check_auth
from fastmta.config_dkim import check_dkim
from fastmta.config_mailboxes import check_mailboxes
from fastmta.config_pop3 import check_pop3
from fastmta.config_process import check_policy, check_user
from fastmta.config_reader import DomainPattern, Endpoint, Problem, covers
from fastmta.config_shaping import check_shaping
from fastmta.config_submission import check_submission
from fastmta.config_tls import check_tls
from fastmta.mail.address import is_domain, is_mailbox

if TYPE_CHECKING:
    from fastmta.config import Config, Listener, Retry, RetryDomain, Suppression

_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")  # RFC 5322 section 2.2
_LABEL = re.compile(r"[!-~]{1,100}")  # what a message may say, as server.labels reads it
# What else is in the data directory.
_OURS = ("orders.json", "orders.new", "control", "lock", "spool", "suppression", "accounts", "mail")
# What readers or the way of a message depend on: never to be taken out.
_FIELDS_OF_READERS = {
    *("from", "sender", "reply-to", "to", "cc", "date", "message-id", "subject", "received"),
    *("in-reply-to", "references", "mime-version", "content-type", "content-transfer-encoding"),
    *("dkim-signature", "return-path"),
}


def _check_listeners(config: "Config") -> Iterator[Problem]:
    if all(listener.service == "admin" for listener in config.listener):
        text = 'no mail can come in; write a [[listener]] with service = "smtp" or "submission"'
        yield Problem("listener", text)
    seen: dict[Endpoint, int] = {}
    for i, listener in enumerate(config.listener):
        first = seen.setdefault(listener.bind, i)
        if first != i:
            yield Problem(f"listener[{i}].bind", f"{listener.bind} is listener[{first}].bind too")
        yield from _check_address(f"listener[{i}].bind", listener.bind)
        yield from _check_listener_tls(config, listener, f"listener[{i}].tls")
        if listener.service == "admin" and listener.proxy_networks:
            text = "is without effect: an admin listener does not speak the PROXY protocol"
            yield Problem(f"listener[{i}].proxy_networks", text)


def _check_listener_tls(config: "Config", listener: "Listener", key: str) -> Iterator[Problem]:
    mode = config.tls_mode(listener)
    if mode == "none":
        return
    if listener.service == "admin":
        yield Problem(
            key, 'an admin listener speaks HTTP without TLS; write "none" or leave it out'
        )
    elif not config.tls:
        yield Problem(key, f'"{mode}" needs a [tls] table with certificate and key')


def _check_address(key: str, endpoint: Endpoint) -> Iterator[Problem]:
    """A name would be looked up once at the start and could mean several addresses."""
    try:
        ip_address(endpoint.host)
    except ValueError:
        host = {"localhost": "127.0.0.1"}.get(endpoint.host, "192.0.2.1")
        example = Endpoint(host, endpoint.port)
        yield Problem(key, f'"{endpoint}": write an address, not a name, as in "{example}"')


def _check_tls(config: "Config") -> Iterator[Problem]:
    if config.tls is None:
        return
    if all(config.tls_mode(listener) == "none" for listener in config.listener):
        yield Problem("tls", "is without effect, no listener uses it; remove the table")
    yield from check_tls(config.tls)


def _check_auth(config: "Config") -> Iterator[Problem]:
    yield from check_auth(config.auth)


def _check_headers(config: "Config") -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for key, name in structs.asdict(config.headers).items():
        if not name:
            continue
        if not _FIELD_NAME.fullmatch(name):
            yield Problem(f"headers.{key}", f'"{name}" is no name of a header field')
        elif name.lower() in _FIELDS_OF_READERS:
            yield Problem(f"headers.{key}", f'"{name}" is for the reader; write "X-Tenant"')
        elif first := seen.get(name.lower()):
            yield Problem(f"headers.{key}", f'"{name}" is headers.{first} too')
        seen.setdefault(name.lower(), key)
    if config.headers.pool and not config.pool:
        yield Problem("headers.pool", "is without effect: there is no [[pool]]")


def _check_nameservers(config: "Config") -> Iterator[Problem]:
    for i, nameserver in enumerate(config.dns.nameservers):
        yield from _check_address(f"dns.nameservers[{i}]", nameserver)


def _check_routes(config: "Config") -> Iterator[Problem]:
    for i, route in enumerate(config.route):
        if not route.next_hop:
            yield Problem(f"route[{i}].next_hop", 'is empty; write ["192.0.2.1:25"]')
        for k, hop in enumerate(route.next_hop):
            if hop.path and route.protocol != "lmtp":
                text = f'"{hop}": a unix socket speaks LMTP; write protocol = "lmtp" in this route'
                yield Problem(f"route[{i}].next_hop[{k}]", text)
        yield from _check_unreachable("route", [each.domain for each in config.route], i)


def _check_mx_settings(config: "Config") -> Iterator[Problem]:
    """What is for MX hosts alone, where a route takes all mail."""
    if not any(route.domain == "*" for route in config.route):
        return
    usual = type(config.delivery)()
    for name in ("port", "allow_local_addresses"):
        if getattr(config.delivery, name) != getattr(usual, name):
            text = 'is without effect: it is for MX hosts, and the [[route]] for "*" takes all mail'
            yield Problem(f"delivery.{name}", text)


def _check_sources(config: "Config") -> Iterator[Problem]:
    used = {name for pool in config.pool for name in pool.sources}
    for i, source in enumerate(config.source):
        key = f"source[{i}]"
        if source.name in [earlier.name for earlier in config.source[:i]]:
            yield Problem(f"{key}.name", f'another source is called "{source.name}"')
        elif source.name not in used:
            text = f'"{source.name}" is in no pool; name it in the sources of a [[pool]]'
            yield Problem(f"{key}.name", text)
        families = [":" in address for address in source.addresses]
        if not families:
            yield Problem(f"{key}.addresses", 'is empty; write ["192.0.2.10"]')
        elif len(families) != len(set(families)):
            text = "has several of one family; write a [[source]] for each, and a pool of them"
            yield Problem(f"{key}.addresses", text)


def _check_pools(config: "Config") -> Iterator[Problem]:
    known = [source.name for source in config.source]
    taken: dict[tuple[str, str], str] = {}  # what chooses a pool -> where that is said
    for i, pool in enumerate(config.pool):
        key = f"pool[{i}]"
        if not pool.sources:
            yield Problem(f"{key}.sources", "is empty; write { NAME = 1 } with names of [[source]]")
        for name in pool.sources:
            if name not in known:
                yield Problem(f"{key}.sources.{name}", "no [[source]] is called so")
        if pool.tenants and not config.knows_tenants:
            text = "is without effect: nothing says whose mail it is; set headers.tenant"
            yield Problem(f"{key}.tenants", text)
        for name in pool.tenants:
            yield from _check_label(f"{key}.tenants", name)
        for what in ("tenants", "senders"):
            yield from _check_repeats(f"{key}.{what}", getattr(pool, what))
        if not (pool.tenants or pool.senders or config.headers.pool or pool.name == "default"):
            text = 'nothing chooses it; set tenants, senders or headers.pool, or call it "default"'
            yield Problem(key, text)
        chosen_by: list[tuple[str, str]] = [("name", pool.name)]
        chosen_by += [("tenants", name) for name in pool.tenants]
        chosen_by += [("senders", pattern) for pattern in pool.senders]
        for what, name in chosen_by:
            if taken.setdefault((what, name), f"{key}.{what}") != f"{key}.{what}":
                yield Problem(f"{key}.{what}", f'"{name}" is in {taken[what, name]} too')


def _check_tenants(config: "Config") -> Iterator[Problem]:
    for name, tenant in config.tenants.items():
        problems = list(_check_label("tenants", name))
        yield from problems
        if problems:
            continue
        if tenant == type(tenant)():
            text = "is without effect, these are the defaults; set weight or priority"
            yield Problem(f"tenants.{name}", text)
        elif not config.knows_tenants:
            text = "is without effect: nothing says whose mail it is; set headers.tenant"
            yield Problem(f"tenants.{name}", text)


def _check_label(key: str, name: str) -> Iterator[Problem]:
    """Whether a message may name this tenant; of one that does not, nobody is told."""
    if not _LABEL.fullmatch(name):
        text = "can never match: a tenant has 1 to 100 printable ASCII characters without spaces"
        yield Problem(key, f"{name!r} {text}")


def _check_repeats(key: str, values: Sequence[str]) -> Iterator[Problem]:
    for name in sorted({value for value in values if values.count(value) > 1}):
        yield Problem(key, f'"{name}" is there twice')


def _check_shaping(config: "Config") -> Iterator[Problem]:
    yield from check_shaping(config.shaping)
    known = [source.name for source in config.source]
    for i, block in enumerate(config.shaping.source):
        if block.source not in known:
            text = f'"{block.source}" is no name of a [[source]]'
            yield Problem(f"shaping.source[{i}].source", text)


def _check_retry(config: "Config") -> Iterator[Problem]:
    yield from _check_schedule(config.retry, lambda name: f"retry.{name}")
    for i, rule in enumerate(config.retry.domain):
        yield from _check_retry_domain(config, i)

        def key(name: str, i: int = i, rule: "RetryDomain" = rule) -> str:
            own = getattr(rule, name) is not UNSET
            return f"retry.domain[{i}].{name}" if own else f"retry.{name}"

        if _is_ordered(config.retry):  # what is wrong there is said once
            yield from _check_schedule(config.retry.merged(rule), key)


def _is_ordered(retry: "Retry") -> bool:
    return retry.first <= retry.max_interval <= retry.give_up_after


def _check_schedule(retry: "Retry", key: Callable[[str], str]) -> Iterator[Problem]:
    """`key` says where a value of this schedule was written."""
    for shorter, longer in (("first", "max_interval"), ("max_interval", "give_up_after")):
        one, other = getattr(retry, shorter), getattr(retry, longer)
        if one > other:
            yield Problem(key(shorter), f"{one} is longer than {key(longer)}, {other}")


def _check_retry_domain(config: "Config", i: int) -> Iterator[Problem]:
    rules = config.retry.domain
    rule = rules[i]
    if rule.domain == "*":
        yield Problem(f"retry.domain[{i}].domain", '"*" is every domain; write it in [retry]')
        return
    if rule.first is rule.max_interval is rule.give_up_after is UNSET:
        text = "sets nothing; write first, max_interval or give_up_after, or remove it"
        yield Problem(f"retry.domain[{i}]", text)
    yield from _check_unreachable("retry.domain", [each.domain for each in rules], i)


def _check_unreachable(table: str, patterns: Sequence[DomainPattern], i: int) -> Iterator[Problem]:
    """Of rules whose first match is taken: whether one before hides this one."""
    for j, earlier in enumerate(patterns[:i]):
        if covers(earlier, patterns[i]):
            yield Problem(
                f"{table}[{i}].domain",
                f'"{patterns[i]}" can never match: {table}[{j}] with "{earlier}" '
                "comes first; move this one above it or remove it",
            )
            break


def _check_reports(config: "Config") -> Iterator[Problem]:
    """Whether any mail grows old enough for a report of its delay, where one is wanted."""
    reports, retry = config.reports, config.retry
    ages = [retry.give_up_after, *(retry.merged(rule).give_up_after for rule in retry.domain)]
    if reports.delay_after < max(ages):
        return
    text = f"is without effect: no mail waits longer than {max(ages)} (retry.give_up_after)"
    if reports.delay_after != type(reports)().delay_after:
        yield Problem("reports.delay_after", f"{reports.delay_after} {text}")
    elif reports.unasked_delays:
        yield Problem("reports.unasked_delays", f"{text}, delay_after is {reports.delay_after}")


def _check_bounces(config: "Config") -> Iterator[Problem]:
    if (bounces := config.bounces) is None:
        return
    if not (bounces.addresses or bounces.complaints):
        yield Problem("bounces", "is without effect; write addresses or complaints, or remove it")
    if bounces.suppress is True and not config.suppression:
        yield Problem("bounces.suppress", "is without effect; write a [suppression] table")
    for name in ("addresses", "complaints"):
        for i, address in enumerate(getattr(bounces, name)):
            if not _is_report_address(address):
                text = f'{address!r}: write "bounces@example.test" or "*@bounces.example.test"'
                yield Problem(f"bounces.{name}[{i}]", text)
        yield from _check_report_addresses(f"bounces.{name}", getattr(bounces, name))


def _check_report_addresses(key: str, addresses: Sequence[str]) -> Iterator[Problem]:
    """Whether each takes what the others of its list do not."""
    known = [address.lower() for address in addresses]
    yield from _check_repeats(key, known)
    for i, address in enumerate(known):
        any_of_domain = f"*@{address.rpartition('@')[2]}"
        if address != any_of_domain and any_of_domain in known:
            yield Problem(f"{key}[{i}]", f'is without effect: "{any_of_domain}" takes it already')


def _is_report_address(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return is_domain(domain) if local == "*" else is_mailbox(text)


def _check_suppression(config: "Config") -> Iterator[Problem]:
    suppression = config.suppression
    if suppression and not suppression.categories and suppression.hard_bounces:
        yield Problem("suppression.hard_bounces", "is without effect while categories is empty")
    if suppression:
        yield from _check_repeats("suppression.categories", suppression.categories)
        yield from _check_feeds(config, suppression)


def _check_feeds(config: "Config", suppression: "Suppression") -> Iterator[Problem]:
    """Whether anything comes onto the list of itself, where that is spoken of."""
    usual, bounces = type(suppression)(), config.bounces
    reports = bounces if config.reports_suppress else None
    text = "is without effect: only an operator puts addresses on the list; see hard_bounces"
    is_fed_by_bounces = suppression.hard_bounces or (reports and reports.addresses)
    if not is_fed_by_bounces and suppression.categories != usual.categories:
        yield Problem("suppression.categories", text)
    is_fed = is_fed_by_bounces or reports
    if not is_fed and suppression.expire_after != usual.expire_after:
        yield Problem("suppression.expire_after", text)


def _check_dkim(config: "Config") -> Iterator[Problem]:
    return check_dkim(config.dkim)


def _check_files(config: "Config") -> Iterator[Problem]:
    yield from _check_folder("data_dir", config.data_dir)
    name = config.log.dispositions
    if not (name and name.isprintable()):
        yield Problem("log.dispositions", 'is no path; write "dispositions.jsonl" or "-"')
    elif name != "-":
        yield from _check_log(Path(os.path.normpath(config.data_dir / name)), config.data_dir)


def _check_log(path: Path, data_dir: Path) -> Iterator[Problem]:
    """Whether the log can be opened; only the data directory is made where it is not there."""
    key = "log.dispositions"
    try:
        if path.parent == Path(os.path.normpath(data_dir)):
            if path.name in _OURS:
                yield Problem(key, f"{path} is for something else; write another name")
        elif not path.parent.is_dir():
            yield Problem(key, f"{path.parent} is no folder that is there; make it first")
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            yield Problem(key, f"{path}: no permission to write in {path.parent}")
        elif path.is_dir():
            yield Problem(key, f"{path} is a folder")
    except OSError as error:
        yield Problem(key, f"{path} cannot be used: {error.strerror}")


def _check_folder(key: str, path: Path) -> Iterator[Problem]:
    """Whether a folder is there or could be made; nothing is made here."""
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:
        yield Problem(key, f"{path} cannot be used: {error.strerror}")
        return
    if not existing.is_dir():
        yield Problem(key, f"{existing} is not a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Problem(key, f"{path}: no permission to write in {existing}")


RULES = (
    check_user,
    check_policy,
    _check_listeners,
    check_submission,
    check_pop3,
    check_abuse,
    check_mailboxes,
    _check_tls,
    _check_auth,
    _check_nameservers,
    _check_routes,
    _check_mx_settings,
    _check_headers,
    _check_sources,
    _check_pools,
    _check_tenants,
    _check_shaping,
    *outbound.RULES,
    _check_retry,
    _check_reports,
    _check_bounces,
    _check_suppression,
    _check_dkim,
    _check_files,
)
