"""What the SMTP server's machine asks before it carries a command out."""

from functools import partial

import pytest

from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_machine import Event
from fastmta.protocol.smtp_question import Question, Step
from tests.protocol.dialogue import Dialogue, codes

EVERY = frozenset(Step)
NO = Reply(550, "5.7.1", "No")
LATER = Reply(451, "4.7.1", "Later")

WHOLE = (
    b"EHLO client.example.test\r\n",
    b"MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nRCPT TO:<c@example.test>\r\n"
    b"DATA\r\n",
    b"Subject: a\r\n\r\nhello\r\n.\r\nRSET\r\nQUIT\r\n",
)
ASKED = [Step.CONNECT, Step.EHLO, Step.MAIL, Step.RCPT, Step.RCPT]
ANSWERED = [
    *("220", "250", "250 2.1.0", "250 2.1.5", "250 2.1.5", "354", "250 2.0.0", "250 2.0.0"),
    "221 2.0.0",
]


def refusing(step: Step, reply: Reply, question: Question) -> Reply | None:
    return reply if question.step is step else None


def test_nobody_asks_unless_told_to() -> None:
    dialogue = Dialogue()
    for part in WHOLE:
        dialogue.send(part)
    assert dialogue.questions == []


def test_each_step_is_asked_once_it_is_checked() -> None:
    dialogue = Dialogue(asks=EVERY)
    assert dialogue.greeting == b""
    output = dialogue.answer() + b"".join(map(dialogue.send, WHOLE))
    assert codes(output) == ANSWERED
    connect, ehlo, mail, rcpt, other = dialogue.questions
    assert [each.step for each in dialogue.questions] == ASKED
    assert (connect.helo, ehlo.helo, ehlo.extended) == ("", "client.example.test", True)
    assert mail.arrival is rcpt.arrival is other.arrival is dialogue.arrivals[0]
    assert rcpt.recipient
    assert rcpt.recipient.address == "b@example.test"


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13])
def test_the_same_however_it_is_cut(step: int) -> None:
    dialogue = Dialogue(asks=EVERY)
    output = dialogue.answer()
    for part in WHOLE:
        output += b"".join(dialogue.send(part[i : i + step]) for i in range(0, len(part), step))
    assert codes(output) == ANSWERED
    assert [each.step for each in dialogue.questions] == ASKED


def test_cut_in_two_anywhere() -> None:
    for part in range(len(WHOLE)):
        for at in range(len(WHOLE[part])):
            dialogue = Dialogue(asks=EVERY)
            pieces = [*WHOLE[:part], WHOLE[part][:at], WHOLE[part][at:], *WHOLE[part + 1 :]]
            output = dialogue.answer() + b"".join(map(dialogue.send, pieces))
            assert codes(output) == ANSWERED


def test_what_is_wrong_is_refused_unasked() -> None:
    dialogue = Dialogue(asks=EVERY, may_relay=False)
    dialogue.answer()
    dialogue.say("MAIL FROM:<>", "EHLO a b", "EHLO a", "MAIL FROM:x", "RCPT TO:<a@b.test>")
    dialogue.say("MAIL FROM:<>", "RCPT TO:<a@b.test>")
    assert [each.step for each in dialogue.questions] == [Step.CONNECT, Step.EHLO, Step.MAIL]


def test_replies_stay_in_order_while_somebody_thinks() -> None:
    dialogue = Dialogue(asks=frozenset({Step.RCPT}))
    dialogue.say("EHLO a", "MAIL FROM:<>")
    dialogue.judge = None
    assert dialogue.send(b"RCPT TO:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n") == b""
    assert dialogue.machine.is_waiting
    assert dialogue.send(b"") == b""
    dialogue.machine.answer(NO)
    assert codes(dialogue.answer()) == ["550 5.7.1"]
    dialogue.machine.answer(None)
    assert codes(dialogue.answer()) == ["250 2.1.5", "354"]
    assert len(dialogue.questions) == 2


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    dialogue = Dialogue(asks=EVERY)
    dialogue.answer()
    dialogue.machine.answer(NO)
    assert dialogue.answer() == b""
    assert dialogue.say("EHLO a") == ["250"]


@pytest.mark.parametrize("refusal", [NO, LATER])
def test_a_connection_that_is_refused_is_closed(refusal: Reply) -> None:
    dialogue = Dialogue(asks=EVERY)
    dialogue.judge = lambda question: refusal
    assert dialogue.answer() == bytes(refusal)
    assert dialogue.is_closed


def test_421_closes_at_any_step() -> None:
    closing = Reply(421, "4.7.0", "Go away")
    for step in ASKED:
        dialogue = Dialogue(asks=EVERY)
        dialogue.judge = partial(refusing, step, closing)
        output = dialogue.answer() + b"".join(map(dialogue.send, WHOLE))
        assert codes(output)[-1] == "421 4.7.0"
        assert dialogue.is_closed


def test_what_is_refused_has_not_happened() -> None:
    dialogue = Dialogue(asks=EVERY)
    dialogue.answer()
    dialogue.judge = partial(refusing, Step.EHLO, NO)
    assert dialogue.say("EHLO a", "MAIL FROM:<>") == ["550 5.7.1", "503 5.5.1"]
    assert dialogue.machine.helo == ""
    dialogue.judge = partial(refusing, Step.MAIL, LATER)
    assert dialogue.say("EHLO a", "MAIL FROM:<>", "RCPT TO:<a@b.test>") == [
        *("250", "451 4.7.1", "503 5.5.1")
    ]
    dialogue.judge = partial(refusing, Step.RCPT, NO)
    assert dialogue.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA") == [
        *("250 2.1.0", "550 5.7.1", "503 5.5.1")
    ]


def test_refusals_for_good_are_errors_of_who_may_not_relay() -> None:
    for may_relay, last in ((True, "550 5.7.1"), (False, "421 4.7.0")):
        dialogue = Dialogue(asks=EVERY, may_relay=may_relay, max_errors=3)
        dialogue.answer()
        dialogue.judge = partial(refusing, Step.MAIL, NO)
        dialogue.say("EHLO a")
        said = [code for _ in range(3) for code in dialogue.say("MAIL FROM:<>")]
        assert said[:3] == ["550 5.7.1"] * 3
        assert said[-1] == last


def test_threat_06_talking_before_the_greeting() -> None:
    dialogue = Dialogue(asks=EVERY)
    dialogue.judge = None
    dialogue.answer()
    assert codes(dialogue.send(b"EHLO a\r\n")) == ["554 5.5.0"]
    assert dialogue.is_closed
    dialogue.machine.answer(None)
    assert dialogue.answer() == b""


def test_a_client_that_goes_while_somebody_thinks() -> None:
    for count in range(4):
        dialogue = Dialogue(asks=EVERY)
        dialogue.judge = None
        dialogue.answer()
        for part in [*WHOLE[:1], *WHOLE[1].splitlines(True)][:count]:
            dialogue.machine.answer(None)
            dialogue.send(part)
        assert dialogue.machine.is_asking
        dialogue.machine.lose()
        dialogue.machine.answer(None)
        assert dialogue.answer() == b""
        assert dialogue.machine.is_idle


def test_a_session_that_ends_while_somebody_thinks() -> None:
    dialogue = Dialogue(asks=EVERY)
    dialogue.judge = None
    dialogue.answer()
    dialogue.machine.stop(b"421 4.3.2 Shutting down\r\n")
    assert codes(dialogue.answer()) == ["421 4.3.2"]
    dialogue.machine.answer(None)
    assert dialogue.answer() == b""


def test_threat_02_starttls_forgets_but_connect_is_not_asked_again() -> None:
    dialogue = Dialogue(asks=EVERY, starttls=True)
    dialogue.answer()
    assert dialogue.say("EHLO a", "STARTTLS") == ["250", "220 2.0.0"]
    assert dialogue.events == [Event.STARTTLS]
    dialogue.machine.started_tls()
    assert dialogue.say("MAIL FROM:<>", "EHLO a") == ["503 5.5.1", "250"]
    assert [each.step for each in dialogue.questions] == [Step.CONNECT, Step.EHLO, Step.EHLO]
