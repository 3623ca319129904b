"""[submission]: what holds for who has logged in, and what must be true of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from fastmta.config_auth import Auth
from fastmta.config_reader import Problem, Table

if TYPE_CHECKING:
    from fastmta.config import Config


class Submission(Table, frozen=True, kw_only=True):
    """RFC 6409 section 6 and 8."""

    check_sender: bool = True  # the reverse-path is the account's address or an alias
    check_from: bool = False  # so are all addresses of From and Sender
    add_missing: bool = True  # Date and Message-ID
    # Whose mail it is: the account's, its domain's, or whose the message says.
    tenant: Literal["account", "domain", "header"] = "account"


def check_submission(config: "Config") -> Iterator[Problem]:
    services = {listener.service for listener in config.listener}
    for i, listener in enumerate(config.listener):
        if listener.service == "submission" and config.tls_mode(listener) == "none":
            text = (
                'nobody can log in without TLS; write "starttls" or "implicit", and a [tls] table'
            )
            yield Problem(f"listener[{i}].tls", text)
    if config.auth != Auth() and not config.has_logins:
        text = 'is without effect: no listener offers logins; see smtp.auth and "submission"'
        yield Problem("auth", text)
    if "submission" not in services:
        yield from _check_unused(config)
    if config.smtp.auth and not any(
        listener.service == "smtp" and config.tls_mode(listener) != "none"
        for listener in config.listener
    ):
        text = 'is without effect: no listener of the service "smtp" has TLS'
        yield Problem("smtp.auth", text)
    if config.submission.tenant == "header" and not config.headers.tenant:
        text = '"header" is without effect; set headers.tenant'
        yield Problem("submission.tenant", text)


def _check_unused(config: "Config") -> Iterator[Problem]:
    if config.submission != Submission() and not config.smtp.auth:
        text = 'is without effect: there is no [[listener]] with service = "submission"'
        yield Problem("submission", text)
        return
    if config.submission.add_missing != Submission().add_missing:
        text = 'is without effect: it is for listeners with service = "submission"'
        yield Problem("submission.add_missing", text)
