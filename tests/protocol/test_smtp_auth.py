"""Logins over SMTP: what AUTH answers in every case (RFC 4954)."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramClient

from fastmta._core.base64 import decode
from fastmta.mail.reply import Reply
from fastmta.protocol.sasl import MECHANISMS, Context, Exchange, Failed, Password, Proven, Token
from fastmta.protocol.scram import Keys, derive
from fastmta.protocol.smtp_machine import Event
from fastmta.protocol.smtp_question import Question, Step
from tests.protocol.dialogue import Dialogue, codes

NAME, PASSWORD = "bob@example.test", "correct horse"
KEYS = derive(PASSWORD, b"0123456789abcdef", 4096)
WRONG = Reply(535, "5.7.8", "Name or password wrong")
LATER = Reply(454, "4.7.0", "Later")
PLAIN = b64encode(f"\0{NAME}\0{PASSWORD}".encode()).decode()


class House:
    """A door that offers all mechanisms but those with a channel binding."""

    def mechanisms(self) -> tuple[str, ...]:
        return tuple(name for name in MECHANISMS if not name.endswith("-PLUS"))

    def exchange(self, mechanism: str) -> Exchange | None:
        if mechanism.upper() not in self.mechanisms():
            return None
        return Exchange(mechanism.upper(), Context(self._keys))

    def _keys(self, name: str) -> Keys:
        return KEYS


def b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def judge(question: Question) -> Reply | None:
    match question.attempt:
        case Password(name="bob@example.test", password="correct horse"):
            return None
        case Proven() | Token(token="good"):
            return None
    return None if question.step is not Step.AUTH else WRONG


def at_the_door(**options: object) -> Dialogue:
    dialogue = Dialogue(door=House(), may_relay=False, **{"tls": True, **options})  # type: ignore[arg-type]
    dialogue.judge = judge
    assert dialogue.say("EHLO client.example.test") == ["250"]
    return dialogue


def test_auth_is_offered_only_where_it_can_be_used() -> None:
    offer = b"250 AUTH SCRAM-SHA-256 OAUTHBEARER XOAUTH2 PLAIN LOGIN\r\n"
    assert Dialogue(door=House(), tls=True).send(b"EHLO a\r\n").endswith(offer)
    assert b"AUTH" not in Dialogue(door=House(), starttls=True).send(b"EHLO a\r\n")
    assert b"AUTH" not in Dialogue(tls=True).send(b"EHLO a\r\n")


@pytest.mark.parametrize(
    "lines",
    [
        [f"AUTH PLAIN {PLAIN}"],
        ["auth plain", PLAIN],
        ["auth login", b64(NAME), b64(PASSWORD)],
        [f"AUTH LOGIN {b64(NAME)}", b64(PASSWORD)],
        ["AUTH XOAUTH2 " + b64(f"user={NAME}\x01auth=Bearer good\x01\x01")],
        ["AUTH OAUTHBEARER " + b64(f"n,a={NAME},\x01auth=Bearer good\x01\x01")],
    ],
)
def test_who_is_let_in(lines: list[str]) -> None:
    dialogue = at_the_door(needs_login=True)
    assert dialogue.say("MAIL FROM:<>") == ["530 5.7.0"]
    assert dialogue.say(*lines) == ["334"] * (len(lines) - 1) + ["235 2.7.0"]
    assert dialogue.machine.authenticated
    assert dialogue.say("AUTH LOGIN") == ["503 5.5.1"]
    assert dialogue.say("MAIL FROM:<>", "RCPT TO:<any@example.net>") == ["250 2.1.0", "250 2.1.5"]
    assert dialogue.say("AUTH LOGIN", "EHLO a") == ["503 5.5.1", "250"]
    assert dialogue.machine.authenticated


def test_the_challenges_that_outlook_waits_for() -> None:
    dialogue = at_the_door()
    assert dialogue.send(b"auth login\r\n") == b"334 VXNlcm5hbWU6\r\n"
    assert dialogue.send(b64(NAME).encode() + b"\r\n") == b"334 UGFzc3dvcmQ6\r\n"
    assert dialogue.send(b"=\r\n") == b"501 5.5.2 No base64\r\n"


def test_scram_shows_the_servers_proof_before_the_end() -> None:
    for acknowledgement, answer in (("", "235 2.7.0"), ("=", "235 2.7.0"), ("*", "501 5.7.0")):
        dialogue = at_the_door()
        client = ScramClient(["SCRAM-SHA-256"], NAME, PASSWORD)
        first = dialogue.send(f"AUTH SCRAM-SHA-256 {b64(client.get_client_first())}\r\n".encode())
        client.set_server_first(_challenge(first))
        last = dialogue.send(b64(client.get_client_final()).encode() + b"\r\n")
        client.set_server_final(_challenge(last))
        assert dialogue.say(acknowledgement) == [answer]
        assert dialogue.machine.authenticated is (answer[0] == "2")


def _challenge(line: bytes) -> str:
    assert line[:4] == b"334 "
    return decode(line[4:-2], strict=True).decode()


def test_a_bad_token_is_told_of_first() -> None:
    dialogue = at_the_door()
    dialogue.judge = None
    dialogue.say("AUTH XOAUTH2 " + b64(f"user={NAME}\x01auth=Bearer bad\x01\x01"))
    dialogue.machine.answer(WRONG, b'{"status":"400"}')
    assert dialogue.answer() == b"334 " + b64('{"status":"400"}').encode() + b"\r\n"
    assert dialogue.say("") == ["535 5.7.8"]
    assert not dialogue.machine.authenticated


REFUSED = {
    "AUTH": "504 5.5.4",
    "AUTH CRAM-MD5": "504 5.5.4",
    "AUTH SCRAM-SHA-256-PLUS": "504 5.5.4",
    "AUTH PL\u00c4IN": "504 5.5.4",
    "AUTH PLAIN !": "501 5.5.2",
    "AUTH PLAIN AA": "501 5.5.2",
    "AUTH PLAIN AAAA AAAA": "501 5.5.2",
    "AUTH PLAIN =": "535 5.7.8",
    f"AUTH PLAIN {b64('no separators')}": "535 5.7.8",
    "AUTH PLAIN " + b64(f"\0{NAME}\0wrong"): "535 5.7.8",
    "AUTH PLAIN " + b64(f"\0{NAME}\0correct horse\0"): "535 5.7.8",
    "AUTH PLAIN " + b64(f"\0{NAME}\r\nX: y\0{PASSWORD}"): "535 5.7.8",
    "AUTH LOGIN \x01": "500 5.5.2",
    "AUTH PLAIN " + "A" * 12288: "500 5.5.2",
}


@pytest.mark.parametrize("line", REFUSED)
def test_threat_11_who_is_not_let_in(line: str) -> None:
    dialogue = at_the_door(needs_login=True)
    assert dialogue.say(line) == [REFUSED[line]]
    assert dialogue.say("MAIL FROM:<>") == ["530 5.7.0"]
    assert not dialogue.machine.authenticated


def test_threat_11_the_exchange_is_bounded_and_can_be_left() -> None:
    dialogue = at_the_door()
    assert dialogue.say("AUTH LOGIN", "*") == ["334", "501 5.7.0"]
    assert dialogue.say("AUTH LOGIN", "A" * 12287) == ["334", "500 5.5.6"]
    assert dialogue.say("AUTH LOGIN", "no base64") == ["334", "501 5.5.2"]
    assert dialogue.say("AUTH LOGIN", b64(NAME), "") == ["334", "334", "535 5.7.8"]
    assert dialogue.say("AUTH PLAIN " + PLAIN) == ["235 2.7.0"]


def test_threat_11_nothing_in_the_clear() -> None:
    dialogue = Dialogue(door=House(), starttls=True, needs_login=True)
    assert dialogue.say("EHLO a", "AUTH PLAIN " + PLAIN) == ["250", "538 5.7.11"]
    assert dialogue.say("MAIL FROM:<>", "AUTH LOGIN") == ["530 5.7.0", "538 5.7.11"]
    assert dialogue.questions == []


def test_threat_11_each_failure_is_late_and_an_error() -> None:
    dialogue = at_the_door(max_errors=4)
    for answer in (["535 5.7.8"], ["535 5.7.8"], ["535 5.7.8"], ["535 5.7.8", "421 4.7.0"]):
        dialogue.events.clear()
        assert dialogue.say("AUTH PLAIN " + b64("\0a\0b")) == answer
        assert dialogue.events == [Event.DELAY if len(answer) == 1 else Event.CLOSE]
    assert dialogue.load.rejected.value == 4


def test_throttled_is_not_wrong() -> None:
    dialogue = at_the_door()
    dialogue.judge = lambda question: LATER
    assert dialogue.say("AUTH PLAIN " + PLAIN) == ["454 4.7.0"]


def test_threat_02_starttls_forgets() -> None:
    dialogue = Dialogue(door=House(), starttls=True)
    dialogue.judge = judge
    dialogue.say("EHLO a", "STARTTLS")
    dialogue.machine.started_tls()
    assert dialogue.say("AUTH PLAIN " + PLAIN) == ["503 5.5.1"]
    assert dialogue.say("EHLO a", "AUTH PLAIN " + PLAIN) == ["250", "235 2.7.0"]


def test_threat_06_nothing_is_sent_behind_auth() -> None:
    dialogue = at_the_door()
    assert codes(dialogue.send(b"AUTH LOGIN\r\nMAIL FROM:<>\r\n")) == ["554 5.5.0"]
    assert dialogue.is_closed


def test_threat_11_no_secret_in_what_is_written() -> None:
    dialogue = at_the_door()
    output = dialogue.send(f"AUTH PLAIN {PLAIN}\r\n".encode())
    assert PLAIN.encode() not in output
    assert PASSWORD not in repr(dialogue.questions[-1])


def test_a_sender_that_is_anothers() -> None:
    dialogue = at_the_door()
    dialogue.machine.vet_sender = lambda sender: b"" if sender == NAME else b"550 5.7.1 No\r\n"
    assert dialogue.say(f"AUTH PLAIN {PLAIN}", "MAIL FROM:<a@b.test>") == ["235 2.7.0", "550 5.7.1"]
    assert dialogue.say(f"MAIL FROM:<{NAME}>") == ["250 2.1.0"]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_the_same_however_it_is_cut(step: int) -> None:
    dialogue = at_the_door()
    output = b""
    for line in ("auth login", b64(NAME), b64(PASSWORD), "NOOP"):
        octets = line.encode() + b"\r\n"
        output += b"".join(dialogue.send(octets[i : i + step]) for i in range(0, len(octets), step))
    assert codes(output) == ["334", "334", "235 2.7.0", "250 2.0.0"]


def test_a_bare_line_feed_closes() -> None:
    dialogue = at_the_door()
    dialogue.say("AUTH LOGIN")
    assert codes(dialogue.send(b64(NAME).encode() + b"\n")) == ["500 5.5.2"]
    assert dialogue.is_closed


@given(st.sampled_from(sorted(House().mechanisms())), st.lists(st.binary(max_size=60), max_size=4))
def test_threat_11_any_responses_come_to_an_end(mechanism: str, responses: list[bytes]) -> None:
    dialogue = at_the_door(max_errors=1000)
    dialogue.judge = lambda question: WRONG if isinstance(question.attempt, Failed) else None
    said = dialogue.say(f"AUTH {mechanism}", *(b64encode(each).decode() for each in responses))
    assert set(said) <= {"334", "235 2.7.0", "501 5.5.2", "535 5.7.8", "500 5.5.1"}
