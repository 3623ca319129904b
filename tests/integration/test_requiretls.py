"""REQUIRETLS and TLS-Required (RFC 8689) between real processes, and what operators read of TLS."""

import ssl
import subprocess
from pathlib import Path
from smtplib import SMTP, SMTPSenderRefused

import pytest

from bench.processes import free_port
from fastmta.mail.dsn import parse_report
from fastmta.mail.message import parse
from tests.certificates import Certificate, make_certificate
from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Relay,
    destination,
    relay,
    route,
)

MESSAGE = b"Subject: for nobody else\r\n\r\nHello.\r\n"
SENDER = "alice@sender.test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:mx.test", "IP:127.0.0.1")


def settings(certificate: Certificate) -> str:
    return (
        f'[tls]\ncertificate = "{certificate.certificate}"\nkey = "{certificate.key}"\n'
        f'[delivery]\nca_file = "{certificate.certificate}"\n'
    )


def send(running: Relay, recipient: str, content: bytes = MESSAGE, *options: str) -> None:
    """Under TLS where there are options."""
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        if options:
            client.starttls(context=trusting())
        client.sendmail(SENDER, [recipient], content, mail_options=options)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("protocol", ["smtp", "smtps"])
def test_it_holds_over_two_relays(certificate: Certificate, tmp_path: Path, protocol: str) -> None:
    """The second has a listener that speaks TLS from the first octet, too."""
    port = free_port()
    mode = "implicit" if protocol == "smtps" else "starttls"
    listener = f'[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:{port}"\ntls = "{mode}"\n'
    hop = route(port).replace("next_hop", f'protocol = "{protocol}"\nnext_hop')
    (folder := tmp_path / "second").mkdir()
    tables = settings(certificate)
    with (
        destination(tls=certificate.context) as sink,
        relay(folder, listener, tables, route(sink.port), hostname="second.example.test") as second,
        relay(tmp_path, tables, hop) as first,
    ):
        send(first, "bob@example.test", MESSAGE, "REQUIRETLS")
        mail = sink.mail_for("bob@example.test")
        assert "REQUIRETLS" in mail.parameters.split()
        assert mail.content.endswith(MESSAGE)
        for each in (first, second):
            [event] = each.wait_for(1, event="delivered")
            assert event["tls"].startswith("TLSv1.3 ")
            assert event["tls"].endswith(" verified")


def test_what_cannot_be_protected_comes_back_protected(
    certificate: Certificate, tmp_path: Path
) -> None:
    lacks = frozenset({"REQUIRETLS"})
    with (
        destination() as clear,
        destination(tls=certificate.context, without=lacks) as lacking,
        destination(tls=certificate.context) as senders,
    ):
        routes = (
            route(clear.port, "clear.test"),
            route(lacking.port, "lacking.test"),
            route(senders.port),
        )
        with relay(tmp_path, settings(certificate), *routes) as running:
            for domain, enhanced in (("lacking.test", "5.7.30"), ("clear.test", "5.7.10")):
                send(running, f"bob@{domain}", MESSAGE, "REQUIRETLS", "RET=FULL")
                [event] = running.wait_for(1, event="bounced", domain=domain)
                assert (event["code"], event["enhanced"]) == (550, enhanced)
                assert event["category"] == "tls"
                report = senders.mail_for(SENDER)
                assert (report.sender, "REQUIRETLS" in report.parameters) == ("", True)
                notification = parse_report(parse(report.content))
                assert notification is not None
                assert notification.status.recipients[0].status == enhanced
                assert b"Hello." not in report.content
                senders.mail.clear()
            send(running, "bob@clear.test")
            assert clear.mail_for("bob@clear.test").content.endswith(MESSAGE)
            assert lacking.mail == []


def test_it_is_not_to_be_had_in_the_clear(certificate: Certificate, tmp_path: Path) -> None:
    with (
        relay(tmp_path, settings(certificate)) as running,
        SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client,
    ):
        with pytest.raises(SMTPSenderRefused) as refused:
            client.sendmail(SENDER, ["bob@example.test"], MESSAGE, ["REQUIRETLS"])
        assert refused.value.smtp_code == 555


def test_a_sender_may_do_without_tls(tmp_path: Path) -> None:
    required = '[shaping]\ntls = "required"\n'
    with destination() as sink, relay(tmp_path, required, route(sink.port)) as running:
        send(running, "carol@example.test", b"TLS-Required: No\r\n" + MESSAGE)
        content = sink.mail_for("carol@example.test").content
        assert content.endswith(b"TLS-Required: No\r\n" + MESSAGE)
        [event] = running.wait_for(1, event="delivered")
        assert event["tls"] == ""

        send(running, "bob@example.test")
        [event] = running.wait_for(1, event="deferred")
        text = "TLS is required for 127.0.0.1 [127.0.0.1], but STARTTLS was not offered"
        assert (event["enhanced"], event["reply"]) == ("4.7.4", text)
        assert f"451 4.7.4 {text}" in queue(running, "show", event["id"])
        assert f"451 4.7.4 {text}" in queue(running, "why", "example.test")
        assert len(sink.mail) == 1


def test_a_header_field_that_is_ignored_changes_nothing(tmp_path: Path) -> None:
    required = '[shaping]\ntls = "required"\n[delivery]\ntls_required_header = "ignore"\n'
    with destination() as sink, relay(tmp_path, required, route(sink.port)) as running:
        send(running, "carol@example.test", b"TLS-Required: No\r\n" + MESSAGE)
        running.wait_for(1, event="deferred", enhanced="4.7.4")
        assert sink.mail == []


def test_a_route_overrules_shaping(tmp_path: Path) -> None:
    required = '[shaping]\ntls = "required"\n'
    with destination() as sink:
        clear = route(sink.port, "clear.test").replace("next_hop", 'tls = "none"\nnext_hop')
        with relay(tmp_path, required, clear, route(sink.port)) as running:
            send(running, "bob@example.test")
            send(running, "carol@clear.test")
            sink.mail_for("carol@clear.test")
            [event] = running.wait_for(1, event="deferred")
            assert (event["recipient"], event["enhanced"]) == ("bob@example.test", "4.7.4")
            [event] = running.wait_for(1, event="delivered")
            assert event["site"] == f"127.0.0.1:{sink.port}!none"
            running.reload('"none"', '"required"')
            send(running, "dave@clear.test")
            running.wait_for(1, event="deferred", recipient="dave@clear.test", enhanced="4.7.4")


def queue(running: Relay, command: str, what: str) -> str:
    configuration = str(running.folder / "fastmta.toml")
    done = subprocess.run(
        [str(PROGRAM), "queue", command, "-c", configuration, what],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())  # however it is wrapped
