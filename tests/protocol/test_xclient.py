"""XCLIENT: who may speak for others, what is read of it, and what the session is then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Step
from fastmta.protocol.smtp_xclient import Claims, read_claims
from tests.protocol.dialogue import Dialogue, codes


def trusted(**options: object) -> Dialogue:
    dialogue = Dialogue(**options)  # type: ignore[arg-type]
    dialogue.answer()
    dialogue.machine.trusts_xclient = True
    return dialogue


@pytest.mark.parametrize(
    ("argument", "claims"),
    [
        ("ADDR=192.0.2.1", Claims("192.0.2.1")),
        ("addr=192.0.2.1 NAME=[UNAVAILABLE]", Claims("192.0.2.1")),
        ("NAME=[TEMPUNAVAIL] ADDR=[UNAVAILABLE]", Claims("")),
        ("ADDR=IPV6:2001:DB8::0001", Claims("2001:db8::1")),
        ("ADDR=IPV6:::ffff:192.0.2.1", Claims("192.0.2.1")),
        ("ADDR=192.0.2.1 LOGIN=bob+40example.test", Claims("192.0.2.1", "bob@example.test")),
        ("LOGIN=bob@example.test PROTO=ESMTP HELO=a PORT=2525", Claims(None, "bob@example.test")),
        ("DESTADDR=192.0.2.9 DESTPORT=25", Claims()),
    ],
)
def test_what_is_read(argument: str, claims: Claims) -> None:
    assert read_claims(argument.encode()) == claims


BAD = [
    *("", "ADDR", "ADDR=", "ADDR=x", "ADDR=1.2.3", "ADDR=IPV6:1.2.3.4", "ADDR=2001:db8::1"),
    *("FROB=1", "ADDR=192.0.2.1 ADDR=192.0.2.2", "LOGIN=a+0D+0A", "LOGIN=a+00", "NAME=+FF"),
    *("NAME=" + "a" * 256, "ADDR=fe80::1%eth0", "ADDR=IPV6:fe80::1%25eth0", "NAME=+4"),
]


@pytest.mark.parametrize("argument", BAD)
def test_threat_05_what_is_not_as_it_should_be(argument: str) -> None:
    assert trusted().say(f"XCLIENT {argument}") == ["501 5.5.4"]


@given(st.binary(max_size=80))
def test_any_octets(argument: bytes) -> None:
    try:
        claims = read_claims(argument)
    except ValueError:
        return
    assert ((claims.address or "") + claims.login).isprintable()


def test_only_who_is_trusted_may_say_it() -> None:
    dialogue = Dialogue()
    assert b"XCLIENT" not in dialogue.send(b"EHLO a\r\n")
    assert dialogue.say("XCLIENT ADDR=192.0.2.1") == ["550 5.7.0"]
    assert dialogue.questions == []
    offer = b"250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n"
    assert trusted().send(b"EHLO a\r\n").endswith(offer)


def test_the_session_begins_anew() -> None:
    dialogue = trusted()
    assert dialogue.say("EHLO a", "XCLIENT ADDR=192.0.2.1", "MAIL FROM:<>") == [
        *("250", "220", "503 5.5.1")
    ]
    assert dialogue.questions[-1].claims == Claims("192.0.2.1")
    assert dialogue.say("EHLO b", "MAIL FROM:<>", "XCLIENT ADDR=192.0.2.1") == [
        *("250", "250 2.1.0", "503 5.5.1")
    ]


def test_who_is_named_is_judged_before_the_greeting() -> None:
    dialogue = trusted(asks=frozenset({Step.CONNECT}))
    dialogue.judge = lambda question: (
        Reply(554, "5.7.1", "No") if question.step is Step.CONNECT else None
    )
    assert dialogue.say("XCLIENT ADDR=192.0.2.1") == ["554 5.7.1"]
    assert dialogue.is_closed


def test_threat_06_nothing_is_sent_behind_it() -> None:
    dialogue = trusted()
    assert codes(dialogue.send(b"XCLIENT ADDR=192.0.2.1\r\nEHLO a\r\n")) == ["554 5.5.0"]
