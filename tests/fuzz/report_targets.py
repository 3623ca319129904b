"""What is fuzzed of the readers of bounces, complaints and delivery status: they take any octets,
raise nothing, and name only what has the form of an address."""

from fastmta.mail.bounce import read_bounce
from fastmta.mail.classification import Category, classify
from fastmta.mail.complaint import read_complaint
from fastmta.mail.delivery_status import read_status, write_status
from fastmta.mail.message import parse
from fastmta.mail.reply import Reply
from fastmta.mail.transfer import MAX_LINE
from tests.core import status_oracles as oracle
from tests.core.wire_oracles import has_bare_newline


def fuzz_bounce(data: bytes) -> None:
    root = parse(data)
    report = read_bounce(root)
    assert all("@" in one.address for one in report.bounces)
    complaint = read_complaint(root)
    assert complaint is None or all("@" in one for one in complaint.recipients)


def fuzz_reply(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert classify(Reply(550, text[:8], text)) in Category


def fuzz_delivery_status(data: bytes) -> None:
    about, recipients = oracle.read_status(data)
    status = read_status(data)
    assert status.reporting_mta == oracle.behind_type(about.get("reporting-mta", ""))
    assert status.envelope_id == about.get("original-envelope-id", "")
    assert len(status.recipients) == len(recipients)
    for found, fields in zip(status.recipients, recipients, strict=True):
        assert found.action == oracle.word(fields.get("action", ""))
        assert found.status == oracle.word(fields.get("status", ""))
        assert found.original == fields.get("original-recipient", "")
        assert found.diagnostic == fields.get("diagnostic-code", "")
        assert found.remote_mta == oracle.behind_type(fields.get("remote-mta", ""))
    for international in (False, True):
        written = write_status(status, international)
        assert not has_bare_newline(written)
        assert international or written.isascii()
        assert max(map(len, written.split(b"\r\n"))) <= MAX_LINE
