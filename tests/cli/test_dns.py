"""fastmta dns: what it shows, and what it says no to."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.delivery.test_router import ZONE
from tests.dns_server import DnsServer


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(dict(ZONE)) as server:
        yield server


def dns_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastmta", "dns", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def config_file(server: DnsServer, tmp_path: Path) -> str:
    file = tmp_path / "fastmta.toml"
    file.write_text(
        f"""
        hostname = "relay.example.test"
        data_dir = "data"
        [[listener]]
        service = "smtp"
        bind = "127.0.0.1:2525"
        [dns]
        nameservers = ["{server.endpoint}"]
        [domains."here.test"]
        [[route]]
        domain = "routed.test"
        next_hop = ["127.0.0.1:2700"]
        [[route]]
        domain = "lists.test"
        protocol = "lmtp"
        next_hop = ["unix:/run/lmtp"]
        """
    )
    return str(file)


def test_a_domain_of_ours_is_told(config_file: str) -> None:
    done = dns_command("Here.test", "-c", config_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 'here.test: [domains."here.test"]\nsite: local\n'
    facts = msgspec.json.decode(dns_command("here.test", "-c", config_file, "--json").stdout)
    assert facts["site"]["name"] == "local"


def test_the_command_shows_hosts_addresses_and_site(server: DnsServer, config_file: str) -> None:
    server.zone["mx2.example.test"] = {"A": ["198.51.100.2", "127.0.0.1"]}
    done = dns_command("backup.test", "-c", config_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"backup\.test: MX, for \d+ s", done.stdout)
    assert "site: (mx1>mx2).example.test" in done.stdout
    for row in (
        r"10 .* mx1\.example\.test .* 25 .* 198\.51\.100\.1",
        r"2001:db8::1",
        r"20 .* mx2\.example\.test .* 25",
        r"127\.0\.0\.1 .* refused: loopback",
    ):
        assert re.search(row, done.stdout), done.stdout


def test_the_command_shows_a_route_by_lmtp(config_file: str) -> None:
    done = dns_command("lists.test", "-c", config_file)
    assert "lists.test: route lists.test, lmtp" in done.stdout
    assert "site: lmtp:unix:/run/lmtp" in done.stdout
    facts = msgspec.json.decode(dns_command("lists.test", "-c", config_file, "--json").stdout)
    assert facts["site"]["tiers"][0][0]["protocol"] == "lmtp"


def test_the_command_says_no_with_exit_code_1(config_file: str) -> None:
    done = dns_command("Local.Test.", "-c", config_file)
    assert done.returncode == 1
    assert done.stderr.startswith("550 5.4.4 local.test has the address 127.0.0.1")
    assert "refused: loopback" in done.stdout
    assert dns_command("[127.0.0.1]", "-c", config_file).returncode == 1
    assert dns_command("null.test", "-c", config_file).stderr.startswith("556 5.1.10")


def test_the_command_prints_json(config_file: str) -> None:
    done = dns_command("routed.test", "-c", config_file, "--json")
    assert done.returncode == 0
    assert msgspec.json.decode(done.stdout) == {
        "domain": "routed.test",
        "origin": "route routed.test",
        "ttl": None,
        "site": {
            "name": "127.0.0.1:2700",
            "tiers": [
                [
                    {
                        "name": "127.0.0.1",
                        "addresses": ["127.0.0.1"],
                        "port": 2700,
                        "protocol": "smtp",
                    }
                ]
            ],
            "tls": None,
        },
        "reply": None,
        "hosts": [
            {
                "preference": 0,
                "host": "127.0.0.1",
                "port": 2700,
                "addresses": [{"address": "127.0.0.1", "refused": ""}],
                "detail": "",
            }
        ],
    }
    failed = dns_command("nowhere.test", "-c", config_file, "--json")
    assert failed.returncode == 1
    assert msgspec.json.decode(failed.stdout)["reply"].startswith("550 5.1.2")


def test_the_command_shows_our_own_host(server: DnsServer, config_file: str) -> None:
    server.zone["ours.test"] = {
        "MX": ["10 mx1.example.test.", "20 relay.example.test.", "30 mx2.example.test."]
    }
    done = dns_command("ours.test", "-c", config_file)
    assert done.returncode == 0
    assert "this host itself" in done.stdout
    assert "no better than" in done.stdout


@pytest.mark.parametrize("domain", ["", "a..b", "user@example.test", "a b.test"])
def test_the_command_refuses_what_is_no_domain(domain: str) -> None:
    assert dns_command(domain).returncode == 2
