"""Certificates in the configuration: every problem is told, with its key and in clear words."""

import time
from pathlib import Path

import pytest

from fastmta.config import Config, ConfigError, parse
from fastmta.config_tls import check_times, matches, names_of, read_leaf
from tests.certificates import make_certificate

TOP = """
hostname = "relay.example.test"
data_dir = "data"

[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"

[tls]
certificate = "default/certificate.pem"
key = "default/key.pem"
"""
ONE = '[[tls.host]]\ncertificate = "one/certificate.pem"\nkey = "one/key.pem"\n'
TWO = '[[tls.host]]\ncertificate = "two/certificate.pem"\nkey = "two/key.pem"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    make_certificate(made / "default", "DNS:relay.example.test")
    make_certificate(made / "one", "DNS:One.test", "DNS:*.one.test", "IP:192.0.2.1")
    make_certificate(made / "two", "DNS:one.test", "DNS:two.test")
    make_certificate(made / "nameless")
    return made


def read(folder: Path, text: str = "") -> Config:
    return parse(TOP + text, folder)


def problems(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_the_names_are_those_of_the_certificate_or_of_the_table(folder: Path) -> None:
    tls = read(folder, ONE + TWO + 'names = ["two.test"]').tls
    assert tls is not None
    assert [names_of(host) for host in tls.host] == [("one.test", "*.one.test"), ("two.test",)]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (ONE + TWO, "tls.host[1].names", '"one.test" is a name of tls.host[0] too'),
        (
            ONE + 'names = ["one.test", "one.example.test"]',
            "tls.host[0].names",
            '"one.example.test" is no name of ',
        ),
        (ONE + 'names = ["a.b.one.test"]', "tls.host[0].names", "is no name of "),
        (ONE + "names = []", "tls.host[0]", "names is empty"),
        (ONE.replace("one", "nameless"), "tls.host[0]", "has no names (subjectAltName)"),
        (ONE.replace("one/key", "two/key"), "tls.host[0].key", "is not the key of "),
        (ONE.replace("one/key", "none/key"), "tls.host[0].key", "No such file"),
        (ONE.replace("one/cert", "none/cert"), "tls.host[0].certificate", "No such file"),
        (ONE.replace("certificate.pem", "key.pem"), "tls.host[0]", "cannot be loaded"),
        (ONE + 'nmes = ["one.test"]', "tls.host[0].nmes", "did you mean names?"),
        ("[[tls.hosts]]", "tls.hosts", "did you mean host?"),
    ],
)
def test_what_is_wrong(text: str, key: str, words: str, folder: Path) -> None:
    assert words in problems(folder, text)[key]


@pytest.mark.parametrize("names", ["one.test", "*.one.test", "any.one.test"])
def test_names_that_the_certificate_has(names: str, folder: Path) -> None:
    assert read(folder, f'{ONE}names = ["{names}"]')


def test_a_certificate_without_names_is_shown_to_whom_the_table_says(folder: Path) -> None:
    assert read(folder, ONE.replace("one", "nameless") + 'names = ["one.test"]')


def test_every_problem_is_told_at_once(folder: Path) -> None:
    found = problems(folder, ONE.replace("one/key", "none/key") + TWO.replace("two/key", "one/key"))
    assert found.keys() == {"tls.host[0].key", "tls.host[1].key"}


def test_time_is_no_reason_not_to_start_but_it_is_told(folder: Path) -> None:
    tls = read(folder).tls
    assert tls is not None
    leaf = read_leaf(tls.certificate)
    assert 0 <= time.time() - leaf.begins < 3600
    assert leaf.ends - leaf.begins == 2 * 86400
    assert list(check_times(tls, leaf.begins)) == []
    assert list(check_times(tls, leaf.ends - 1)) == []
    [problem] = check_times(tls, leaf.ends + 3 * 3600)
    assert problem.key == "tls.certificate"
    assert "expired 3 hours ago" in problem.text
    [problem] = check_times(tls, leaf.begins - 9 * 86400)
    assert "begins in 9 days; is the clock right?" in problem.text
    both = read(folder, ONE).tls
    assert both is not None
    keys = [problem.key for problem in check_times(both, leaf.ends + 86400)]
    assert keys == ["tls.certificate", "tls.host[0].certificate"]


def test_names_match_as_in_certificates() -> None:
    assert matches("a.test", "a.test")
    assert matches("*.a.test", "b.a.test")
    assert not matches("*.a.test", "c.b.a.test")
    assert not matches("*.a.test", "a.test")
    assert not matches("*.a.test", ".a.test")


def test_the_proxy_protocol_is_not_for_an_admin_listener(folder: Path) -> None:
    text = '[[listener]]\nservice = "admin"\nbind = "127.0.0.1:2580"\n'
    found = problems(folder, text + 'proxy_networks = ["127.0.0.0/8"]')
    assert "is without effect" in found["listener[1].proxy_networks"]
