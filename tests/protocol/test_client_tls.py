"""The client machine and STARTTLS (RFC 3207)."""

from collections.abc import Iterator

import pytest

from fastmta.protocol.smtp_client import Event, TlsPolicy
from fastmta.protocol.smtp_reply import Capabilities
from fastmta.protocol.smtp_steps import Step
from tests.protocol.test_smtp_client import BOTH, GREETING, PIPELINING, Talk, envelope

OFFERED = b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 77\r\n250 STARTTLS\r\n"
MUST: list[TlsPolicy] = ["required", "verified"]
WANTED: list[TlsPolicy] = ["opportunistic", *MUST]


@pytest.fixture(params=[0, 1, 3])
def piece(request: pytest.FixtureRequest) -> Iterator[int]:
    return request.param


def at_handshake(policy: TlsPolicy, piece: int = 0, *, lmtp: bool = False) -> Talk:
    talk = Talk(piece, lmtp=lmtp, tls=policy)
    talk.hear(GREETING)
    assert talk.hear(OFFERED) == b"STARTTLS\r\n"
    assert talk.take_events() == []
    assert talk.hear(b"220 2.0.0 go\r\n") == b""
    assert talk.take_events() == [Event.STARTTLS]
    assert not talk.client.is_ready
    assert talk.client.waiting is Step.TLS
    return talk


@pytest.mark.parametrize("policy", WANTED)
@pytest.mark.parametrize("lmtp", [False, True])
def test_hello_is_said_again_and_all_before_is_forgotten(
    policy: TlsPolicy, lmtp: bool, piece: int
) -> None:
    talk = at_handshake(policy, piece, lmtp=lmtp)
    assert talk.client.started_tls() == []
    assert talk.client.take_output() == talk.hello
    assert talk.client.capabilities == Capabilities()
    assert talk.hear(b"250-mx.test\r\n250-CHUNKING\r\n250 STARTTLS\r\n") == b""  # not once more
    assert talk.take_events() == [Event.READY]
    assert talk.client.capabilities == Capabilities(chunking=True, starttls=True)


def test_none_asks_for_none(piece: int) -> None:
    talk = Talk(piece)
    talk.greet(OFFERED)


@pytest.mark.parametrize("ehlo", [BOTH, b"500 what\r\n"])
def test_opportunistic_goes_on_where_it_is_not_offered(ehlo: bytes, piece: int) -> None:
    talk = Talk(piece, tls="opportunistic")
    talk.hear(GREETING)
    if talk.hear(ehlo):
        talk.hear(b"250 mx.test\r\n")
    assert talk.take_events() == [Event.READY]


def test_opportunistic_goes_on_where_it_is_refused(piece: int) -> None:
    talk = Talk(piece, tls="opportunistic")
    talk.hear(GREETING)
    talk.hear(OFFERED)
    assert talk.hear(b"454 4.7.0 not now\r\n") == b""
    assert talk.take_events() == [Event.READY]
    assert talk.begin(envelope()).startswith(b"MAIL")


@pytest.mark.parametrize("policy", MUST)
@pytest.mark.parametrize(
    "said", [[PIPELINING], [b"500 what\r\n", b"250 mx.test\r\n"], [OFFERED, b"454 not now\r\n"]]
)
def test_threat_16_not_one_octet_of_mail_where_starttls_is_stripped(
    policy: TlsPolicy, said: list[bytes], piece: int
) -> None:
    talk = Talk(piece, tls=policy)
    talk.hear(GREETING)
    sent = b"".join(map(talk.hear, said))
    assert sent.removeprefix(b"HELO me.test\r\n").removeprefix(b"STARTTLS\r\n") == b"QUIT\r\n"
    assert talk.take_events() == [Event.CLOSED]
    assert talk.client.reason is not None
    assert str(talk.client.reason).startswith("451 4.7.4 TLS is required for mx.test [192.0.2.1]")


@pytest.mark.parametrize("policy", WANTED)
@pytest.mark.parametrize(
    "injected", [b"2", b"250 mx.test\r\n", b"250-x\r\n", b"250-PIPELINING\r\n250 ok\r\n2"]
)
def test_threat_16_octets_behind_the_220_end_the_connection(
    policy: TlsPolicy, injected: bytes
) -> None:
    """In one read with it."""
    talk = Talk(tls=policy)
    talk.hear(GREETING)
    talk.hear(OFFERED)
    assert talk.hear(b"220 go\r\n" + injected) == b""
    assert talk.take_events() == [Event.CLOSED]
    assert talk.client.reason is not None
    assert talk.client.reason.code == 451


@pytest.mark.parametrize("injected", [b"2", b"250 mx.test\r\n", b"250-x\r\n"])
def test_threat_16_octets_during_the_handshake_end_the_connection(
    injected: bytes, piece: int
) -> None:
    talk = at_handshake("opportunistic", piece)
    assert talk.hear(injected) == b""
    events = talk.take_events() + talk.client.started_tls()
    assert events[:1] == [Event.CLOSED]
    assert talk.client.closed
    assert talk.client.take_output() == b""
