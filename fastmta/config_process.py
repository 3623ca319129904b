"""What is to be true of the settings that say as whom the server runs, and with what code."""

import grp
import pwd
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import structs

from fastmta.config_reader import Problem

if TYPE_CHECKING:
    from fastmta.config import Config


def check_user(config: "Config") -> Iterator[Problem]:
    if config.user:
        yield from _check_account(config.user)
    elif config.group:
        yield Problem("group", "is without effect; write user too")
    if config.group:
        try:
            grp.getgrnam(config.group)
        except (KeyError, ValueError):
            yield Problem("group", f'there is no group "{config.group}" on this machine')


def check_policy(config: "Config") -> Iterator[Problem]:
    """It is not run here: `fastmta check` and the workers do, not as root."""
    if config.policy is None:
        fields = {field.name: field for field in structs.fields(config)}
        if config.policy_timeout != fields["policy_timeout"].default:
            yield Problem("policy_timeout", "is without effect; write policy too")
        return
    try:
        with config.policy.open("rb"):
            pass
    except OSError as error:
        yield Problem("policy", f"{config.policy} cannot be read: {error.strerror}")


def _check_account(name: str) -> Iterator[Problem]:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        hint = "useradd --system --shell /usr/sbin/nologin NAME makes one"
        yield Problem("user", f'there is no user "{name}" on this machine; {hint}')
        return
    if uid == 0:
        yield Problem("user", f'"{name}" is root; name a user without rights, or leave it out')
