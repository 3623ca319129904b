"""What is to be true of a configuration as a whole: each rule gives the problems that it finds."""

import os
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from fastmta.config_reader import Endpoint, Problem, covers

if TYPE_CHECKING:
    from fastmta.config import Config, Listener, Tls


def _check_listeners(config: "Config") -> Iterator[Problem]:
    if not any(listener.service == "smtp" for listener in config.listener):
        yield Problem("listener", 'no mail can come in; write a [[listener]] with service = "smtp"')
    seen: dict[Endpoint, int] = {}
    for i, listener in enumerate(config.listener):
        first = seen.setdefault(listener.bind, i)
        if first != i:
            yield Problem(f"listener[{i}].bind", f"{listener.bind} is listener[{first}].bind too")
        yield from _check_address(f"listener[{i}].bind", listener.bind)
        yield from _check_listener_tls(config, listener, f"listener[{i}].tls")


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
    files = {"tls.certificate": config.tls.certificate, "tls.key": config.tls.key}
    unreadable = [problem for key, path in files.items() for problem in _check_file(key, path)]
    yield from unreadable or _check_pair(config.tls)


def _check_file(key: str, path: Path) -> Iterator[Problem]:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        yield Problem(key, f"{path} cannot be read: {error.strerror}")


def _check_pair(tls: "Tls") -> Iterator[Problem]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password=b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield Problem("tls.key", f"{tls.key} is not the key of {tls.certificate}")
        else:
            reason = error.reason or "no certificate or key in PEM form"
            yield Problem("tls", f"{tls.certificate} and {tls.key} cannot be loaded: {reason}")


def _check_nameservers(config: "Config") -> Iterator[Problem]:
    for i, nameserver in enumerate(config.dns.nameservers):
        yield from _check_address(f"dns.nameservers[{i}]", nameserver)


def _check_routes(config: "Config") -> Iterator[Problem]:
    for i, route in enumerate(config.route):
        if not route.next_hop:
            yield Problem(f"route[{i}].next_hop", 'is empty; write ["192.0.2.1:25"]')
        for j, earlier in enumerate(config.route[:i]):
            if covers(earlier.domain, route.domain):
                yield Problem(
                    f"route[{i}].domain",
                    f'"{route.domain}" can never match: route[{j}] with "{earlier.domain}" '
                    "comes first; move this one above it or remove it",
                )
                break


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
        chosen_by: list[tuple[str, str]] = [("name", pool.name)]
        chosen_by += [("tenants", name) for name in pool.tenants]
        chosen_by += [("senders", pattern) for pattern in pool.senders]
        for what, name in chosen_by:
            if taken.setdefault((what, name), f"{key}.{what}") != f"{key}.{what}":
                yield Problem(f"{key}.{what}", f'"{name}" is in {taken[what, name]} too')


def _check_tenants(config: "Config") -> Iterator[Problem]:
    for name, tenant in config.tenants.items():
        if not name:
            yield Problem('tenants.""', "is no name of a tenant")
        elif tenant == type(tenant)():
            text = "is without effect, these are the defaults; set weight or priority"
            yield Problem(f"tenants.{name}", text)


def _check_retry(config: "Config") -> Iterator[Problem]:
    retry = config.retry
    if retry.first > retry.max_interval:
        text = f"{retry.first} is longer than retry.max_interval, {retry.max_interval}"
        yield Problem("retry.first", text)
    if retry.max_interval > retry.give_up_after:
        text = f"{retry.max_interval} is longer than retry.give_up_after, {retry.give_up_after}"
        yield Problem("retry.max_interval", text)


def _check_files(config: "Config") -> Iterator[Problem]:
    yield from _check_folder("data_dir", config.data_dir)
    name = config.log.dispositions
    if not (name and name.isprintable()):
        yield Problem("log.dispositions", 'is no path; write "dispositions.jsonl" or "-"')
    elif Path(name).is_absolute():
        yield from _check_folder("log.dispositions", Path(name).parent)


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
    _check_listeners,
    _check_tls,
    _check_nameservers,
    _check_routes,
    _check_sources,
    _check_pools,
    _check_tenants,
    _check_retry,
    _check_files,
)
