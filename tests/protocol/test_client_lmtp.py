"""The client machine over LMTP (RFC 2033)."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_client import Event
from tests.protocol.test_smtp_client import (
    BODY,
    BOTH,
    GREETING,
    NOTHING,
    PIPELINING,
    PLAIN,
    STUFFED,
    Talk,
    envelope,
)

OK = b"250 2.1.5 ok\r\n"
NO_RECIPIENT = b"503 5.5.1 no recipient\r\n"
BROKEN = 451


@pytest.fixture(params=[0, 1, 3])
def talk(request: pytest.FixtureRequest) -> Iterator[Talk]:
    """Fed whole, byte by byte, and in pieces that fall across lines."""
    return Talk(request.param, lmtp=True)


def test_each_accepted_recipient_has_its_own_answer_behind_the_dot(talk: Talk) -> None:
    talk.greet(PIPELINING)
    talk.begin(envelope("a", "b", "c", "d"))
    assert talk.hear(OK + OK + b"550 5.1.1 who\r\n" + OK + OK + b"354 go\r\n") == STUFFED
    assert talk.hear(b"250 2.0.0 a\r\n" + b"452 4.2.2 full\r\n") == b""
    assert talk.take_events() == []  # one is still to come
    talk.hear(b"554 5.7.1 spam\r\n")
    assert talk.take_events() == [Event.DONE, Event.READY]
    assert talk.client.replies == [
        Reply(250, "2.0.0", "a"),
        Reply(550, "5.1.1", "who"),
        Reply(452, "4.2.2", "full"),
        Reply(554, "5.7.1", "spam"),
    ]
    assert talk.client.is_ready


def test_each_accepted_recipient_has_its_own_answer_behind_the_last_chunk(talk: Talk) -> None:
    talk.greet(BOTH)
    assert talk.begin(envelope("a", "b", "c")).endswith(b"BDAT %d LAST\r\n%b" % (len(PLAIN), PLAIN))
    talk.hear(OK + b"550 no\r\n" + OK + OK + b"552 5.2.2 full\r\n")
    assert talk.take_events() == []
    talk.hear(b"250 done\r\n")
    assert talk.codes() == [550, 552, 250]
    assert talk.client.is_ready


def test_a_streamed_message_too(talk: Talk) -> None:
    talk.greet(PIPELINING)
    talk.begin(envelope("a", "b"), None)
    assert talk.hear(OK * 3) == b"DATA\r\n"
    talk.hear(b"354 go\r\n")
    assert talk.take_events() == [Event.BODY]
    assert talk.stream(BODY) == STUFFED
    talk.hear(b"250 ok\r\n451 4.3.0 later\r\n")
    assert talk.codes() == [250, 451]


def test_without_pipelining(talk: Talk) -> None:
    talk.greet(NOTHING)
    talk.begin(envelope("a", "b"))
    for _ in range(3):
        talk.hear(OK)
    assert talk.hear(b"354 go\r\n") == STUFFED
    talk.hear(b"250 ok\r\n250 ok\r\n")
    assert talk.codes() == [250, 250]


@pytest.mark.parametrize("ehlo", [PIPELINING, BOTH])
def test_without_an_accepted_recipient_there_is_one_answer(talk: Talk, ehlo: bytes) -> None:
    """RFC 2033 sections 4.2 and 4.3."""
    talk.greet(ehlo)
    talk.begin(envelope("a", "b"))
    assert talk.hear(OK + b"550 a\r\n450 b\r\n" + NO_RECIPIENT) == b"RSET\r\n"
    assert talk.codes() == [550, 450]
    talk.hear(b"250 ok\r\n")
    assert talk.client.is_ready


def test_data_without_a_recipient_must_not_be_accepted(talk: Talk) -> None:
    """How many answers its end has is not known."""
    talk.greet(PIPELINING)
    talk.begin(envelope("a"))
    talk.hear(OK + b"550 a\r\n354 go\r\n")
    assert talk.codes() == [550]
    assert talk.client.closed


def test_the_same_recipient_twice_is_two(talk: Talk) -> None:
    talk.greet(BOTH)
    talk.begin(envelope("a", "a"))
    talk.hear(OK * 3 + b"250 one\r\n450 two\r\n")
    assert talk.codes() == [250, 450]


def test_those_without_an_answer_wait_when_the_connection_ends(talk: Talk) -> None:
    talk.greet(BOTH)
    talk.begin(envelope("a", "b", "c"))
    talk.hear(OK * 4 + b"250 one\r\n")
    talk.lose()
    assert talk.codes() == [250, 451, 451]


def test_an_answer_too_many_breaks_the_protocol(talk: Talk) -> None:
    talk.greet(BOTH)
    talk.begin(envelope("a", "b"))
    talk.hear(OK * 3 + b"250 one\r\n250 two\r\n250 three\r\n")
    assert talk.codes() == [250, 250]
    assert talk.client.closed


def test_there_is_no_helo(talk: Talk) -> None:
    talk.hear(GREETING)
    assert talk.hear(b"500 what\r\n") == b"QUIT\r\n"
    assert talk.client.closed


def test_a_host_of_our_own_name_is_no_loop(talk: Talk) -> None:
    assert talk.hear(b"220 me.test LMTP\r\n") == b"LHLO me.test\r\n"
    talk.hear(b"250 me.test\r\n")
    assert talk.take_events() == [Event.READY]


codes = st.lists(st.sampled_from([250, 450, 550]), min_size=1, max_size=6)


@given(at_rcpt=codes, at_end=codes, chunking=st.booleans())
def test_answers_go_to_whom_they_are_for(
    at_rcpt: list[int], at_end: list[int], chunking: bool
) -> None:
    talk = Talk(lmtp=True)
    talk.greet(BOTH if chunking else PIPELINING)
    talk.begin(envelope(*map(str, range(len(at_rcpt)))))
    accepted = at_rcpt.count(250)
    ends = (at_end * 6)[:accepted]
    talk.hear(OK + b"".join(b"%d x\r\n" % code for code in at_rcpt))
    if not chunking:
        talk.hear(b"354 go\r\n" if accepted else NO_RECIPIENT)
    elif not accepted:
        talk.hear(NO_RECIPIENT)
    talk.hear(b"".join(b"%d x\r\n" % code for code in ends))
    left = iter(ends)
    assert talk.codes() == [next(left) if code == 250 else code for code in at_rcpt]
