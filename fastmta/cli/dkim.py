"""fastmta dkim: make a key for signing, and compare what DNS publishes with what signs."""

import json
import os
from pathlib import Path
from typing import Any

import click

from fastmta.cli.common import config_option, json_option, load_or_refuse, print_json, refuse, say
from fastmta.config import Config
from fastmta.config_dkim import Dkim, read_key
from fastmta.config_reader import parse_domain, parse_selector
from fastmta.mail.dkim import record_name, zone_line

_TIMEOUT = 5.0  # seconds for one look-up


@click.group()
def dkim() -> None:
    """Make keys for DKIM signatures, and check their DNS records."""


@dkim.command()
@click.argument("domain")
@click.option("--selector", default="s1", show_default=True, help="What its keys differ by.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["rsa2048", "ed25519"]),
    default="rsa2048",
    show_default=True,
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the key; a file that is there is never overwritten.  "
    "[default: DOMAIN.SELECTOR.pem]",
)
@json_option
def generate(domain: str, selector: str, kind: str, out: Path | None, as_json: bool) -> None:
    """Make a key; print its DNS record and its [[dkim]] table."""
    from fastmta.mail.dkim_key import generate_key, load_key

    try:
        domain, selector = parse_domain(domain.removesuffix(".")), parse_selector(selector)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    path = (out or Path(f"{domain}.{selector}.pem")).absolute()
    pem = generate_key(kind)
    _write(path, pem)
    name, record = record_name(domain, selector), load_key(pem).record
    written = json.dumps(str(path))  # which is how TOML writes it too
    table = f'[[dkim]]\ndomain = "{domain}"\nselector = "{selector}"\nkey = {written}'
    if as_json:
        print_json({"key": str(path), "name": name, "record": record, "table": table})
        return
    say(f"The key is in {path}. Publish this TXT record:\n")
    say(zone_line(name, record))
    say(f"\nand when it is there, add this to the configuration:\n\n{table}")


def _write(path: Path, pem: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        refuse(f"{path} is there already; it is not overwritten")
    except OSError as error:
        refuse(f"{path} cannot be written: {error.strerror}")
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


@dkim.command()
@config_option
@json_option
def check(path: Path, as_json: bool) -> None:
    """Compare what is in DNS with the keys of [[dkim]].

    The exit code is 1 where one differs.
    """
    config = load_or_refuse(path)
    found = [_compare(config, table) for table in config.dkim]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("there is no [[dkim]] table: nothing is signed")
    else:
        for one in found:
            say(f"{one['name']}: {one['problem'] or 'ok'}")
            if one["problem"]:
                say(f"  it should be: {one['record']}")
    if any(one["problem"] for one in found):
        raise SystemExit(1)


def _compare(config: Config, table: Dkim) -> dict[str, Any]:
    record = read_key(table.key).record
    problem = _problem(_published(config, table.record_name), record)
    return {"name": table.record_name, "record": record, "problem": problem}


def _problem(published: list[str] | str, record: str) -> str:
    if isinstance(published, str):
        return published
    if len(published) != 1:
        return f"DNS has {len(published)} TXT records, and one is wanted"
    is_key = _tags(published[0]).get("p") == _tags(record)["p"]
    if not is_key:
        return "DNS has another key"
    wrong_kind = _tags(published[0]).get("k", "rsa") != _tags(record)["k"]
    return "DNS names another kind of key (k=)" if wrong_kind else ""


def _tags(record: str) -> dict[str, str]:
    """RFC 6376 section 3.2: white space around tags and values, and within p=, means nothing."""
    pairs = (part.partition("=") for part in record.split(";"))
    return {name.strip(): "".join(value.split()) for name, _, value in pairs}


def _published(config: Config, name: str) -> list[str] | str:
    """The TXT records of that name, each with its strings joined; or why there are none."""
    import dns.exception
    import dns.nameserver
    import dns.resolver

    resolver = dns.resolver.Resolver(configure=not config.dns.nameservers)
    if config.dns.nameservers:
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(each.host, each.port) for each in config.dns.nameservers
        ]
    try:
        answer = resolver.resolve(f"{name}.", "TXT", lifetime=_TIMEOUT)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return "DNS has no record"
    except dns.exception.DNSException as error:
        return f"DNS does not answer: {error}"
    return [b"".join(each.strings).decode("ascii", "replace") for each in answer]
