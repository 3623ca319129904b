"""What is fuzzed of the readers of bounces and complaints: they take any octets, raise nothing, and
name only what has the form of an address."""

from fastmta.mail.bounce import read_bounce
from fastmta.mail.classification import Category, classify
from fastmta.mail.complaint import read_complaint
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply


def fuzz_bounce(data: bytes) -> None:
    root = parse(data)
    report = read_bounce(root)
    assert all("@" in one.address for one in report.bounces)
    complaint = read_complaint(root)
    assert complaint is None or all("@" in one for one in complaint.recipients)


def fuzz_reply(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert classify(Reply(550, text[:8], text)) in Category


_SAID = [
    *(
        b"550 5.1.1",
        b"452-4.2.2",
        b" no such user",
        b"mailbox full",
        b"smtp; ",
        b"spam",
        b"5.7.1",
        b"421",
    ),
    *(
        b"blocked",
        b"greylisted",
        b"try again later",
        b"dns error",
        b"<b@c.test>",
        b"b@c.test",
        b"(",
        b")",
    ),
    *(b"\xc3\xbc", b"\xff", b"\0", b" ", b"\r\n", b"\n", b"4.", b"5.999.999", b"x" * 40),
]
PIECES = {
    "reply": _SAID,
    "bounce": [
        *(b"From: MAILER-DAEMON@h.test\r\n", b"Subject: Undelivered Mail\r\n", b"\r\n", b"--b\r\n"),
        *(b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n",),
        *(b"Content-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n",),
        *(b"Content-Type: message/delivery-status\r\n\r\n", b"Reporting-MTA: dns; h.test\r\n\r\n"),
        *(
            b"Content-Type: message/feedback-report\r\n\r\n",
            b"Feedback-Type: abuse\r\n",
            b"Action: failed\r\n",
        ),
        *(b"Final-Recipient: rfc822; b@c.test\r\n", b"Status: 5.1.1\r\n", b"Action: delayed\r\n"),
        *(b"Diagnostic-Code: smtp; 550 5.1.1 no\r\n", b"Original-Recipient: rfc822;d@e.test\r\n"),
        *(b"Original-Rcpt-To: b@c.test\r\n", b"X-Failed-Recipients: b@c.test, d@e.test\r\n"),
        *(
            b"\r\n\r\nThis is the mail system\r\n\r\n<b@c.test>: ",
            b"<html><p>b@c.test</p>",
            b"--b--\r\n",
        ),
        *(
            b"\r\n--b\r\n",
            b"Content-Type: message/rfc822\r\n\r\n",
            b"Message-ID: <x@y>\r\n",
            *_SAID,
        ),
        *(b"Hi. This is the qmail-send program at h.test.\r\n",),
    ],
}
