import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fastmta.mail.delivery_status import (
    Action,
    DeliveryStatus,
    RecipientStatus,
    read_status,
    write_status,
)
from fastmta.mail.disposition import Disposition
from fastmta.mail.dsn import Report, build_report, parse_report
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
    for recipient in report.status.recipients:
        kind = "temporary" if recipient.action == "delayed" else "permanent"
        found[kind].add(recipient.original_address or recipient.final)
    same = found == {kind: set(addresses) for kind, addresses in expected.items()}
    assert same == (path.name not in UNLIKE), (found, expected)


@pytest.mark.skipif(not BOUNCES, reason=f"no bounces to compare with in {FOLDER}")
def test_there_are_23_reports() -> None:
    assert len(reports()) == 23


REPLIES = {
    Action.FAILED: Reply(550, "5.1.1", "no such user"),
    Action.DELAYED: Reply(451, "", "come again"),
    Action.DELIVERED: Reply(250, "2.1.5", "ok"),
    Action.RELAYED: Reply(250, "", "ok"),
    Action.EXPANDED: Reply(250, "2.1.5", "to all of them"),
}
CODES = ["5.1.1", "4.0.0", "2.1.5", "2.0.0", "2.1.5"]


def report_of(
    action: Action, sender: str = "a@src.test", address: str = "bob@dest.test", utf8: bool = False
) -> bytes:
    envelope = Envelope(
        message=1, index=0, sender=sender, domain="dest.test", recipients=[], received=1e9, size=9,
        envid="QQ+2B314159", utf8=utf8,
    )  # fmt: skip
    end = Disposition.of_reply(REPLIES[action], "mx.dest.test [192.0.2.1]", 1e9)
    original = b"From: a@src.test\r\nSubject: x\r\n\r\nbody\r\n"
    ends = [(Recipient(address, orcpt="rfc822;o+2Bp@dest.test"), end)]
    until = 2e9 if action is Action.DELAYED else 0.0
    return build_report(Report(7, "mta.test", 1e9, envelope, ends, original, action, until))


@pytest.mark.parametrize(
    ("sender", "address", "utf8"),
    [("a@src.test", "bob@dest.test", False), ("ä@src.test", "bøb@dest.test", True)],
)
@pytest.mark.parametrize(("action", "code"), list(zip(Action, CODES, strict=True)))
def test_our_own_reports_read_back(
    action: Action, code: str, sender: str, address: str, utf8: bool
) -> None:
    message = parse(report_of(action, sender, address, utf8))
    found = parse_report(message)
    assert found
    status, (recipient,) = found.status, found.status.recipients
    assert status.reporting_mta == "mta.test"
    assert status.envelope_id == "QQ+314159"
    assert status.arrival == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert (recipient.final, recipient.original_address) == (address, "o+p@dest.test")
    assert (recipient.action, recipient.status) == (action, code)
    assert recipient.diagnostic == f"smtp; {REPLIES[action]}"
    assert recipient.remote_mta == "mx.dest.test"
    assert (recipient.will_retry_until is not None) == (action is Action.DELAYED)
    assert found.returned and found.returned.headers.text("subject") == "x"
    # And to a person.
    text = message.parts[0].text()
    assert f"<{address}>\r\n    mx.dest.test [192.0.2.1]: {REPLIES[action]}" in text


def test_each_action_has_its_own_words() -> None:
    subjects = {parse(report_of(action)).headers.get("subject") for action in Action}
    assert len(subjects) == len(Action)


def test_what_stands_in_xtext_never_becomes_a_field() -> None:
    envelope = Envelope(1, 0, "a@src.test", "b.test", [], 1e9, 9, envid="a+0D+0AX: y")
    end = Disposition.of_reply(REPLIES[Action.FAILED], "", 1e9)
    ends = [(Recipient("r@b.test", orcpt="rfc822;o+0D+0AAction: relayed"), end)]
    found = parse_report(parse(build_report(Report(7, "mta.test", 1e9, envelope, ends, b""))))
    assert found and found.status.envelope_id == "a+0D+0AX: y"
    (recipient,) = found.status.recipients
    assert (recipient.action, recipient.original) == ("failed", "rfc822;o+0D+0AAction: relayed")


# What our own values consist of: words of printable characters, single spaces between them.
WORD = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200)
TEXT = st.lists(WORD, max_size=20).map(" ".join)
MOMENT = st.none() | st.integers(0, 4 * 10**9).map(lambda n: datetime.fromtimestamp(n, UTC))
LOCAL = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="<>"), min_size=1)
RECIPIENT = st.builds(
    RecipientStatus,
    final=LOCAL.map(lambda local: f"{local}@dest.test"),
    action=st.sampled_from([str(action) for action in Action]),
    status=st.sampled_from(["5.1.1", "4.4.7", "2.0.0"]),
    original=st.just("") | LOCAL.map(lambda local: f"rfc822;{local}@src.test"),
    diagnostic=st.just("") | TEXT.map(lambda text: f"smtp; 550 {text}".strip()),
    remote_mta=st.sampled_from(["", "mx.dest.test"]),
    last_attempt=MOMENT,
    will_retry_until=MOMENT,
)
STATUS = st.builds(
    DeliveryStatus,
    reporting_mta=st.just("mta.test"),
    recipients=st.lists(RECIPIENT, min_size=1, max_size=4),
    envelope_id=st.just("") | TEXT,
    queue_id=st.sampled_from(["", "0C8Z3GQQ00000"]),
    arrival=MOMENT,
)


@given(STATUS)
def test_what_is_written_reads_back(status: DeliveryStatus) -> None:
    content = write_status(status, international=True)
    assert read_status(content) == status
    assert max(map(len, content.split(b"\r\n"))) <= 998


def seven_bit(value: str) -> str:
    return value.encode("ascii", "replace").decode()


@given(STATUS)
def test_in_ascii_no_address_loses_anything(status: DeliveryStatus) -> None:
    """RFC 6533 section 3: its utf-8-addr-xtext form; all else is told as far as it can be."""
    content = write_status(status, international=False)
    assert content.isascii()
    expected = [
        replace(each, original=seven_bit(each.original), diagnostic=seven_bit(each.diagnostic))
        for each in status.recipients
    ]
    assert read_status(content).recipients == expected


def test_a_utf_8_address_is_unescaped() -> None:
    status = (
        b"Content-Type: message/global-delivery-status\r\n\r\nReporting-MTA: dns; m\r\n\r\n"
        b"Final-Recipient: utf-8; j\\x{F6}rg\\x{D800}@\\x{1F600}.test\r\nAction: delayed\r\n"
        b"Status: 4.4.1 (no answer)\r\nWill-Retry-Until: Tue, 7 Apr 2026 10:00:00 +0000\r\n"
    )
    report = parse_report(parse(status))
    assert report
    (recipient,) = report.status.recipients
    assert recipient.final == "jörg\\x{D800}@\U0001f600.test"
    assert (recipient.status, recipient.action) == ("4.4.1", "delayed")
    assert recipient.will_retry_until == datetime(2026, 4, 7, 10, tzinfo=UTC)


def test_what_is_no_report() -> None:
    assert parse_report(parse(b"Subject: x\r\n\r\nFinal-Recipient: rfc822; a@b\r\n")) is None
    empty = parse_report(parse(b"Content-Type: message/delivery-status\r\n\r\n"))
    assert empty and empty.status.recipients == []
