"""Configuration: TOML into typed structures; whatever is unknown or without effect is an error.

Each class is one table of the file, each field one setting with its default and its range.
`load` reports every problem that it finds, not the first alone.
"""

import os
import ssl
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from fastmta.config_reader import (
    ConfigError,
    DomainName,
    DomainPattern,
    Duration,
    Endpoint,
    Network,
    Problem,
    Reader,
    Table,
    covers,
)

__all__ = [
    "Config",
    "ConfigError",
    "Delivery",
    "Dns",
    "DomainName",
    "DomainPattern",
    "Duration",
    "Endpoint",
    "Listener",
    "Log",
    "Network",
    "Problem",
    "Retry",
    "Route",
    "Smtp",
    "Spool",
    "Tls",
    "TlsMode",
    "load",
    "parse",
]

MiB = 1 << 20
HOUR, DAY = 3600, 86400
_LARGEST_FILE = MiB  # of a configuration, octets

TlsMode = Literal["none", "starttls", "implicit"]
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Octets = Annotated[int, Meta(ge=1, le=1 << 40)]


class Listener(Table, frozen=True, kw_only=True):
    service: Literal["smtp", "admin"]
    bind: Endpoint
    tls: TlsMode | UnsetType = UNSET  # starttls where [tls] is set; see Config.tls_mode


class Tls(Table, frozen=True, kw_only=True):
    certificate: Path
    key: Path


class Smtp(Table, frozen=True, kw_only=True):
    relay_networks: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    max_message_size: Octets = 50 * MiB
    max_recipients: Count = 1000
    max_hops: Count = 50  # Received fields, RFC 5321 section 6.3
    max_sessions: Count = 5000  # of one worker
    max_sessions_per_client: Count = 50  # of one worker; relay_networks are exempt
    # RFC 5321 section 4.5.3.2.7
    command_timeout: Annotated[Duration, Meta(gt=0, le=DAY)] = Duration(300)
    max_errors: Count = 20
    bare_newlines: Literal["refuse", "normalise"] = "refuse"


class Spool(Table, frozen=True, kw_only=True):
    min_free_space: Annotated[int, Meta(ge=0, le=1 << 50)] = 128 * MiB  # below it mail gets 452


class Dns(Table, frozen=True, kw_only=True):
    nameservers: tuple[Endpoint, ...] = ()  # empty: the system's
    timeout: Annotated[Duration, Meta(gt=0, le=HOUR)] = Duration(10)


class Delivery(Table, frozen=True, kw_only=True):
    port: Port = 25
    allow_local_addresses: bool = False


class Route(Table, frozen=True, kw_only=True):
    domain: DomainPattern  # "example.test", "*.example.test" (below it), "*" (any)
    next_hop: tuple[Endpoint, ...]


class Retry(Table, frozen=True, kw_only=True):
    first: Annotated[Duration, Meta(gt=0, le=30 * DAY)] = Duration(5 * 60)
    max_interval: Annotated[Duration, Meta(gt=0, le=30 * DAY)] = Duration(4 * HOUR)
    give_up_after: Annotated[Duration, Meta(gt=0, le=365 * DAY)] = Duration(5 * DAY)


class Log(Table, frozen=True, kw_only=True):
    dispositions: str = "dispositions.jsonl"  # below data_dir unless absolute; "-": standard output
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Table, frozen=True, kw_only=True):
    hostname: DomainName
    data_dir: Path
    # A shard's number is one octet of each message id.
    workers: Annotated[int, Meta(ge=1, le=256)] = min(len(os.sched_getaffinity(0)), 256)
    listener: tuple[Listener, ...]
    tls: Tls | None = None
    smtp: Smtp = Smtp()
    spool: Spool = Spool()
    dns: Dns = Dns()
    delivery: Delivery = Delivery()
    route: tuple[Route, ...] = ()
    retry: Retry = Retry()
    log: Log = Log()

    def tls_mode(self, listener: Listener) -> TlsMode:
        """What a listener does: as it says, else starttls for SMTP where [tls] is set."""
        if listener.tls is not UNSET:
            return listener.tls
        return "starttls" if self.tls and listener.service == "smtp" else "none"

    @property
    def disposition_log(self) -> str:
        """Where dispositions are written: an absolute path, or "-" for standard output."""
        name = self.log.dispositions
        return name if name == "-" else str(self.data_dir / name)


# What the next releases bring, so that nobody takes it for a typing error.
_LATER = {
    **{
        f'service = "{service}"': f'the service "{service}" is not in this release; '
        'write "smtp" or "admin"'
        for service in ("submission", "pop3", "imap", "http")
    },
    "domains": "local mailboxes are not in this release; a [[route]] can pass the mail on",
    "dkim": "DKIM signing is not in this release; remove the table",
}


def load(path: Path) -> Config:
    """Read and check a configuration file; relative paths in it count from its folder."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ConfigError(Problem("", f"is larger than {_LARGEST_FILE} octets"))
        return parse(content.decode("utf-8"), path.parent.resolve())
    except OSError as error:
        raise ConfigError(Problem("", f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Problem("", f"is not UTF-8 at octet {error.start}")) from None


def parse(text: str, folder: Path) -> Config:
    """The configuration in `text`; ConfigError names every key that is wrong, and why."""
    reader = Reader(Config, _LATER, folder)
    config = reader.table(Config, _toml(text))
    if config is None:
        raise ConfigError(*reader.problems)
    if problems := [problem for rule in _RULES for problem in rule(config)]:
        raise ConfigError(*problems)
    return config


def _toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(Problem("", "is no TOML that can be read: nested too deep")) from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(Problem("", f"is no TOML: {error}")) from None


def _check_listeners(config: Config) -> Iterator[Problem]:
    if not any(listener.service == "smtp" for listener in config.listener):
        yield Problem("listener", 'no mail can come in; write a [[listener]] with service = "smtp"')
    seen: dict[Endpoint, int] = {}
    for i, listener in enumerate(config.listener):
        first = seen.setdefault(listener.bind, i)
        if first != i:
            yield Problem(f"listener[{i}].bind", f"{listener.bind} is listener[{first}].bind too")
        yield from _check_address(f"listener[{i}].bind", listener.bind)
        yield from _check_listener_tls(config, listener, f"listener[{i}].tls")


def _check_listener_tls(config: Config, listener: Listener, key: str) -> Iterator[Problem]:
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


def _check_tls(config: Config) -> Iterator[Problem]:
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


def _check_pair(tls: Tls) -> Iterator[Problem]:
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


def _check_nameservers(config: Config) -> Iterator[Problem]:
    for i, nameserver in enumerate(config.dns.nameservers):
        yield from _check_address(f"dns.nameservers[{i}]", nameserver)


def _check_routes(config: Config) -> Iterator[Problem]:
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


def _check_retry(config: Config) -> Iterator[Problem]:
    retry = config.retry
    if retry.first > retry.max_interval:
        text = f"{retry.first} is longer than retry.max_interval, {retry.max_interval}"
        yield Problem("retry.first", text)
    if retry.max_interval > retry.give_up_after:
        text = f"{retry.max_interval} is longer than retry.give_up_after, {retry.give_up_after}"
        yield Problem("retry.max_interval", text)


def _check_files(config: Config) -> Iterator[Problem]:
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


_RULES = (
    _check_listeners,
    _check_tls,
    _check_nameservers,
    _check_routes,
    _check_retry,
    _check_files,
)
