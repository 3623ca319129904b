"""STARTTLS injection (CVE-2011-0411, CVE-2024-34083): the machine, split at every octet."""

import pytest

from fastmta.protocol.smtp_machine import Event
from tests.protocol.dialogue import codes, greeted

BEHIND = [
    b"EHLO evil.test\r\nMAIL FROM:<evil@b.test>\r\nRCPT TO:<a@b.test>\r\nDATA\r\nevil\r\n.\r\n",
    b"RSET\r\n",
    b"STARTTLS\r\n",
    b"QUIT\r\n",
    b"\r\n",
    b"\n",
    b"\0",
    b"\x16\x03\x01\x02\x00",
]


@pytest.mark.parametrize("command", [b"STARTTLS\r\n", b"starttls\r\n", b"StartTLS \r\n"])
@pytest.mark.parametrize("behind", BEHIND)
def test_threat_02_nothing_behind_starttls_is_executed_wherever_it_is_split(
    command: bytes, behind: bytes
) -> None:
    data = command + behind
    for cut in range(len(data) + 1):
        dialogue = greeted(starttls=True)
        before = dialogue.machine.helo
        said = codes(dialogue.send(data[:cut])) + codes(dialogue.send(data[cut:]))
        if cut == len(command):  # it came once the handshake was to begin
            assert said == ["220 2.0.0"]
            assert dialogue.events == [Event.STARTTLS]
            dialogue.machine.started_tls()
            assert dialogue.machine.helo == ""
            assert dialogue.machine.buffered == 0
            assert codes(dialogue.send(b"MAIL FROM:<a@b.test>\r\n")) == ["503 5.5.1"]
        else:
            assert said == ["554 5.5.0"]
            assert dialogue.events == [Event.CLOSE]
            assert dialogue.send(b"NOOP\r\n") == b""
        assert dialogue.machine.helo in ("", before)
        assert dialogue.arrivals == []


def test_threat_02_octet_by_octet() -> None:
    for behind in BEHIND:
        dialogue = greeted(starttls=True)
        said = [dialogue.send(bytes([octet])) for octet in b"STARTTLS\r\n" + behind]
        assert codes(b"".join(said)) == ["220 2.0.0"]
        dialogue.machine.started_tls()
        assert codes(dialogue.send(b"EHLO good.test\r\n"))[-1] == "250"
        assert dialogue.machine.helo == "good.test"


def test_threat_02_a_transaction_in_the_clear_does_not_go_on_under_tls() -> None:
    dialogue = greeted(starttls=True)
    assert dialogue.say("MAIL FROM:<a@b.test>", "RCPT TO:<c@b.test>")[-1] == "250 2.1.5"
    assert dialogue.say("STARTTLS") == ["503 5.5.1"]
    assert dialogue.say("RSET", "STARTTLS")[-1] == "220 2.0.0"
    dialogue.machine.started_tls()
    for command in ("MAIL FROM:<a@b.test>", "RCPT TO:<c@b.test>", "DATA", "BDAT 0 LAST"):
        assert dialogue.say(command) == ["503 5.5.1"]
    assert dialogue.machine.is_idle
