"""Envelopes whose recipients need several transactions: settled once, nobody served twice."""

import asyncio
from collections import Counter

import pytest

from fastmta.delivery.portion import left_over
from fastmta.mail.disposition import Kind
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.queue.limits import Limits
from tests.delivery.mx import DROP, SILENCE, Mx, Session
from tests.delivery.relay import Relay, site
from tests.support import run, until

DELIVERED, DEFERRED, FAILED = Kind.DELIVERED, Kind.DEFERRED, Kind.FAILED


def recipients(count: int) -> list[Recipient]:
    return [Recipient(f"r{number}@b.test") for number in range(count)]


class Counting:
    """Takes so many recipients a transaction, and notes for whom it took mail."""

    def __init__(self, most: int, refusal: bytes = b"452 4.5.3 too many\r\n") -> None:
        self.most, self.refusal = most, refusal
        self.served: Counter[str] = Counter()
        self.transactions: list[int] = []
        self._now: dict[Session, list[str]] = {}

    def __call__(self, session: Session, command: str) -> bytes | None:
        now = self._now.setdefault(session, [])
        if command.startswith("MAIL"):
            now.clear()
        elif command.startswith("RCPT"):
            if len(now) >= self.most:
                return self.refusal
            now.append(command)
        elif command in ("BDAT", "."):
            self.served.update(now)
            self.transactions.append(len(now))
        return None


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",), ("PIPELINING", "CHUNKING")])
@pytest.mark.parametrize(
    "refusal", [b"452 4.5.3 too many\r\n", b"452 too many\r\n", b"552 too many\r\n"]
)
def test_452_after_the_nth_recipient(extensions: tuple[str, ...], refusal: bytes) -> None:
    async def scenario() -> None:
        host = Counting(10, refusal)
        async with Mx(host, extensions=extensions) as mx:
            relay = Relay()
            await relay.send(site(mx.host), recipients=recipients(25))
            ((_, ends),) = relay.settled
            assert [end.kind for end in ends] == [DELIVERED] * 25
            assert host.transactions == [10, 10, 5] and len(mx.sessions) == 1
            assert set(host.served.values()) == {1} and len(host.served) == 25
            await relay.dispatcher.drain(5)

    run(scenario())


def test_452_in_a_portion() -> None:
    async def scenario() -> None:
        host = Counting(10)
        async with Mx(host) as mx:
            relay = Relay(Limits(recipients=15, connections=1))
            await relay.send(site(mx.host), recipients=recipients(40))
            ((_, ends),) = relay.settled
            assert [end.kind for end in ends] == [DELIVERED] * 40
            assert set(host.served.values()) == {1} and len(host.served) == 40
            await relay.dispatcher.drain(5)

    run(scenario())


def test_452_for_all_is_no_reason_to_go_on() -> None:
    async def scenario() -> None:
        async with Mx(Counting(0)) as mx:
            relay = Relay()
            await relay.send(site(mx.host), recipients=recipients(3))
            assert {end.kind for end in relay.settled[0][1]} == {DEFERRED}
            assert sum(command == "RSET" for command in mx.sessions[0].commands) <= 1
            await relay.dispatcher.drain(5)

    run(scenario())


def test_which_replies_ask_for_another_transaction() -> None:
    ok, full = Reply(250, "", "ok"), Reply(452, "4.2.2", "mailbox full")
    many, spam = Reply(452, "4.5.3", "too many"), Reply(554, "5.7.1", "no")
    assert left_over([ok, many, ok, Reply(452, "", "x"), spam]) == [1, 3]
    assert left_over([ok, full]) == []
    assert left_over([spam, many]) == []
    assert left_over([many, many]) == []


def test_no_more_recipients_a_transaction_than_the_limit() -> None:
    async def scenario() -> None:
        host = Counting(1000)
        async with Mx(host) as mx:
            relay = Relay(Limits(recipients=10, connections=3))
            await relay.send(site(mx.host), 3, recipients=recipients(25))
            assert all(len(ends) == 25 for _, ends in relay.settled)
            assert Counter(host.transactions) == {10: 6, 5: 3}
            assert set(host.served.values()) == {3}
            assert relay.dispatcher.active_jobs() == 0
            await relay.dispatcher.drain(5)

    run(scenario())


def test_ends_come_in_the_order_of_the_recipients() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return b"550 5.1.1 who?\r\n" if "<r13@" in command or "<r4@" in command else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(Limits(recipients=4))
            await relay.send(site(mx.host), recipients=recipients(15))
            ((job, ends),) = relay.settled
            assert len(job.envelope.recipients) == 15
            assert [i for i, end in enumerate(ends) if end.kind is FAILED] == [4, 13]
            await relay.dispatcher.drain(5)

    run(scenario())


def test_a_lost_connection_defers_its_portion_alone() -> None:
    def answer(session: Session, command: str) -> bytes | None:
        return DROP if command == "BDAT" and session.number == 0 else None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(Limits(recipients=5, connections=1))
            await relay.send(site(mx.host), recipients=recipients(15))
            ((_, ends),) = relay.settled
            assert [end.kind for end in ends] == [DEFERRED] * 5 + [DELIVERED] * 10
            await relay.dispatcher.drain(5)

    run(scenario())


def test_drain_settles_what_has_been_begun() -> None:
    """Nobody of those who have the message gets it again; the others wait."""
    held: list[Session] = []

    def answer(session: Session, command: str) -> bytes | None:
        if command == "BDAT":
            held.append(session)
            return SILENCE
        return None

    async def scenario() -> None:
        async with Mx(answer) as mx:
            relay = Relay(Limits(recipients=5, connections=1))
            assert relay.submit(site(mx.host), recipients=recipients(15))
            assert relay.submit(site(mx.host), recipients=recipients(15))
            await until(lambda: bool(held))
            draining = asyncio.ensure_future(relay.dispatcher.drain(30))
            await asyncio.sleep(0)
            held[0].transport.write(b"250 2.0.0 ok\r\n")
            await draining
            ((_, ends),) = relay.settled
            assert [end.kind for end in ends] == [DELIVERED] * 5 + [DEFERRED] * 10

    run(scenario())


def test_withdraw_leaves_what_has_been_begun() -> None:
    async def scenario() -> None:
        async with Mx(lambda session, command: SILENCE if command == "BDAT" else None) as mx:
            relay = Relay(Limits(recipients=5, connections=1))
            for _ in range(2):
                assert relay.submit(site(mx.host), recipients=recipients(15))
            await until(lambda: mx.sessions and "BDAT" in "".join(mx.sessions[0].commands))
            (job,) = relay.dispatcher.withdraw(lambda job, name: True)
            assert job.envelope.message == 2
            mx.answer = lambda session, command: None
            mx.sessions[0].transport.write(b"250 2.0.0 ok\r\n")
            await relay.until_settled(1)
            assert len(relay.settled[0][1]) == 15
            await relay.dispatcher.drain(5)

    run(scenario())
