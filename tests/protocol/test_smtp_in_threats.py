"""What attacks an SMTP server, each line of the list by its number (1 to 6, 8 and 9)."""

import gc
import tracemalloc

import pytest

from fastmta.protocol.smtp_machine import Event
from tests.core.test_data import SMUGGLING
from tests.protocol.dialogue import Dialogue, codes, greeted, in_data, with_recipient

# 1. Smuggling


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("sequence", SMUGGLING)
def test_threat_01_no_second_message_is_smuggled(sequence: bytes, normalise: bool) -> None:
    hidden = b"MAIL FROM:<x@y.test>\r\nRCPT TO:<z@y.test>\r\nDATA\r\nevil\r\n"
    data = b"Subject: a\r\n\r\nfirst" + sequence + hidden
    for cut in range(len(data)):
        dialogue = in_data(normalise=normalise)
        assert dialogue.send(data[:cut]) == b""
        assert dialogue.send(data[cut:]) == b""
        accepted = normalise or sequence == b"\r\n\0.\r\n"
        assert codes(dialogue.send(b".\r\n")) == ["250 2.0.0" if accepted else "554 5.6.0"]
        assert len(dialogue.arrivals) == accepted


@pytest.mark.parametrize("ending", [b"\n", b"\n\n", b"\nRSET\r\n"])
def test_threat_01_commands_end_in_crlf_only(ending: bytes) -> None:
    dialogue = greeted()
    assert codes(dialogue.send(b"NOOP" + ending)) == ["500 5.5.2"]
    assert dialogue.is_closed
    assert dialogue.send(b"NOOP\r\n") == b""


@pytest.mark.parametrize("line", [b"NOOP\rRSET\r\n", b"NOOP\r\r\n", b"\rNOOP\r\n"])
def test_threat_01_a_bare_cr_in_a_command(line: bytes) -> None:
    assert codes(greeted().send(line)) == ["500 5.5.2"]


# 2. STARTTLS


@pytest.mark.parametrize(
    "behind", [b"EHLO evil\r\n", b"MAIL FROM:<a@b.test>\r\n", b"X", b"\r\n", b"\x16\x03\x01"]
)
def test_threat_02_what_is_pipelined_behind_starttls_is_never_executed(behind: bytes) -> None:
    dialogue = greeted(starttls=True)
    assert codes(dialogue.send(b"STARTTLS\r\n" + behind)) == ["554 5.5.0"]
    assert dialogue.events == [Event.CLOSE]


def test_threat_02_what_comes_during_the_handshake_is_dropped() -> None:
    dialogue = greeted(starttls=True)
    assert codes(dialogue.send(b"STARTTLS\r\n")) == ["220 2.0.0"]
    assert dialogue.send(b"EHLO evil\r\nNOOP") == b""
    dialogue.machine.started_tls()
    assert dialogue.send(b"\r\nEHLO good.test\r\n").startswith(b"500 5.5.1 ")
    assert dialogue.machine.helo == "good.test"


def test_threat_02_after_tls_all_state_is_forgotten() -> None:
    dialogue = greeted(starttls=True)
    dialogue.say("STARTTLS")
    dialogue.machine.started_tls()
    assert dialogue.machine.helo == ""
    assert dialogue.say("MAIL FROM:<a@b.test>") == ["503 5.5.1"]
    assert b"STARTTLS" not in dialogue.send(b"EHLO a\r\n")


# 3. Desynchronised state


def test_threat_03_after_a_failed_bdat_data_without_mail_is_503() -> None:
    dialogue = with_recipient(max_message_size=10)
    assert codes(dialogue.send(b"BDAT 20\r\n" + b"x" * 20)) == ["552 5.3.4"]
    assert dialogue.say("DATA") == ["503 5.5.1"]
    assert codes(dialogue.send(b"BDAT 6 LAST\r\nQUIT\r\n")) == ["503 5.5.1"]
    assert dialogue.say("RCPT TO:<a@b.test>", "MAIL FROM:<>") == ["503 5.5.1", "250 2.1.0"]
    assert dialogue.arrivals == []


@pytest.mark.parametrize("before", [[], ["EHLO a"], ["EHLO a", "MAIL FROM:<>"]])
def test_threat_03_the_octets_of_a_refused_chunk_are_no_commands(before: list[str]) -> None:
    chunk = b"BDAT 12\r\nQUIT\r\nQUIT\r\nNOOP\r\n"
    for pieces in ([chunk], [chunk[i : i + 1] for i in range(len(chunk))]):
        dialogue = Dialogue()
        dialogue.say(*before)
        assert codes(b"".join(map(dialogue.send, pieces))) == ["503 5.5.1", "250 2.0.0"]
        assert not dialogue.is_closed


@pytest.mark.parametrize("before", [[], ["RCPT TO:<bad"]])
def test_threat_03_a_refused_chunk_ends_the_transaction(before: list[str]) -> None:
    dialogue = greeted()
    dialogue.say("MAIL FROM:<>", *before)
    assert codes(dialogue.send(b"BDAT 3 LAST\r\na\r\n")) == ["503 5.5.1"]
    assert dialogue.machine.is_idle
    assert dialogue.say("DATA", "RCPT TO:<a@b.test>", "MAIL FROM:<>") == [
        "503 5.5.1",
        "503 5.5.1",
        "250 2.1.0",
    ]


@pytest.mark.parametrize("size", ["", "x", "-1", "1 FIRST", "1 LAST x", "1,5", "9" * 30, "0x10"])
def test_threat_03_a_chunk_whose_size_is_unknown_ends_the_session(size: str) -> None:
    dialogue = with_recipient()
    assert dialogue.say(f"BDAT {size}") == ["501 5.5.4"]
    assert dialogue.is_closed
    assert dialogue.send(b"MAIL FROM:<>\r\n") == b""


def test_threat_03_data_and_bdat_do_not_mix() -> None:
    dialogue = with_recipient()
    dialogue.send(b"BDAT 3\r\na\r\n")
    assert dialogue.say("DATA", "RCPT TO:<c@d.test>", "MAIL FROM:<>") == ["503 5.5.1"] * 3
    assert codes(dialogue.send(b"BDAT 3 LAST\r\nb\r\n")) == ["250 2.0.0"]
    assert dialogue.content == [b"a\r\nb\r\n"]


@pytest.mark.parametrize("content", [b"a\nb\r\n", b"x" * 2000 + b"\r\n"])
def test_threat_03_after_a_rejection_at_end_of_data_nothing_is_left(content: bytes) -> None:
    dialogue = in_data(max_message_size=1000)
    assert codes(dialogue.send(content + b".\r\n"))[0][0] == "5"
    assert dialogue.say("DATA", "RCPT TO:<a@b.test>", "BDAT 0 LAST") == ["503 5.5.1"] * 3
    assert (
        dialogue.say("MAIL FROM:<new@b.test>", "RCPT TO:<c@d.test>", "DATA", ".")[-1] == "250 2.0.0"
    )
    [arrival] = dialogue.arrivals
    assert (arrival.sender, len(arrival.recipients)) == ("new@b.test", 1)


@pytest.mark.parametrize(
    "refused",
    [
        "MAIL FROM:<x@y.test>",
        "RCPT TO:<bad",
        "RCPT TO:<a@b.test> X=1",
        "FROB",
        "STARTTLS",
        "VRFY",
        "EHLO",
    ],
)
def test_threat_03_a_refused_command_changes_nothing(refused: str) -> None:
    dialogue = with_recipient(starttls=True)
    assert dialogue.say(refused)[0][0] == "5"
    assert dialogue.say("DATA", "a", ".") == ["354", "250 2.0.0"]
    [arrival] = dialogue.arrivals
    assert arrival.sender == "a@example.test"
    assert [r.address for r in arrival.recipients] == ["b@example.test"]


def test_threat_03_a_million_chunks_of_one_octet_do_not_grow_memory() -> None:
    dialogue = with_recipient(max_message_size=10_000_000)
    group = b"BDAT 1\r\nx" * 1000
    tracemalloc.start()
    for _ in range(10):
        dialogue.send(group)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(40):
        dialogue.send(group)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 3 * 40_000
    for _ in range(950):
        dialogue.send(group)
    dialogue.send(b"BDAT 0 LAST\r\n")
    assert dialogue.arrivals[0].size == 1_000_000
    assert len(dialogue.arrivals[0].parts) < 40


def test_threat_03_other_sessions_have_their_turn_among_many_chunks() -> None:
    dialogue = with_recipient()
    dialogue.machine.receive(b"BDAT 1\r\nx" * 10_000)
    assert dialogue.machine.take_event() is Event.YIELD
    assert dialogue.machine.is_waiting
    assert dialogue.machine.buffered > 0
    turns = 0
    while dialogue.machine.is_waiting:
        dialogue.machine.go_on()
        turns += dialogue.machine.take_event() is Event.YIELD
    assert turns > 3
    assert len(codes(dialogue.machine.take_output())) == 10_000


# 4. Open relay

RELAY_FORMS = [
    "user@dom.test",
    "USER@DOM.TEST",
    "user%dom.test@relay.example.test",
    "user%dom.test@[127.0.0.1]",
    "user%dom.test",
    "%dom.test",
    "user@dom.test@relay.example.test",
    "user@relay.example.test@dom.test",
    "@relay.example.test:user@dom.test",
    "@relay.example.test,@x.test:user@dom.test",
    "@[127.0.0.1]:user@dom.test",
    "@dom.test:user@relay.example.test",
    "@dom.test:@x.test:user@dom.test",
    '"user@dom.test"@relay.example.test',
    '"user@dom.test"',
    '"user%dom.test"@relay.example.test',
    '"user"@dom.test',
    '"user@dom.test"@dom.test',
    '"dom.test!user"@relay.example.test',
    "user@[127.0.0.1]",
    "user@[IPv6:::1]",
    "user@[IPv6:::ffff:127.0.0.1]",
    "user@127.0.0.1",
    "user@[192.0.2.1]",
    "user@[localhost]",
    "user@localhost",
    "user@2130706433",
    "user@0x7f.1",
    "dom.test!user",
    "dom.test!user@relay.example.test",
    "relay.example.test!dom.test!user",
    "dom.test!user@[127.0.0.1]",
    "user@dom.test.",
    "user@relay.example.test.",
    "user@.dom.test",
    "user@dom..test",
    "@dom.test",
    '""@dom.test',
    "user@",
    "user",
    "",
    "user@d\u00f6m.test",
    "user@xn--dm-fka.test",
    "USER@XN--DM-FKA.TEST",
    "user@dom\uff0etest",
    "user@dom\u3002test",
    "postmaster",
    "POSTMASTER",
    "postmaster@dom.test",
    "postmaster%dom.test",
    "abuse@relay.example.test",
    "user@relay.example.test",
    "user @dom.test",
    "user\\@dom.test@relay.example.test",
    "user:@dom.test",
    "user;@dom.test",
    "user,other@dom.test",
    "<user@dom.test>",
    "user@dom.test>,<x@y.test",
    "user@dom.test%00",
    "smtp:user@dom.test",
    "user@DOM.test%relay.example.test",
    "|cmd@dom.test",
    "user#dom.test@relay.example.test",
    "user+dom.test@relay.example.test",
    "user=dom.test@relay.example.test",
]


def test_threat_04_the_matrix_is_not_small() -> None:
    assert len(set(RELAY_FORMS)) >= 40


@pytest.mark.parametrize("path", RELAY_FORMS)
@pytest.mark.parametrize("sender", ["", "a@relay.example.test", "postmaster@relay.example.test"])
def test_threat_04_no_form_opens_the_relay(path: str, sender: str) -> None:
    dialogue = greeted(may_relay=False)
    dialogue.say(f"MAIL FROM:<{sender}> SMTPUTF8")
    assert dialogue.say(f"RCPT TO:<{path}>")[0] in ("550 5.7.1", "501 5.1.3", "501 5.5.4")
    assert dialogue.say("DATA") == ["503 5.5.1"]


def test_threat_04_a_good_form_is_refused_as_relaying() -> None:
    dialogue = greeted(may_relay=False)
    dialogue.say("MAIL FROM:<>")
    for path in RELAY_FORMS[:4] + RELAY_FORMS[8:10]:
        assert dialogue.say(f"RCPT TO:<{path}>") == ["550 5.7.1"]


def test_threat_04_a_source_route_goes_where_its_end_says() -> None:
    dialogue = greeted()
    dialogue.say("MAIL FROM:<>", "RCPT TO:<@x.test,@y.test:user@dom.test>", "DATA", ".")
    assert dialogue.arrivals[0].recipients[0].address == "user@dom.test"


# 5. Controls


@pytest.mark.parametrize("control", ["\0", "\r", "\x01", "\x0b", "\x1b", "\x7f", "\t"])
@pytest.mark.parametrize(
    "command", ["MAIL FROM:<a%sb@c.test>", 'MAIL FROM:<"a%sb"@c.test>', "MAIL FROM:<a@b%sc.test>",
                "MAIL FROM:<a@b.test> ENVID=a%sb", "EHLO a%sb", "VRFY a%sb", "NOOP %s", "%sNOOP"],
)  # fmt: skip
def test_threat_05_controls_are_refused_in_every_command(command: str, control: str) -> None:
    assert greeted().say(command % control) == ["500 5.5.2"]


@pytest.mark.parametrize("control", ["\x80", "\x85", "\x9f"])
def test_threat_05_so_are_the_controls_above_ascii(control: str) -> None:
    assert greeted().say(f"MAIL FROM:<a{control}b@c.test> SMTPUTF8") == ["501 5.1.7"]


def test_threat_05_a_line_feed_in_an_address_ends_the_session() -> None:
    dialogue = with_recipient()
    assert codes(dialogue.send(b"RCPT TO:<a\nRCPT TO:<evil@b.test>\r\n")) == ["500 5.5.2"]
    assert dialogue.is_closed


# 6. Out of turn


@pytest.mark.parametrize("command", [b"EHLO a", b"HELO a", b"STARTTLS"])
def test_threat_06_nothing_may_be_pipelined_behind(command: bytes) -> None:
    dialogue = greeted(starttls=True)
    assert codes(dialogue.send(command + b"\r\nNOOP\r\n")) == ["554 5.5.0"]
    assert dialogue.is_closed


@pytest.mark.parametrize("content", [b"Subject: a\r\n\r\na\r\n.\r\n", b".\r\n", b"x"])
def test_threat_06_content_before_354_is_no_content(content: bytes) -> None:
    for dialogue in (with_recipient(), greeted(), Dialogue()):  # where DATA is refused, too
        assert codes(dialogue.send(b"DATA\r\n" + content)) == ["554 5.5.0"]
        assert dialogue.is_closed
        assert dialogue.arrivals == []


# 8. Limits, each with its code


def test_threat_08_line() -> None:
    dialogue = greeted()
    assert dialogue.say("NOOP " + "x" * 2041) == ["250 2.0.0"]
    assert dialogue.say("NOOP " + "x" * 2042) == ["500 5.5.2"]
    assert dialogue.send(b"y" * 100_000) == b"500 5.5.2 Line too long\r\n"
    assert dialogue.machine.buffered == 0
    assert codes(dialogue.send(b"\r\nNOOP\r\n")) == ["250 2.0.0"]


def test_threat_08_header_block() -> None:
    dialogue = in_data(max_header_size=1000)
    assert codes(dialogue.send(b"X: y\r\n" * 200 + b"\r\n.\r\n")) == ["552 5.3.4"]


def test_threat_08_size_announced_and_as_it_arrives() -> None:
    dialogue = greeted(max_message_size=1000)
    assert dialogue.say("MAIL FROM:<> SIZE=1001") == ["552 5.3.4"]
    dialogue.say("MAIL FROM:<> SIZE=5", "RCPT TO:<a@b.test>", "DATA")
    for _ in range(100):
        assert dialogue.send(b"x" * 98 + b"\r\n") == b""
        assert dialogue.load.held <= 1000
    assert codes(dialogue.send(b".\r\n")) == ["552 5.3.4"]


def test_threat_08_recipients() -> None:
    dialogue = greeted(max_recipients=3)
    said = dialogue.say("MAIL FROM:<>", *["RCPT TO:<a@b.test>"] * 1003)
    assert said == ["250 2.1.0"] + ["250 2.1.5"] * 3 + ["452 4.5.3"] * 1000
    assert dialogue.say("DATA", ".") == ["354", "250 2.0.0"]
    assert len(dialogue.arrivals[0].recipients) == 3


def test_threat_08_recipients_without_end_are_errors() -> None:
    dialogue = greeted(max_recipients=3)
    said = dialogue.say("MAIL FROM:<>", *["RCPT TO:<a@b.test>"] * 1100)
    assert said[-2:] == ["452 4.5.3", "421 4.7.0"]
    assert len(said) == 1 + 3 + 1000 + 20 + 1


@pytest.mark.parametrize("command", ["NOOP", "RSET", "VRFY a", "HELP", "EHLO a", "HELO a"])
def test_threat_08_commands_without_mail(command: str) -> None:
    dialogue = greeted(max_junk=10)
    said = dialogue.say(*[command] * 10)
    assert said[-1] == "421 4.7.0"
    assert dialogue.is_closed


def test_threat_08_a_message_begins_the_count_anew() -> None:
    dialogue = greeted(max_junk=10)
    for _ in range(5):
        said = dialogue.say(*["NOOP"] * 8, "MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", ".")
        assert said[-1] == "250 2.0.0"


def test_threat_08_errors_are_delayed_then_the_last() -> None:
    dialogue = greeted(max_errors=6)
    assert dialogue.say("FROB", "FROB", "FROB") == ["500 5.5.1"] * 3
    assert dialogue.events == []
    dialogue.machine.receive(b"FROB\r\nNOOP\r\n")
    assert dialogue.machine.take_event() is Event.DELAY
    assert dialogue.machine.is_waiting
    dialogue.machine.go_on()
    assert codes(dialogue.machine.take_output()) == ["500 5.5.1", "250 2.0.0"]
    assert dialogue.say("FROB", "FROB") == ["500 5.5.1", "500 5.5.1", "421 4.7.0"]
    assert dialogue.is_closed
    assert dialogue.load.rejected.value == 6


def test_threat_07_under_stress_fewer_errors_are_allowed() -> None:
    dialogue = greeted()
    dialogue.load.stressed = True
    assert dialogue.say("FROB", "FROB") == ["500 5.5.1", "500 5.5.1", "421 4.7.0"]


def test_threat_08_octets_of_all_sessions() -> None:
    one = in_data(max_held=1000)
    two = in_data()
    two.machine._load = one.load
    one.send(b"x" * 900 + b"\r\n")
    two.send(b"y" * 200 + b"\r\n")
    assert codes(two.send(b".\r\n")) == ["452 4.3.1"]
    assert two.say("MAIL FROM:<> SIZE=200") == ["452 4.3.1"]
    assert one.load.held == 902
    one.send(b".\r\n")
    assert one.load.held == 0
    said = two.say("MAIL FROM:<>", "RCPT TO:<a@b.test>", "DATA", "y" * 200, ".")
    assert said[-1] == "250 2.0.0"


# 9. Loops


@pytest.mark.parametrize(("fields", "code"), [(50, "250 2.0.0"), (51, "554 5.4.6")])
def test_threat_09_hops(fields: int, code: str) -> None:
    message = b"Received: from a by b; now\r\n" * fields + b"\r\nReceived: x\r\n.\r\n"
    assert codes(in_data().send(message)) == [code]
    dialogue = in_data()
    assert codes(b"".join(dialogue.send(bytes([octet])) for octet in message)) == [code]


# 10. Harvesting


def test_threat_10_vrfy_tells_nothing() -> None:
    assert greeted().say("VRFY root", "VRFY a@b.test", "EXPN list") == [
        "252 2.1.5",
        "252 2.1.5",
        "502 5.5.1",
    ]
