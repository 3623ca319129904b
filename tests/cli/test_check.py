"""`fastmta check`, and what holds for every command, through real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastmta.cli
from fastmta.config import load
from tests.certificates import make_expired

GOOD = """
hostname = "relay.example.test"
data_dir = "data"
workers = 2
[[listener]]
service = "smtp"
bind = "127.0.0.1:2525"
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastmta", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "fastmta.toml"
    file.write_text(GOOD)
    return file


def test_a_good_configuration_is_summed_up(file: Path) -> None:
    result = run("check", "-c", file)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"{file}: ok"
    for fact in ("127.0.0.1:2525", "MX hosts, port 25", str(file.parent / "data"), "workers"):
        assert fact in result.stdout
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_domains_of_ours_are_told(file: Path) -> None:
    file.write_text(f'{GOOD}[domains."b.test"]\n[domains."a.test"]\n')
    assert "  mailboxes for    a.test, b.test\n" in run("check", "-c", file).stdout
    assert json.loads(run("check", "-c", file, "--json").stdout)["domains"] == ["a.test", "b.test"]


def test_the_same_as_json(file: Path) -> None:
    result = run("check", "-c", file, "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 0
    assert facts["ok"] is True
    assert facts["listeners"] == [{"service": "smtp", "bind": "127.0.0.1:2525", "tls": "none"}]
    assert facts["routes"] == [
        {"domain": "*", "protocol": "smtp", "tls": None, "next_hop": ["MX hosts, port 25"]}
    ]


def test_a_route_by_lmtp(file: Path) -> None:
    hops = '["unix:/run/lmtp", "127.0.0.1:24"]'
    file.write_text(f'{GOOD}[[route]]\ndomain = "a.test"\nprotocol = "lmtp"\nnext_hop = {hops}\n')
    assert (
        "mail for a.test  unix:/run/lmtp, 127.0.0.1:24 by LMTP" in run("check", "-c", file).stdout
    )


def test_each_problem_is_one_line_on_standard_error(file: Path) -> None:
    file.write_text(GOOD.replace("workers", "worker") + "\n[smtp]\nmax_hops = 0\n")
    result = run("check", "-c", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"fastmta: {file}: worker: unknown key; did you mean workers?",
        f"fastmta: {file}: smtp.max_hops: 0 is too small; the least is 1",
    ]


def test_problems_as_json(file: Path) -> None:
    file.write_text(GOOD.replace("2525", "0"))
    result = run("check", "-c", file, "--json")
    facts = json.loads(result.stdout)
    assert (result.returncode, facts["ok"]) == (1, False)
    assert [problem["key"] for problem in facts["problems"]] == ["listener[0].bind"]


def test_a_wrong_configuration_never_starts(file: Path) -> None:
    file.write_text(GOOD.replace("workers", "worker"))
    result = run("serve", "-c", file)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"fastmta: {file}: worker: unknown key; did you mean workers?\n"
    assert not (file.parent / "data").exists()


@pytest.mark.parametrize("missing", ["none.toml", "none/fastmta.toml"])
def test_a_file_that_cannot_be_read_is_said_without_a_traceback(
    tmp_path: Path, missing: str
) -> None:
    result = run("check", "-c", tmp_path / missing)
    assert result.returncode == 1
    error = f"fastmta: {tmp_path / missing}: cannot be read: No such file or directory\n"
    assert result.stderr == error


@pytest.mark.parametrize("arguments", [["cheque"], ["check"], ["check", "-c"], ["--verbose"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def test_help_names_every_command_and_loads_none() -> None:
    result = run("--help")
    assert result.returncode == 0
    for name in ("serve", "check", "demo", "queue", "dns", "sink"):
        assert f"  {name} " in result.stdout


MODULES = {path.stem for path in Path(fastmta.cli.__file__).parent.glob("[a-z]*.py")} - {
    "client",
    "common",
    "demo_people",
    "demo_tour",
    "progress",
    "words",
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_module_is_a_command_of_its_name(name: str) -> None:
    assert name in fastmta.cli.COMMANDS
    result = run(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: fastmta {name} ")
    assert not [line for line in result.stdout.splitlines()[1:] if line.endswith("...")]  # cut


def test_check_loads_no_server(file: Path) -> None:
    program = (
        "import sys; from fastmta.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(*sorted(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "check", "-c", file]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(result.stderr.split())
    assert "fastmta.cli.check" in loaded
    assert not loaded & {"uvloop", "asyncio", "aiohttp", "lmdb", "rich", "prometheus_client"}


def test_the_version_is_the_package_version() -> None:
    from importlib.metadata import version

    assert version("fastmta") in run("--version").stdout


def test_a_certificate_that_has_expired_is_told(file: Path) -> None:
    """A server starts with it all the same."""
    made = make_expired(file.parent / "tls", 12)
    file.write_text(f'{GOOD}[tls]\ncertificate = "tls/certificate.pem"\nkey = "tls/key.pem"\n')
    text = f"{made.certificate} expired 12 days ago; get another and send SIGHUP"
    result = run("check", "-c", file)
    assert result.returncode == 1
    assert result.stderr == f"fastmta: {file}: tls.certificate: {text}\n"
    facts = json.loads(run("check", "-c", file, "--json").stdout)
    assert facts["problems"] == [{"key": "tls.certificate", "text": text}]
    assert load(file).tls


def test_a_policy_is_loaded(file: Path) -> None:
    policy = file.with_name("policy.py")
    file.write_text(f'policy = "policy.py"\n{GOOD}')
    policy.write_text("def on_mail(session, sender): pass\ndef on_rcpt(session, recipient): pass\n")
    assert "  policy           on_mail, on_rcpt\n" in run("check", "-c", file).stdout
    assert json.loads(run("check", "-c", file, "--json").stdout)["policy"] == ["on_mail", "on_rcpt"]
    policy.write_text("\ndef on_mail(sender): pass\ndef on_recpt(session, recipient): pass\n")
    result = run("check", "-c", file)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"fastmta: {file}: policy: {policy}, line 2: on_mail(sender) cannot be called as "
        "on_mail(session, sender)",
        f"fastmta: {file}: policy: {policy}, line 3: there is no hook on_recpt; "
        "did you mean on_rcpt?",
    ]
