"""Delivery status notifications (RFC 3461) between real processes, read by two readers."""

import email
import email.policy
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path
from smtplib import SMTP
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from bench.peers import postfix
from bench.processes import free_port
from fastmta.mail.delivery_status import Action, DeliveryStatus
from fastmta.mail.dsn import parse_report
from fastmta.mail.message import parse
from fastmta.sink import Mail
from tests.integration.servers import (
    LIMIT,
    Destination,
    Relay,
    destination,
    relay,
    route,
    rude_host,
    wait_until,
)

needs_postfix = pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())

SENDER = "alice@sender.test"
MESSAGE = b"Subject: to be told of\r\nMessage-ID: <1@sender.test>\r\n\r\nThe body.\r\n"
EVERYTHING = "NOTIFY=SUCCESS,FAILURE,DELAY"
SOON = '[retry]\nfirst = "300ms"\nmax_interval = "300ms"\n'


class Three(NamedTuple):
    """The relay between a destination and where its senders get their reports."""

    relay: Relay
    hosts: Destination
    senders: Destination


@contextmanager
def three(folder: Path, *tables: str, without: frozenset[str] = frozenset()) -> Iterator[Three]:
    with destination(without=without) as hosts, destination() as senders:
        routes = route(senders.port, "sender.test"), route(hosts.port)
        with relay(folder, *tables, *routes) as running:
            yield Three(running, hosts, senders)


def send(running: Relay, recipients: dict[str, str], *options: str, sender: str = SENDER) -> None:
    """One message; recipient -> the parameters of its RCPT."""
    with SMTP("127.0.0.1", running.smtp, timeout=LIMIT) as client:
        client.ehlo("client.test")
        assert "dsn" in client.esmtp_features
        assert client.mail(sender, list(options))[0] == 250
        for recipient, parameters in recipients.items():
            assert client.rcpt(recipient, parameters.split())[0] == 250
        assert client.data(MESSAGE)[0] == 250


class Told(NamedTuple):
    status: DeliveryStatus
    actions: dict[str, str]  # final recipient -> action
    returned: str  # type of what came back, and the text of it
    content: str
    message: EmailMessage


def told(mail: Mail) -> Told:
    """A report, read by us and by Python's email package, which have to agree."""
    assert mail.sender == ""
    notification = parse_report(parse(mail.content))
    assert notification is not None
    actions = {each.final: each.action for each in notification.status.recipients}
    message = email.message_from_bytes(mail.content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    assert not any(part.defects for part in message.walk())
    assert message["Auto-Submitted"] == "auto-replied"
    assert message.get_content_type() == "multipart/report"
    _, status, returned = message.iter_parts()
    _, *groups = status.get_payload()  # type: ignore[misc]
    assert actions == {
        group["Final-Recipient"].partition("; ")[2]: group["Action"]  # type: ignore[index]
        for group in groups
    }
    content = mail.content[mail.content.index(returned.get_content_type().encode()) :].decode()
    return Told(notification.status, actions, returned.get_content_type(), content, message)


def test_what_the_sender_asks_is_passed_on_to_a_host_that_offers_dsn(tmp_path: Path) -> None:
    """RFC 3461 section 5.2.1. That host reports; we do not."""
    with three(tmp_path) as (running, hosts, senders):
        wishes = {
            "all@to.test": f"{EVERYTHING} ORCPT=rfc822;All+2Bx@first.test",
            "never@to.test": "NOTIFY=NEVER",
            "nothing+=@to.test": "",
        }
        send(running, wishes, "RET=HDRS", "ENVID=QQ+2B314159")
        mail = hosts.mail_for("all@to.test")
        assert mail.parameters.split()[1:] == ["RET=HDRS", "ENVID=QQ+2B314159"]
        # Section 5.2.1 (d): ORCPT may be added, NOTIFY never.
        assert mail.wishes == {
            "all@to.test": f"{EVERYTHING} ORCPT=rfc822;All+2Bx@first.test",
            "never@to.test": "NOTIFY=NEVER ORCPT=rfc822;never@to.test",
            "nothing+=@to.test": "ORCPT=rfc822;nothing+2B+3D@to.test",
        }
        delivered = running.wait_for(3, event="delivered")
        assert {event["dsn"] for event in delivered} == {""}
    assert not senders.mail


def test_success_at_a_host_without_dsn_is_told_as_relayed(tmp_path: Path) -> None:
    """Section 5.2.2 (a), (b), (d) and (e); one report names all whom it concerns."""
    with three(tmp_path, without=frozenset({"DSN"})) as (running, hosts, senders):
        wishes = {
            "one@to.test": "NOTIFY=SUCCESS ORCPT=rfc822;One+2Bx@first.test",
            "two@to.test": EVERYTHING,
            "failure@to.test": "NOTIFY=FAILURE",
            "never@to.test": "NOTIFY=NEVER",
            "nothing@to.test": "",
        }
        send(running, wishes, "RET=FULL", "ENVID=QQ+2B314159")
        mail = hosts.mail_for("one@to.test")
        assert "ENVID" not in mail.parameters and mail.wishes == {}
        report = told(senders.mail_for(SENDER))
        assert report.actions == {"one@to.test": Action.RELAYED, "two@to.test": Action.RELAYED}
        assert report.status.envelope_id == "QQ+314159"
        assert report.status.reporting_mta == "relay.example.test"
        assert report.status.arrival is not None
        first, second = report.status.recipients
        assert (first.original, second.original) == ("rfc822;One+x@first.test", "")
        assert (first.status, first.remote_mta) == ("2.0.0", "127.0.0.1")
        # Section 4.3: RET is for failures alone.
        assert report.returned == "text/rfc822-headers" and "The body." not in report.content
        events = running.wait_for(5, event="delivered", domain="to.test")
        (dsn,) = {event["dsn"] for event in events if event["recipient"][:3] in ("one", "two")}
        assert {event["dsn"] for event in events} == {dsn, ""}
        (reported,) = running.wait_for(1, event="delivered", domain="sender.test")
        assert reported["id"] == dsn
    assert len(senders.mail) == 1


def test_a_delay_is_told_once_where_it_was_asked_for(tmp_path: Path) -> None:
    """Section 5.2.5, with the time until which it is tried (RFC 3464 section 2.3.9)."""
    reports = '[reports]\ndelay_after = "1s"\n'
    with three(tmp_path, SOON, reports) as (running, _, senders):
        wishes = {"tempfail@to.test": EVERYTHING, "tempfail+quiet@to.test": ""}
        send(running, wishes, "RET=FULL")
        report = told(senders.mail_for(SENDER))
        assert report.actions == {"tempfail@to.test": Action.DELAYED}
        (recipient,) = report.status.recipients
        assert (recipient.status, recipient.diagnostic) == (
            "4.3.0",
            "smtp; 451 4.3.0 Try again later",
        )
        assert recipient.will_retry_until is not None and report.status.arrival is not None
        wait = recipient.will_retry_until - report.status.arrival
        assert wait.total_seconds() == 5 * 86400
        assert "The body." not in report.content
        deferred = running.wait_for(8, event="deferred", recipient="tempfail@to.test")
        dsns = [event["dsn"] for event in deferred]
        assert sum(map(bool, dsns)) == 1 and not dsns[0]
    assert len(senders.mail) == 1


def test_senders_who_did_not_ask_hear_of_delays_by_setting(tmp_path: Path) -> None:
    reports = '[reports]\ndelay_after = "1s"\nunasked_delays = true\n'
    with three(tmp_path, SOON, reports) as (running, _, senders):
        send(running, {"tempfail@to.test": "", "tempfail+no@to.test": "NOTIFY=NEVER"})
        report = told(senders.mail_for(SENDER))
        assert report.actions == {"tempfail@to.test": Action.DELAYED}


def test_a_failure_gives_back_what_ret_asks_for(tmp_path: Path) -> None:
    with three(tmp_path) as (running, _, senders):
        for ret in ("HDRS", "FULL"):
            wishes = {
                "permfail@to.test": "NOTIFY=FAILURE ORCPT=rfc822;list@first.test",
                "permfail+never@to.test": "NOTIFY=NEVER",
                "permfail+success@to.test": "NOTIFY=SUCCESS",
            }
            sender = f"wants.{ret.lower()}@sender.test"
            send(running, wishes, f"RET={ret}", f"ENVID={ret}", sender=sender)
            report = told(senders.mail_for(sender))
            assert report.actions == {"permfail@to.test": Action.FAILED}
            assert report.status.envelope_id == ret
            assert report.status.recipients[0].original == "rfc822;list@first.test"
            assert "Subject: to be told of" in report.content
            kind, has_body = report.returned, "The body." in report.content
            wanted = {"HDRS": ("text/rfc822-headers", False), "FULL": ("message/rfc822", True)}
            assert (kind, has_body) == wanted[ret]
        bounced = running.wait_for(6, event="bounced")
        assert sum(event["dsn"] != "" for event in bounced) == 2
    assert len(senders.mail) == 2


def test_all_three_of_one_message(tmp_path: Path) -> None:
    """Delivered, delayed and failed recipients of one transaction: a report of each kind."""
    reports = '[reports]\ndelay_after = "1ms"\n'
    with three(tmp_path, reports, without=frozenset({"DSN"})) as (running, _, senders):
        local = ("good", "tempfail", "permfail")
        send(running, {f"{name}@to.test": EVERYTHING for name in local})
        running.wait_for(3, event="delivered", domain="sender.test")
        found = [told(mail).actions for mail in senders.mail]
        assert sorted(found, key=str) == [
            {"good@to.test": Action.RELAYED},
            {"permfail@to.test": Action.FAILED},
            {"tempfail@to.test": Action.DELAYED},
        ]


def test_a_report_that_cannot_be_delivered_goes_to_the_postmaster(tmp_path: Path) -> None:
    """A double bounce: the record, one report to the postmaster, and none about that."""
    reports = '[reports]\npostmaster = "postmaster@our.test"\n'
    refuse = rude_host(b"550 5.7.1 not here\r\n")
    with refuse as port, destination() as ours:
        routes = route(ours.port, "our.test"), route(port)
        with relay(tmp_path, reports, *routes) as running:
            send(running, {"bob@to.test": ""})
            first, second = running.wait_for(2, event="bounced")
            assert (first["sender"], first["domain"]) == (SENDER, "to.test")
            assert (second["sender"], second["recipient"]) == ("", SENDER)
            assert first["dsn"] == second["id"]
            assert (second["code"], second["enhanced"]) == (550, "5.7.1")
            mail = ours.mail_for("postmaster@our.test")
            (last,) = running.wait_for(1, event="delivered")
            assert last["id"] == second["dsn"]
    report = told(mail)
    assert report.message["To"] == "postmaster@our.test"
    assert report.message["Subject"] == "Undeliverable Report"
    assert report.actions == {SENDER: Action.FAILED}
    assert report.returned == "message/rfc822"
    outer = parse_report(parse(mail.content))
    assert outer is not None and outer.returned is not None
    assert (about := parse_report(outer.returned)) is not None
    assert [each.final for each in about.status.recipients] == ["bob@to.test"]


def test_a_report_to_the_postmaster_that_fails_ends_there(tmp_path: Path) -> None:
    reports = '[reports]\npostmaster = "postmaster@our.test"\n'
    with rude_host(b"550 5.7.1 not here\r\n") as port, relay(tmp_path, reports, route(port)) as one:
        send(one, {"bob@to.test": ""})
        *_, last = one.wait_for(3, event="bounced")
        assert (last["sender"], last["recipient"], last["dsn"]) == ("", "postmaster@our.test", "")


def test_mail_to_some_domains_is_given_up_sooner(tmp_path: Path) -> None:
    rule = '[[retry.domain]]\ndomain = "hasty.test"\nfirst = "100ms"\nmax_interval = "100ms"\n'
    dead, rule = route(free_port()), rule + 'give_up_after = "500ms"\n'
    with destination() as senders:
        tables = rule, route(senders.port, "sender.test"), dead
        with relay(tmp_path, *tables) as running:
            send(running, {"bob@hasty.test": "", "bob@patient.test": ""}, "ENVID=x")
            (bounced,) = running.wait_for(1, event="bounced")
            assert (bounced["domain"], bounced["enhanced"]) == ("hasty.test", "5.4.7")
            (deferred,) = running.wait_for(1, event="deferred", domain="patient.test")
            assert deferred["due"] - deferred["time"] >= 300
            report = told(senders.mail_for(SENDER))
    assert report.actions == {"bob@hasty.test": Action.FAILED}


def test_a_reload_changes_schedule_and_reports(tmp_path: Path) -> None:
    with three(tmp_path) as (running, _, senders):
        file = running.folder / "fastmta.toml"
        retry = '[retry]\nfirst = "1h"\nmax_interval = "1h"\n'
        reports = '[reports]\npostmaster = "postmaster@sender.test"\n'
        file.write_text(file.read_text() + retry + reports)
        running.process.send_signal(signal.SIGHUP)

        def is_told() -> bool:
            """Whether the postmaster hears of what has no sender, which is tried until he does."""
            send(running, {"permfail@to.test": ""}, sender="")
            told = [mail.recipients for mail in senders.mail]
            return ["postmaster@sender.test"] in told

        wait_until(is_told)
        send(running, {"tempfail@to.test": ""})
        (deferred,) = running.wait_for(1, event="deferred")
        assert 3599 < deferred["due"] - deferred["time"] < 1.2 * 3600


@contextmanager
def running_postfix(next_hop: int) -> Iterator[int]:
    """Postfix with everything for one next hop; gives its port."""
    with TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)  # its daemons run as another user
        with postfix.running(folder, port, next_hop, 1):
            yield port


@needs_postfix
def test_postfix_reports_by_what_we_passed_on(tmp_path: Path) -> None:
    """It offers DSN, its next hop does not: so it says "relayed", with our ENVID and ORCPT."""
    without = frozenset({"DSN"})
    with ExitStack() as stack:
        hosts = stack.enter_context(destination(without=without))
        port = stack.enter_context(running_postfix(hosts.port))
        running = stack.enter_context(relay(tmp_path, route(port)))
        wishes = {"bob+x@to.test": "NOTIFY=SUCCESS", "ann@to.test": ""}
        send(running, wishes, "ENVID=QQ+2B314159", "RET=HDRS")
        report = told(hosts.mail_for(SENDER))
    assert report.status.reporting_mta == "postfix.example.test"
    assert report.status.envelope_id == "QQ+314159"
    assert report.actions == {"bob+x@to.test": Action.RELAYED}
    assert report.status.recipients[0].original == "rfc822;bob+x@to.test"


@needs_postfix
def test_we_report_by_what_postfix_passed_on(tmp_path: Path) -> None:
    without = frozenset({"DSN"})
    with ExitStack() as stack:
        hosts = stack.enter_context(destination(without=without))
        running = stack.enter_context(relay(tmp_path, route(hosts.port)))
        port = stack.enter_context(running_postfix(running.smtp))
        wishes = {
            "bob+x@to.test": "NOTIFY=SUCCESS,DELAY",
            "permfail@to.test": "NOTIFY=FAILURE ORCPT=rfc822;First+2B@to.test",
        }
        send(Relay(running.process, tmp_path, port, 0), wishes, "ENVID=QQ+2B314159", "RET=FULL")
        running.wait_for(2, event="delivered", recipient=SENDER)
        reports = [told(mail) for mail in hosts.mail if mail.sender == ""]
    relayed, failed = sorted(reports, key=lambda report: "permfail@to.test" in report.actions)
    assert relayed.actions == {"bob+x@to.test": Action.RELAYED}
    assert failed.actions == {"permfail@to.test": Action.FAILED}
    for report in (relayed, failed):
        assert report.status.reporting_mta == "relay.example.test"
        assert report.status.envelope_id == "QQ+314159"
    assert relayed.status.recipients[0].original == "rfc822;bob+x@to.test"
    assert failed.status.recipients[0].original == "rfc822;First+@to.test"
    assert (relayed.returned, failed.returned) == ("text/rfc822-headers", "message/rfc822")
