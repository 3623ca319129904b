"""[domains.*] and [mailboxes]: what could not take effect is named."""

from pathlib import Path

import pytest

from fastmta.config import Config, ConfigError, Domain, Mailboxes, parse

TOP = """
hostname = "mail.example.test"
data_dir = "data"
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
"""
DOMAIN = '[domains."example.test"]\n'


def read(*tables: str) -> Config:
    return parse("\n".join([TOP, *tables]), Path("/tmp"))


def test_domains_are_known_by_their_normal_names() -> None:
    config = read('[domains."Example.TEST"]', '[domains."dömäin.test"]')
    assert config.domains == {"example.test": Domain(), "xn--dmin-moa0i.test": Domain()}
    assert config.mailboxes == Mailboxes()


def test_settings_are_read_as_written() -> None:
    config = read(
        DOMAIN,
        '[domains."other.test"]\ncatch_all = "Bob@example.test"',
        '[mailboxes]\nseparator = "-"\npostmaster = "bob@other.test"\nquota = 1000\n'
        'max_message_size = 500\nforward_as = "account"',
    )
    assert config.domains["other.test"].catch_all == "Bob@example.test"
    settings = Mailboxes(
        separator="-",
        postmaster="bob@other.test",
        quota=1000,
        max_message_size=500,
        forward_as="account",
    )
    assert config.mailboxes == settings


WRONG = {
    "mailboxes of no domain": (["[mailboxes]\nquota = 1"], "mailboxes: is without effect"),
    "no name": (['[domains."exam ple"]'], r'domains."exam ple": "exam ple" is no domain name'),
    "an address": (['[domains."192.0.2.1"]'], "is an address; write a domain name"),
    "one twice": (
        [DOMAIN, '[domains."EXAMPLE.test"]'],
        r'domains."EXAMPLE.test": is \[domains."example.test"\] once more',
    ),
    "a separator of two": (
        [DOMAIN, '[mailboxes]\nseparator = "+-"'],
        r"mailboxes.separator: '\+-' cannot separate",
    ),
    "a letter": ([DOMAIN, '[mailboxes]\nseparator = "x"'], "mailboxes.separator: 'x'"),
    "a catch-all elsewhere": (
        ['[domains."example.test"]\ncatch_all = "bob@other.test"'],
        r'domains."example.test".catch_all: "bob@other.test" has no mailbox here',
    ),
    "a postmaster elsewhere": (
        [DOMAIN, '[mailboxes]\npostmaster = "bob@other.test"'],
        r'mailboxes.postmaster: "bob@other.test" has no mailbox here',
    ),
    "a postmaster that is none": (
        [DOMAIN, '[mailboxes]\npostmaster = "bob"'],
        "mailboxes.postmaster: .* no mail address",
    ),
    "a size that nobody reaches": (
        [DOMAIN, "[mailboxes]\nmax_message_size = 52428800"],
        "mailboxes.max_message_size: is without effect",
    ),
    "a route for what stays": (
        [DOMAIN, '[[route]]\ndomain = "example.test"\nnext_hop = ["192.0.2.1:25"]'],
        r'route\[0\].domain: "example.test" can never match',
    ),
    "a value of another type": (['[domains]\n"example.test" = "yes"'], "must be a table"),
}


@pytest.mark.parametrize("tables, said", WRONG.values(), ids=WRONG)
def test_what_is_without_effect_is_named(tables: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(*tables)


def test_a_route_for_all_others_is_fine() -> None:
    assert read(DOMAIN, '[[route]]\ndomain = "*"\nnext_hop = ["192.0.2.1:25"]').domains
