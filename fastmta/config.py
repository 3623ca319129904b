"""Configuration: TOML into typed structures; whatever is unknown or without effect is an error.

Each class is one table of the file, each field one setting with its default and its range.
`load` reports every problem that it finds, not the first alone.
"""

import os
import tomllib
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from fastmta.config_abuse import Checks, Limits
from fastmta.config_auth import Auth, OAuth
from fastmta.config_dkim import Dkim
from fastmta.config_mailboxes import Domain, Mailboxes
from fastmta.config_pop3 import Pop3
from fastmta.config_reader import (
    Address,
    ConfigError,
    DomainName,
    DomainPattern,
    Duration,
    Endpoint,
    MailAddress,
    Name,
    Network,
    NextHop,
    Problem,
    Reader,
    Table,
)
from fastmta.config_rules import RULES
from fastmta.config_shaping import Shaping, TlsPolicy, is_strict
from fastmta.config_submission import Submission
from fastmta.config_tls import Tls, TlsHost

__all__ = [
    "Address",
    "Auth",
    "Bounces",
    "Checks",
    "Config",
    "ConfigError",
    "Delivery",
    "Dkim",
    "Dns",
    "Domain",
    "DomainName",
    "DomainPattern",
    "Duration",
    "Endpoint",
    "Headers",
    "HopProtocol",
    "Limits",
    "Listener",
    "Log",
    "MailAddress",
    "MailSource",
    "Mailboxes",
    "Name",
    "Network",
    "NextHop",
    "OAuth",
    "Pool",
    "Pop3",
    "Problem",
    "Reports",
    "Retry",
    "RetryDomain",
    "Route",
    "Shaping",
    "Smtp",
    "Source",
    "Spool",
    "Submission",
    "Suppression",
    "Tenant",
    "Tls",
    "TlsHost",
    "TlsMode",
    "TlsPolicy",
    "changes",
    "fingerprint",
    "load",
    "parse",
    "parse_hop",
    "read",
]

MiB = 1 << 20
HOUR, DAY = 3600, 86400
_LARGEST_FILE = MiB  # of a configuration, octets

MAIL_SERVICES = ("smtp", "submission")

TlsMode = Literal["none", "starttls", "implicit"]
HopProtocol = Literal["smtp", "smtps", "lmtp"]


def parse_hop(text: str) -> tuple[HopProtocol, NextHop]:
    """A next hop by itself: "192.0.2.1:25", "smtps:192.0.2.1:465", "lmtp:unix:/run/lmtp"."""
    named: tuple[HopProtocol, ...] = ("smtps", "lmtp")
    protocol: HopProtocol = next((each for each in named if text.startswith(f"{each}:")), "smtp")
    hop = NextHop.parse(text.removeprefix(f"{protocol}:"))
    if hop.path and protocol != "lmtp":
        raise ValueError(f'"{text}": a unix socket speaks LMTP; write "lmtp:{text}"')
    return protocol, hop


Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Octets = Annotated[int, Meta(ge=1, le=1 << 40)]
Weight = Annotated[int, Meta(ge=1, le=1000)]


class Listener(Table, frozen=True, kw_only=True):
    service: Literal["smtp", "submission", "pop3", "admin"]
    bind: Endpoint
    tls: TlsMode | UnsetType = UNSET  # starttls where [tls] is set; see Config.tls_mode
    proxy_networks: tuple[Network, ...] = ()  # who says in front for whom it speaks (PROXY)


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
    auth: bool = False  # AUTH is offered under TLS, and who has logged in may relay
    xclient_hosts: tuple[Network, ...] = ()  # who may speak for others by XCLIENT


class Headers(Table, frozen=True, kw_only=True):
    """Names of header fields by which a client that may relay labels its messages; "": none."""

    tenant: str = ""
    campaign: str = ""
    priority: str = ""
    pool: str = ""


class Spool(Table, frozen=True, kw_only=True):
    min_free_space: Annotated[int, Meta(ge=0, le=1 << 50)] = 128 * MiB  # below it mail gets 452


class Dns(Table, frozen=True, kw_only=True):
    nameservers: tuple[Endpoint, ...] = ()  # empty: the system's
    timeout: Annotated[Duration, Meta(gt=0, le=HOUR)] = Duration(10)


class Delivery(Table, frozen=True, kw_only=True):
    port: Port = 25
    allow_local_addresses: bool = False
    ca_file: Path | None = None  # whom `tls = "verified"` trusts; None: whom the system does
    # What is shown to hosts that ask for it, where the source has none of its own.
    client_certificate: Path | None = None
    client_key: Path | None = None
    tls_required_header: Literal["honour", "ignore"] = "honour"  # RFC 8689 section 3


class Route(Table, frozen=True, kw_only=True):
    domain: DomainPattern  # "example.test", "*.example.test" (below it), "*" (any)
    protocol: HopProtocol = "smtp"
    next_hop: tuple[NextHop, ...]
    tls: TlsPolicy | UnsetType = UNSET  # left out: as [shaping] has it


class MailSource(Table, frozen=True, kw_only=True):
    name: Name
    addresses: tuple[Address, ...]  # of this machine, at most one of each family
    hostname: DomainName | None = None  # None: that of the top
    client_certificate: Path | None = None  # None: that of [delivery]
    client_key: Path | None = None


class Pool(Table, frozen=True, kw_only=True):
    name: Name
    sources: dict[str, Weight]  # name of a source -> its share
    tenants: tuple[str, ...] = ()
    senders: tuple[DomainPattern, ...] = ()  # domains of the reverse-path


class Tenant(Table, frozen=True, kw_only=True):
    weight: Weight = 1  # its share where several have mail for one path
    priority: Literal["urgent", "normal", "bulk"] = "normal"


Pause = Annotated[Duration, Meta(gt=0, le=30 * DAY)]
Age = Annotated[Duration, Meta(gt=0, le=365 * DAY)]


class RetryDomain(Table, frozen=True, kw_only=True):
    domain: DomainPattern
    first: Pause | UnsetType = UNSET  # left out, like the others: as in [retry]
    max_interval: Pause | UnsetType = UNSET
    give_up_after: Age | UnsetType = UNSET


class Retry(Table, frozen=True, kw_only=True):
    first: Pause = Duration(5 * 60)
    max_interval: Pause = Duration(4 * HOUR)
    give_up_after: Age = Duration(5 * DAY)
    domain: tuple[RetryDomain, ...] = ()

    def merged(self, rule: RetryDomain) -> "Retry":
        """The schedule of the domains that a rule matches."""
        own = {name: value for name, value in structs.asdict(rule).items() if value is not UNSET}
        return structs.replace(self, **{**own, "domain": ()})

    @property
    def shortest(self) -> Age:
        """The least age at which any domain's mail is given up."""
        return min(each.give_up_after for each in (self, *map(self.merged, self.domain)))

    @property
    def longest(self) -> Pause:
        """The longest pause between two attempts of any domain's mail."""
        return max(each.max_interval for each in (self, *map(self.merged, self.domain)))


class Reports(Table, frozen=True, kw_only=True):
    delay_after: Age = Duration(4 * HOUR)
    unasked_delays: bool = False  # RFC 3461 section 4.1 leaves it to us
    postmaster: MailAddress = MailAddress("")  # "": nobody


class Suppression(Table, frozen=True, kw_only=True):
    """Without the table nothing is suppressed."""

    on_match: Literal["reject", "drop"] = "reject"
    hard_bounces: bool = True  # our own failures put addresses on the list
    # What of hard bounces, our own and those that come in, means that an address is dead.
    categories: tuple[Literal["bad-mailbox", "bad-domain", "inactive", "full"], ...] = (
        "bad-mailbox",
        "inactive",
    )
    expire_after: Annotated[Duration, Meta(gt=0, le=3650 * DAY)] = Duration(90 * DAY)


class Bounces(Table, frozen=True, kw_only=True):
    """Where reports come in: "bounces@example.test", "*@bounces.example.test"."""

    addresses: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    suppress: bool | UnsetType = UNSET  # true where [suppression] is set


class Log(Table, frozen=True, kw_only=True):
    dispositions: str = "dispositions.jsonl"  # below data_dir unless absolute; "-": standard output
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Table, frozen=True, kw_only=True):
    hostname: DomainName
    data_dir: Path
    # A shard's number is one octet of each message id.
    workers: Annotated[int, Meta(ge=1, le=256)] = min(len(os.sched_getaffinity(0)), 256)
    user: str = ""  # as whom to run when root has bound the ports; "": as whoever started it
    group: str = ""  # "": that of the user
    policy: Path | None = None  # a Python module with hooks
    policy_timeout: Annotated[Duration, Meta(gt=0, le=HOUR)] = Duration(10)  # of one call
    listener: tuple[Listener, ...]
    tls: Tls | None = None
    auth: Auth = Auth()
    smtp: Smtp = Smtp()
    domains: dict[DomainName, Domain] = {}  # of ours; other mail is passed on
    mailboxes: Mailboxes = Mailboxes()
    submission: Submission = Submission()
    pop3: Pop3 = Pop3()
    limits: Limits = Limits()
    checks: Checks = Checks()
    headers: Headers = Headers()
    spool: Spool = Spool()
    dns: Dns = Dns()
    delivery: Delivery = Delivery()
    route: tuple[Route, ...] = ()
    source: tuple[MailSource, ...] = ()
    pool: tuple[Pool, ...] = ()
    tenants: dict[str, Tenant] = {}
    shaping: Shaping = Shaping()
    retry: Retry = Retry()
    reports: Reports = Reports()
    bounces: Bounces | None = None
    suppression: Suppression | None = None
    dkim: tuple[Dkim, ...] = ()
    log: Log = Log()

    def tls_mode(self, listener: Listener) -> TlsMode:
        """What a listener does: as it says, else starttls where [tls] is set, but for HTTP."""
        if listener.tls is not UNSET:
            return listener.tls
        return "starttls" if self.tls and listener.service != "admin" else "none"

    def offers_login(self, listener: Listener) -> bool:
        """Whether who sends mail there can log in."""
        return listener.service == "submission" or (listener.service == "smtp" and self.smtp.auth)

    @property
    def has_logins(self) -> bool:
        """Whether anybody logs in, to send mail or to read it."""
        return any(one.service == "pop3" or self.offers_login(one) for one in self.listener)

    @property
    def knows_tenants(self) -> bool:
        """Whether anything says whose mail it is: a field, or who has logged in."""
        return bool(self.headers.tenant) or any(map(self.offers_login, self.listener))

    @property
    def strict_tls(self) -> bool:
        """Whether some mail is not to go without TLS, or without a good certificate."""
        return is_strict(self.shaping) or any(
            route.tls in ("required", "verified") for route in self.route
        )

    @property
    def reports_suppress(self) -> bool:
        """Whether bounces and complaints that come in put addresses on the list."""
        bounces = self.bounces
        return bool(self.suppression and bounces and bounces.suppress is not False)

    @property
    def disposition_log(self) -> str:
        """Where dispositions are written: an absolute path, or "-" for standard output."""
        name = self.log.dispositions
        return name if name == "-" else str(self.data_dir / name)


# What the next releases bring, so that nobody takes it for a typing error.
_LATER = {
    **{
        f'service = "{service}"': f'the service "{service}" is not in this release; '
        'write "smtp", "submission", "pop3" or "admin"'
        for service in ("imap", "http")
    },
}


class Source(Struct, frozen=True):
    """A configuration as it was written, and what of a server that runs stays in force."""

    text: str
    folder: str  # from which its relative paths count
    data_dir: str = ""  # with the next three, once it runs: those cannot change until it ends
    workers: int = 0
    user: str = ""
    group: str = ""
    # Path -> descriptor of its content, from before root was given up.
    kept: dict[str, int] = {}

    def parse(self) -> "Config":
        """ConfigError as for `parse`."""
        config = parse(self.text, Path(self.folder), self.kept)
        if not self.workers:
            return config
        return structs.replace(
            config,
            data_dir=Path(self.data_dir),
            workers=self.workers,
            user=self.user,
            group=self.group,
        )


def load(path: Path) -> Config:
    """Read and check a configuration file; relative paths in it count from its folder."""
    return read(path).parse()


def read(path: Path) -> Source:
    """What is in a configuration file; ConfigError where that cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ConfigError(Problem("", f"is larger than {_LARGEST_FILE} octets"))
        return Source(content.decode("utf-8"), str(path.parent.resolve()))
    except OSError as error:
        raise ConfigError(Problem("", f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Problem("", f"is not UTF-8 at octet {error.start}")) from None


def parse(text: str, folder: Path, kept: dict[str, int] | None = None) -> Config:
    """The configuration in `text`; ConfigError names every key that is wrong, and why.

    `kept`: see Source.
    """
    reader = Reader(Config, _LATER, folder, kept)
    config = reader.table(Config, _toml(text))
    if config is None:
        raise ConfigError(*reader.problems)
    if problems := [problem for rule in RULES for problem in rule(config)]:
        raise ConfigError(*problems)
    return config


def changes(old: Config, new: Config) -> list[str]:
    """The names of the settings and tables that are not the same."""
    names = [field.name for field in structs.fields(Config)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def fingerprint(config: Config) -> str:
    """The same for configurations that mean the same."""
    return sha256(repr(config).encode()).hexdigest()[:12]


def _toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(Problem("", "is no TOML that can be read: nested too deep")) from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(Problem("", f"is no TOML: {error}")) from None
