"""fastmta check: read a configuration and say whether a server could start with it."""

from pathlib import Path
from typing import Any

import click

from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json
from fastmta.config import Config, ConfigError, load


@click.command
@config_option
@json_option
def check(path: Path, as_json: bool) -> None:
    """Say whether a configuration can be used, and name every key that is wrong.

    Nothing is started, created or changed.
    """
    if as_json:
        _check_json(path)
    else:
        facts = _facts(load_or_refuse(path))
        click.echo(f"{path}: ok")
        _print_table(facts)


def _check_json(path: Path) -> None:
    try:
        print_json({"file": str(path), "ok": True, **_facts(load(path))})
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
            "tls": route.tls or None,
            "next_hop": [str(hop) for hop in route.next_hop],
        }
        for route in config.route
    ]
    if not any(route.domain == "*" for route in config.route):
        hosts = f"MX hosts, port {config.delivery.port}"
        routes.append({"domain": "*", "protocol": "smtp", "tls": None, "next_hop": [hosts]})
    pools = [{"name": pool.name, "sources": dict(pool.sources)} for pool in config.pool]
    return {
        "hostname": config.hostname,
        "listeners": listeners,
        "relay_networks": [str(network) for network in config.smtp.relay_networks],
        "routes": routes,
        "pools": pools,
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
    rows += [("data in", facts["data_dir"]), ("workers", facts["workers"])]
    for name, value in rows:
        click.echo(f"  {name:<16} {value}")


def _shares(sources: dict[str, int]) -> str:
    return ", ".join(f"{name} ({share})" for name, share in sources.items())


def _hops(route: dict[str, Any]) -> str:
    protocol = "" if route["protocol"] == "smtp" else f" by {route['protocol'].upper()}"
    tls = f", tls: {route['tls']}" if route["tls"] else ""
    return ", ".join(route["next_hop"]) + protocol + tls
