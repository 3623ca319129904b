"""[pop3]: what sessions of listeners with service = "pop3" may do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from fastmta.config_reader import DomainName, Duration, Network, Problem, Table

if TYPE_CHECKING:
    from fastmta.config import Config

HOUR, DAY = 3600, 86400

Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Pop3(Table, frozen=True, kw_only=True):
    # Who may log in without TLS, so that anybody on the way can read passwords and mail.
    plaintext_networks: tuple[Network, ...] = ()
    default_domain: DomainName | None = None  # of login names that are written without one
    # RFC 1939 section 3: ten minutes at the least.
    idle_timeout: Annotated[Duration, Meta(ge=600, le=DAY)] = Duration(600)
    login_timeout: Annotated[Duration, Meta(gt=0, le=HOUR)] = Duration(180)
    login_delay: Annotated[Duration, Meta(ge=0, le=DAY)] = Duration(0)  # between two logins
    delete_retrieved: bool = False  # at QUIT (EXPIRE 0, RFC 2449 section 6.7)
    max_sessions: Count = 2000  # of one worker
    max_sessions_per_client: Count = 100  # of one worker
    max_errors: Count = 20


def check_pop3(config: "Config") -> Iterator[Problem]:
    settings = config.pop3
    modes = {
        i: config.tls_mode(listener)
        for i, listener in enumerate(config.listener)
        if listener.service == "pop3"
    }
    if not modes:
        if settings != Pop3():
            text = 'is without effect: there is no [[listener]] with service = "pop3"'
            yield Problem("pop3", text)
        return
    for i, mode in modes.items():
        if mode == "none" and not settings.plaintext_networks:
            text = (
                'nobody can log in without TLS; write "starttls" or "implicit", and a [tls] table'
            )
            yield Problem(f"listener[{i}].tls", text)
    if settings.plaintext_networks and set(modes.values()) == {"implicit"}:
        text = (
            'is without effect: all listeners of the service "pop3" have TLS from the first octet'
        )
        yield Problem("pop3.plaintext_networks", text)
    if not float(settings.login_delay).is_integer():
        yield Problem("pop3.login_delay", "is told in whole seconds; write one that is")
