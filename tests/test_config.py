"""The configuration: what is right is read as written, what is wrong is named by its key."""

import json
import re
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.config import Config, ConfigError, Duration, Endpoint, NextHop, load, parse
from fastmta.config_reader import covers, parse_pattern
from fastmta.mail.dkim import USUAL_FIELDS
from fastmta.mail.dkim_key import generate_key

GOOD = """
hostname = "relay.example.test"
data_dir = "data"
workers = 2

[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"

[[listener]]
service = "admin"
bind = "[::1]:2580"

[smtp]
relay_networks = ["127.0.0.0/8", "2001:db8::/32"]
max_message_size = 1000

[dns]
nameservers = ["127.0.0.1:5300"]

[delivery]
port = 2600

[[route]]
domain = "*.Example.org"
next_hop = ["mail.example.org:25", "[::1]:26"]

[retry]
first = "1s"
max_interval = "1h30m"
"""


SOURCE = """
[[source]]
name = "out1"
addresses = ["192.0.2.10", "2001:db8::10"]
"""
POOL = """
[[pool]]
name = "bulk"
sources = { out1 = 2 }
tenants = ["newsletter"]
senders = ["*.Example.net"]
"""


def problems(text: str, folder: Path = Path("/tmp")) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, folder)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_a_whole_configuration_is_read_as_written(tmp_path: Path) -> None:
    config = parse(GOOD, tmp_path)
    assert (config.hostname, config.workers) == ("relay.example.test", 2)
    assert config.data_dir == tmp_path / "data"
    assert [str(listener.bind) for listener in config.listener] == ["127.0.0.1:2525", "[::1]:2580"]
    assert config.listener[1].bind == Endpoint("::1", 2580)
    assert config.smtp.relay_networks == (ip_network("127.0.0.0/8"), ip_network("2001:db8::/32"))
    assert config.smtp.max_hops == 50
    assert config.dns.nameservers == (Endpoint("127.0.0.1", 5300),)
    assert config.route[0].domain == "*.example.org"
    assert config.route[0].next_hop == (Endpoint("mail.example.org", 25), Endpoint("::1", 26))
    assert (config.retry.first, config.retry.max_interval) == (1.0, 5400.0)
    assert config.disposition_log == str(tmp_path / "data" / "dispositions.jsonl")
    assert not (tmp_path / "data").exists()


def test_sources_pools_and_tenants_are_read_as_written(tmp_path: Path) -> None:
    text = (
        GOOD
        + '[headers]\ntenant = "X-Tenant"\n'
        + SOURCE
        + POOL
        + '[tenants."a/b"]\nweight = 3\npriority = "urgent"\n'
    )
    config = parse(text, tmp_path)
    assert config.source[0].addresses == ("192.0.2.10", "2001:db8::10")
    assert config.source[0].hostname is None
    assert config.pool[0].sources == {"out1": 2}
    assert config.pool[0].senders == ("*.example.net",)
    assert (config.tenants["a/b"].weight, config.tenants["a/b"].priority) == (3, "urgent")


def test_a_route_by_lmtp() -> None:
    text = edit("next_hop = [", 'protocol = "lmtp"\nnext_hop = ["unix:/run/dovecot/lmtp", ')
    route = parse(text, Path("/tmp")).route[0]
    assert route.protocol == "lmtp"
    assert route.next_hop[0] == NextHop("unix:/run/dovecot/lmtp", 0)
    assert [hop.path for hop in route.next_hop] == ["/run/dovecot/lmtp", "", ""]
    assert list(map(str, route.next_hop)) == [
        "unix:/run/dovecot/lmtp",
        "mail.example.org:25",
        "[::1]:26",
    ]


@pytest.mark.parametrize(
    "text", ["unix:", "unix:run", "unix:/a b", "unix:/a>b", "unix:/a|b", "unix:/a\n", "unix:/a\0"]
)
def test_what_is_no_socket(text: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        NextHop.parse(text)


def test_the_path_of_a_socket_is_bounded() -> None:
    """unix(7)."""
    assert NextHop.parse("unix:/" + "x" * 106).path
    for path in ("x" * 107, "é" * 54):
        with pytest.raises(ValueError, match="107 octets"):
            NextHop.parse(f"unix:/{path}")


def edit(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


BROKEN = {
    "an unknown key, nearly right": (
        edit("[smtp]", "[smtp]\nmax_hop = 3"),
        "smtp.max_hop",
        "max_hops",
    ),
    "a key in the wrong table": (edit("[smtp]", "[smtp]\nport = 3"), "smtp.port", "in [delivery]"),
    "a key of the top below a table": (
        GOOD + 'hostname = "a.test"',
        "retry.hostname",
        "above the first [table]",
    ),
    "an unknown key of a list": (edit("bind", "tsl = 1\nbind"), "listener[0].tsl", "mean tls"),
    "an unknown key, nearly one elsewhere": ("max_hop = 3" + GOOD, "max_hop", "max_hops in [smtp]"),
    "a name without its quotes": (
        GOOD + "[domains.example.test]\n",
        "domains.example.test",
        'quotes: [domains."example.test"]',
    ),
    "an unknown table": (GOOD + "[retries]\n", "retries", "mean retry"),
    "a key that wants quotes": ('"a\\nb" = 1' + GOOD, '"a\\nb"', "unknown key"),
    "a missing key": (edit('hostname = "relay.example.test"', ""), "hostname", "write a domain"),
    "no listener at all": ('hostname = "a.test"\ndata_dir = "d"', "listener", "[[listener]]"),
    "a string for a number": (edit("= 2600", '= "2600"'), "delivery.port", "a whole number"),
    "a fraction for a number": (edit("= 2600", "= 25.5"), "delivery.port", "25.5"),
    "a number for a string": (edit('"127.0.0.1:2525"', "2525"), "listener[0].bind", "a string"),
    "a truth value for a number": (edit("workers = 2", "workers = true"), "workers", "true"),
    "a table for a list": (
        edit("[[route]]", "[route]"),
        "route",
        "write [[route]]",
    ),
    "a value for a table": ("smtp = 1\n" + GOOD.replace("[smtp]", "[dns]"), "", "TOML"),
    "a list for a table": (edit("[retry]", "[[retry]]"), "retry", "write [retry]"),
    "a value for a list": (
        edit('["127.0.0.1:5300"]', '"127.0.0.1:5300"'),
        "dns.nameservers",
        "[...]",
    ),
    "a wrong item of a list": (
        edit('"2001:db8::/32"', '"2001:db8::/320"'),
        "smtp.relay_networks[1]",
        "2001:db8::/320",
    ),
    "a network with bits below its mask": (
        edit('"127.0.0.0/8"', '"127.0.0.1/8"'),
        "smtp.relay_networks[0]",
        "host bits",
    ),
    "no workers": (edit("workers = 2", "workers = 0"), "workers", "the least is 1"),
    "a negative size": (edit("= 1000", "= -1"), "smtp.max_message_size", "the least is 1"),
    "a port out of range": (edit("= 2600", "= 65536"), "delivery.port", "the most is 65535"),
    "a number of thousands of digits": (
        edit("= 2600", f"= 0x{'F' * 5000}"),
        "delivery.port",
        "most",
    ),
    "a duration without a unit": (edit('"1s"', '"5"'), "retry.first", '"5m"'),
    "a duration as a number": (edit('"1s"', "300"), "retry.first", "a duration"),
    "a duration of nothing": (edit('"1s"', '"0s"'), "retry.first", "more than 0s"),
    "a duration without end": (edit('"1s"', f'"{"9" * 400}d"'), "retry.first", "the most is 30d"),
    "an address without a port": (
        edit('"127.0.0.1:2525"', '"127.0.0.1"'),
        "listener[0].bind",
        "host:port",
    ),
    "a port of 0": (edit(":2525", ":0"), "listener[0].bind", "1 to 65535"),
    "an IPv6 address without brackets": (
        edit("[::1]:2580", "::1:2580"),
        "listener[1].bind",
        "brackets",
    ),
    "a bad address in brackets": (edit("[::1]:2580", "[::g]:2580"), "listener[1].bind", "::g"),
    "a name to bind to": (
        edit("127.0.0.1:2525", "localhost:2525"),
        "listener[0].bind",
        "127.0.0.1:2525",
    ),
    "a name for a nameserver": (
        edit("127.0.0.1:5300", "ns.test:53"),
        "dns.nameservers[0]",
        "address",
    ),
    "a unix socket to bind to": (
        edit("127.0.0.1:2525", "unix:/run/smtp"),
        "listener[0].bind",
        "host:port",
    ),
    "a host name with a space": (edit("relay.example", "my relay"), "hostname", "domain name"),
    "an address for a host name": (edit("relay.example.test", "192.0.2.1"), "hostname", "address"),
    "a label of 64 octets": (edit("relay.", "a" * 64 + "."), "hostname", "domain name"),
    "an unknown service": (edit('"smtp"', '"smpt"'), "listener[0].service", "mean smtp"),
    "a service of a later release": (
        edit('"smtp"', '"imap"'),
        "listener[0].service",
        "not in this release",
    ),
    "no listener for mail": (
        edit('"smtp"', '"admin"'),
        "listener",
        'service = "smtp" or "submission"',
    ),
    "one address for two listeners": (
        edit("[::1]:2580", "127.0.0.1:2525"),
        "listener[1].bind",
        "listener[0]",
    ),
    "STARTTLS without a certificate": (
        edit('"127.0.0.1:2525"', '"127.0.0.1:2525"\ntls = "starttls"'),
        "listener[0].tls",
        "[tls]",
    ),
    "TLS for the admin listener": (
        edit('"[::1]:2580"', '"[::1]:2580"\ntls = "implicit"'),
        "listener[1].tls",
        "without TLS",
    ),
    "no next hop": (
        edit('["mail.example.org:25", "[::1]:26"]', "[]"),
        "route[0].next_hop",
        "empty",
    ),
    "a unix socket without LMTP": (
        edit('"[::1]:26"', '"unix:/run/lmtp"'),
        "route[0].next_hop[1]",
        'protocol = "lmtp"',
    ),
    "a unix socket at no absolute path": (
        edit('"[::1]:26"', '"unix:lmtp"'),
        "route[0].next_hop[1]",
        "absolute path",
    ),
    "an unknown protocol": (
        edit('"*.Example.org"', '"*.example.org"\nprotocol = "lmpt"'),
        "route[0].protocol",
        "mean lmtp",
    ),
    "authorities that are not there": (
        edit("port = 2600", 'port = 2600\nca_file = "none.pem"'),
        "delivery.ca_file",
        "cannot be read",
    ),
    "a route twice": (
        GOOD + '[[route]]\ndomain = "*.example.ORG"\nnext_hop = ["192.0.2.1:25"]',
        "route[1].domain",
        "never match",
    ),
    "a route behind a wider one": (
        GOOD + '[[route]]\ndomain = "a.example.org"\nnext_hop = ["192.0.2.1:25"]',
        "route[1].domain",
        "route[0]",
    ),
    "a route that is no domain": (
        edit("*.Example.org", "exa*.org"),
        "route[0].domain",
        "domain name",
    ),
    "a source in no pool": (GOOD + SOURCE, "source[0].name", "no pool"),
    "a source twice": (GOOD + SOURCE + SOURCE + POOL, "source[1].name", "another source"),
    "a source without addresses": (
        GOOD + SOURCE.replace('"192.0.2.10", "2001:db8::10"', "") + POOL,
        "source[0].addresses",
        "is empty",
    ),
    "two addresses of one family": (
        GOOD + SOURCE.replace("2001:db8::10", "192.0.2.11") + POOL,
        "source[0].addresses",
        "several of one family",
    ),
    "a source with an address of none": (
        GOOD + SOURCE.replace("192.0.2.10", "0.0.0.0") + POOL,
        "source[0].addresses[0]",
        "no mail can leave",
    ),
    "a source with a name for an address": (
        GOOD + SOURCE.replace("192.0.2.10", "out.example.org") + POOL,
        "source[0].addresses[0]",
        "is no address",
    ),
    "a source with a name of several words": (
        GOOD + SOURCE.replace("out1", "out 1") + POOL,
        "source[0].name",
        "is no name",
    ),
    "a pool with an unknown source": (
        GOOD + SOURCE + POOL.replace("out1 = 2", "out1 = 2, out2 = 1"),
        "pool[0].sources.out2",
        "no [[source]]",
    ),
    "a pool without sources": (GOOD + POOL.replace("out1 = 2", ""), "pool[0].sources", "empty"),
    "a pool with a list of sources": (
        GOOD + SOURCE + POOL.replace("{ out1 = 2 }", '["out1"]'),
        "pool[0].sources",
        "must be a table: write { NAME = ... }",
    ),
    "a source without a share": (
        GOOD + SOURCE + POOL.replace("out1 = 2", "out1 = 0"),
        "pool[0].sources.out1",
        "the least is 1",
    ),
    "a pool twice": (GOOD + SOURCE + POOL + POOL, "pool[1].name", "pool[0].name too"),
    "two pools for a tenant": (
        GOOD + SOURCE + POOL + POOL.replace('"bulk"', '"b"'),
        "pool[1].tenants",
        "pool[0].tenants too",
    ),
    "two pools for a sender": (
        GOOD + SOURCE + POOL + POOL.replace('"bulk"', '"b"'),
        "pool[1].senders",
        "pool[0].senders too",
    ),
    "a tenant without effect": (
        GOOD + "[tenants.x]\nweight = 1\n",
        "tenants.x",
        "without effect",
    ),
    "a tenant with an unknown key": (
        GOOD + "[tenants.x]\nwieght = 2\n",
        "tenants.x.wieght",
        "mean weight",
    ),
    "a tenant with an unknown priority": (
        GOOD + '[tenants.x]\npriority = "high"\n',
        "tenants.x.priority",
        '"urgent"',
    ),
    **{
        f"a tenant that no message may name: {name[:3]!r}": (
            GOOD + f'[headers]\ntenant = "X-Tenant"\n[tenants.{json.dumps(name)}]\nweight = 2\n',
            "tenants",
            "can never match",
        )
        for name in ("", "a b", "\u00e9", "x" * 101)
    },
    "a pool of a tenant that no message may name": (
        GOOD + SOURCE + POOL.replace('["newsletter"]', '["news letter"]'),
        "pool[0].tenants",
        "can never match",
    ),
    "a pool with a tenant twice": (
        GOOD + SOURCE + POOL.replace('["newsletter"]', '["newsletter", "newsletter"]'),
        "pool[0].tenants",
        "there twice",
    ),
    "a pool that nothing chooses": (
        GOOD + SOURCE + '[[pool]]\nname = "b"\nsources = { out1 = 1 }\n',
        "pool[0]",
        "nothing chooses it",
    ),
    "a tenant that is no table": (GOOD + "[tenants]\nx = 1\n", "tenants.x", "must be a table"),
    "a first retry after the longest": (
        edit('"1s"', '"2h"'),
        "retry.first",
        "retry.max_interval, 1h30m",
    ),
    "an interval longer than the end": (
        GOOD + 'give_up_after = "1h"',
        "retry.max_interval",
        "retry.give_up_after, 1h",
    ),
    "an empty rule for a domain": (
        GOOD + '[[retry.domain]]\ndomain = "a.test"',
        "retry.domain[0]",
        "sets nothing",
    ),
    "a rule for every domain": (
        GOOD + '[[retry.domain]]\ndomain = "*"\nfirst = "1m"',
        "retry.domain[0].domain",
        "write it in [retry]",
    ),
    "a rule behind a wider one": (
        GOOD
        + '[[retry.domain]]\ndomain = "*.a.test"\nfirst = "1m"\n'
        + '[[retry.domain]]\ndomain = "b.a.test"\nfirst = "2m"',
        "retry.domain[1].domain",
        "never match: retry.domain[0]",
    ),
    "a domain's pause beyond that of all": (
        GOOD + '[[retry.domain]]\ndomain = "a.test"\nfirst = "2h"',
        "retry.domain[0].first",
        "retry.max_interval, 1h30m",
    ),
    "a domain's end before the pause of all": (
        GOOD + '[[retry.domain]]\ndomain = "a.test"\ngive_up_after = "1h"',
        "retry.max_interval",
        "retry.domain[0].give_up_after, 1h",
    ),
    "a domain's pause of nothing": (
        GOOD + '[[retry.domain]]\ndomain = "a.test"\nfirst = "0s"',
        "retry.domain[0].first",
        "more than 0s",
    ),
    "a key that a rule has too, elsewhere": (
        edit("port = 2600", 'give_up_after = "1d"'),
        "delivery.give_up_after",
        "in [retry]",
    ),
    "a key of a table elsewhere": (
        edit("port = 2600", "unasked_delays = true"),
        "delivery.unasked_delays",
        "in [reports]",
    ),
    "a delay that no mail reaches": (
        GOOD + '[reports]\ndelay_after = "6d"',
        "reports.delay_after",
        "longer than 5d",
    ),
    "delays that no mail reaches": (
        GOOD + 'give_up_after = "2h"\n[reports]\nunasked_delays = true',
        "reports.unasked_delays",
        "delay_after is 4h",
    ),
    "a postmaster without a domain": (
        GOOD + '[reports]\npostmaster = "postmaster"',
        "reports.postmaster",
        "no mail address",
    ),
    "a header field with a space": (
        GOOD + '[headers]\ntenant = "X Tenant"',
        "headers.tenant",
        "no name of a header field",
    ),
    "a header field that readers need": (
        GOOD + '[headers]\ncampaign = "Subject"',
        "headers.campaign",
        "for the reader",
    ),
    "a header field twice": (
        GOOD + '[headers]\ntenant = "X-A"\npriority = "x-a"',
        "headers.priority",
        "headers.tenant too",
    ),
    "a pool that nobody can name": (
        GOOD + '[headers]\npool = "X-Pool"',
        "headers.pool",
        "[[pool]]",
    ),
    "a tenant that nobody can name": (
        GOOD + "[tenants.a]\nweight = 2",
        "tenants.a",
        "set headers.tenant",
    ),
    "limits of an unknown source": (
        GOOD + '[[shaping.source]]\nsource = "out1"\nconnections = 1',
        "shaping.source[0].source",
        "no name of a [[source]]",
    ),
    "a data folder that is a file": (edit('"data"', '"/dev/null/x"'), "data_dir", "/dev/null"),
    "a path with a NUL": (edit('"data"', '"a\\u0000"'), "data_dir", "no path"),
    "a path that is too long": (edit('"data"', f'"{"a" * 300}"'), "data_dir", "too long"),
    **{
        f"a log in place of {name}": (
            GOOD + f'[log]\ndispositions = "{name}"',
            "log.dispositions",
            hint,
        )
        for name, hint in {
            "orders.json": "for something else",
            "x/../spool": "for something else",
            "missing/x.jsonl": "make it first",
            "/tmp": "is a folder",
            "/dev/null/x": "make it first",
        }.items()
    },
    "a rate that is too large": (
        GOOD + '[shaping]\nmessage_rate = "1000000000/s"',
        "shaping.message_rate",
        "at most 999999999",
    ),
    "a port of MX hosts that no mail goes to": (
        GOOD + '[[route]]\ndomain = "*"\nnext_hop = ["192.0.2.1:25"]\n',
        "delivery.port",
        "without effect",
    ),
    "a key twice": ("workers = 1" + GOOD, "", "line 4"),
    "no TOML": (edit("port = 2600", "port 2600"), "", "line 22, column 6"),
    "brackets without end": ("x = " + "[" * 5000, "", "nested too deep"),
    "a decimal number of thousands of digits": (f"workers = {'9' * 5000}", "", "no TOML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    text, key, hint = BROKEN[name]
    found = problems(text, tmp_path)
    assert key in found
    assert hint in found[key]


def test_a_report_of_delay_may_be_for_one_domain_alone() -> None:
    rule = '[[retry.domain]]\ndomain = "a.test"\ngive_up_after = "9d"\n'
    config = parse(GOOD + rule + '[reports]\ndelay_after = "6d"', Path("/tmp"))
    assert config.retry.merged(config.retry.domain[0]).give_up_after == 9 * 86400


def test_every_problem_is_reported_at_once() -> None:
    text = edit("[smtp]", "[smtp]\nfoo = 1\nmax_hop = 2").replace('"1s"', "3").replace("2600", "0")
    assert set(problems(text)) == {"smtp.foo", "smtp.max_hop", "retry.first", "delivery.port"}


def test_every_rule_is_tried_at_once() -> None:
    text = edit('"smtp"', '"admin"').replace('"1s"', '"2h"')
    assert set(problems(text)) == {"listener", "retry.first"}


def test_a_host_name_is_written_in_its_ascii_form() -> None:
    config = parse(edit("relay.example.test", "Bücher.example"), Path("/tmp"))
    assert config.hostname == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("5d", 432000),
        ("1d1s", 86401),
    ],
)
def test_a_duration_is_seconds_and_is_written_back(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds
    assert Duration.parse(str(Duration(seconds))) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5M", "٥m", "5m ", "1h-5m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("*", "a.test", True),
        ("*", "*.test", True),
        ("*.test", "a.test", True),
        ("*.test", "*.a.test", True),
        ("*.test", "test", False),
        ("*.a.test", "*.test", False),
        ("*.test", "atest", False),
        ("a.test", "a.test", True),
        ("a.test", "*.a.test", False),
    ],
)
def test_which_route_covers_which(one: str, other: str, expected: bool) -> None:
    assert covers(parse_pattern(one), parse_pattern(other)) is expected


class TestFiles:
    """`load`: what depends on files."""

    def test_paths_count_from_the_folder_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "fastmta.toml").write_text(GOOD)
        assert load(tmp_path / "fastmta.toml").data_dir == tmp_path / "data"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"\xff", "not UTF-8 at octet 0"), (b"#" * ((1 << 20) + 1), "larger than 1048576")],
    )
    def test_what_is_no_configuration(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            load(tmp_path / "bad")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            load(tmp_path / "none")


def openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=relay.test"
    openssl(folder, f"{make} -days 2 -keyout one.key -out one.pem")
    openssl(folder, f"{make} -days 2 -keyout two.key -out two.pem")
    openssl(folder, "pkey -in one.key -aes128 -passout pass:secret -out locked.key")
    return folder


class TestTls:
    def test_the_authorities_are_certificates(self, certificates: Path) -> None:
        text = edit("port = 2600", 'port = 2600\nca_file = "one.pem"')
        assert "without effect" in problems(text, certificates)["delivery.ca_file"]
        text += '[shaping]\ntls = "verified"\n'
        assert parse(text, certificates).delivery.ca_file == certificates / "one.pem"
        found = problems(text.replace("one.pem", "one.key"), certificates)
        assert "cannot be loaded" in found["delivery.ca_file"]

    def test_the_authorities_have_an_effect_by_a_route_or_requiretls(
        self, certificates: Path
    ) -> None:
        text = edit("port = 2600", 'port = 2600\nca_file = "one.pem"')
        routed = text.replace("[[route]]", '[[route]]\ntls = "verified"')
        assert parse(routed, certificates).route[0].tls == "verified"
        assert self.read(certificates, ("one.pem", "one.key"), text).delivery.ca_file

    @pytest.mark.parametrize(
        ("lines", "key", "why"),
        [
            ('client_certificate = "one.pem"', "client_certificate", "needs a client_key"),
            ('client_key = "one.key"', "client_key", "without effect"),
            (
                'client_certificate = "one.pem"\nclient_key = "two.key"',
                "client_key",
                "two.key is not the key of .*one.pem",
            ),
            (
                'client_certificate = "none.pem"\nclient_key = "none.key"',
                "client_certificate",
                "cannot be read",
            ),
        ],
    )
    @pytest.mark.parametrize("source", [False, True])
    def test_what_is_shown_to_hosts_has_to_fit(
        self, certificates: Path, lines: str, key: str, why: str, source: bool
    ) -> None:
        if source:
            text = f'{GOOD}\n[[source]]\nname = "a"\naddresses = ["192.0.2.1"]\n{lines}\n'
            text += '[[pool]]\nname = "default"\nsources = { a = 1 }\n'
        else:
            text = edit("port = 2600", f"port = 2600\n{lines}")
        table = "source[0]" if source else "delivery"
        assert re.search(why, problems(text, certificates)[f"{table}.{key}"])

    @pytest.mark.parametrize(
        ("protocol", "tls", "hop"),
        [
            ("smtps", "none", "192.0.2.1:465"),
            ("smtps", "opportunistic", "192.0.2.1:465"),
            ("lmtp", "required", "unix:/run/lmtp"),
        ],
    )
    def test_a_tls_that_a_route_cannot_have(self, protocol: str, tls: str, hop: str) -> None:
        route = f'[[route]]\ndomain = "a.test"\nprotocol = "{protocol}"\ntls = "{tls}"\n'
        text = f'{GOOD}\n{route}next_hop = ["{hop}"]\n'
        assert "without effect" in problems(text)["route[1].tls"]

    def test_the_header_field_is_ignored_where_it_matters(self) -> None:
        text = edit("port = 2600", 'port = 2600\ntls_required_header = "ignore"')
        assert "without effect" in problems(text)["delivery.tls_required_header"]
        strict = text + '[shaping]\ntls = "required"\n'
        assert parse(strict, Path("/tmp")).strict_tls

    def read(self, certificates: Path, pair: tuple[str, str], text: str = GOOD) -> Config:
        return parse(f'{text}\n[tls]\ncertificate = "{pair[0]}"\nkey = "{pair[1]}"', certificates)

    def test_starttls_is_offered_where_there_is_a_certificate(self, certificates: Path) -> None:
        config = self.read(certificates, ("one.pem", "one.key"))
        assert [config.tls_mode(one) for one in config.listener] == ["starttls", "none"]

    @pytest.mark.parametrize(
        ("pair", "error"),
        [
            (("none.pem", "one.key"), "tls.certificate: .*none.pem cannot be read"),
            (("one.pem", "none.key"), "tls.key: .*none.key cannot be read"),
            (("one.pem", "two.key"), "tls.key: .*two.key is not the key of .*one.pem"),
            (("one.key", "one.key"), "tls: .* cannot be loaded"),
            (("one.pem", "locked.key"), "tls: .* cannot be loaded"),
        ],
    )
    def test_a_pair_that_cannot_be_used(
        self, certificates: Path, pair: tuple[str, str], error: str
    ) -> None:
        with pytest.raises(ConfigError, match=error):
            self.read(certificates, pair)

    def test_a_certificate_that_no_listener_uses(self, certificates: Path) -> None:
        text = edit('"127.0.0.1:2525"', '"127.0.0.1:2525"\ntls = "none"')
        with pytest.raises(ConfigError, match="tls: is without effect"):
            self.read(certificates, ("one.pem", "one.key"), text)


class TestBounces:
    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("[bounces]", "^bounces: is without effect"),
            ('[bounces]\naddresses = ["bounces"]', r'bounces.addresses\[0\]: .*write "bounces@'),
            ('[bounces]\naddresses = ["*"]', r"bounces.addresses\[0\]"),
            ('[bounces]\ncomplaints = ["a@b.test", "*@"]', r"bounces.complaints\[1\]"),
            (
                '[bounces]\naddresses = ["a@b.test"]\nsuppress = true',
                r"bounces.suppress: is without effect; write a \[suppression\] table",
            ),
            ("[suppression]\ncategories = []", "suppression.hard_bounces: is without effect"),
            ('[suppression]\ncategories = ["spam"]', r"suppression.categories\[0\]"),
            ('[suppression]\ncategories = ["full", "full"]', '"full" is there twice'),
            (
                '[suppression]\nhard_bounces = false\ncategories = ["full"]',
                "suppression.categories: is without effect",
            ),
            (
                '[suppression]\nhard_bounces = false\nexpire_after = "3d"',
                "suppression.expire_after: is without effect",
            ),
            (
                '[bounces]\ncomplaints = ["f@b.test"]\n'
                '[suppression]\nhard_bounces = false\ncategories = ["full"]',
                "suppression.categories: is without effect",
            ),
            (
                '[bounces]\naddresses = ["a@b.test", "*@b.test"]',
                r"bounces.addresses\[0\]: is without effect: \"\*@b.test\" takes it already",
            ),
            (
                '[bounces]\naddresses = ["a@b.test", "A@b.test"]',
                'bounces.addresses: "a@b.test" is there twice',
            ),
            ('[suppression]\non_match = "bounce"', "suppression.on_match"),
            ('[suppression]\nexpire_after = "0s"', "suppression.expire_after"),
        ],
    )
    def test_what_is_wrong(self, text: str, error: str) -> None:
        with pytest.raises(ConfigError, match=error):
            parse(f"{GOOD}\n{text}", Path("/tmp"))

    @pytest.mark.parametrize(
        ("text", "suppress"),
        [
            ("", False),
            ("[suppression]", False),
            ('[bounces]\naddresses = ["*@b.test"]', False),
            ('[bounces]\naddresses = ["*@b.test"]\n[suppression]', True),
            ('[bounces]\naddresses = ["*@b.test"]\nsuppress = false\n[suppression]', False),
        ],
    )
    def test_whether_reports_suppress(self, text: str, suppress: bool) -> None:
        assert parse(f"{GOOD}\n{text}", Path("/tmp")).reports_suppress is suppress


# TOML that is nearly a configuration: known keys with values of any kind, and plain noise.
_KEYS = ["hostname", "data_dir", "workers", "listener", "tls", "smtp", "route", "retry", "bind"]
_keys = st.sampled_from(_KEYS) | st.text(max_size=5)
_scalars = st.one_of(
    st.integers(),
    st.booleans(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["127.0.0.1:25", "smtp", "5m", "a.test", "[::1]:25", "*", "/tmp"]),
)
_values: st.SearchStrategy[object] = st.deferred(
    lambda: _scalars | st.lists(_values, max_size=3) | st.dictionaries(_keys, _values, max_size=4)
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower()


@given(st.dictionaries(_keys, _values, max_size=8))
def test_random_tables_raise_nothing_but_config_error(table: dict[str, object]) -> None:
    _try("\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items()))


@given(st.text())
def test_random_text_raises_nothing_but_config_error(text: str) -> None:
    _try(text)


@given(st.integers(0, len(GOOD)), st.text(max_size=5), st.integers(0, 5))
def test_a_damaged_configuration_raises_nothing_but_config_error(
    place: int, put: str, cut: int
) -> None:
    _try(GOOD[:place] + put + GOOD[place + cut :])


def _try(text: str) -> None:
    try:
        parse(text, Path("/tmp"))
    except ConfigError as error:
        assert error.problems
        assert all(str(problem).isprintable() for problem in error.problems)


class TestDkim:
    TABLE = '[[dkim]]\ndomain = "Example.test"\nselector = "20261123"\nkey = "key.pem"\n'

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "key.pem").write_bytes(generate_key("ed25519"))
        return tmp_path

    def test_a_table_is_read_as_written(self, folder: Path) -> None:
        more = 'canonicalization = "relaxed/simple"\nheaders = ["From"]\nexpire_after = "7d"\n'
        (one, other) = parse(
            GOOD + self.TABLE + more + self.TABLE.replace("20261123", "S2"), folder
        ).dkim
        assert (one.domain, one.selector, one.key) == (
            "example.test",
            "20261123",
            folder / "key.pem",
        )
        assert (one.canonicalization, one.headers, one.expire_after) == (
            "relaxed/simple",
            ("From",),
            7 * 86400,
        )
        assert (other.selector, other.subdomains, other.expire_after) == ("s2", False, None)
        assert other.headers == USUAL_FIELDS
        assert other.record_name == "s2._domainkey.example.test"

    @pytest.mark.parametrize(
        ("old", "new", "key", "text"),
        [
            ('"key.pem"', '"none.pem"', "dkim[0].key", "cannot be read"),
            ('"key.pem"', '"garbage.pem"', "dkim[0].key", "no private key in PEM form"),
            ('"20261123"', '"a_b"', "dkim[0].selector", "no selector"),
            ('"Example.test"', '"192.0.2.1"', "dkim[0].domain", "address"),
            ('"key.pem"', '"key.pem"\nheaders = ["To"]', "dkim[0].headers", '"From"'),
            ('"key.pem"', '"key.pem"\nheaders = ["From", "a;b"]', "dkim[0].headers[1]", "no name"),
            ('"key.pem"', '"key.pem"\nheaders = ["From", "FROM"]', "dkim[0].headers[1]", "twice"),
            (
                '"key.pem"',
                '"key.pem"\nheaders = ["Received", "From"]',
                "dkim[0].headers[0]",
                "on the way",
            ),
            ('"key.pem"', '"key.pem"\nexpire_after = "0s"', "dkim[0].expire_after", "more than 0s"),
            (
                '"key.pem"',
                '"key.pem"\ncanonicalization = "relax"',
                "dkim[0].canonicalization",
                "relaxed/relaxed",
            ),
            ("[[dkim]]", TABLE + "[[dkim]]", "dkim[1].selector", "dkim[0]"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, folder: Path, old: str, new: str, key: str, text: str
    ) -> None:
        (folder / "garbage.pem").write_text("garbage")
        with pytest.raises(ConfigError) as caught:
            parse(GOOD + self.TABLE.replace(old, new), folder)
        (problem,) = caught.value.problems
        assert problem.key == key
        assert text in problem.text
