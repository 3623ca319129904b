"""fastmta dkim: keys are made, kept safe, and compared with what DNS says."""

import json
import os
import subprocess
from pathlib import Path

from fastmta.config import parse
from fastmta.mail.dkim_key import load_key
from tests.cli.test_check import GOOD, run
from tests.dns_server import DnsServer
from tests.integration.servers import program

NAME = "s1._domainkey.example.test"


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    os.umask(os.umask(0o022))  # as ever: others could read what a careless program makes
    done = run("dkim", "generate", "Example.test.", "--selector", "2026", "--out", file)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    key = load_key(file.read_bytes(), thorough=True)
    assert (key.algorithm, key.bits) == ("rsa-sha256", 2048)
    assert '2026._domainkey.example.test. IN TXT ( "v=DKIM1; k=rsa; p=' in done.stdout
    strings = done.stdout.split("( ")[1].split(" )")[0]
    assert "".join(strings.split('"')[1::2]) == key.record
    table = done.stdout[done.stdout.index("[[dkim]]") :]
    assert parse(GOOD + table, tmp_path).dkim[0].key == file


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("precious")
    done = run("dkim", "generate", "example.test", "--out", file)
    assert (done.returncode, file.read_text()) == (1, "precious")
    assert "is there already" in done.stderr


def test_wrong_usage_makes_no_key(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    for words in (["exa mple"], ["example.test", "--selector", "a b"]):
        assert run("dkim", "generate", *words, "--out", file).returncode == 2
        assert not file.exists()


def test_openssl_reads_an_ed25519_key(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    command = ["dkim", "generate", "example.test", "--type", "ed25519", "--out", file, "--json"]
    facts = json.loads(run(*command).stdout)
    assert facts["name"] == NAME
    assert facts["record"] == load_key(file.read_bytes()).record
    shown = subprocess.run([program("openssl"), "pkey", "-in", file, "-noout"], check=False)
    assert shown.returncode == 0


def test_what_dns_publishes_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "fastmta.toml"
    made = json.loads(
        run("dkim", "generate", "example.test", "--out", tmp_path / "key.pem", "--json").stdout
    )
    record = made["record"]
    with DnsServer({}) as server:
        dns = f'[dns]\nnameservers = ["{server.endpoint}"]\n'
        file.write_text(GOOD + dns + made["table"])

        def check(*texts: str) -> tuple[int, str]:
            server.zone = {NAME: {"TXT": list(texts)}} if texts else {}
            done = run("dkim", "check", "-c", file)
            return done.returncode, done.stdout.splitlines()[0]

        good = f'"{record[:200]}" "{record[200:]}"'
        assert check(good) == (0, f"{NAME}: ok")
        assert check(good.replace("; k=", " ;k = ")) == (0, f"{NAME}: ok")
        assert check() == (1, f"{NAME}: DNS has no record")
        assert check(good, '"v=spf1 -all"')[1].startswith(f"{NAME}: DNS has 2 TXT records")
        assert check('"v=DKIM1; p=AAAA"') == (1, f"{NAME}: DNS has another key")
        assert check(good.replace("k=rsa", "k=ed25519"))[1].endswith("another kind of key (k=)")
    server_is_gone = run("dkim", "check", "-c", file, "--json")
    assert server_is_gone.returncode == 1
    assert "does not answer" in json.loads(server_is_gone.stdout)[0]["problem"]


def test_where_nothing_is_signed_the_check_says_so(tmp_path: Path) -> None:
    (tmp_path / "fastmta.toml").write_text(GOOD)
    done = run("dkim", "check", "-c", tmp_path / "fastmta.toml")
    assert (done.returncode, done.stdout) == (0, "there is no [[dkim]] table: nothing is signed\n")


def test_the_check_warns_of_an_open_file_and_a_weak_key(tmp_path: Path) -> None:
    key, file = tmp_path / "key.pem", tmp_path / "fastmta.toml"
    subprocess.run([program("openssl"), "genrsa", "-out", key, "1024"], check=True)
    key.chmod(0o644)
    table = '[[dkim]]\ndomain = "example.test"\nselector = "s1"\nkey = "key.pem"\n'
    file.write_text(GOOD + table)
    done = run("check", "-c", file)
    assert done.returncode == 0
    assert f"warning: dkim[0].key: {key} is open to every user" in done.stderr
    assert f"warning: dkim[0].key: {key} has 1024 bits" in done.stderr
    assert len(json.loads(run("check", "-c", file, "--json").stdout)["warnings"]) == 2
    key.chmod(0o600)
    assert "is open" not in run("check", "-c", file).stderr


def test_the_check_finds_a_key_whose_numbers_do_not_belong_together(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    good = rsa.generate_private_key(65537, 2048).private_numbers()
    other = rsa.generate_private_key(65537, 2048).private_numbers()
    numbers = rsa.RSAPrivateNumbers(
        good.p, good.q, good.d, good.dmp1, good.dmq1, other.iqmp, good.public_numbers
    )
    broken = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    key, file = tmp_path / "key.pem", tmp_path / "fastmta.toml"
    key.write_bytes(
        broken.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.write_text(GOOD + '[[dkim]]\ndomain = "a.test"\nselector = "s1"\nkey = "key.pem"\n')
    done = run("check", "-c", file)
    assert done.returncode == 1
    assert "dkim[0].key" in done.stderr
