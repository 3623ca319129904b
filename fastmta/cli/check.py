"""fastmta check: read a configuration and say whether a server could start with it."""

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import click
from msgspec import structs

from fastmta.cli.common import config_option, json_option, print_json, refuse
from fastmta.config import Config, ConfigError, Problem, Source, read
from fastmta.config_dkim import check_key, dkim_warnings
from fastmta.config_tls import check_times
from fastmta.kept import keep, let_go_of_readable
from fastmta.policy_file import PolicyError, load
from fastmta.privileges import CannotBecome, become, to_become


@click.command
@config_option
@json_option
def check(path: Path, as_json: bool) -> None:
    """Say whether a configuration can be used, and name every key that is wrong.

    Nothing is started, created or changed. Where root asks and the configuration names a user,
    files are looked at as that user will see them. A certificate that has expired is told of too,
    though a server starts with it.
    """
    try:
        source = read(path)
        warnings = _look_closer(source.parse())
        config = _as_the_user(source)
        facts = {**_facts(config), "policy": _hooks(config)}
    except ConfigError as error:
        _refuse(path, error.problems, as_json)
    if as_json:
        print_json(
            {
                "file": str(path),
                "ok": True,
                **facts,
                "warnings": [one._asdict() for one in warnings],
            }
        )
    else:
        for warning in warnings:
            click.echo(f"fastmta: {path}: warning: {warning}", err=True)
        click.echo(f"{path}: ok")
        _print_table(facts)


def _look_closer(config: Config) -> list[Problem]:
    """What works but should be otherwise; ConfigError for what a start does not look at.

    That is what was right when it was written and is wrong today, and what takes too much time:
    whether the numbers of a key belong together.
    """
    found = list(check_times(config.tls, time.time())) if config.tls else []
    for i, one in enumerate(config.dkim):
        found += check_key(one, i, thorough=True)
    if found:
        raise ConfigError(*found)
    return list(dkim_warnings(config.dkim))


def _refuse(path: Path, problems: tuple[Problem, ...], as_json: bool) -> NoReturn:
    if not as_json:
        refuse(*(f"{path}: {problem}" for problem in problems))
    print_json({"file": str(path), "ok": False, "problems": [one._asdict() for one in problems]})
    raise SystemExit(1)


def _hooks(config: Config) -> list[str]:
    """The hooks that the policy defines; it is loaded as the user."""
    if config.policy is None:
        return []
    try:
        return list(load(config.policy).hooks)
    except PolicyError as error:
        lines = str(error).splitlines()
        raise ConfigError(*(Problem("policy", line) for line in lines)) from None


def _as_the_user(source: Source) -> Config:
    """The configuration; this process is the user of the configuration afterwards, if it can."""
    config = source.parse()
    as_root = os.geteuid() == 0
    try:
        identity = to_become(config)
        if identity is None:
            return config
        kept, has_data = keep(config), config.data_dir.exists()
        become(identity)
    except CannotBecome as error:
        if as_root:
            raise ConfigError(Problem("user", str(error))) from None
        return config  # an operator asks, who cannot know what the user may read
    let_go_of_readable(kept)
    try:
        return structs.replace(source, kept=kept).parse()
    except ConfigError as error:
        # A data directory that is not there yet is made by root.
        left = [one for one in error.problems if one.key != "data_dir" or has_data]
        if left:
            raise ConfigError(*left) from None
    return config


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
        "domains": sorted(config.domains),
        "routes": routes,
        "pools": pools,
        "dkim": [{"name": one.record_name, "key": str(one.key)} for one in config.dkim],
        "data_dir": str(config.data_dir),
        "workers": config.workers,
        "user": config.user,
    }


def _print_table(facts: dict[str, Any]) -> None:
    rows = [("hostname", facts["hostname"])]
    rows += [
        (f"{one['service']} on", f"{one['bind']}, tls: {one['tls']}") for one in facts["listeners"]
    ]
    rows += [("relays for", ", ".join(facts["relay_networks"]) or "nobody")]
    rows += [("mailboxes for", ", ".join(facts["domains"]))] if facts["domains"] else []
    rows += [(f"mail for {one['domain']}", _hops(one)) for one in facts["routes"]]
    rows += [(f"pool {one['name']}", _shares(one["sources"])) for one in facts["pools"]]
    rows += [("signs by", f"{one['name']}, {one['key']}") for one in facts["dkim"]]
    rows += [("data in", facts["data_dir"]), ("workers", facts["workers"])]
    rows += [("runs as", facts["user"])] if facts["user"] else []
    rows += [("policy", ", ".join(facts["policy"]))] if facts["policy"] else []
    for name, value in rows:
        click.echo(f"  {name:<16} {value}")


def _shares(sources: dict[str, int]) -> str:
    return ", ".join(f"{name} ({share})" for name, share in sources.items())


def _hops(route: dict[str, Any]) -> str:
    protocol = "" if route["protocol"] == "smtp" else f" by {route['protocol'].upper()}"
    tls = f", tls: {route['tls']}" if route["tls"] else ""
    return ", ".join(route["next_hop"]) + protocol + tls
