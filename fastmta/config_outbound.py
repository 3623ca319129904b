"""What must be true of the settings for TLS on the way out."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET

from fastmta.config_reader import Problem
from fastmta.config_shaping import uses_verified
from fastmta.config_tls import check_file, check_pair

if TYPE_CHECKING:
    from fastmta.config import Config, Route


def _check_ca_file(config: "Config") -> Iterator[Problem]:
    path = config.delivery.ca_file
    if path is None:
        return
    problems = list(check_file("delivery.ca_file", path))
    try:
        if not problems:
            ssl.create_default_context(cafile=path)
            if not _verifies(config):
                text = 'is without effect: no tls in [shaping] or of a [[route]] is "verified"'
                problems = [Problem("delivery.ca_file", text)]
    except ssl.SSLError as error:
        reason = error.reason or "no certificate in PEM form"
        problems = [Problem("delivery.ca_file", f"{path} cannot be loaded: {reason}")]
    yield from problems


def _verifies(config: "Config") -> bool:
    """Mail that came with REQUIRETLS, which is offered under TLS, wants it on any path."""
    routed = any(route.tls == "verified" for route in config.route)
    return routed or config.tls is not None or uses_verified(config.shaping)


def _check_client_certificates(config: "Config") -> Iterator[Problem]:
    delivery = config.delivery
    yield from _check_shown("delivery", delivery.client_certificate, delivery.client_key)
    for i, source in enumerate(config.source):
        yield from _check_shown(f"source[{i}]", source.client_certificate, source.client_key)


def _check_shown(table: str, certificate: Path | None, key: Path | None) -> Iterator[Problem]:
    if certificate is None or key is None:
        if certificate is not None:
            yield Problem(f"{table}.client_certificate", "needs a client_key")
        elif key is not None:
            yield Problem(f"{table}.client_key", "is without effect: no client_certificate")
        return
    unreadable = [
        *check_file(f"{table}.client_certificate", certificate),
        *check_file(f"{table}.client_key", key),
    ]
    yield from unreadable or check_pair(table, "client_", certificate, key)


def _check_routes(config: "Config") -> Iterator[Problem]:
    for i, route in enumerate(config.route):
        if route.tls is not UNSET and (why := _without_effect(route)):
            yield Problem(f"route[{i}].tls", f'"{route.tls}" is without effect: {why}')


def _without_effect(route: "Route") -> str:
    if route.protocol == "smtps" and route.tls in ("none", "opportunistic"):
        return 'with protocol = "smtps" there is always TLS; write "required" or "verified"'
    if route.next_hop and all(hop.path for hop in route.next_hop):
        return "a unix socket does not leave the machine; remove it"
    return ""


def _check_tls_required_header(config: "Config") -> Iterator[Problem]:
    if config.delivery.tls_required_header == "ignore" and not config.strict_tls:
        text = (
            'is without effect: no tls in [shaping] or of a [[route]] is "required" or "verified"'
        )
        yield Problem("delivery.tls_required_header", text)


RULES = (_check_ca_file, _check_client_certificates, _check_routes, _check_tls_required_header)
