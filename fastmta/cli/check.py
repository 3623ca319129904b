"""fastmta check: read a configuration and say whether a server could start with it."""

from pathlib import Path
from typing import Any

import click

from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, refuse
from fastmta.config import Config, ConfigError, Problem, load
from fastmta.config_dkim import check_key, dkim_warnings


@click.command
@config_option
@json_option
def check(path: Path, as_json: bool) -> None:
    """Say whether a configuration can be used, and name every key that is wrong.

    Nothing is started, created or changed.
    """
    if as_json:
        _check_json(path)
        return
    config = load_or_refuse(path)
    if problems := _slow_checks(config):
        refuse(*(f"{path}: {problem}" for problem in problems))
    for warning in dkim_warnings(config.dkim):
        click.echo(f"fastmta: {path}: warning: {warning}", err=True)
    click.echo(f"{path}: ok")
    _print_table(_facts(config))


def _slow_checks(config: Config) -> list[Problem]:
    """What a start does not take the time for: whether the numbers of a key belong together."""
    return [p for i, one in enumerate(config.dkim) for p in check_key(one, i, thorough=True)]


def _check_json(path: Path) -> None:
    try:
        config = load(path)
        if found := _slow_checks(config):
            raise ConfigError(*found)
        warnings = [warning._asdict() for warning in dkim_warnings(config.dkim)]
        print_json({"file": str(path), "ok": True, **_facts(config), "warnings": warnings})
    except ConfigError as error:
        problems = [problem._asdict() for problem in error.problems]
        print_json({"file": str(path), "ok": False, "problems": problems})
        raise SystemExit(1) from None


def _facts(config: Config) -> dict[str, Any]:
    """What an operator wants to see again: who we are, what comes in, where it goes."""
    listeners = [
        {"service": one.service, "bind": str(one.bind), "tls": config.tls_mode(one)}
        for one in config.listener
    ]
    routes = [
        {
            "domain": str(route.domain),
            "protocol": route.protocol,
            "next_hop": [str(hop) for hop in route.next_hop],
        }
        for route in config.route
    ]
    if not any(route.domain == "*" for route in config.route):
        hosts = f"MX hosts, port {config.delivery.port}"
        routes.append({"domain": "*", "protocol": "smtp", "next_hop": [hosts]})
    pools = [{"name": pool.name, "sources": dict(pool.sources)} for pool in config.pool]
    return {
        "hostname": config.hostname,
        "listeners": listeners,
        "relay_networks": [str(network) for network in config.smtp.relay_networks],
        "routes": routes,
        "pools": pools,
        "dkim": [{"name": one.record_name, "key": str(one.key)} for one in config.dkim],
        "data_dir": str(config.data_dir),
        "workers": config.workers,
    }


def _print_table(facts: dict[str, Any]) -> None:
    rows = [("hostname", facts["hostname"])]
    rows += [
        (f"{one['service']} on", f"{one['bind']}, tls: {one['tls']}") for one in facts["listeners"]
    ]
    rows += [("relays for", ", ".join(facts["relay_networks"]) or "nobody")]
    rows += [(f"mail for {one['domain']}", _hops(one)) for one in facts["routes"]]
    rows += [(f"pool {one['name']}", _shares(one["sources"])) for one in facts["pools"]]
    rows += [("signs by", f"{one['name']}, {one['key']}") for one in facts["dkim"]]
    rows += [("data in", facts["data_dir"]), ("workers", facts["workers"])]
    for name, value in rows:
        click.echo(f"  {name:<16} {value}")


def _shares(sources: dict[str, int]) -> str:
    return ", ".join(f"{name} ({share})" for name, share in sources.items())


def _hops(route: dict[str, Any]) -> str:
    protocol = "" if route["protocol"] == "smtp" else f" by {route['protocol'].upper()}"
    return ", ".join(route["next_hop"]) + protocol
