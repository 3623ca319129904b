"""Configuration: TOML into typed structures; whatever is unknown or without effect is an error.

Each class is one table of the file, each field one setting with its default.
"""

import difflib
import os
import re
import socket
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

MiB = 1 << 20
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """The configuration cannot be used; the text says which key, why, and what to write."""


class Duration(float):
    """Seconds; written "30s", "5m", "1h30m", "5d"."""

    @classmethod
    def parse(cls, text: object) -> "Duration":
        if not isinstance(text, str):
            raise ValueError('a duration is a string such as "30s", "5m" or "4h"')
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f'{text!r} is no duration; write "30s", "5m", "1h30m" or "5d"')
        return cls(sum(float(number) * _SECONDS[unit] for number, unit in parts))


class Endpoint(NamedTuple):
    """A host (name or address) and a port; written "127.0.0.1:25", "[::1]:25", "mail.test:25"."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> "Endpoint":
        host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
        if host.startswith("[") and host.endswith("]"):
            host = str(ip_address(host[1:-1]))
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:25")
        if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError(f'{text!r} is no "host:port"; write "127.0.0.1:2525" or "[::1]:2525"')
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Table(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A table of the file."""


class Listener(Table):
    service: Literal["smtp", "admin"]
    bind: Endpoint
    tls: Literal["none", "starttls", "implicit"] | UnsetType = UNSET  # starttls where [tls] is set


class Tls(Table):
    certificate: Path
    key: Path


class Smtp(Table):
    relay_networks: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    max_message_size: int = field(default=50 * MiB)
    max_recipients: int = 1000
    max_hops: int = 50  # Received fields, RFC 5321 section 6.3
    max_sessions: int = 5000  # of one worker
    max_sessions_per_client: int = 50  # of one worker; relay_networks are exempt
    command_timeout: Duration = Duration(300)  # RFC 5321 section 4.5.3.2.7
    max_errors: int = 20
    bare_newlines: Literal["refuse", "normalise"] = "refuse"


class Spool(Table):
    min_free_space: int = 128 * MiB  # below it new mail is answered 452


class Dns(Table):
    nameservers: tuple[Endpoint, ...] = ()  # empty: the system's
    timeout: Duration = Duration(10)


class Delivery(Table):
    port: int = 25
    allow_local_addresses: bool = False


class Route(Table):
    domain: str  # "example.test", "*.example.test" (below it), "*" (any)
    next_hop: tuple[Endpoint, ...]


class Retry(Table):
    first: Duration = Duration(300)
    max_interval: Duration = Duration(4 * 3600)
    give_up_after: Duration = Duration(5 * 86400)


class Log(Table):
    dispositions: str = "dispositions.jsonl"  # below data_dir unless absolute; "-": standard output
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Table):
    hostname: str
    data_dir: Path
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    listener: tuple[Listener, ...]
    tls: Tls | None = None
    smtp: Smtp = Smtp()
    spool: Spool = Spool()
    dns: Dns = Dns()
    delivery: Delivery = Delivery()
    route: tuple[Route, ...] = ()
    retry: Retry = Retry()
    log: Log = Log()


def load(path: Path) -> Config:
    """Read and check a configuration file; relative paths in it count from its folder."""
    try:
        text = path.read_text(encoding="utf-8")
        return parse(text, path.parent.resolve())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: str, folder: Path) -> Config:
    """The configuration in `text`; ConfigError names the key that is wrong."""
    raise NotImplementedError
