"""[auth]: what cannot take effect is named by its key."""

from pathlib import Path

import pytest

from fastmta.config import ConfigError, OAuth, parse
from tests.certificates import make_certificate

TOP = """
hostname = "relay.example.test"
data_dir = "data"
listener = [{ service = "submission", bind = "127.0.0.1:2525" }]
tls = { certificate = "certificate.pem", key = "key.pem" }
"""
OAUTH = 'jwks = "https://login.test/keys"\nissuer = "https://login.test"\naudience = "mail.test"\n'


def problems(text: str, folder: Path) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        parse(TOP + text, folder)
    return {problem.key: problem.text for problem in error.value.problems}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a certificate, without which nobody can log in."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder, "DNS:relay.example.test")
    return folder


def test_what_is_left_out(folder: Path) -> None:
    auth = parse(TOP, folder).auth
    assert auth.mechanisms == ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN")
    assert (auth.remember, auth.oauth) == (300, None)


def test_what_is_written(folder: Path) -> None:
    text = f'[auth]\nmechanisms = ["PLAIN", "XOAUTH2"]\nremember = "0s"\n[auth.oauth]\n{OAUTH}'
    auth = parse(TOP + text, folder).auth
    assert (auth.mechanisms, auth.remember) == (("PLAIN", "XOAUTH2"), 0)
    assert auth.oauth == OAuth(
        jwks="https://login.test/keys", issuer="https://login.test", audience="mail.test"
    )


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("mechanisms = []", "auth.mechanisms", "is empty"),
        ('mechanisms = ["PLAIN", "PLAIN"]', "auth.mechanisms", '"PLAIN" is there twice'),
        ('mechanisms = ["CRAM-MD5"]', "auth.mechanisms[0]", "CRAM-MD5"),
        ('mechanisms = ["XOAUTH2"]', "auth.mechanisms", "needs a table [auth.oauth]"),
        ('remember = "2h"', "auth.remember", "2h"),
        ('mechanisms = ["SCRAM-SHA-256"]\nremember = "1m"', "auth.remember", "without effect"),
        (f"[auth.oauth]\n{OAUTH}", "auth.oauth", "without effect"),
        ("[auth.oauth]\njwks = 1", "auth.oauth.issuer", "is missing"),
        ("[auth.oath]", "auth.oath", "oauth"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, key: str, problem: str) -> None:
    assert problem in problems(f"[auth]\n{text}\n", tmp_path)[key]


@pytest.mark.parametrize(
    ("jwks", "problem"),
    [
        ("", "write"),
        ("keys.json", "write"),
        ("http://login.test/keys", "who can change keys can be anybody"),
        ("ftp://login.test/keys", "write"),
        ("https://", "write"),
        ("https://login.test:99999/keys", "is no address"),
        ("https://[login.test/keys", "is no address"),
        ("https://login.test/a b", "spaces"),
        ("file:///there/is/no/such.json", "cannot be read"),
        ("file:keys.json", "write an absolute path"),
        ("file://login.test/keys.json", "write an absolute path"),
    ],
)
def test_where_keys_cannot_come_from(tmp_path: Path, jwks: str, problem: str) -> None:
    text = f"""
    [auth]
    mechanisms = ["OAUTHBEARER"]
    [auth.oauth]
    jwks = "{jwks}"
    issuer = "https://login.test"
    audience = "mail.test"
    """
    assert problem in problems(text, tmp_path)["auth.oauth.jwks"]


def test_where_keys_may_come_from(folder: Path) -> None:
    file = folder / "the keys.json"
    file.write_text("{}")
    for jwks in (file.as_uri(), "http://127.0.0.1:8080/keys", "http://[::1]/", "https://a.test"):
        text = f"[auth]\nmechanisms = ['XOAUTH2']\n[auth.oauth]\n{OAUTH}"
        assert parse(TOP + text.replace("https://login.test/keys", jwks), folder).auth.oauth


@pytest.mark.parametrize("name", ["issuer", "audience", "claim"])
def test_what_may_not_be_empty(tmp_path: Path, name: str) -> None:
    good = {"issuer": "https://login.test", "audience": "mail.test", "jwks": "https://login.test"}
    lines = "\n".join(f'{key} = "{value}"' for key, value in {**good, name: ""}.items())
    text = f"[auth]\nmechanisms = ['XOAUTH2']\n[auth.oauth]\n{lines}"
    assert "is empty" in problems(text, tmp_path)[f"auth.oauth.{name}"]
