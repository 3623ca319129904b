"""Passwords and keys are in no log, no metric, no command line and no environment (THREATS 20)."""

import smtplib
import ssl
import subprocess
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

from bench.processes import free_port, tree
from tests.certificates import make_certificate
from tests.integration.servers import LIMIT, PROGRAM, destination, relay, route

NAME, PASSWORD, WRONG = "alice@sender.test", "correct-horse-battery", "wrong-staple-zebra"
CONTENT = "From: alice@sender.test\r\nSubject: x\r\n\r\nx"


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def log_in(port: int, password: str, mechanism: str) -> None:
    """By this mechanism, and send if that went well."""
    with smtplib.SMTP_SSL("127.0.0.1", port, context=trusting(), timeout=LIMIT) as client:
        client.ehlo()
        client.user, client.password = NAME, password
        with suppress(smtplib.SMTPAuthenticationError):
            client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))
            client.sendmail(NAME, ["b@one.test"], CONTENT)


def break_off(port: int) -> None:
    """In the middle of AUTH, and with what is no AUTH at all."""
    client = smtplib.SMTP_SSL("127.0.0.1", port, context=trusting(), timeout=LIMIT)
    client.ehlo()
    client.docmd("AUTH", f"PLAIN {_plain(WRONG)}=====")
    client.docmd(_plain(WRONG))
    client.docmd("AUTH", "LOGIN")
    client.docmd(_encoded(NAME))
    client.send(_encoded(WRONG))  # without its line end
    client.close()


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _plain(password: str) -> str:
    return _encoded(f"\0{NAME}\0{password}")


def secrets(key: Path) -> set[str]:
    """In all forms in which they travel, cut to what any coding of a longer text keeps."""
    lines = key.read_text().splitlines()[1:-1]
    forms = {form for each in (PASSWORD, WRONG) for form in (each, _encoded(each), _plain(each))}
    return {form.rstrip("=")[:-2] for form in forms} | set(lines)


def test_threat_20_secrets_are_told_nowhere(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "DNS:relay.example.test")
    tables = [
        '[[listener]]\nservice = "submission"\ntls = "implicit"\n'
        f'bind = "127.0.0.1:{(port := free_port())}"\n',
        f'[tls]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\n',
        '[log]\nlevel = "debug"\n',
    ]
    with destination() as sink, relay(tmp_path, *tables, route(sink.port)) as running:
        command = [PROGRAM, "account", "add", "-c", tmp_path / "fastmta.toml", "--password-stdin"]
        added = subprocess.run(
            [*command, NAME], input=f"{PASSWORD}\n", capture_output=True, text=True, check=True
        )
        for mechanism in ("PLAIN", "LOGIN"):
            for password in (PASSWORD, WRONG):
                log_in(port, password, mechanism)
        break_off(port)
        sink.mail_for("b@one.test")
        running.wait_for(2, event="delivered")
        running.reload("[log]", "[log]")
        told = added.stdout + added.stderr + running.get("/metrics")[1]
        for pid in tree(running.process.pid):
            for name in ("cmdline", "environ"):
                told += Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")
    told += running.stderr() + (running.data / "dispositions.jsonl").read_text()
    assert NAME in told  # so this is where one would be found
    assert not [each for each in secrets(made.key) if each in told]
