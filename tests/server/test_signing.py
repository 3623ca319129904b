"""The step that signs: who is signed, in what order, and what happens when it cannot be."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from fastmta._core.signatures import PrivateKey, Unavailable
from fastmta.mail.arrival import Arrival
from fastmta.mail.dkim import Sign, Signer, Signers, see
from fastmta.mail.dkim_key import load_key
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.server.signing import UNSIGNED, Signing
from tests.mail.test_dkim import (
    DOMAIN,
    KEYS,
    MESSAGE,
    PEM,
    as_it_arrives,
    is_good,
    made,
    signer,
)
from tests.protocol.dialogue import greeted
from tests.support import run

STRANGERS = b"From: a@other.test\r\n\r\nHello\r\n"


class Memory:
    """The backend behind it."""

    def __init__(self) -> None:
        self.taken: list[Arrival] = []
        self.verdict: Reply | None = None

    def new_id(self) -> int:
        return 1

    def refusal(self) -> Reply | None:
        return None

    def accept(self, arrival: Arrival, done: Callable[[Reply | None], None]) -> None:
        self.taken.append(arrival)
        done(self.verdict)


class Scene:
    def __init__(self, *signers: Signer, threads: int = 2) -> None:
        self.memory = Memory()
        self.signing = Signing(self.memory, Signers(signers), threads)

    def arrival(self, message: bytes, pieces: int = 7, watched: bool = True) -> Arrival:
        parts = [message[i : i + pieces] for i in range(0, len(message), pieces)]
        to = [Recipient("b@example.test")]
        arrival = Arrival(1, "", to, [b"Received: x\r\n", *parts], 13 + len(message), 1e9)
        if watched and (watch := self.signing.watch):
            arrival.body = watch()
            for part in parts:
                arrival.body.feed(part)
        return arrival

    async def accept(self, arrival: Arrival) -> Reply | None:
        answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self.signing.accept(arrival, answer.set_result)
        return await answer

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            await scenario()
            await self.signing.finish()

        run(whole())


@pytest.mark.parametrize("kinds", [["rsa"], ["ed25519"], ["ed25519", "rsa"]])
def test_a_message_is_signed_before_it_is_queued(kinds: list[str]) -> None:
    scene = Scene(*map(signer, kinds))

    async def scenario() -> None:
        assert await scene.accept(scene.arrival(MESSAGE)) is None
        (arrival,) = scene.memory.taken
        content = b"".join(arrival.parts)
        assert content.endswith(b"Received: x\r\n" + MESSAGE)
        assert arrival.size == len(content)
        for index, kind in enumerate(kinds):
            assert is_good(content, index)
            assert f"s={kind};".encode() in arrival.parts[index]

    scene.run(scenario)


def unavailable(der: bytes, *, rsa: bool) -> PrivateKey:
    raise Unavailable


def another(der: bytes, *, rsa: bool) -> PrivateKey:
    """Ed25519 cannot be signed with so, and RSA comes out otherwise."""
    return PrivateKey(der, rsa=not rsa)


@pytest.mark.parametrize("made", [unavailable, another])
@pytest.mark.parametrize("kind", KEYS)
def test_where_libcrypto_does_not_sign_cryptography_does(
    kind: str,
    made: Callable[..., PrivateKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(KEYS[kind].sign, Sign)
    assert KEYS[kind].sign.quick is not None
    monkeypatch.setattr("fastmta.mail.dkim.PrivateKey", made)
    slow = load_key(PEM[kind])
    assert isinstance(slow.sign, Sign)
    assert slow.sign.quick is None
    scene = Scene(Signer(DOMAIN, kind, slow), signer(kind))

    async def scenario() -> None:
        assert await scene.accept(scene.arrival(MESSAGE)) is None
        content = b"".join(scene.memory.taken[0].parts)
        assert is_good(content, 0)
        assert is_good(content, 1)

    scene.run(scenario)


def test_who_cannot_be_told_keeps_nobody_else_from_hearing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(signer())

    def broken(_: Reply | None) -> None:
        raise ValueError("nobody there")

    async def scenario() -> None:
        scene.signing.accept(scene.arrival(MESSAGE), broken)
        assert await scene.accept(scene.arrival(MESSAGE)) is None

    scene.run(scenario)
    assert "nobody there" in caplog.text


def test_what_waits_at_the_end_is_signed_and_there_may_be_more() -> None:
    scene = Scene(signer("rsa"), signer("ed25519"))

    async def scenario() -> None:
        for round_ in (1, 2):
            verdicts: list[Reply | None] = []
            for _ in range(20):
                scene.signing.accept(scene.arrival(MESSAGE), verdicts.append)
            await scene.signing.finish()
            assert verdicts == [None] * 20
            assert len(scene.memory.taken) == 20 * round_

    scene.run(scenario)


def test_what_is_not_ours_to_sign_is_queued_as_it_came() -> None:
    scene = Scene(signer())

    async def scenario() -> None:
        for arrival in (scene.arrival(STRANGERS), scene.arrival(MESSAGE, watched=False)):
            assert await scene.accept(arrival) is None
        first, second = scene.memory.taken
        assert b"".join(first.parts) == b"Received: x\r\n" + STRANGERS
        assert b"".join(second.parts) == b"Received: x\r\n" + MESSAGE

    scene.run(scenario)


def test_without_keys_nobody_watches() -> None:
    assert Scene().signing.watch is None


def test_a_thousand_at_once_are_all_signed() -> None:
    scene = Scene(signer("rsa"))

    async def scenario() -> None:
        arrivals = [scene.arrival(as_it_arrives(made(n))) for n in range(1000)]
        assert set(await asyncio.gather(*map(scene.accept, arrivals))) == {None}
        assert len(scene.memory.taken) == 1000
        assert all(is_good(b"".join(one.parts)) for one in scene.memory.taken)

    scene.run(scenario)


def test_the_loop_goes_on_while_a_signature_is_made() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(digest: bytes) -> bytes:
        begun.set()
        assert go_on.wait(60)
        return KEYS["rsa"].sign(digest)

    scene = Scene(Signer("example.test", "rsa", replace(KEYS["rsa"], sign=slow)))

    async def scenario() -> None:
        accepting = asyncio.ensure_future(scene.accept(scene.arrival(MESSAGE)))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        assert await scene.accept(scene.arrival(STRANGERS)) is None
        assert not accepting.done()
        go_on.set()
        assert await accepting is None

    scene.run(scenario)


@pytest.mark.parametrize("kind", KEYS)
def test_what_cannot_be_signed_is_not_queued(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: bytes) -> bytes:
        raise ValueError("no such key")

    scene = Scene(Signer("example.test", "s1", replace(KEYS[kind], sign=broken)))

    async def scenario() -> None:
        refusal = await scene.accept(scene.arrival(MESSAGE))
        assert refusal is not None
        assert refusal.code == 451
        assert scene.memory.taken == []

    scene.run(scenario)
    assert "no such key" in caplog.text


def test_what_the_queue_refuses_is_refused() -> None:
    scene = Scene(signer())
    scene.memory.verdict = Reply(452, "4.3.1", "full")

    async def scenario() -> None:
        assert await scene.accept(scene.arrival(MESSAGE)) == scene.memory.verdict

    scene.run(scenario)


def test_a_broken_header_section_is_counted_and_queued() -> None:
    scene = Scene(signer())

    async def scenario() -> None:
        before = UNSIGNED.value
        message = b"From: a@example.test\r\nno field\r\n\r\nx\r\n"
        assert await scene.accept(scene.arrival(message)) is None
        assert b"DKIM" not in b"".join(scene.memory.taken[0].parts)
        assert UNSIGNED.value == before + 1

    scene.run(scenario)


def test_a_report_of_ours_is_signed() -> None:
    scene = Scene(signer("rsa"))

    async def scenario() -> None:
        report = scene.arrival(MESSAGE, pieces=10_000, watched=False)
        await scene.signing.sign_report(report)
        assert is_good(b"".join(report.parts))
        assert report.size == sum(map(len, report.parts))

    scene.run(scenario)


def test_new_keys_sign_what_comes_next() -> None:
    scene = Scene(signer("rsa"))

    async def scenario() -> None:
        waiting = scene.arrival(STRANGERS)  # its body was not hashed, as nobody could sign it
        scene.signing.signers = Signers([signer("ed25519", domain="other.test")])
        assert await scene.accept(waiting) is None
        assert b"d=other.test" in scene.memory.taken[0].parts[0]

    scene.run(scenario)


def test_a_long_body_that_nobody_saw_is_hashed_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a policy has changed the author."""
    seen_by: list[threading.Thread] = []

    def watched(arrival: Arrival, forms: set[bool]) -> None:
        seen_by.append(threading.current_thread())
        see(arrival, forms)

    monkeypatch.setattr("fastmta.server.signing.see", watched)
    monkeypatch.setattr("fastmta.mail.dkim.see", watched)
    scene = Scene(signer("ed25519"))

    async def scenario() -> None:
        for size in (10, 300_000):
            arrival = scene.arrival(STRANGERS + b"line\r\n" * (size // 6), 10_000)
            arrival.parts[1:] = [b"".join(arrival.parts[1:]).replace(b"other", b"example", 1)]
            assert await scene.accept(arrival) is None
            assert is_good(b"".join(scene.memory.taken[-1].parts))

    scene.run(scenario)
    assert [one is threading.main_thread() for one in seen_by] == [True, False]


# The machine


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("may_relay", [False, True])
def test_the_body_is_seen_as_it_comes_and_only_of_who_may_relay(
    may_relay: bool, chunked: bool
) -> None:
    dialogue = greeted(may_relay=may_relay, vet=lambda address, may, arrival: b"")
    dialogue.machine.watch = Signers([signer()]).incoming
    dialogue.say("MAIL FROM:<a@example.test>", "RCPT TO:<b@example.test>")
    content = b"From: a@example.test\r\n\r\n.dot\r\n"
    wire = (
        b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (9, content[:9], len(content) - 9, content[9:])
        if chunked
        else b"DATA\r\n"
    )
    dialogue.machine.receive(wire)
    if not chunked:
        for octet in content.replace(b"\r\n.", b"\r\n..") + b".\r\n":
            dialogue.machine.receive(bytes([octet]))
    arrival = dialogue.machine.take_event()
    assert type(arrival) is Arrival
    assert (arrival.body is not None) == may_relay
    if arrival.body is not None:
        twin = Signers([signer()]).incoming()
        twin.feed(content)
        assert arrival.body.digest(True) == twin.digest(True) is not None
