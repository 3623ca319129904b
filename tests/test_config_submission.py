"""[submission], smtp.auth and submission listeners: what could not take effect is named."""

from pathlib import Path

import pytest

from fastmta.config import Config, ConfigError, Submission, parse
from tests.certificates import make_certificate

SMTP = 'service = "smtp", bind = "127.0.0.1:2525"'
MSA = 'service = "submission", bind = "127.0.0.1:2587"'
TLS = '[tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("submission")
    make_certificate(made, "DNS:relay.example.test")
    return made


def read(folder: Path, listeners: list[str], *tables: str) -> Config:
    listed = ", ".join(f"{{ {each} }}" for each in listeners)
    top = f'hostname = "relay.example.test"\ndata_dir = "data"\nlistener = [{listed}]\n'
    return parse("\n".join([top, *tables]), folder)


def test_submission_needs_no_other_listener(folder: Path) -> None:
    config = read(folder, [MSA, MSA.replace("2587", "2465") + ', tls = "implicit"'], TLS)
    assert [config.tls_mode(each) for each in config.listener] == ["starttls", "implicit"]
    assert all(map(config.offers_login, config.listener))
    assert config.submission == Submission()


def test_an_account_may_be_a_tenant(folder: Path) -> None:
    tenant = '[tenants."bob@example.test"]\nweight = 2\n'
    assert read(folder, [MSA], TLS, tenant).tenants
    with pytest.raises(ConfigError, match="nothing says whose mail it is"):
        read(folder, [SMTP], TLS, tenant)


WRONG = {
    "without TLS": ([MSA], "", r"listener\[0\].tls: nobody can log in"),
    "TLS switched off": (
        [SMTP, MSA + ', tls = "none"'],
        TLS,
        r"listener\[1\].tls: nobody can log in",
    ),
    "no listener": ([SMTP], TLS + "[submission]\ncheck_sender = false", "submission: is without"),
    "AUTH without TLS": ([SMTP], "[smtp]\nauth = true", "smtp.auth: is without effect"),
    "AUTH without its service": ([MSA], TLS + "[smtp]\nauth = true", "smtp.auth: is without"),
    "Date on smtp": (
        [SMTP],
        TLS + "[smtp]\nauth = true\n[submission]\nadd_missing = false",
        "submission.add_missing: is without effect",
    ),
    "no field for the tenant": (
        [MSA],
        TLS + '[submission]\ntenant = "header"',
        "submission.tenant: .* set headers.tenant",
    ),
    "nobody logs in": ([SMTP], '[auth]\nmechanisms = ["PLAIN"]', "auth: is without effect"),
    "no network": ([SMTP], '[smtp]\nxclient_hosts = ["x"]', "smtp.xclient_hosts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_without_effect_is_named(name: str, folder: Path) -> None:
    listeners, tables, text = WRONG[name]
    with pytest.raises(ConfigError, match=text):
        read(folder, listeners, tables)


def test_logins_on_smtp_go_by_the_same_rules(folder: Path) -> None:
    tables = TLS + "[smtp]\nauth = true\n[submission]\ncheck_sender = false"
    assert not read(folder, [SMTP], tables).submission.check_sender
