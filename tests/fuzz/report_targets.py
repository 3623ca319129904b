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
