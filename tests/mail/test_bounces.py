"""The bounces of flufl.bounce, and what else comes in: whom they are about."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmta.mail.bounce import BounceReport, read_bounce
from fastmta.mail.classification import Category
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply

FOLDER = Path(__file__).parents[2].parent / "shared" / "fixtures" / "bounces"
EXPECTED = FOLDER / "expected.json"
CASES = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}

# What differs: file -> our answer, and why it is right.
DIFFERENCES = {
    "yale_01.txt": (
        {"temporary": [], "permanent": []},
        "It names a local part alone, and the host that reports is neither of the two domains "
        "that flufl.bounce knows of: an address that nobody wrote must not be suppressed.",
    ),
}


def addresses(report: BounceReport) -> dict[str, list[str]]:
    return {
        "temporary": sorted(one.address for one in report.bounces if not one.permanent),
        "permanent": sorted(one.address for one in report.bounces if one.permanent),
    }


@pytest.mark.skipif(not CASES, reason=f"no bounces to compare with in {FOLDER}")
def test_there_are_117() -> None:
    assert len(CASES) == 117
    assert CASES.keys() >= DIFFERENCES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_published_bounce(name: str) -> None:
    expected = DIFFERENCES[name][0] if name in DIFFERENCES else CASES[name]
    assert addresses(read_bounce(parse((FOLDER / name).read_bytes()))) == expected


@pytest.mark.skipif(not CASES, reason=f"no bounces to compare with in {FOLDER}")
@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("postfix_01.txt", "bad-mailbox"),
        ("postfix_02.txt", "bad-domain"),
        ("qmail_06.txt", "full"),
        ("yahoo_03.txt", "inactive"),
        ("simple_42.txt", "spam"),
        ("dsn_01.txt", "full"),
        ("dsn_02.txt", "expired"),
        ("dsn_03.txt", "too-large"),
        ("dsn_09.txt", "relaying"),
    ],
)
def test_why(name: str, category: str) -> None:
    report = read_bounce(parse((FOLDER / name).read_bytes()))
    assert [one.category for one in report.bounces] == [category]


REPORT = (
    b"From: Mail Delivery System <MAILER-DAEMON@mx.example.test>\r\n"
    b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
    b"--b\r\n\r\nI am sorry.\r\n\r\n<other@example.test>: no such user\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; mx.example.test\r\n\r\n%b\r\n"
    b"--b\r\nContent-Type: text/rfc822-headers\r\n\r\n"
    b"Message-ID: <one@relay.example.test>\r\n\r\n--b--\r\n"
)
BOB = b"Final-Recipient: rfc822; bob@example.test\r\nAction: %b\r\nStatus: %b\r\n"


def report(fields: bytes) -> BounceReport:
    return read_bounce(parse(REPORT % fields))


def test_a_report_tells_host_message_address_and_reply() -> None:
    told = report(
        BOB % (b"failed", b"5.1.1") + b"Diagnostic-Code: smtp; 550 5.1.1 <bob@example.test>:\r\n"
        b"  no such user\r\n"
    )
    assert (told.reporter, told.original) == ("mx.example.test", "one@relay.example.test")
    (bounce,) = told.bounces
    assert bounce.address == "bob@example.test"
    assert bounce.permanent
    assert bounce.category is Category.BAD_MAILBOX
    assert bounce.reply == Reply(550, "5.1.1", "<bob@example.test>:  no such user")


def test_a_reply_of_many_lines_reads_as_one() -> None:
    told = report(
        BOB % (b"failed", b"5.0.0")
        + b"Diagnostic-Code: smtp; 550-5.7.1 likely\r\n"
        + b" 550-5.7.1 unsolicited\r\n 550 5.7.1 mail\r\n"
    )
    assert told.bounces[0].reply.enhanced == "5.7.1"
    assert told.bounces[0].category is Category.SPAM


@pytest.mark.parametrize("action", [b"delivered", b"relayed", b"expanded"])
def test_good_news_is_no_bounce(action: bytes) -> None:
    assert report(BOB % (action, b"2.0.0")).bounces == []


@pytest.mark.parametrize(
    ("fields", "permanent"),
    [
        (BOB % (b"delayed", b"4.4.1"), [False]),
        (BOB % (b"failed", b"4.4.7"), [True]),
        (b"Final-Recipient: rfc822; bob@example.test\r\nStatus: 5.1.1\r\n", [True]),
        (b"Final-Recipient: rfc822; bob@example.test\r\nStatus: 2.1.1\r\n", []),
        (b"Final-Recipient: rfc822; bob\r\nAction: failed\r\n", []),
    ],
)
def test_actions(fields: bytes, permanent: list[bool]) -> None:
    assert [one.permanent for one in report(fields).bounces] == permanent


def test_the_address_that_was_mailed_counts_not_what_it_became() -> None:
    fields = b"Original-Recipient: rfc822;bob@example.test\r\n" + BOB.replace(b"bob", b"b123")
    assert report(fields % (b"failed", b"5.1.1")).bounces[0].address == "bob@example.test"


def test_a_bounce_that_came_back_itself_is_not_read_as_one() -> None:
    outer = (
        b'Content-Type: multipart/report; boundary="o"\r\n\r\n--o\r\n'
        b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
        b"Final-Recipient: rfc822; daemon@example.test\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        b"--o\r\nContent-Type: message/rfc822\r\n\r\n%b\r\n--o--\r\n"
    )
    inner = REPORT % (BOB % (b"failed", b"5.1.1"))
    told = read_bounce(parse(outer % inner))
    assert [one.address for one in told.bounces] == ["daemon@example.test"]


def test_exim_names_addresses_in_the_header() -> None:
    told = read_bounce(
        parse(b"X-Failed-Recipients: a@example.test, b@example.test\r\n\r\nIt failed.\r\n")
    )
    assert addresses(told)["permanent"] == ["a@example.test", "b@example.test"]


@pytest.mark.parametrize(
    "text",
    [
        b"I am out of the office until Monday. Write to bob@example.test instead.\r\n",
        b"Please remove me from your list, bob@example.test\r\n",
        b"On Monday you wrote:\r\n> could not be delivered to\r\nSee you, Bob\r\n",
        b"",
    ],
)
def test_what_is_no_bounce_names_nobody(text: bytes) -> None:
    assert read_bounce(parse(b"From: bob@example.test\r\n\r\n" + text)).bounces == []


def test_what_is_read_of_a_report_is_bounded() -> None:
    many = b"\r\n".join(
        b"Final-Recipient: rfc822; u%d@example.test\r\nAction: failed\r\n" % n for n in range(500)
    )
    assert len(report(many).bounces) == 100
    lines = b"".join(b"<u%d@example.test>: no\r\n" % n for n in range(500))
    assert len(read_bounce(parse(b"\r\n" + lines)).bounces) == 100


WORDS = st.sampled_from(
    [
        b"Final-Recipient: rfc822;", b"Action: failed", b"Status: 5.1.1", b"a@b", b"<a@b>:",
        b"Content-Type: message/delivery-status\r\n\r\n",
        b"\r\n", b"--b\r\n", b"--b--", b"could not be",
        b"Content-Type: message/rfc822\r\n\r\n", b"did not receive:", b"550 5.1.1", b"\xff", b" ",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n", b"delivered", b"-- original message",
        b"Content-Type: text/html\r\n\r\n", b"<br>", b"&lt;", b"X-Failed-Recipients: a@b\r\n",
    ]
)  # fmt: skip


@given(st.lists(WORDS | st.binary(max_size=20), max_size=40).map(b"".join))
@example(b"To: x\r\n\r\n" + b"<a@b>: " * 1000)
def test_any_octets_can_be_read(data: bytes) -> None:
    told = read_bounce(parse(data))
    assert all("@" in one.address for one in told.bounces)
    assert len(told.bounces) <= 200
