"""Messages of eight bits to hosts without 8BITMIME (RFC 6152 section 3)."""

import pytest

from fastmta.delivery import conversion
from fastmta.delivery.connection import JOINED_SIZE
from fastmta.delivery.dispatcher import Bounds
from fastmta.mail.disposition import Kind
from fastmta.mail.message import parse
from fastmta.queue.limits import Limits
from tests.delivery.mx import DROP, SILENCE, Mx, Session
from tests.delivery.relay import Relay, saying, site
from tests.support import run, until

HEAD = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
LINE = "всё по-русски, и длиннее\r\n"
SMALL = (HEAD + LINE).encode()
LARGE = (HEAD + LINE * (2 * JOINED_SIZE // len(LINE.encode()))).encode()
SIGNED = b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xc3\xa4\r\n--b--\r\n"


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("extensions", [(), ("SIZE 0",), ("PIPELINING", "CHUNKING", "SIZE")])
def test_it_arrives_in_seven_bits(
    extensions: tuple[str, ...], content: bytes, stored: bool
) -> None:
    async def scenario() -> None:
        async with Mx(extensions=extensions) as mx:
            relay = Relay()
            ends = await relay.send(
                site(mx.host), 3, content=content, stored=stored, eight_bit=True
            )
            assert [end.kind for end in ends] == [Kind.DELIVERED] * 3
            for message in mx.messages:
                assert message.isascii() and parse(message).decode() == parse(content).decode()
            sizes = f" SIZE={len(mx.messages[0])}" if "SIZE" in "".join(extensions) else ""
            mails = [
                command
                for session in mx.sessions
                for command in session.commands
                if command.startswith("MAIL")
            ]
            assert mails == ["MAIL FROM:<s@a.test>" + sizes] * 3
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_host_with_8bitmime_gets_it_as_it_is() -> None:
    async def scenario() -> None:
        async with Mx() as mx:
            relay = Relay()
            await relay.send(site(mx.host), content=SMALL, eight_bit=True)
            assert mx.messages == [SMALL]
            await relay.dispatcher.drain(5)

    run(scenario())


@pytest.mark.parametrize(
    ("content", "extension", "enhanced", "word"),
    [
        (SIGNED, "PIPELINING", "5.6.3", "signed"),
        (LARGE, "PIPELINING", "5.6.3", "too large"),
        (SMALL, f"SIZE {len(SMALL)}", "5.3.4", "exceeds"),
    ],
    ids=["signed", "too large", "grown too large"],
)
def test_what_cannot_be_converted_leaves_the_connection_to_others(
    content: bytes,
    extension: str,
    enhanced: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "LARGEST", len(LARGE) - 1)

    async def scenario() -> None:
        async with Mx(extensions=(extension,)) as mx:
            relay = Relay(limits=Limits(connections=1))
            (end,) = await relay.send(site(mx.host), content=content, eight_bit=True)
            assert (end.kind, end.reply.enhanced) == (Kind.FAILED, enhanced)
            assert word in end.reply.text
            (end,) = await relay.send(site(mx.host))
            assert end.kind is Kind.DELIVERED
            assert (len(mx.sessions), len(mx.messages)) == (1, 1)
            await relay.dispatcher.drain(5)

    run(scenario())


def test_what_cannot_be_read_is_deferred() -> None:
    async def scenario() -> None:
        async with Mx(extensions=()) as mx:
            relay = Relay()
            size = len(SMALL) + 1
            (end,) = await relay.send(site(mx.host), content=SMALL, eight_bit=True, size=size)
            assert (end.kind, end.reply.enhanced) == (Kind.DEFERRED, "4.3.0")
            await relay.dispatcher.drain(5)

    run(scenario())


def test_no_more_large_ones_are_in_memory_than_allowed() -> None:
    """One waits until the other is through, however that ends."""

    def answer(session: Session, command: str) -> bytes | None:
        return SILENCE if command.startswith("MAIL") and session.number == 0 else None

    async def scenario() -> None:
        async with Mx(answer, extensions=()) as mx:
            relay = Relay(limits=Limits(connections=2), bounds=Bounds(conversions=1))
            turns = relay.dispatcher.terms(relay.dispatcher.sources.system).conversions
            assert relay.submit(site(mx.host), content=LARGE, eight_bit=True)
            await until(lambda: mx.sessions and len(mx.sessions[0].commands) == 2)
            assert relay.submit(site(mx.host), content=LARGE, eight_bit=True)
            await until(lambda: turns._waiters)
            mx.sessions[0].transport.close()
            await relay.until_settled(2)
            kinds = [end.kind for _, (end,) in relay.settled]
            assert kinds == [Kind.DEFERRED, Kind.DELIVERED]
            assert not turns.locked()
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_lost_connection_ends_the_wait_for_a_turn() -> None:
    async def scenario() -> None:
        async with Mx(saying({"MAIL": SILENCE}), extensions=()) as mx:
            relay = Relay(limits=Limits(connections=2), bounds=Bounds(conversions=1))
            turns = relay.dispatcher.terms(relay.dispatcher.sources.system).conversions
            for count in (1, 2):
                assert relay.submit(site(mx.host), content=LARGE, eight_bit=True)
                await until(lambda count=count: len(mx.sessions) == count and turns.locked())
            await until(lambda: turns._waiters)
            mx.answer = saying({"MAIL": DROP})
            for session in mx.sessions:
                session.transport.close()
            await relay.until_settled(2)
            await relay.dispatcher.drain(5)
            assert not turns.locked()

    run(scenario())
