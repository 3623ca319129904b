"""The POP3 machine: what each state takes, what it answers, and what an attacker hears."""

import re
import tracemalloc
from base64 import b64decode, b64encode

import pytest
from scramp import ScramClient

from fastmta._core import pop3 as keyword
from fastmta.mail.reply import Reply
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol import pop3_server
from fastmta.protocol.pop3_machine import MAX_OUTPUT, Event, Retrieve, Update
from fastmta.protocol.smtp_limits import MAX_LOGIN_LINE
from fastmta.protocol.smtp_question import Question, Step
from tests.protocol.pop3_dialogue import WRONG, Dialogue
from tests.protocol.pop3_oracle import NAME, PASSWORD

ONE = b"Subject: one\r\n\r\nhello\r\n"
TWO = b"Subject: two\r\n\r\n.\r\n..a\r\n"
PLAIN = b64encode(b"\0%b\0%b" % (NAME, PASSWORD)).decode()
USER, PASS = f"USER {NAME.decode()}", f"PASS {PASSWORD.decode()}"


def with_two(**options: object) -> Dialogue:
    return Dialogue({3: ONE, 9: TWO}, **options).logged_in()  # type: ignore[arg-type]


def capabilities(dialogue: Dialogue) -> list[str]:
    lines = dialogue.send(b"CAPA\r\n").decode().split("\r\n")
    assert lines[0][:3] == "+OK"
    assert lines[-2:] == [".", ""]
    return lines[1:-2]


# The lecture.


def test_the_session_of_a_lecture() -> None:
    dialogue = Dialogue({1: ONE, 2: TWO}, clear=True, tls=False)
    assert dialogue.greeting == b"+OK mail.example.test POP3 fastmta\r\n"
    assert dialogue.send(b"user bob@example.test\r\n")[:3] == b"+OK"
    total = len(ONE) + len(TWO)
    assert dialogue.send(b"pass hun gry\r\n") == b"+OK 2 messages (%d octets)\r\n" % total
    listing = b"1 %d\r\n2 %d\r\n.\r\n" % (len(ONE), len(TWO))
    assert dialogue.send(b"list\r\n") == reply.LIST_FOLLOWS + listing
    assert dialogue.send(b"retr 1\r\n") == b"+OK %d octets\r\n%b.\r\n" % (len(ONE), ONE)
    assert dialogue.send(b"dele 1\r\n") == reply.DELETED
    stuffed = b"Subject: two\r\n\r\n..\r\n...a\r\n.\r\n"
    assert dialogue.send(b"retr 2\r\n") == b"+OK %d octets\r\n%b" % (len(TWO), stuffed)
    assert dialogue.send(b"dele 2\r\n") == reply.DELETED
    assert dialogue.send(b"quit\r\n") == reply.GOODBYE
    assert dialogue.deleted == [1, 2]
    assert dialogue.is_closed


def test_what_is_deleted_is_gone_from_stat_list_and_uidl_until_rset() -> None:
    dialogue = with_two()
    assert dialogue.say("DELE 1", "STAT") == ["+OK Deleted at QUIT", f"+OK 1 {len(TWO)}"]
    assert dialogue.send(b"LIST\r\n").split(b"\r\n")[1:-2] == [b"2 %d" % len(TWO)]
    assert dialogue.send(b"UIDL\r\n").split(b"\r\n")[1:-2] == [b"2 0000000700000009"]
    for command in ("LIST 1", "UIDL 1", "RETR 1", "TOP 1 0", "DELE 1"):
        assert dialogue.say(command) == ["-ERR No such message"]
    assert dialogue.say("RSET", "STAT", "UIDL 1") == [
        *("+OK", f"+OK 2 {len(ONE) + len(TWO)}", "+OK 1 0000000700000003"),
    ]
    assert dialogue.say("QUIT") == ["+OK Bye"]
    assert dialogue.deleted == []


def test_a_session_without_quit_deletes_nothing() -> None:
    dialogue = with_two()
    dialogue.say("DELE 1", "DELE 2")
    dialogue.machine.lose()
    assert dialogue.deleted is None
    stopped = with_two()
    stopped.say("DELE 1")
    stopped.machine.stop(reply.SHUTTING_DOWN)
    assert stopped.answer() == reply.SHUTTING_DOWN
    assert stopped.send(b"QUIT\r\n") == b""
    assert stopped.deleted is None


def test_quit_says_so_when_nothing_could_be_deleted() -> None:
    dialogue = with_two()
    dialogue.answers = False
    assert dialogue.say("DELE 1", "QUIT") == ["+OK Deleted at QUIT", ""]
    assert dialogue.asked[-1] == Update([3])
    dialogue.machine.updated(done=False)
    assert dialogue.answer().startswith(b"-ERR [SYS/TEMP]")
    assert dialogue.is_closed


def test_quit_before_the_login_updates_nothing() -> None:
    dialogue = Dialogue({1: ONE})
    assert dialogue.say("QUIT") == ["+OK Bye"]
    assert not dialogue.asked


def test_what_was_retrieved_is_deleted_where_it_is_set() -> None:
    """RFC 2449 section 6.7, EXPIRE 0: RETR, not TOP."""
    dialogue = with_two(deletes_retrieved=True)
    assert "EXPIRE 0" in capabilities(dialogue)
    dialogue.say("TOP 1 5", "RETR 2", "QUIT")
    assert dialogue.deleted == [9]
    again = with_two(deletes_retrieved=True)
    again.say("RETR 2", "RSET", "RETR 1", "DELE 1", "QUIT")
    assert again.deleted == [3]


# Logging in.


@pytest.mark.parametrize("how", [[USER, PASS], [f"AUTH PLAIN {PLAIN}"], ["AUTH plain", PLAIN]])
def test_logins(how: list[str]) -> None:
    dialogue = Dialogue({1: ONE})
    assert dialogue.say(*how)[-1] == f"+OK 1 messages ({len(ONE)} octets)"
    assert dialogue.say("NOOP", USER, "AUTH PLAIN") == [
        "+OK",
        *["-ERR You are logged in already"] * 2,
    ]


def test_a_login_with_login() -> None:
    """As Outlook does."""
    dialogue = Dialogue(offered=("LOGIN",))
    assert dialogue.say("AUTH LOGIN") == ["+ VXNlcm5hbWU6"]
    assert dialogue.say(b64encode(NAME).decode()) == ["+ UGFzc3dvcmQ6"]
    assert dialogue.say(b64encode(PASSWORD).decode())[0][:3] == "+OK"


def test_a_login_with_scram_says_the_proof_of_the_server_first() -> None:
    dialogue = Dialogue(offered=("SCRAM-SHA-256",))
    client = ScramClient(["SCRAM-SHA-256"], NAME.decode(), PASSWORD.decode())
    first = b64encode(client.get_client_first().encode()).decode()
    challenge = dialogue.say(f"AUTH SCRAM-SHA-256 {first}")[0]
    assert challenge[:2] == "+ "
    client.set_server_first(decoded(challenge))
    final = dialogue.say(b64encode(client.get_client_final().encode()).decode())[0]
    client.set_server_final(decoded(final))
    assert dialogue.say("")[0][:3] == "+OK"
    assert dialogue.events == [Event.OPEN]


def decoded(challenge: str) -> str:
    return b64decode(challenge[2:]).decode()


def test_a_bad_token_is_told_of_in_a_challenge_first() -> None:
    """RFC 7628 section 3.2.3."""
    dialogue = Dialogue(offered=("XOAUTH2",))
    dialogue.answers = False
    token = b64encode(b"user=bob@example.test\x01auth=Bearer abc\x01\x01").decode()
    assert dialogue.say(f"AUTH XOAUTH2 {token}") == [""]
    dialogue.machine.answer(WRONG, b'{"status":"401"}')
    assert decoded(dialogue.answer().decode()) == '{"status":"401"}'
    dialogue.answers = True
    assert dialogue.say("") == ["-ERR [AUTH] Name or password wrong"]
    assert dialogue.say("STAT") == ["-ERR Log in first"]


def test_a_login_may_be_left() -> None:
    dialogue = Dialogue()
    assert dialogue.say("AUTH PLAIN", "*") == ["+ ", "-ERR Authentication cancelled"]
    assert dialogue.say("AUTH PLAIN", "!") == ["+ ", "-ERR No base64"]
    assert dialogue.say("AUTH PLAIN =", "AUTH CRAM-MD5")[1][:4] == "-ERR"
    dialogue.logged_in()


def test_a_maildrop_that_is_in_use_leaves_the_client_where_it_was() -> None:
    dialogue = Dialogue({1: ONE})
    dialogue.why_locked = reply.IN_USE
    assert dialogue.say(USER, PASS)[1].startswith("-ERR [IN-USE] ")
    assert dialogue.say("STAT") == ["-ERR Log in first"]
    dialogue.why_locked = b""
    assert dialogue.say(USER, PASS)[1][:3] == "+OK"


def test_a_failed_login_is_answered_late_and_says_auth() -> None:
    dialogue = Dialogue()
    assert dialogue.say(USER, "PASS wrong")[1] == "-ERR [AUTH] Name or password wrong"
    assert Event.DELAY in dialogue.events
    assert dialogue.say(PASS) == ["-ERR Say USER first"]


def test_errors_come_late_and_end_the_session() -> None:
    dialogue = Dialogue(max_errors=4)
    assert dialogue.say("X", "X") == ["-ERR Unknown command"] * 2
    assert dialogue.events == []
    assert dialogue.say("X") == ["-ERR Unknown command"]
    assert dialogue.events == [Event.DELAY]
    said = dialogue.send(b"X\r\nCAPA\r\n")
    assert said == reply.UNKNOWN_COMMAND + reply.TOO_MANY_ERRORS
    assert dialogue.is_closed


def test_under_stress_fewer_errors_are_allowed() -> None:
    dialogue = Dialogue()
    dialogue.load.stressed = True
    dialogue.say("X", "X")
    assert dialogue.is_closed


def test_a_judge_may_refuse_the_connection() -> None:
    dialogue = Dialogue(asks=frozenset({Step.CONNECT}))
    assert dialogue.greeting == b""
    dialogue.machine.answer(None)
    assert dialogue.answer()[:3] == b"+OK"
    other = Dialogue(asks=frozenset({Step.CONNECT}))
    other.machine.answer(Reply(421, "4.7.0", "Too many sessions from your address"))
    assert other.answer() == b"-ERR [SYS/TEMP] Too many sessions from your address\r\n"
    assert other.is_closed


# Capabilities and languages.


def test_capabilities_of_each_state() -> None:
    dialogue = Dialogue(tls=False, stls=True, offered=("SCRAM-SHA-256", "PLAIN"), login_delay=60)
    always = {
        *("TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER"),
        *("UTF8 USER", "LANG", "IMPLEMENTATION fastmta", "LOGIN-DELAY 60"),
    }
    assert set(capabilities(dialogue)) == always | {"STLS"}
    dialogue.say("STLS")
    dialogue.machine.started_tls()
    assert set(capabilities(dialogue)) == always | {"USER", "SASL SCRAM-SHA-256 PLAIN"}
    assert set(capabilities(dialogue.logged_in())) == always


def test_languages() -> None:
    dialogue = Dialogue()
    assert dialogue.send(b"LANG\r\n") == b"+OK Languages:\r\nen English\r\n.\r\n"
    assert dialogue.say("LANG en-GB", "LANG *", "LANG de")[:2] == ["+OK en English it is"] * 2
    assert dialogue.say("LANG de")[0][:4] == "-ERR"
    assert dialogue.logged_in().say("LANG EN") == ["+OK en English it is"]


def test_utf8_is_said_before_the_login() -> None:
    dialogue = Dialogue()
    assert dialogue.say("UTF8", "UTF8 x") == [
        "+OK UTF-8 it is",
        "-ERR The command takes no argument",
    ]
    assert dialogue.logged_in().say("UTF8")[0][:4] == "-ERR"


def test_every_reply_is_short() -> None:
    """RFC 2449 section 4: 512 octets."""
    replies = [value for value in vars(reply).values() if isinstance(value, bytes)]
    assert all(len(line) <= 510 for one in replies for line in one.split(b"\r\n"))
    assert len(reply.refusal(Reply(450, "4.7.1", "é" * 1000))) <= 512
    assert reply.refusal(Reply(550, "5.7.1", "a\r\n+OK b")) == b"-ERR a +OK b\r\n"


def test_each_keyword_has_a_transition_in_each_state() -> None:
    rows = pop3_server._TRANSITIONS
    assert {len(row) for row in rows} == {keyword.QUIT + 1}


# Long replies.


def test_the_end_of_a_message_is_one_piece() -> None:
    """CRLF "." CRLF, wherever the store cuts the message."""
    for piece in (1, 2, 5, len(ONE) - 2, len(ONE) - 1, len(ONE), 1 << 20):
        dialogue = with_two()
        dialogue.piece = piece
        dialogue.send(b"RETR 1\r\n")
        assert dialogue.outputs[-1].endswith(b"\n.\r\n") or piece == 1
        assert b"".join(dialogue.outputs).endswith(b"hello\r\n.\r\n")


def test_a_long_listing_is_said_in_parts_that_the_client_takes() -> None:
    dialogue = Dialogue(dict.fromkeys(range(1, 100001), b"x")).logged_in()
    wanted = b"".join(b"%d 1\r\n" % n for n in range(1, 100_001)) + b".\r\n"
    assert dialogue.send(b"LIST\r\n") == reply.LIST_FOLLOWS + wanted
    assert dialogue.events.count(Event.YIELD) >= 3
    assert max(map(len, dialogue.outputs)) < 2 * MAX_OUTPUT


def test_many_messages_in_memory_are_answered_together_but_not_without_end() -> None:
    message = b"x" * 1000 + b"\r\n"
    dialogue = Dialogue(dict.fromkeys(range(1, 1001), message)).logged_in()
    dialogue.read_ahead(range(1, 1001))
    said = dialogue.send(b"".join(b"RETR %d\r\n" % n for n in range(1, 1001)))
    assert said.count(b"+OK 1002 octets\r\n") == 1000
    assert len(dialogue.outputs) <= 6
    assert max(map(len, dialogue.outputs)) < MAX_OUTPUT + 2000


def test_a_message_that_is_gone_is_an_error_and_the_session_goes_on() -> None:
    dialogue = with_two()
    dialogue.answers = False
    dialogue.send(b"RETR 1\r\nNOOP\r\n")
    assert dialogue.asked == [Retrieve(1, is_top=False)] or isinstance(dialogue.asked[-1], Retrieve)
    assert dialogue.machine.cannot_send(reply.NO_LONGER_THERE)
    assert dialogue.answer() == reply.NO_LONGER_THERE + reply.OK


def test_a_message_that_ends_half_way_cannot_be_taken_back() -> None:
    dialogue = with_two()
    dialogue.answers = False
    dialogue.send(b"RETR 1\r\n")
    assert dialogue.machine.send([b"Subject"], is_last=False)
    assert not dialogue.machine.cannot_send(reply.CANNOT_READ)


# THREATS 2: STLS.

BEHIND = [b"USER evil@b.test\r\nPASS x\r\n", b"CAPA\r\n", b"STLS\r\n", b"QUIT\r\n", b"\r\n", b"\0"]


@pytest.mark.parametrize("command", [b"STLS\r\n", b"stls\r\n", b"STLS \r\n"])
@pytest.mark.parametrize("behind", BEHIND)
def test_threat_02_nothing_behind_stls_is_executed_wherever_it_is_split(
    command: bytes, behind: bytes
) -> None:
    data = command + behind
    for cut in range(len(data) + 1):
        dialogue = Dialogue(tls=False, stls=True)
        said = dialogue.send(data[:cut]) + dialogue.send(data[cut:])
        if cut == len(command):  # it came once the handshake was to begin
            assert said == reply.READY_FOR_TLS
            dialogue.machine.started_tls()
            assert dialogue.send(b"NOOP\r\n") == reply.LOG_IN_FIRST
        else:
            assert said == reply.TALKED_TOO_SOON
            assert dialogue.is_closed
        assert not dialogue.asked


def test_threat_02_after_tls_all_is_forgotten() -> None:
    dialogue = Dialogue(tls=False, stls=True, clear=True)
    assert dialogue.say("USER evil@b.test", "STLS") == [
        "+OK Now the password",
        "+OK Begin TLS",
    ]
    dialogue.machine.started_tls()
    assert dialogue.say("PASS x") == ["-ERR Say USER first"]
    assert dialogue.say("STLS") == ["-ERR STLS is not offered here"]


# THREATS 5: controls.


@pytest.mark.parametrize("octet", [b"\0", b"\r", b"\t", b"\x1b", b"\x7f"])
@pytest.mark.parametrize("command", [b"USER a%bb", b"PASS a%bb", b"RETR 1%b", b"LA%bNG en"])
def test_threat_05_controls_are_refused_in_every_command(octet: bytes, command: bytes) -> None:
    dialogue = Dialogue({1: ONE})
    dialogue.say(USER)
    assert dialogue.send(command % octet + b"\r\n") == reply.MALFORMED
    assert not dialogue.asked


@pytest.mark.parametrize("octet", ["\0", "\r", "\n"])
def test_threat_05_controls_in_credentials_are_refused(octet: str) -> None:
    dialogue = Dialogue()
    words = f"\0bob{octet}@example.test\0x".encode()
    dialogue.say(f"AUTH PLAIN {b64encode(words).decode()}")
    assert isinstance(dialogue.asked[-1], Question)
    assert type(dialogue.asked[-1].attempt).__name__ == "Failed"


def test_threat_05_a_command_that_ends_in_lf_alone_ends_the_session() -> None:
    dialogue = with_two()
    assert dialogue.send(b"DELE 1\nQUIT\r\n") == reply.BARE_LINE_FEED
    assert dialogue.is_closed
    assert dialogue.deleted is None


# THREATS 8: limits.


def test_threat_08_a_line_that_is_too_long_is_dropped_and_holds_no_memory() -> None:
    dialogue = with_two()
    tracemalloc.start()
    said = b"".join(dialogue.send(b"x" * 4096) for _ in range(1000))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said == reply.LINE_TOO_LONG
    assert held < 1 << 20
    assert dialogue.send(b"\r\nNOOP\r\n") == reply.OK


def test_threat_08_a_response_that_is_too_long_ends_the_login() -> None:
    dialogue = Dialogue()
    dialogue.say("AUTH PLAIN")
    assert dialogue.send(b"A" * (MAX_LOGIN_LINE + 1) + b"\r\n") == reply.LINE_TOO_LONG
    assert dialogue.say("NOOP") == ["-ERR Log in first"]


# THREATS 11: logins.


@pytest.mark.parametrize("command", [USER, f"AUTH PLAIN {PLAIN}", "AUTH PLAIN"])
def test_threat_11_nobody_logs_in_in_the_clear(command: str) -> None:
    dialogue = Dialogue(tls=False, stls=True)
    assert dialogue.say(command) == [reply.NEEDS_TLS.decode().rstrip()]
    assert dialogue.say(PASS)[0][:4] == "-ERR"
    assert not [line for line in capabilities(dialogue) if line.startswith(("SASL", "USER"))]
    assert not dialogue.asked


def test_threat_11_where_the_clear_is_allowed_it_is_offered() -> None:
    dialogue = Dialogue(tls=False, clear=True)
    assert {"USER", "SASL PLAIN"} <= set(capabilities(dialogue))
    dialogue.logged_in()


def test_threat_11_user_tells_nobody_whether_there_is_an_account() -> None:
    dialogue = Dialogue()
    assert dialogue.say(USER) == dialogue.say("USER nobody@b.test") == ["+OK Now the password"]


def test_threat_11_without_plain_no_password_is_taken() -> None:
    dialogue = Dialogue(offered=("SCRAM-SHA-256",))
    assert "USER" not in capabilities(dialogue)
    assert dialogue.say(USER)[0][:4] == "-ERR"
    assert dialogue.say(f"AUTH PLAIN {PLAIN}")[0][:4] == "-ERR"


# THREATS 19: numbers.


@pytest.mark.parametrize(
    "number", ["0", "3", "99999999999999999999", "9" * 5000, "18446744073709551617"]
)
def test_threat_19_no_number_but_those_of_messages(number: str) -> None:
    dialogue = with_two()
    for command in (f"RETR {number}", f"DELE {number}", f"LIST {number}", f"TOP {number} 1"):
        assert dialogue.say(command) == ["-ERR No such message"], command
    assert dialogue.say("STAT")[0].startswith("+OK 2 ")


@pytest.mark.parametrize("argument", ["", "-1", "+1", "1.0", "0x1", "1a", "1 1", "٣", "1,2", "one"])
def test_threat_19_what_is_no_number_is_refused(argument: str) -> None:
    dialogue = with_two()
    for command in ("RETR", "DELE"):
        assert dialogue.say(f"{command} {argument}") == [reply.NEEDS_NUMBER.decode().rstrip()]
    assert dialogue.say("STAT")[0].startswith("+OK 2 ")


@pytest.mark.parametrize("argument", ["", "1", "1 -1", "-1 1", "1 +1", "1 1 1", "1 x"])
def test_threat_19_top_takes_two_numbers(argument: str) -> None:
    assert with_two().say(f"TOP {argument}") == [reply.NEEDS_NUMBERS.decode().rstrip()]


def test_threat_19_spaces_around_numbers_do_no_harm() -> None:
    dialogue = with_two()
    assert dialogue.say("TOP  2   0 ", "RETR   1  ", "DELE 01") == [
        *("+OK Top of the message follows", f"+OK {len(ONE)} octets", "+OK Deleted at QUIT"),
    ]
    assert dialogue.send(b"TOP 2 99999999999999999999\r\n").count(b"\r\n") == 6


def test_threat_19_what_is_pipelined_is_answered_in_order() -> None:
    dialogue = Dialogue({1: ONE, 2: TWO})
    said = dialogue.send(
        f"{USER}\r\n{PASS}\r\nSTAT\r\nRETR 2\r\nDELE 2\r\nNOOP\r\nQUIT\r\nDELE 1\r\n".encode()
    )
    firsts = re.findall(rb"(?m)^(\+OK[^\r]*|-ERR[^\r]*)\r$", said)
    assert [line[:8] for line in firsts] == [
        *(b"+OK Now ", b"+OK 2 me", b"+OK 2 4%d" % (len(ONE + TWO) % 10)),
        *(b"+OK %d o" % len(TWO), b"+OK Dele", b"+OK", b"+OK Bye"),
    ]
    assert dialogue.deleted == [2]
