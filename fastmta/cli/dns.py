"""fastmta dns: where mail for a domain would go, as the relay itself finds it out."""

import socket
from math import isfinite
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastmta.cli.common import json_option, load_or_refuse, print_json
from fastmta.config import Config, DomainName
from fastmta.config_reader import parse_domain
from fastmta.delivery.dns import Resolver
from fastmta.delivery.router import Router
from fastmta.delivery.site import Site
from fastmta.delivery.survey import Candidate, Survey, own_preference
from fastmta.mail.reply import Reply


@click.command
@click.argument("domain")
@click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file; without it, the system's nameservers and no routes.",
)
@json_option
def dns(domain: str, path: Path | None, as_json: bool) -> None:
    """Show where mail for DOMAIN goes: hosts, addresses, and the site that they make.

    Exit code 1 and the reply on standard error where it could not be delivered.
    """
    config = load_or_refuse(path) if path else _defaults()
    survey, ttl = uvloop.run(_survey(config, _normal(domain)))
    if as_json:
        print_json(_facts(survey, ttl))
    else:
        _print_table(survey, ttl)
    if isinstance(survey.outcome, Reply):
        click.echo(str(survey.outcome), err=True)
        raise SystemExit(1)


def _defaults() -> Config:
    return Config(hostname=DomainName(socket.gethostname()), data_dir=Path(), listener=())


def _normal(domain: str) -> str:
    if domain.startswith("["):
        return domain
    try:
        return parse_domain(domain.removesuffix("."))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="DOMAIN") from None


async def _survey(config: Config, domain: str) -> tuple[Survey, float]:
    """What is found, and the seconds for which it holds."""
    resolver = Resolver(config.dns)
    try:
        survey = await Router(config, resolver).survey(domain)
    finally:
        resolver.close()
    return survey, survey.expires - resolver.clock()


def _facts(survey: Survey, ttl: float) -> dict[str, Any]:
    outcome = survey.outcome
    return {
        "domain": survey.domain,
        "origin": survey.origin,
        "ttl": round(ttl) if isfinite(ttl) else None,
        "site": outcome if isinstance(outcome, Site) else None,
        "reply": str(outcome) if isinstance(outcome, Reply) else None,
        "hosts": [
            {
                "preference": each.preference,
                "host": each.host,
                "port": each.port,
                "addresses": each.targets,
                "detail": _detail(survey, each),
            }
            for each in survey.candidates
        ],
    }


def _print_table(survey: Survey, ttl: float) -> None:
    lasts = f", for {round(ttl)} s" if isfinite(ttl) else ""
    click.echo(f"{survey.domain}: {survey.origin}{lasts}")
    if isinstance(survey.outcome, Site):
        click.echo(f"site: {survey.outcome.name}")
    if survey.candidates:
        Console().print(_table(survey))


def _table(survey: Survey) -> Table:
    table = Table("preference", "host", "port", "address", "")
    for each in survey.candidates:
        head = str(each.preference), each.host, str(each.port or "")
        detail = _detail(survey, each)
        rows = [(target.address, detail or _refused(target.refused)) for target in each.targets]
        for row in rows or [("", detail)]:
            table.add_row(*(Text(cell, overflow="fold") for cell in (*head, *row)))
            head = "", "", ""
    return table


def _detail(survey: Survey, candidate: Candidate) -> str:
    """Why a host as a whole is left out."""
    if candidate.is_us:
        return "this host itself"
    if candidate.preference >= own_preference(survey.candidates):
        return "no better than this host itself"
    return candidate.detail


def _refused(reason: str) -> str:
    return f"refused: {reason}" if reason else ""
