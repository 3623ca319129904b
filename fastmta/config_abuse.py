"""[limits] and [checks]: what strangers may do, and what is asked about them."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, structs

from fastmta.config_reader import DomainName, Duration, Network, Problem, Rate, Table

if TYPE_CHECKING:
    from fastmta.config import Config


class ClientLimits(Table, frozen=True, kw_only=True):
    """For each client address, or for each network; None: no limit."""

    sessions: Rate | None = None
    messages: Rate | None = None
    recipients: Rate | None = None
    errors: Rate | None = None
    auth_failures: Rate | None = None


class AccountLimits(Table, frozen=True, kw_only=True):
    """For each account, whatever the address."""

    messages: Rate | None = None
    recipients: Rate | None = None


class Limits(Table, frozen=True, kw_only=True):
    client: ClientLimits = ClientLimits()
    network: ClientLimits = ClientLimits()
    account: AccountLimits = AccountLimits()
    ipv4_prefix: Annotated[int, Meta(ge=8, le=32)] = 24  # what a network is
    ipv6_prefix: Annotated[int, Meta(ge=16, le=128)] = 64
    exempt: tuple[Network, ...] = ()
    exempt_relay_networks: bool = True

    @property
    def rates(self) -> dict[str, Rate]:
        """The limits that are set: "client.messages" and its rate."""
        return {
            f"{scope}.{what}": rate
            for scope in ("client", "network", "account")
            for what, rate in structs.asdict(getattr(self, scope)).items()
            if rate is not None
        }


class DnsList(Table, frozen=True, kw_only=True):
    """A list in the DNS (RFC 5782), and which of its answers count."""

    zone: DomainName
    # 127.255.255.0/24 is how some say "you may not ask".
    replies: tuple[Network, ...] = (ip_network("127.0.0.0/16"),)


class Checks(Table, frozen=True, kw_only=True):
    block_list: tuple[DnsList, ...] = ()
    allow_list: tuple[DnsList, ...] = ()
    # The client's address must have a name, or one that leads back to it.
    reverse_name: Literal["ignore", "exists", "confirmed"] = "ignore"
    without_reverse_name: Literal["reject", "defer"] = "reject"
    timeout: Annotated[Duration, Meta(gt=0, le=60)] = Duration(5)  # for all of it
    greeting_delay: Annotated[Duration, Meta(ge=0, le=60)] = Duration(0)
    exempt: tuple[Network, ...] = ()

    @property
    def asks_dns(self) -> bool:
        return bool(self.block_list) or self.reverse_name != "ignore"


def check_abuse(config: "Config") -> Iterator[Problem]:
    yield from _check_limits(config)
    yield from _check_checks(config)


def _check_limits(config: "Config") -> Iterator[Problem]:
    limits = config.limits
    rates, usual = limits.rates, Limits()
    by_network = any(name.startswith("network.") for name in rates)
    by_client = any(name.startswith("client.") for name in rates)
    sends = any(map(config.offers_login, config.listener))
    for name in rates:
        if not sends and name.startswith("account."):
            yield Problem(f"limits.{name}", "is without effect: nobody logs in to send mail")
        if not config.has_logins and name.endswith(".auth_failures"):
            yield Problem(f"limits.{name}", "is without effect: no listener offers logins")
    for name in ("ipv4_prefix", "ipv6_prefix"):
        if getattr(limits, name) != getattr(usual, name) and not by_network:
            yield Problem(f"limits.{name}", "is without effect: [limits.network] sets no limit")
    for name in ("exempt", "exempt_relay_networks"):
        if getattr(limits, name) != getattr(usual, name) and not (by_network or by_client):
            text = "is without effect: neither [limits.client] nor [limits.network] sets a limit"
            yield Problem(f"limits.{name}", text)


def _check_checks(config: "Config") -> Iterator[Problem]:
    checks, usual = config.checks, Checks()
    if checks != usual and all(one.service != "smtp" for one in config.listener):
        yield Problem("checks", 'is without effect: it is for listeners with service = "smtp"')
    for name in ("block_list", "allow_list"):
        yield from _check_lists(f"checks.{name}", getattr(checks, name))
    if checks.reverse_name == "ignore" and checks.without_reverse_name != "reject":
        text = 'is without effect; write reverse_name = "exists" or "confirmed"'
        yield Problem("checks.without_reverse_name", text)
    for name in ("allow_list", "timeout"):
        if getattr(checks, name) != getattr(usual, name) and not checks.asks_dns:
            text = "is without effect: there is neither a block list nor a check of reverse names"
            yield Problem(f"checks.{name}", text)
    if checks.exempt and not (checks.asks_dns or checks.greeting_delay):
        yield Problem("checks.exempt", "is without effect: nothing is checked")


def _check_lists(key: str, lists: tuple[DnsList, ...]) -> Iterator[Problem]:
    zones = [each.zone for each in lists]
    for i, each in enumerate(lists):
        if each.zone in zones[:i]:
            yield Problem(f"{key}[{i}].zone", f'"{each.zone}" is {key}[{zones.index(each.zone)}]')
        if not each.replies:
            yield Problem(f"{key}[{i}].replies", "is empty: no answer counts; remove it")
        for k, network in enumerate(each.replies):
            if not (network.version == 4 and network.is_loopback):  # RFC 5782 section 2.1
                text = f"no list answers with {network}; its addresses are within 127.0.0.0/8"
                yield Problem(f"{key}[{i}].replies[{k}]", text)
