"""[limits] and [checks]: what is wrong is named."""

from ipaddress import ip_network
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
LIST = '[[checks.block_list]]\nzone = "bl.test"\n'


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
        (LIST * 2, "checks.block_list[1].zone"),
        (LIST + "replies = []\n", "checks.block_list[0].replies"),
        (LIST + 'replies = ["192.0.2.1/32"]\n', "checks.block_list[0].replies[0]"),
        (LIST + 'replies = ["127.0.0.2", "::1/128"]\n', "checks.block_list[0].replies[1]"),
        ('[[checks.block_list]]\nzone = "192.0.2.1"\n', "checks.block_list[0].zone"),
        ('[[checks.allow_list]]\nzone = "wl.test"\n', "checks.allow_list"),
        ('[checks]\ntimeout = "1s"\n', "checks.timeout"),
        ('[checks]\nexempt = ["192.0.2.0/24"]\n', "checks.exempt"),
        ('[checks]\nwithout_reverse_name = "defer"\n', "checks.without_reverse_name"),
        ('[checks]\ngreeting_delay = "2m"\n', "checks.greeting_delay"),
    ],
)
def test_what_is_wrong_is_named(tables: str, key: str) -> None:
    assert problems(tables) == [key]


def test_checks_are_for_smtp_alone() -> None:
    submission = GOOD.replace('"smtp"', '"submission"').replace("hostname", "#", 1)
    with pytest.raises(ConfigError) as caught:
        parse('hostname = "a.test"\n' + submission + LIST, Path("/tmp"))
    assert "checks" in [problem.key for problem in caught.value.problems]


def test_what_is_read() -> None:
    config = parse(GOOD + LIMIT + LIST + 'replies = ["127.0.0.2/31"]\n', Path("/tmp"))
    assert {name: str(rate) for name, rate in config.limits.rates.items()} == {
        "client.messages": "5/h"
    }
    [one] = config.checks.block_list
    assert (one.zone, one.replies) == ("bl.test", (ip_network("127.0.0.2/31"),))
    assert parse(GOOD, Path("/tmp")).limits.rates == {}
