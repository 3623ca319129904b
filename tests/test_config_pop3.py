"""[pop3]: what may be set, and what would have no effect."""

from pathlib import Path

import pytest

from fastmta.config import ConfigError, Pop3, parse
from tests.certificates import Certificate, make_certificate

TOP = 'hostname = "mail.example.test"\ndata_dir = "data"\n'
POP3 = '[[listener]]\nservice = "pop3"\nbind = "127.0.0.1:1110"\n'
SMTP = '[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:2525"\n'
CLEAR = '[pop3]\nplaintext_networks = ["127.0.0.0/8"]\n'


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> str:
    made: Certificate = make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mail.example.test")
    return f'[tls]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\n'


def problems(text: str, folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(text, folder)
    return [str(problem) for problem in error.value.problems]


def test_a_listener_starts_tls_where_there_is_a_certificate(tls: str, tmp_path: Path) -> None:
    config = parse(TOP + POP3 + tls, tmp_path)
    assert config.tls_mode(config.listener[0]) == "starttls"
    assert config.has_logins
    assert not config.knows_tenants  # who reads mail says nothing of whose mail comes in
    assert config.pop3 == Pop3()


def test_threat_11_a_listener_without_tls_needs_to_be_allowed(tmp_path: Path) -> None:
    (problem,) = problems(TOP + POP3, tmp_path)
    assert problem.startswith("listener[0].tls: nobody can log in without TLS")
    assert (
        parse(TOP + POP3 + CLEAR, tmp_path).tls_mode(
            parse(TOP + POP3 + CLEAR, tmp_path).listener[0]
        )
        == "none"
    )


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        (SMTP + '[pop3]\nlogin_delay = "1m"\n', "pop3"),
        (POP3 + '[pop3]\nidle_timeout = "9m"\n', "pop3.idle_timeout"),
        (POP3 + CLEAR + 'login_delay = "1500ms"\n', "pop3.login_delay"),
        (POP3 + CLEAR + 'default_domain = "a b"\n', "pop3.default_domain"),
        (POP3 + CLEAR + "delete_retreived = true\n", "pop3.delete_retreived"),
        (SMTP + '[auth]\nmechanisms = ["PLAIN"]\n', "auth"),
        (POP3 + CLEAR + '[limits.account]\nmessages = "1/h"\n', "limits.account.messages"),
    ],
)
def test_what_would_have_no_effect_is_named(tables: str, key: str, tmp_path: Path) -> None:
    assert any(problem.startswith(key) for problem in problems(TOP + tables, tmp_path))


def test_the_clear_is_no_setting_where_all_is_under_tls(tls: str, tmp_path: Path) -> None:
    text = TOP + POP3 + 'tls = "implicit"\n' + tls + CLEAR
    assert problems(text, tmp_path)[0].startswith("pop3.plaintext_networks: is without effect")


def test_logins_over_pop3_make_settings_of_logins_effective(tmp_path: Path) -> None:
    more = '[auth]\nmechanisms = ["PLAIN"]\n[limits.client]\nauth_failures = "5/h"\n'
    assert parse(TOP + POP3 + CLEAR + more, tmp_path)
