"""The SMTP server's machine: what each command does in each state, and what it answers."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.envelope import Recipient, TlsDemand
from fastmta.mail.reply import Reply
from fastmta.protocol import smtp_machine
from fastmta.protocol.smtp_machine import Event
from tests.protocol.dialogue import Dialogue, codes, greeted, in_data, with_recipient

MESSAGE = b"Subject: a\r\n\r\nfirst\r\n..second\r\n"


def test_a_message_from_greeting_to_quit() -> None:
    dialogue = Dialogue()
    assert dialogue.greeting == b"220 relay.example.test ESMTP fastmta\r\n"
    dialogue.say("EHLO client.example.test")
    said = dialogue.say("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>", "DATA")
    assert said == ["250 2.1.0", "250 2.1.5", "354"]
    assert dialogue.send(MESSAGE + b".\r\n") == b"250 2.0.0 Ok: queued as id1\r\n"
    assert dialogue.say("QUIT") == ["221 2.0.0"]
    assert dialogue.is_closed
    [arrival] = dialogue.arrivals
    assert arrival.sender == "a@example.test"
    assert arrival.recipients == [Recipient("b@example.test")]
    assert dialogue.content == [MESSAGE.replace(b"..", b".")]
    assert arrival.size == len(dialogue.content[0])


def test_what_a_human_types() -> None:
    dialogue = Dialogue()
    said = dialogue.say("helo me", "mail from: <a@b.test>", "rcpt to:  <c@d.test> ", "data")
    assert said == ["250", "250 2.1.0", "250 2.1.5", "354"]
    assert dialogue.say("hello", ".", "quit") == ["250 2.0.0", "221 2.0.0"]
    assert not dialogue.machine.extended


def test_what_ehlo_offers() -> None:
    dialogue = Dialogue(starttls=True, max_message_size=1234, max_recipients=7)
    offered = {
        "PIPELINING", "SIZE 1234", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING",
        "DSN", "LIMITS RCPTMAX=7", "STARTTLS",
    }  # fmt: skip
    lines = dialogue.send(b"EHLO a\r\n").decode().splitlines()
    assert lines[0] == "250-relay.example.test"
    assert {line[4:] for line in lines[1:]} == offered
    under_tls = Dialogue(starttls=True, tls=True)
    lines = under_tls.send(b"EHLO a\r\n").decode().splitlines()
    assert {line[4:] for line in lines} & {"STARTTLS", "REQUIRETLS"} == {"REQUIRETLS"}


def test_requiretls_is_kept_under_tls_and_unknown_in_the_clear() -> None:
    """RFC 8689 section 2."""
    asking = "MAIL FROM:<a@example.test> REQUIRETLS"
    assert greeted(starttls=True).say(asking) == ["555 5.5.4"]
    dialogue = greeted(tls=True)
    assert dialogue.say(f"{asking}=yes") == ["501 5.5.4"]
    assert dialogue.say(asking) == ["250 2.1.0"]
    assert dialogue.machine.arrival is not None
    assert dialogue.machine.arrival.demand is TlsDemand.REQUIRED
    assert dialogue.say("RSET", "MAIL FROM:<a@example.test>")[1] == "250 2.1.0"
    assert dialogue.machine.arrival.demand is TlsDemand.NONE


@pytest.mark.parametrize("name", ["", "a b", "a(b", "[1.2.3.4", "a\x80", "é", "x" * 256, "a;b"])
def test_a_name_that_could_not_stand_in_a_trace_field(name: str) -> None:
    assert Dialogue().say(f"EHLO {name}") == ["501 5.5.4"]
    assert Dialogue().say(f"HELO {name}") == ["501 5.5.4"]


@pytest.mark.parametrize("name", ["a", "my_pc.lan", "[192.0.2.1]", "[IPv6:2001:db8::1]", "1.2.3.4"])
def test_names_as_clients_give_them(name: str) -> None:
    dialogue = Dialogue()
    assert dialogue.say(f"EHLO {name}") == ["250"]
    assert dialogue.machine.helo == name


# The state is reached by the commands on the left.
STATES = {
    "START": [],
    "READY": ["EHLO a"],
    "SENDER": ["EHLO a", "MAIL FROM:<a@b.test>"],
    "RECIPIENT": ["EHLO a", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>"],
    "CHUNKS": ["EHLO a", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "BDAT 0"],
}
# What each command is answered in these states, in their order.
ANSWERS = {
    "EHLO b": ["250"] * 5,
    "HELO b": ["250"] * 5,
    "MAIL FROM:<>": ["503 5.5.1", "250 2.1.0"] + ["503 5.5.1"] * 3,
    "RCPT TO:<c@d.test>": ["503 5.5.1", "503 5.5.1", "250 2.1.5", "250 2.1.5", "503 5.5.1"],
    "DATA": ["503 5.5.1", "503 5.5.1", "503 5.5.1", "354", "503 5.5.1"],
    "BDAT 0": ["503 5.5.1", "503 5.5.1", "503 5.5.1", "250 2.0.0", "250 2.0.0"],
    "BDAT 0 LAST": ["503 5.5.1", "503 5.5.1", "503 5.5.1", "250 2.0.0", "250 2.0.0"],
    "RSET": ["250 2.0.0"] * 5,
    "NOOP": ["250 2.0.0"] * 5,
    "HELP": ["214 2.0.0"] * 5,
    "VRFY a": ["252 2.1.5"] * 5,
    "EXPN a": ["502 5.5.1"] * 5,
    "QUIT": ["221 2.0.0"] * 5,
    "STARTTLS": ["503 5.5.1", "220 2.0.0"] + ["503 5.5.1"] * 3,
    "AUTH PLAIN": ["503 5.5.1", "502 5.5.1"] + ["503 5.5.1"] * 3,
    "FROB": ["500 5.5.1"] * 5,
    "": ["500 5.5.1"] * 5,
    "NOOP \x01": ["500 5.5.2"] * 5,
    "VRFY": ["501 5.5.4"] * 5,
    "DATA x": ["503 5.5.1", "503 5.5.1", "503 5.5.1", "501 5.5.4", "503 5.5.1"],
}


@pytest.mark.parametrize("command", ANSWERS)
@pytest.mark.parametrize("state", STATES)
def test_every_command_in_every_state(command: str, state: str) -> None:
    dialogue = Dialogue(starttls=True)
    dialogue.say(*STATES[state])
    assert dialogue.say(command) == [ANSWERS[command][list(STATES).index(state)]]


@pytest.mark.parametrize("command", ["RSET", "EHLO a", "HELO a"])
def test_what_ends_a_transaction(command: str) -> None:
    dialogue = with_recipient()
    dialogue.say(command)
    assert dialogue.say("RCPT TO:<a@b.test>", "DATA", "MAIL FROM:<>") == [
        "503 5.5.1",
        "503 5.5.1",
        "250 2.1.0",
    ]


def test_starttls_where_it_is_not_offered() -> None:
    assert greeted().say("STARTTLS") == ["502 5.5.1"]
    assert greeted(starttls=True, tls=True).say("STARTTLS") == ["502 5.5.1"]
    assert greeted(starttls=True).say("STARTTLS now") == ["501 5.5.4"]


PARAMETERS = {
    "MAIL FROM:<a@b.test> SIZE=100": "250 2.1.0",
    "MAIL FROM:<a@b.test> SIZE=1000": "250 2.1.0",
    "MAIL FROM:<a@b.test> SIZE=1001": "552 5.3.4",
    "MAIL FROM:<a@b.test> SIZE=99999999999999999999": "552 5.3.4",
    "MAIL FROM:<a@b.test> SIZE=100000000000000000000": "501 5.5.4",
    "MAIL FROM:<a@b.test> SIZE": "501 5.5.4",
    "MAIL FROM:<a@b.test> SIZE=": "501 5.5.4",
    "MAIL FROM:<a@b.test> SIZE=-1": "501 5.5.4",
    "MAIL FROM:<a@b.test> SIZE=1 SIZE=2": "501 5.5.4",
    "MAIL FROM:<a@b.test> SIZE=\u0662 SMTPUTF8": "501 5.5.4",
    "MAIL FROM:<a@b.test> BODY=7bit": "250 2.1.0",
    "MAIL FROM:<a@b.test> body=8bitmime": "250 2.1.0",
    "MAIL FROM:<a@b.test> BODY=BINARYMIME": "501 5.5.4",
    "MAIL FROM:<a@b.test> BODY": "501 5.5.4",
    "MAIL FROM:<a@b.test> RET=full": "250 2.1.0",
    "MAIL FROM:<a@b.test> RET=HDRS ENVID=QQ314159+2B": "250 2.1.0",
    "MAIL FROM:<a@b.test> RET=ALL": "501 5.5.4",
    "MAIL FROM:<a@b.test> ENVID=+2b": "501 5.5.4",
    "MAIL FROM:<a@b.test> ENVID=" + "x" * 101: "501 5.5.4",
    "MAIL FROM:<a@b.test> AUTH=<>": "250 2.1.0",
    "MAIL FROM:<a@b.test> AUTH=e+2Bmc2@example.test": "250 2.1.0",
    "MAIL FROM:<a@b.test> AUTH": "501 5.5.4",
    "MAIL FROM:<a@b.test> AUTH=+2b": "501 5.5.4",
    "MAIL FROM:<a@b.test> NOTIFY=NEVER": "555 5.5.4",
    "MAIL FROM:<ü@b.test>": "553 5.6.7",
    "MAIL FROM:<ü@b.test> SMTPUTF8": "250 2.1.0",
    "MAIL FROM:<a@ü.test> SMTPUTF8": "250 2.1.0",
    "MAIL FROM:<a@\u2615.test> SMTPUTF8": "501 5.1.7",
    "MAIL FROM:<a@b.test> SMTPUTF8=1": "501 5.5.4",
    "MAIL FROM:a@b.test": "501 5.1.7",
    "MAIL FROM:": "501 5.1.7",
    "MAIL": "501 5.1.7",
    "MAIL TO:<a@b.test>": "501 5.1.7",
    "MAIL FROM:<a@b.test>SIZE=1": "501 5.5.4",
}


@pytest.mark.parametrize("command", PARAMETERS)
def test_mail(command: str) -> None:
    dialogue = greeted(max_message_size=1000)
    assert dialogue.say(command) == [PARAMETERS[command]]
    refused = not PARAMETERS[command].startswith("2")
    assert dialogue.say("RCPT TO:<c@d.test>") == ["503 5.5.1" if refused else "250 2.1.5"]


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("<c@d.test> NOTIFY=NEVER", "250 2.1.5"),
        ("<c@d.test> NOTIFY=success,delay,FAILURE", "250 2.1.5"),
        ("<c@d.test> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("<c@d.test> NOTIFY=DELAY,DELAY", "501 5.5.4"),
        ("<c@d.test> NOTIFY=", "501 5.5.4"),
        ("<c@d.test> NOTIFY", "501 5.5.4"),
        ("<c@d.test> ORCPT=rfc822;Bob+20B@d.test", "250 2.1.5"),
        ("<c@d.test> ORCPT=rfc822", "501 5.5.4"),
        ("<c@d.test> ORCPT=rfc822;a+zz", "501 5.5.4"),
        ("<c@d.test> ORCPT=rfc822;" + "a" * 500, "501 5.5.4"),
        ("<c@d.test> ORCPT=utf-8;ü@d.test", "553 5.6.7"),
        ("<c@d.test> SIZE=1", "555 5.5.4"),
        ("<ü@d.test>", "553 5.6.7"),
        ("<>", "501 5.1.3"),
        ("c@d.test", "501 5.1.3"),
        ("<c@d.test> x=y=z", "501 5.5.4"),
    ],
)
def test_rcpt(argument: str, code: str) -> None:
    dialogue = greeted()
    dialogue.say("MAIL FROM:<a@b.test>")
    assert dialogue.say(f"RCPT TO:{argument}") == [code]
    assert dialogue.say("DATA") == ["354" if code.startswith("2") else "503 5.5.1"]


def test_parameters_are_kept_with_the_arrival() -> None:
    dialogue = greeted()
    dialogue.say(
        "MAIL FROM:<ü@b.test> SMTPUTF8 BODY=8BITMIME RET=hdrs ENVID=a+2B",
        "RCPT TO:<c@d.test> NOTIFY=never ORCPT=rfc822;x@d.test",
        "RCPT TO:<ü@d.test> ORCPT=utf-8;ü@d.test",
        "DATA",
        "ü",
        ".",
    )
    [arrival] = dialogue.arrivals
    assert (arrival.utf8, arrival.eight_bit, arrival.ret, arrival.envid) == (
        True,
        True,
        "HDRS",
        "a+2B",
    )
    assert arrival.recipients == [
        Recipient("c@d.test", "NEVER", "rfc822;x@d.test"),
        Recipient("ü@d.test", "", "utf-8;ü@d.test"),
    ]
    assert arrival.size == 4


def test_eight_bit_needs_both_the_word_and_the_octet() -> None:
    for parameter, text, expected in (
        (" BODY=8BITMIME", "a", False),
        ("", "ü", False),
        (" BODY=7BIT", "ü", False),
        (" BODY=8BITMIME", "ü", True),
    ):
        dialogue = greeted()
        dialogue.say(f"MAIL FROM:<>{parameter}", "RCPT TO:<a@b.test>", "DATA", text, ".")
        assert dialogue.arrivals[0].eight_bit is expected


def test_postmaster_is_ours() -> None:
    dialogue = greeted()
    dialogue.say("MAIL FROM:<>", "RCPT TO:<Postmaster>", "DATA", ".")
    assert dialogue.arrivals[0].recipients[0].address == "Postmaster@relay.example.test"


def test_a_message_of_no_octets() -> None:
    dialogue = in_data()
    assert dialogue.say(".") == ["250 2.0.0"]
    assert dialogue.content == [b""]


def test_pipelining_answers_all_at_once_and_in_order() -> None:
    dialogue = greeted()
    group = (
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<bad>\r\nRSET\r\n"
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"
    )
    dialogue.machine.receive(group)
    assert codes(dialogue.machine.take_output()) == [
        "250 2.1.0", "250 2.1.5", "501 5.1.3", "250 2.0.0", "250 2.1.0", "250 2.1.5", "354",
    ]  # fmt: skip


@given(st.lists(st.integers(0, 400), max_size=6).map(sorted))
def test_the_same_dialogue_in_any_pieces(at: list[int]) -> None:
    whole = (
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 5\r\n.\r\n\r\nBDAT 3 LAST\r\na\r\n"
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<e@f.test>\r\nNOOP\r\nBDAT 0 LAST\r\nQUIT\r\n"
    )
    dialogue = greeted()
    bounds = [0, *at, len(whole)]
    said = b"".join(dialogue.send(whole[a:b]) for a, b in pairwise(bounds))
    assert codes(said) == [
        "250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0", "250 2.1.0", "250 2.1.5", "250 2.0.0",
        "250 2.0.0", "221 2.0.0",
    ]  # fmt: skip
    assert dialogue.content == [b".\r\n\r\na\r\n", b""]


def test_while_an_accept_is_pending_later_commands_wait() -> None:
    dialogue = with_recipient()
    dialogue.settles = False
    assert dialogue.send(b"BDAT 3 LAST\r\na\r\nNOOP\r\nVRFY a\r\n") == b""
    assert dialogue.send(b"MAIL FROM:<>\r\n") == b""
    assert dialogue.machine.is_waiting
    assert dialogue.machine.buffered > 0
    dialogue.machine.settle(None, "X")
    assert codes(dialogue.answer()) == ["250 2.0.0", "250 2.0.0", "252 2.1.5", "250 2.1.0"]


def test_an_accept_that_fails_is_the_backends_reply() -> None:
    dialogue = in_data()
    dialogue.verdict = Reply(452, "4.3.1", "disk full")
    assert dialogue.send(b"a\r\n.\r\n") == b"452 4.3.1 disk full\r\n"
    assert dialogue.say("DATA", "MAIL FROM:<>") == ["503 5.5.1", "250 2.1.0"]


def test_a_refusal_is_said_at_mail_and_ends_when_it_ends() -> None:
    dialogue = greeted()
    dialogue.not_now = Reply(452, "4.3.1", "backlog")
    assert dialogue.say("MAIL FROM:<>", "RCPT TO:<a@b.test>") == ["452 4.3.1", "503 5.5.1"]
    dialogue.not_now = None
    assert dialogue.say("MAIL FROM:<>") == ["250 2.1.0"]


def test_bare_newlines_are_refused_or_made_whole() -> None:
    data = b"a\nb\r\n.\r\n"
    refusing = in_data()
    assert codes(refusing.send(data)) == ["554 5.6.0"]
    assert refusing.arrivals == []
    normalising = in_data(normalise=True)
    assert codes(normalising.send(data)) == ["250 2.0.0"]
    assert normalising.content == [b"a\r\nb\r\n"]


def test_chunks_join_and_dots_stay() -> None:
    dialogue = with_recipient()
    assert codes(dialogue.send(b"BDAT 6\r\n.\r\nab\r")) == ["250 2.0.0"]
    assert codes(dialogue.send(b"bdat 1\r\n\nBDAT 3 last\r\n.\r\n")) == ["250 2.0.0", "250 2.0.0"]
    assert dialogue.content == [b".\r\nab\r\n.\r\n"]


def test_chunks_that_end_in_a_bare_cr() -> None:
    assert codes(with_recipient().send(b"BDAT 2 LAST\r\na\r")) == ["554 5.6.0"]
    dialogue = with_recipient(normalise=True)
    assert codes(dialogue.send(b"BDAT 2 LAST\r\na\r")) == ["250 2.0.0"]
    assert dialogue.content == [b"a\r\n"]


def test_enhanced_codes_are_on_every_reply_that_may_have_one() -> None:
    """RFC 2034 section 3 leaves out the greeting, EHLO and HELO, and 3yz replies."""
    for command, answers in ANSWERS.items():
        for answer in answers:
            bare = answer[0] == "3" or command[:4] in ("EHLO", "HELO")
            assert bare or re.fullmatch(r"(\d)\d\d \1\.\d\.\d", answer)


def test_a_client_that_goes_while_pending_leaves_the_count_right() -> None:
    dialogue = in_data()
    dialogue.settles = False
    dialogue.send(b"12345\r\n.\r\n")
    assert dialogue.load.held == 7
    dialogue.machine.lose()
    assert dialogue.load.held == 7
    dialogue.machine.settle(None, "X")
    assert dialogue.load.held == 0
    assert dialogue.machine.take_output() == b""


def test_a_client_that_goes_in_data_gives_back_what_it_held() -> None:
    dialogue = in_data()
    dialogue.send(b"12345\r\n")
    assert dialogue.load.held == 7
    dialogue.machine.lose()
    assert dialogue.load.held == 0


def test_draining_ends_the_session_behind_its_message() -> None:
    dialogue = in_data()
    dialogue.load.draining = True
    assert codes(dialogue.send(b"a\r\n.\r\n")) == ["250 2.0.0", "421 4.3.2"]
    assert dialogue.events == [Event.CLOSE]


OPEN = {smtp_machine.SENDER, smtp_machine.RECIPIENT, smtp_machine.CHUNKS, smtp_machine.CONTENT}
GROUPS = [
    b"EHLO a\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n", b"MAIL FROM:<>\r\n",
    b"RSET\r\n", b"RCPT TO:<c@d.test>\r\n", b"DATA\r\n", b"a\r\n", b"a\rb\r\n.\r\n", b".\r\n",
    b"BDAT 3\r\na\r\n", b"BDAT 2\r\n\rb", b"BDAT 0 LAST\r\n", b"BDAT 300\r\n", b"x" * 300,
    b"STARTTLS\r\n", b"\xff\r\n", b"QUIT\r\n",
]  # fmt: skip


def check_invariants(dialogue: Dialogue) -> None:
    """What the machine's module says is always true."""
    machine = dialogue.machine
    if machine.state != smtp_machine.CHUNK:
        assert (machine.arrival is not None) == (machine.state in OPEN)
    if not machine.is_reading_content:
        assert dialogue.load.held == 0


@given(st.lists(st.sampled_from(GROUPS), max_size=25))
def test_no_dialogue_upsets_the_machine(said: list[bytes]) -> None:
    dialogue = Dialogue(starttls=True, max_message_size=200)
    dialogue.send(b"EHLO a\r\n")
    for octets in said:
        dialogue.send(octets)
        check_invariants(dialogue)
        if Event.STARTTLS in dialogue.events:
            dialogue.machine.started_tls()
            dialogue.events.clear()
    dialogue.machine.lose()
    assert dialogue.load.held == 0
    assert all(arrival.recipients for arrival in dialogue.arrivals)


@pytest.mark.parametrize("content", [b"a\nb\r\n.\r\n", b"x" * 300 + b"\r\n.\r\n", b"a\r\n.\r\n"])
def test_nothing_is_left_of_a_message_behind_its_end(content: bytes) -> None:
    dialogue = in_data(max_message_size=200)
    for octet in content:
        dialogue.send(bytes([octet]))
        check_invariants(dialogue)
    assert dialogue.machine.is_idle
    assert dialogue.machine._scanner.held == 0
