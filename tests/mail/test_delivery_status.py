import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fastmta.mail.disposition import Disposition, Kind
from fastmta.mail.dsn import Report, build_failure
from fastmta.mail.dsn_parse import parse_report
from fastmta.mail.envelope import Envelope, Recipient
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply

FOLDER = Path(__file__).parents[2].parent / "shared" / "fixtures" / "bounces"
BOUNCES = sorted(FOLDER.glob("*.txt"))

# Reports with the fields of RFC 3464, and what flufl.bounce reads in the prose beside them.
UNLIKE = {
    "caiwireless_01.txt": "its fields name no recipient (RFC 3464 section 2.3 asks for one)",
    "netscape_01.txt": "its fields name no recipient",
    "simple_13.txt": "its fields name no recipient",
    "simple_31.txt": "its fields name no recipient",
}


def reports() -> list[Path]:
    return [path for path in BOUNCES if parse_report(parse(path.read_bytes()))]


@pytest.mark.skipif(not BOUNCES, reason=f"no bounces to compare with in {FOLDER}")
@pytest.mark.parametrize("path", reports(), ids=lambda path: path.name)
def test_reports_of_other_systems(path: Path) -> None:
    expected = json.loads((FOLDER / "expected.json").read_text())[path.name]
    report = parse_report(parse(path.read_bytes()))
    assert report
    found: dict[str, set[str]] = {"temporary": set(), "permanent": set()}
    for recipient in report.recipients:
        kind = "temporary" if recipient.action == "delayed" else "permanent"
        found[kind].add(recipient.original or recipient.final)
    same = found == {kind: set(addresses) for kind, addresses in expected.items()}
    assert same == (path.name not in UNLIKE), (found, expected)


@pytest.mark.skipif(not BOUNCES, reason=f"no bounces to compare with in {FOLDER}")
def test_there_are_23_reports() -> None:
    assert len(reports()) == 23


def failure(sender: str, address: str, utf8: bool) -> bytes:
    envelope = Envelope(
        message=1, index=0, sender=sender, domain="dest.test", recipients=[], received=1e9, size=9,
        envid="QQ314159", utf8=utf8,
    )  # fmt: skip
    reply = Reply(550, "5.1.1", "no such user")
    disposition = Disposition(Kind.FAILED, reply, "mx.dest.test [192.0.2.1]", 1e9)
    original = b"From: a@src.test\r\nSubject: x\r\n\r\nbody\r\n"
    failed = [(Recipient(address, orcpt="rfc822;o@dest.test"), disposition)]
    return build_failure(Report(7, "mta.test", 1e9, envelope, failed, original))


@pytest.mark.parametrize(
    ("sender", "address", "utf8"),
    [("a@src.test", "bob@dest.test", False), ("ä@src.test", "bøb@dest.test", True)],
)
def test_our_own_reports_read_back(sender: str, address: str, utf8: bool) -> None:
    report = parse_report(parse(failure(sender, address, utf8)))
    assert report
    (recipient,) = report.recipients
    assert report.reporting_mta == "mta.test"
    assert report.envelope_id == "QQ314159"
    assert report.arrival == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert (recipient.final, recipient.original) == (address, "o@dest.test")
    assert (recipient.action, recipient.status) == ("failed", "5.1.1")
    assert recipient.diagnostic.startswith("smtp; 550")
    assert recipient.remote_mta.startswith("mx.dest.test")
    assert report.returned and report.returned.headers.text("subject") == "x"


def test_a_utf_8_address_is_unescaped() -> None:
    status = (
        b"Content-Type: message/global-delivery-status\r\n\r\nReporting-MTA: dns; m\r\n\r\n"
        b"Final-Recipient: utf-8; j\\x{F6}rg\\x{D800}@\\x{1F600}.test\r\nAction: delayed\r\n"
        b"Status: 4.4.1 (no answer)\r\nWill-Retry-Until: Tue, 7 Apr 2026 10:00:00 +0000\r\n"
    )
    report = parse_report(parse(status))
    assert report
    (recipient,) = report.recipients
    assert recipient.final == "jörg\\x{D800}@\U0001f600.test"
    assert (recipient.status, recipient.action) == ("4.4.1", "delayed")
    assert recipient.will_retry_until == datetime(2026, 4, 7, 10, tzinfo=UTC)


def test_what_is_no_report() -> None:
    assert parse_report(parse(b"Subject: x\r\n\r\nFinal-Recipient: rfc822; a@b\r\n")) is None
    empty = parse_report(parse(b"Content-Type: message/delivery-status\r\n\r\n"))
    assert empty and empty.recipients == []
