"""The Received field: RFC 5321 section 4.4, read by the standard library."""

from email import message_from_bytes
from email.policy import SMTPUTF8
from email.utils import parsedate_to_datetime

import pytest

from fastmta.mail import trace
from fastmta.mail.received import parse_received
from fastmta.mail.trace import address_literal, format_date, protocol_name, received_field
from fastmta.server.tls import CIPHERS

FIELDS = {
    "helo": "client.example.test",
    "client": "[192.0.2.1]",
    "by": "relay.example.test",
    "protocol": "ESMTPS",
    "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
    "id": "0000000000001",
    "recipient": "bob@example.test",
    "time": 1795410720.75,
}


def received(**changes: object) -> bytes:
    return received_field(**{**FIELDS, **changes})  # type: ignore[arg-type]


def test_the_field_in_full() -> None:
    assert received() == (
        b"Received: from client.example.test ([192.0.2.1])\r\n"
        b"\tby relay.example.test with ESMTPS (TLSv1.3) id 0000000000001\r\n"
        b"\tfor <bob@example.test>\r\n"
        b"\ttls TLS_AES_256_GCM_SHA384;\r\n"
        b"\tMon, 23 Nov 2026 05:12:00 +0000\r\n"
    )


def test_the_cipher_has_its_registered_name() -> None:
    """RFC 8314 section 4.3; OpenSSL has names of its own for the suites of TLS 1.2."""
    field = received(tls="TLSv1.2 ECDHE-RSA-CHACHA20-POLY1305", recipient="")
    assert b" with ESMTPS (TLSv1.2) id 0000000000001\r\n\ttls " in field
    assert parse_received(field[10:]).tls == "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
    assert all(trace._REGISTERED[name].startswith("TLS_ECDHE_") for name in CIPHERS)


def test_what_may_be_left_out() -> None:
    assert received(tls="", recipient="", protocol="ESMTP") == (
        b"Received: from client.example.test ([192.0.2.1])\r\n"
        b"\tby relay.example.test with ESMTP id 0000000000001;\r\n"
        b"\tMon, 23 Nov 2026 05:12:00 +0000\r\n"
    )


@pytest.mark.parametrize("recipient", ["", "x" * 2000 + "@b.test", '"a b;c>d"@e.test', "ü@b.test"])
def test_it_is_one_field_of_lines_that_are_short_enough(recipient: str) -> None:
    field = received(recipient=recipient)
    assert max(map(len, field.split(b"\r\n"))) <= 998
    message = message_from_bytes(field + b"\r\n", policy=SMTPUTF8)
    assert message.keys() == ["Received"]
    assert not message.defects


@pytest.mark.parametrize("second", [0, 951782400, 1795410720, 4102444800])
def test_the_date_reads_back(second: int) -> None:
    assert parsedate_to_datetime(format_date(second)).timestamp() == second


@pytest.mark.parametrize(
    ("extended", "tls", "utf8", "name"),
    [
        (False, False, False, "SMTP"),
        (False, True, False, "SMTP"),
        (True, False, False, "ESMTP"),
        (True, True, False, "ESMTPS"),
        (True, False, True, "UTF8SMTP"),
        (True, True, True, "UTF8SMTPS"),
    ],
)
def test_protocol_names(extended: bool, tls: bool, utf8: bool, name: str) -> None:
    assert protocol_name(extended=extended, tls=tls, utf8=utf8) == name


def test_address_literals() -> None:
    assert address_literal("192.0.2.1") == "[192.0.2.1]"
    assert address_literal("2001:db8::1") == "[IPv6:2001:db8::1]"
