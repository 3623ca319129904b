"""Blocks of [shaping] merged: which limits a path has, and who set them."""

from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec import structs

from fastmta.config import Config, ConfigError, parse
from fastmta.config_shaping import Shaping
from fastmta.mail.envelope import TlsDemand
from fastmta.protocol.smtp_client import TlsPolicy
from fastmta.queue import shaping
from fastmta.queue.limits import Limits
from fastmta.queue.shaping import Shaper


class At(NamedTuple):
    """A site."""

    name: str
    hosts: tuple[str, ...]
    tls: TlsPolicy | None = None


BASE = """
hostname = "relay.example.test"
data_dir = "data"

[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"

[[source]]
name = "new"
addresses = ["192.0.2.10"]

[[source]]
name = "old"
addresses = ["192.0.2.11"]

[[pool]]
name = "default"
sources = { new = 1, old = 1 }

"""
MERGED = """
[shaping]
connections = 30
message_rate = "50/s"
builtin_providers = false

[[shaping.provider]]
name = "big"
mx = ["big.test", "mail.huge.test"]
connections = 20
recipients = 50
tls = "required"

[[shaping.domain]]
domain = "vip.test"
recipients = 10
command_timeout = "1m"

[[shaping.domain]]
domain = "*.vip.test"
recipients = 20

[[shaping.source]]
source = "new"
provider = "big"
message_rate = "100/h"

[[shaping.source]]
source = "new"
message_rate = "5/s"
connections = 2
"""


def read(text: str) -> Config:
    return parse(BASE + text, Path("/tmp"))


def shaper(text: str) -> Shaper:
    return Shaper(read(text).shaping)


def test_the_default_holds_for_every_path() -> None:
    shape = shaper("").shape("", At("mx.test", ("mx.test",)), "x.test")
    assert shape.path == "mx.test"
    assert shape.limits == Limits()
    assert set(shape.origins.values()) == {"default"}
    assert shape.provider == ""


def test_the_defaults_are_those_of_the_configuration() -> None:
    limits = structs.asdict(Limits())
    assert limits == {name: getattr(Shaping(), name) for name in limits}


def test_each_block_sets_only_what_it_says() -> None:
    shape = shaper(MERGED).shape("new", At("big.test", ("mx1.big.test", "big.test")), "vip.test")
    assert shape.path == "new>big.test#vip.test"
    assert shape.provider == "big"
    limits, origins = shape.limits, shape.origins
    assert (limits.connections, origins["connections"]) == (2, "source new")
    assert (str(limits.message_rate), origins["message_rate"]) == ("100/h", "source new at big")
    assert (limits.recipients, origins["recipients"]) == (10, "domain vip.test")
    assert (limits.tls, origins["tls"]) == ("required", "provider big")
    assert (limits.command_timeout, origins["command_timeout"]) == (60.0, "domain vip.test")
    assert (limits.ready, origins["ready"]) == (5000, "default")
    assert type(limits.command_timeout) is float


@pytest.mark.parametrize(
    ("source", "hosts", "domain", "path", "connections", "rate", "recipients"),
    [
        ("", ("mx.other.test",), "x.test", "s", 30, "50/s", 100),
        ("", ("mx.big.test",), "x.test", "s", 20, "50/s", 50),
        ("", ("notbig.test",), "x.test", "s", 30, "50/s", 100),
        ("", ("mx.big.test", "mx.other.test"), "x.test", "s", 30, "50/s", 100),
        ("", ("mail.huge.test",), "x.test", "s", 20, "50/s", 50),
        ("", ("huge.test",), "x.test", "s", 30, "50/s", 100),
        ("", (), "x.test", "s", 30, "50/s", 100),
        ("", ("mx.other.test",), "a.vip.test", "s#*.vip.test", 30, "50/s", 20),
        ("", ("mx.other.test",), "vip.test", "s#vip.test", 30, "50/s", 10),
        ("old", ("mx.big.test",), "x.test", "old>s", 20, "50/s", 50),
        ("new", ("mx.other.test",), "x.test", "new>s", 2, "5/s", 100),
    ],
)
def test_which_blocks_apply(
    source: str,
    hosts: tuple[str, ...],
    domain: str,
    path: str,
    connections: int,
    rate: str,
    recipients: int,
) -> None:
    shape = shaper(MERGED).shape(source, At("s", hosts), domain)
    limits = shape.limits
    assert (shape.path, limits.connections) == (path, connections)
    assert (str(limits.message_rate), limits.recipients) == (rate, recipients)


ROUTED: list[tuple[str, TlsPolicy | None, TlsDemand, str, TlsPolicy, str]] = [
    # shaping, route, demand: name, policy and who says so
    ("opportunistic", None, TlsDemand.NONE, "s", "opportunistic", "default"),
    ("opportunistic", None, TlsDemand.OPTIONAL, "s", "opportunistic", "default"),
    ("none", None, TlsDemand.OPTIONAL, "s", "none", "default"),
    ("none", None, TlsDemand.REQUIRED, "s!requiretls", "requiretls", "REQUIRETLS"),
    ("required", "none", TlsDemand.NONE, "s", "none", "route"),
    ("none", "verified", TlsDemand.NONE, "s", "verified", "route"),
    ("none", "verified", TlsDemand.REQUIRED, "s!requiretls", "requiretls", "REQUIRETLS"),
    *(
        (one, other, TlsDemand.OPTIONAL, "s!opportunistic", "opportunistic", "TLS-Required: No")
        for one, other in [("required", None), ("verified", None), ("none", "required")]
    ),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("policy", "routed", "demand", "path", "result", "origin"), ROUTED)
def test_who_says_what_of_tls(
    policy: str,
    routed: TlsPolicy | None,
    demand: TlsDemand,
    path: str,
    result: TlsPolicy,
    origin: str,
) -> None:
    one = shaper(f'[shaping]\ntls = "{policy}"\n')
    shape = one.shape("", At("s", ("mx.test",), routed), "x.test", demand)
    assert (shape.path, shape.limits.tls, shape.origins["tls"]) == (path, result, origin)
    assert one.shape("", At("s", ("mx.test",), routed), "y.test", demand) is shape


def test_one_path_has_one_shape() -> None:
    one = shaper(MERGED)
    first = one.shape("", At("s", ("mx.test",)), "a.test")
    assert one.shape("", At("s", ("mx.test",)), "b.test") is first
    assert one.shape("", At("s", ("mx.test",)), "vip.test") is not first


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "CACHE_SIZE", 10)
    one = shaper("")
    for i in range(100):
        one.shape("", At(f"site{i}", ()), f"{i}.test")
        one.shape("", At(f"site{i}", ()), f"{i}.test", TlsDemand.REQUIRED)
    assert len(one._known) <= 10
    assert len(one._paths) <= 10


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("gmail-smtp-in.l.google.com", "google"),
        ("aspmx3.googlemail.com", "google"),
        ("hotmail-com.olc.protection.outlook.com", "outlook"),
        ("example-com.mail.protection.outlook.com", "microsoft365"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx01.mail.icloud.com", "apple"),
        ("mx1a1.comcast.net", "comcast"),
        ("mx00.emig.gmx.net", "gmx"),
        ("mx-ha02.web.de", "gmx"),
        ("smtp-in.orange.fr", "orange"),
        ("mxs.mail.ru", "mail-ru"),
        ("mx.yandex.ru", "yandex"),
        ("mx3.qq.com", "qq"),
        ("mx.example.test", ""),
    ],
)
def test_the_shipped_providers_know_their_hosts(host: str, provider: str) -> None:
    shape = shaper("").shape("", At(host, (host,)), "x.test")
    assert shape.provider == provider
    assert (shape.origins["connections"] == "default") == (not provider)


def test_a_provider_of_a_shipped_name_sets_only_what_it_says() -> None:
    one = shaper('[[shaping.provider]]\nname = "google"\nconnections = 77\n')
    shape = one.shape("", At("g", ("mx.google.com",)), "x.test")
    shipped = shaper("").shape("", At("g", ("mx.google.com",)), "x.test")
    assert shape.limits == structs.replace(shipped.limits, connections=77)


def test_a_provider_of_our_own_comes_before_those_shipped() -> None:
    one = shaper('[[shaping.provider]]\nname = "ours"\nmx = ["aspmx.l.google.com"]\nready = 5\n')
    hosts = ("aspmx.l.google.com", "alt1.aspmx.l.google.com")
    assert one.shape("", At("g", hosts), "x.test").provider == "ours"


def test_the_times_of_a_path_are_those_of_its_connections() -> None:
    limits = shaper('[shaping]\nconnect_timeout = "3s"\ndata_timeout = "4s"\n').shape(
        "", At("s", ()), "x.test"
    )
    timeouts = limits.limits.timeouts
    assert (timeouts.connect, timeouts.data, timeouts.block, timeouts.mail) == (3, 4, 4, 300)


LARGE = ", ".join(f"{{pattern = '{n}[^x]{{999}}'}}" for n in range(200))
BAD = {
    "a provider twice": (
        'provider = [{name = "a", mx = ["a.test"], ready = 1},'
        '{name = "a", mx = ["b.test"], ready = 1}]',
        "shaping.provider[1].name",
    ),
    "a provider without hosts": ('provider = [{name = "a", ready = 1}]', "shaping.provider[0].mx"),
    "a shipped one, when none is": (
        'builtin_providers = false\nprovider = [{name = "google", ready = 1}]',
        "shaping.provider[0].mx",
    ),
    "no hosts": ('provider = [{name = "a", mx = [], ready = 1}]', "shaping.provider[0].mx"),
    "a name that is none": (
        'provider = [{name = "a>b", mx = ["a.test"]}]',
        "shaping.provider[0].name",
    ),
    "hosts of an earlier provider": (
        'provider = [{name = "a", mx = ["a.test"]}, {name = "b", mx = ["mx.a.test"]}]',
        "shaping.provider[1].mx[0]",
    ),
    "a shipped provider that changes nothing": (
        'provider = [{name = "google"}]',
        "shaping.provider[0]",
    ),
    "a domain that is covered": (
        'domain = [{domain = "*.test", ready = 1}, {domain = "a.test", ready = 2}]',
        "shaping.domain[1].domain",
    ),
    "a domain without limits": ('domain = [{domain = "a.test"}]', "shaping.domain[0]"),
    "a source without limits": ('source = [{source = "new"}]', "shaping.source[0]"),
    "a source twice": (
        'source = [{source = "new", ready = 1}, {source = "new", ready = 2}]',
        "shaping.source[1].source",
    ),
    "a source at a provider that is not known": (
        'source = [{source = "new", provider = "b", ready = 1}]',
        "shaping.source[0].provider",
    ),
    "a rule that fits all": ("slow_down = [{}]", "shaping.slow_down[0]"),
    "a pattern that fits all": (
        'slow_down = [{pattern = "a*"}]',
        "shaping.slow_down[0].pattern",
    ),
    "no pattern": ('slow_down = [{pattern = "("}]', "shaping.slow_down[0].pattern"),
    "capitals": ('slow_down = [{pattern = "Slow"}]', "shaping.slow_down[0].pattern"),
    "no code": ('slow_down = [{enhanced = "2.0.0"}]', "shaping.slow_down[0].enhanced"),
    "a rule of nobody": (
        'slow_down = [{pattern = "a", provider = "x"}]',
        "shaping.slow_down[0].provider",
    ),
    "a rule behind one that fits more": (
        'slow_down = [{pattern = "a"}, {pattern = "a", enhanced = "4.7.1"}]',
        "shaping.slow_down[1]",
    ),
    "a pattern that backtracks": (
        r'slow_down = [{pattern = "(a)\\1"}]',
        "shaping.slow_down[0].pattern",
    ),
    "a pattern that needs too much memory": (
        r'slow_down = [{pattern = "\\pL{999}"}]',
        "shaping.slow_down[0].pattern",
    ),
    "patterns that need too much memory together": (
        f"slow_down = [{LARGE}]",
        "shaping.slow_down",
    ),
    "a rule where nothing adapts": (
        'adaptive = false\nslow_down = [{pattern = "a"}]',
        "shaping.slow_down",
    ),
    "no rate": ('message_rate = "100"', "shaping.message_rate"),
    "no connections": ("connections = 0", "shaping.connections"),
    "a tls that is not known": ('tls = "maybe"', "shaping.tls"),
    "a range in a block": (
        'domain = [{domain = "a.test", connections = 0}]',
        "shaping.domain[0].connections",
    ),
}


@pytest.mark.parametrize(("text", "key"), BAD.values(), ids=BAD.keys())
def test_a_setting_that_cannot_take_effect_is_named(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"[shaping]\n{text}\n")
    assert [problem.key for problem in caught.value.problems] == [key]


def test_rules_of_the_configuration_come_before_those_shipped() -> None:
    config = read('[[shaping.slow_down]]\npattern = "basta"\n')
    assert str(config.shaping.slow_down_rules[0]) == "/basta/"
    assert len(config.shaping.slow_down_rules) > 10
    assert read("[shaping]\nadaptive = false\n").shaping.slow_down_rules == []


# Providers whose sites share limits.

SHARED = """
[[shaping.provider]]
name = "big"
mx = ["big.test"]
shared = true
connections = 7
message_rate = "5/s"

[[shaping.domain]]
domain = "vip.test"
connections = 3

[[shaping.source]]
source = "new"
provider = "big"
message_rate = "1/s"
"""


def test_sites_of_one_provider_share_a_group_beside_their_own_limits() -> None:
    shaped = shaper(SHARED)
    one, vip = (
        shaped.shape("", At(f"{name}.big.test", (f"{name}.big.test",)), f"{name}.test")
        for name in ("a", "vip")
    )
    assert one.group is not None
    assert (one.group.name, one.group.limits.connections) == ("provider big", 7)
    assert (vip.limits.connections, vip.group) == (3, one.group)
    other = shaped.shape("new", At("a.big.test", ("a.big.test",)), "a.test")
    assert other.group is not None and other.group.name == "new>provider big"
    assert str(other.group.limits.message_rate) == "1/s"
    assert shaped.shape("", At("mx.test", ("mx.test",)), "x.test").group is None


def test_what_is_shipped_shares_the_limits_of_microsoft_365() -> None:
    def group(text: str) -> str:
        host = "a-test.mail.protection.outlook.com"
        found = shaper(text).shape("", At(host, (host,)), "a.test").group
        return found.name if found else ""

    assert group("") == "provider microsoft365"
    assert not group('[[shaping.provider]]\nname = "microsoft365"\nshared = false\n')
