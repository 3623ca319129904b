"""[limits]: what strangers may do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, structs

from fastmta.config_reader import Network, Problem, Rate, Table

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


def check_abuse(config: "Config") -> Iterator[Problem]:
    yield from _check_limits(config)


def _check_limits(config: "Config") -> Iterator[Problem]:
    limits = config.limits
    rates, usual = limits.rates, Limits()
    by_network = any(name.startswith("network.") for name in rates)
    by_client = any(name.startswith("client.") for name in rates)
    if not any(map(config.offers_login, config.listener)):
        text = "is without effect: no listener offers logins"
        for name in rates:
            if name.startswith("account.") or name.endswith(".auth_failures"):
                yield Problem(f"limits.{name}", text)
    for name in ("ipv4_prefix", "ipv6_prefix"):
        if getattr(limits, name) != getattr(usual, name) and not by_network:
            yield Problem(f"limits.{name}", "is without effect: [limits.network] sets no limit")
    for name in ("exempt", "exempt_relay_networks"):
        if getattr(limits, name) != getattr(usual, name) and not (by_network or by_client):
            text = "is without effect: neither [limits.client] nor [limits.network] sets a limit"
            yield Problem(f"limits.{name}", text)
