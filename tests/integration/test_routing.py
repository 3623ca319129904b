"""Mail finds its way by the answers of a real DNS server, and each way ends as it must."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from smtplib import SMTP
from typing import NamedTuple

import dns.exception
import dns.message
import dns.query

from bench.processes import free_port
from tests.dns_server import DnsServer, Fault
from tests.integration.servers import (
    LIMIT,
    Destination,
    Event,
    Relay,
    destination,
    program,
    relay,
    route,
    rude_host,
    split_trace,
    wait_until,
)

# Who listens where: nobody at DEAD and GONE. An address that failed is told of by the name of the
# host that met it first, so the domain of which that is looked at has one of its own.
MAIN, DEAD, IMPLICIT, SENDERS = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
GONE = "127.0.0.6"
FAILING = "failing.test"

# What dnsmasq says of *.test is this alone; it refuses to speak of anything else.
ZONE = [
    "mx-host=one.test,mx.one.test,10",
    f"host-record=mx.one.test,{MAIN}",
    "mx-host=two.test,mx1.two.test,10",
    "mx-host=two.test,mx2.two.test,20",
    f"host-record=mx1.two.test,{DEAD}",
    f"host-record=mx2.two.test,{MAIN}",
    "mx-host=equal.test,mx1.equal.test,10",
    "mx-host=equal.test,mx2.equal.test,10",
    f"host-record=mx1.equal.test,{DEAD}",
    f"host-record=mx2.equal.test,{MAIN}",
    "mx-host=shared.test,mx.one.test,5",
    f"host-record=implicit.test,{IMPLICIT}",
    "cname=alias.test,one.test",
    "mx-host=null.test,.,0",
    "mx-host=dead.test,mx.dead.test,10",
    f"host-record=mx.dead.test,{GONE}",
    "mx-host=us.test,relay.example.test,10",
    "mx-host=sender.test,mx.sender.test,10",
    f"host-record=mx.sender.test,{SENDERS}",
]


class End(NamedTuple):
    event: str
    code: int
    enhanced: str
    host: str = ""


ENDS = {
    "one.test": End("delivered", 250, "2.0.0", "mx.one.test"),
    "two.test": End("delivered", 250, "2.0.0", "mx2.two.test"),
    "equal.test": End("delivered", 250, "2.0.0", "mx2.equal.test"),
    "shared.test": End("delivered", 250, "2.0.0", "mx.one.test"),
    "implicit.test": End("delivered", 250, "2.0.0", "implicit.test"),
    "alias.test": End("delivered", 250, "2.0.0", "mx.one.test"),
    "null.test": End("bounced", 556, "5.1.10"),  # RFC 7505
    "missing.test": End("bounced", 550, "5.1.2"),  # NXDOMAIN
    "us.test": End("bounced", 554, "5.4.6"),
    FAILING: End("deferred", 451, "4.4.3"),  # SERVFAIL
    "refused.example": End("deferred", 451, "4.4.3"),  # REFUSED
    "dead.test": End("deferred", 451, "4.4.1", "mx.dead.test"),
}


@contextmanager
def dnsmasq() -> Iterator[str]:
    """Debian's DNS server with ZONE; gives its endpoint."""
    port = free_port()
    with DnsServer({FAILING: Fault.SERVFAIL}) as failing:
        forward = f"server=/{FAILING}/{failing.endpoint.host}#{failing.endpoint.port}"
        settings = ["no-resolv", "no-hosts", "pid-file=", "local=/test/", forward, *ZONE]
        where = ["listen-address=127.0.0.1", "bind-interfaces", f"port={port}"]
        options = [f"--{setting}" for setting in settings + where]
        command = [
            program("dnsmasq"),
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
        ]
        process = subprocess.Popen([*command, *options])
        try:
            wait_until(lambda: answers(port), lambda: process.poll() is None)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(LIMIT)


def answers(port: int) -> bool:
    query = dns.message.make_query("one.test", "MX")
    try:
        return bool(dns.query.udp(query, "127.0.0.1", timeout=1, port=port).answer)
    except (OSError, dns.exception.Timeout):
        return False


def tables(nameserver: str, port: int, allow_local: bool = True) -> str:
    return f"""
[dns]
nameservers = ["{nameserver}"]

[delivery]
port = {port}
allow_local_addresses = {str(allow_local).lower()}
"""


def send(running: Relay, *domains: str, options: Sequence[str] = ()) -> None:
    message = b"Subject: to everybody\r\nMessage-ID: <1@sender.test>\r\n\r\nHello.\r\n"
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        recipients = [f"bob@{domain}" for domain in domains]
        client.sendmail("alice@sender.test", recipients, message, rcpt_options=options)


def ends_of(running: Relay, *domains: str) -> dict[str, Event]:
    """The first event of an attempt for each domain, once all have one."""

    def found(events: list[Event]) -> dict[str, Event]:
        attempts = [event for event in reversed(events) if event["event"] != "received"]
        first = {event["domain"]: event for event in attempts if event["domain"] in domains}
        return first if len(first) == len(domains) else {}

    return running.wait(found)


class Report(NamedTuple):
    text: str  # in one line
    message: dict[str, str]  # fields of the delivery status
    recipient: dict[str, str]
    original: str


def read_report(content: bytes) -> Report:
    """RFC 3462, RFC 3464: what a mail program makes of a failure report."""
    report = message_from_bytes(content, policy=policy.default)
    assert isinstance(report, EmailMessage) and not report.defects
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    assert report["To"] == "alice@sender.test"
    assert report["Date"].datetime and report["Message-ID"] and report["Subject"]
    text, status, original = report.iter_parts()
    assert (text.get_content_type(), status.get_content_type(), original.get_content_type()) == (
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    )
    message, recipient = status.get_payload()  # type: ignore[misc]
    return Report(
        " ".join(text.get_content().split()),
        dict(message.items()),  # type: ignore[union-attr]
        dict(recipient.items()),  # type: ignore[union-attr]
        original.get_content(),
    )


def test_each_domain_ends_as_it_must(tmp_path: Path) -> None:
    port = free_port(MAIN, DEAD, IMPLICIT, SENDERS, GONE)
    with ExitStack() as stack:
        main, implicit, senders = (
            stack.enter_context(destination(host, port)) for host in (MAIN, IMPLICIT, SENDERS)
        )
        nameserver = stack.enter_context(dnsmasq())
        running = stack.enter_context(relay(tmp_path, tables(nameserver, port)))
        send(running, *ENDS)
        ends = ends_of(running, *ENDS)
        got = {
            name: End(e["event"], e["code"], e["enhanced"], e["host"].partition(" ")[0])
            for name, e in ends.items()
        }
        assert got == ENDS
        assert ends["one.test"]["site"] == ends["shared.test"]["site"] == ends["alias.test"]["site"]
        assert all(e["due"] > e["time"] + 299 for e in ends.values() if e["event"] == "deferred")
        arrived = sorted(recipient for mail in main.mail for recipient in mail.recipients)
        assert arrived == [f"bob@{n}.test" for n in ("alias", "equal", "one", "shared", "two")]
        assert [mail.recipients for mail in implicit.mail] == [["bob@implicit.test"]]
        running.wait_for(3, event="delivered", sender="", domain="sender.test")
        check_reports(senders, ends)


def check_reports(senders: Destination, ends: dict[str, Event]) -> None:
    """Each bounce went back to the sender, and says what the log says."""
    assert all(
        (mail.sender, mail.recipients) == ("", ["alice@sender.test"]) for mail in senders.mail
    )
    reports = [read_report(mail.content) for mail in senders.mail]
    told = {report.recipient["Final-Recipient"].partition("@")[2]: report for report in reports}
    assert told.keys() == {name for name, end in ENDS.items() if end.event == "bounced"}
    for domain, report in told.items():
        end = ends[domain]
        assert report.message["Reporting-MTA"] == "dns; relay.example.test"
        assert report.recipient["Final-Recipient"] == f"rfc822; bob@{domain}"
        assert report.recipient["Action"] == "failed"
        assert report.recipient["Status"] == end["enhanced"]
        diagnostic = f"smtp; {end['code']} {end['enhanced']} {end['reply']}"
        assert report.recipient["Diagnostic-Code"] == diagnostic
        assert f"<bob@{domain}>" in report.text and end["reply"] in report.text
        assert "Subject: to everybody" in report.original


def test_local_addresses_are_refused(tmp_path: Path) -> None:
    """Unless a route names them: the report comes back by one."""
    port = free_port(MAIN, IMPLICIT)
    with ExitStack() as stack:
        main, implicit, senders = (
            stack.enter_context(sink)
            for sink in (destination(MAIN, port), destination(IMPLICIT, port), destination())
        )
        nameserver = stack.enter_context(dnsmasq())
        settings = tables(nameserver, port, allow_local=False)
        back = route(senders.port, "sender.test")
        running = stack.enter_context(relay(tmp_path, settings, back))
        send(running, "one.test", "implicit.test", "[127.0.0.2]")
        ends = ends_of(running, "one.test", "implicit.test", "[127.0.0.2]")
        codes = {(e["event"], e["code"], e["enhanced"]) for e in ends.values()}
        assert codes == {("bounced", 550, "5.4.4")}
        running.wait_for(3, event="delivered", domain="sender.test")
        reports = [read_report(mail.content) for mail in senders.mail]
        assert {report.recipient["Status"] for report in reports} == {"5.4.4"}
        assert all("loopback" in report.text for report in reports)
        assert not main.mail and not implicit.mail


def test_reports_that_are_not_sent(tmp_path: Path) -> None:
    """None where none is wanted (RFC 3461 section 4.1), and none about a report."""
    with dnsmasq() as nameserver, relay(tmp_path, tables(nameserver, 25, False)) as running:
        send(running, "null.test", options=["NOTIFY=NEVER"])
        (unwanted,) = running.wait_for(1, event="bounced")
        assert unwanted["dsn"] == ""
        send(running, "null.test")
        _, first, second = running.wait_for(3, event="bounced")
        assert (first["domain"], second["domain"]) == ("null.test", "sender.test")
        assert (second["sender"], second["dsn"]) == ("", "")
        assert first["dsn"] == second["id"]
    assert len(running.events()) == 5  # two receptions beside the bounces


def test_a_report_about_a_rude_answer_is_readable(tmp_path: Path) -> None:
    answer = b"550-5.1.1 K\xe4se, " + b"la" * 500 + b"\r\n550 5.1.1 go \x1b[31maway\r\n"
    with ExitStack() as stack:
        port, senders = stack.enter_context(rude_host(answer)), stack.enter_context(destination())
        routes = route(senders.port, "sender.test"), route(port)
        running = stack.enter_context(relay(tmp_path, *routes))
        send(running, "rude.test")
        content = senders.mail_for("alice@sender.test").content
    report = read_report(content)
    assert content.isascii() and b"\x1b" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert report.recipient["Status"] == "5.1.1"
    assert report.recipient["Diagnostic-Code"].startswith("smtp; 550 5.1.1 K?se, lala")


def test_deferred_mail_goes_when_its_host_is_back(tmp_path: Path) -> None:
    port = free_port(MAIN)
    retry = '[retry]\nfirst = "1s"\n'
    with dnsmasq() as nameserver, relay(tmp_path, tables(nameserver, port), retry) as running:
        send(running, "one.test")
        running.wait_for(1, event="deferred", attempts=1)
        with destination(MAIN, port) as sink:
            (delivered,) = running.wait_for(1, event="delivered")
            assert split_trace(sink.mail_for("bob@one.test").content)[1].endswith(b"Hello.\r\n")
        assert delivered["attempts"] >= 1
        assert delivered["time"] >= delivered["received"] + 1


def test_mail_that_is_too_old_bounces(tmp_path: Path) -> None:
    port = free_port(MAIN, SENDERS)
    retry = '[retry]\nfirst = "1s"\nmax_interval = "1s"\ngive_up_after = "2s"\n'
    with ExitStack() as stack:
        senders = stack.enter_context(destination(SENDERS, port))
        nameserver = stack.enter_context(dnsmasq())
        running = stack.enter_context(relay(tmp_path, tables(nameserver, port), retry))
        send(running, "one.test")
        (bounced,) = running.wait_for(1, event="bounced")
        report = read_report(senders.mail_for("alice@sender.test").content)
        assert bounced["time"] >= bounced["received"] + 2
        assert (bounced["enhanced"], report.recipient["Status"]) == ("5.4.7", "5.4.7")
        assert "connection refused by" in report.text  # the last answer
