"""[limits]: what is wrong is named."""

from pathlib import Path

import pytest

from fastmta.config import ConfigError, parse

GOOD = """
hostname = "relay.example.test"
data_dir = "data"
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
"""
LIMIT = '[limits.client]\nmessages = "5/h"\n'


def problems(tables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD + tables, Path("/tmp"))
    return [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ('[limits.client]\nmessages = "5"\n', "limits.client.messages"),
        ('[limits.client]\nmessages = "0/h"\n', "limits.client.messages"),
        ('[limits.client]\nmesages = "5/h"\n', "limits.client.mesages"),
        ('[limits.client]\nauth_failures = "5/h"\n', "limits.client.auth_failures"),
        ('[limits.account]\nmessages = "5/h"\n', "limits.account.messages"),
        ('[limits.account]\nsessions = "5/h"\n', "limits.account.sessions"),
        (LIMIT + "[limits]\nipv4_prefix = 16\n", "limits.ipv4_prefix"),
        (LIMIT + "[limits]\nipv6_prefix = 48\n", "limits.ipv6_prefix"),
        ('[limits]\nexempt = ["192.0.2.0/24"]\n', "limits.exempt"),
        ("[limits]\nexempt_relay_networks = false\n", "limits.exempt_relay_networks"),
    ],
)
def test_what_is_wrong_is_named(tables: str, key: str) -> None:
    assert problems(tables) == [key]


def test_what_is_read() -> None:
    config = parse(GOOD + LIMIT, Path("/tmp"))
    assert {name: str(rate) for name, rate in config.limits.rates.items()} == {
        "client.messages": "5/h"
    }
    assert parse(GOOD, Path("/tmp")).limits.rates == {}
