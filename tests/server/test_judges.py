"""Judges: who is asked, in which order, and what becomes of a session meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path

import pytest

from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.judges import Facts, Judges, Verdict
from tests.server.test_smtp import MESSAGE, certificate, serving, trusting
from tests.support import run, until

__all__ = ["certificate"]  # a fixture

NO = Reply(550, "5.7.1", "No")
EVERY = frozenset(Step)


class Quick:
    """Answers at once."""

    def __init__(self, steps: frozenset[Step] = EVERY, verdict: Verdict = None) -> None:
        self.steps, self.verdict = steps, verdict
        self.asked: list[tuple[Step, str, str, str, bool]] = []

    def judge(self, question: Question, facts: Facts) -> Verdict | Awaitable[Verdict]:
        self.asked.append((question.step, facts.client, facts.helo, facts.tls, facts.may_relay))
        return self.verdict


class Slow(Quick):
    """Answers when it is told to."""

    def __init__(self, steps: frozenset[Step] = EVERY) -> None:
        super().__init__(steps)
        self.waiting: list[asyncio.Future[Verdict]] = []
        self.cancelled = 0

    def judge(self, question: Question, facts: Facts) -> Verdict | Awaitable[Verdict]:
        super().judge(question, facts)
        return self._think()

    async def _think(self) -> Verdict:
        self.waiting.append(asyncio.get_running_loop().create_future())
        try:
            return await self.waiting[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def answer(self, verdict: Verdict = None) -> None:
        await until(lambda: self.waiting)
        self.waiting.pop().set_result(verdict)


class Broken(Quick):
    def judge(self, question: Question, facts: Facts) -> Verdict | Awaitable[Verdict]:
        raise RuntimeError("planted")


class BrokenLater(Quick):
    async def judge(self, question: Question, facts: Facts) -> Verdict:
        raise RuntimeError("planted")


def test_a_judge_is_asked_only_when_it_wants_to_be() -> None:
    judges = Judges([Quick(frozenset({Step.RCPT})), Quick(frozenset({Step.EHLO}))])
    assert judges.asks == {Step.RCPT, Step.EHLO}
    assert Judges().asks == frozenset()


def test_what_judges_learn() -> None:
    async def scenario() -> None:
        judge = Quick()
        async with serving(judges=Judges([judge])) as server:
            client = await server.in_data()
            assert await client.say_data("") == "250 2.0.0"
        client_, name = "127.0.0.1", "client.example.test"
        assert judge.asked == [
            (Step.CONNECT, client_, "", "", True),
            (Step.EHLO, client_, "", "", True),
            (Step.MAIL, client_, name, "", True),
            (Step.RCPT, client_, name, "", True),
            (Step.MESSAGE, client_, name, "", True),
        ]

    run(scenario())


def test_the_first_refusal_counts() -> None:
    async def scenario() -> None:
        first, second, third = Quick(), Quick(frozenset({Step.RCPT}), NO), Quick()
        async with serving(judges=Judges([first, second, third])) as server:
            client = await server.greeted()
            assert await client.say("MAIL FROM:<>", "RCPT TO:<a@b.test>") == "550 5.7.1"
        assert first.asked[-1][0] is Step.RCPT
        assert third.asked[-1][0] is Step.MAIL

    run(scenario())


def test_slow_and_quick_ones_together() -> None:
    async def scenario() -> None:
        slow, other, last = Slow(), Slow(), Quick(verdict=NO)
        steps = frozenset({Step.RCPT})
        slow.steps = other.steps = last.steps = steps
        async with serving(judges=Judges([Quick(), slow, other, last])) as server:
            client = await server.greeted()
            client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nNOOP\r\n")
            assert await client.reply() == "250 2.1.0"
            await slow.answer()
            await other.answer()
            assert [await client.reply(), await client.reply()] == ["550 5.7.1", "250 2.0.0"]

    run(scenario())


@pytest.mark.parametrize(
    "judge", [Broken(frozenset({Step.MAIL})), BrokenLater(frozenset({Step.MAIL}))]
)
def test_a_judge_that_breaks_lets_nothing_pass(
    judge: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(judges=Judges([judge])) as server:
            client = await server.greeted()
            with caplog.at_level(logging.CRITICAL, "fastmta.server.judges"):
                assert await client.say("MAIL FROM:<>") == "451 4.3.0"
            assert await client.say("MAIL FROM:<>") == "451 4.3.0"

    run(scenario())
    [record] = caplog.records
    assert "planted" in str(record.exc_info)


def test_the_greeting_waits_for_the_verdict() -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.CONNECT}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.connect()
            await judge.answer()
            assert await client.reply() == "220"
            refused = await server.connect()
            await judge.answer(NO)
            assert await refused.reply() == "550 5.7.1"
            assert await refused.reply() == ""

    run(scenario())


def test_the_greeting_waits_under_tls_too(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.CONNECT}))
        async with serving(certificate, mode="implicit", judges=Judges([judge])) as server:
            client = await server.connect(ssl=trusting())
            await judge.answer()
            assert await client.reply() == "220"
            assert judge.asked[0][3].startswith("TLSv1.3 ")

    run(scenario())


def test_threat_06_talking_while_the_greeting_waits() -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.CONNECT}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.connect()
            await until(lambda: judge.waiting)
            client.writer.write(b"EHLO a\r\n")
            assert await client.reply() == "554 5.5.0"
            assert await client.reply() == ""
            await until(lambda: judge.cancelled)

    run(scenario())


@pytest.mark.parametrize(
    "step", sorted(EVERY - {Step.AUTH, Step.XCLIENT}, key=lambda step: step.name)
)
def test_a_client_that_goes_while_somebody_thinks(step: Step) -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({step}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.connect()
            if step is not Step.CONNECT:
                await client.reply()
                client.writer.write(b"EHLO a\r\n")
            if step not in (Step.CONNECT, Step.EHLO):
                await client.reply()
                client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nBDAT 0 LAST\r\n")
            await until(lambda: judge.waiting)
            client.reset()
            await until(lambda: not len(server.service.sessions))
            await until(lambda: judge.cancelled)
            await until(lambda: not server.service._tasks)
            assert server.service.load.held == 0
            assert server.memory.arrivals == []

    run(scenario())


def test_a_message_may_be_refused_changed_or_dropped() -> None:
    class Editor(Quick):
        def judge(self, question: Question, facts: Facts) -> Verdict:
            arrival = question.arrival
            assert arrival is not None
            if arrival.sender == "refused@example.test":
                return NO
            if arrival.sender == "dropped@example.test":
                arrival.recipients.clear()
            arrival.parts.insert(1, b"X-Seen: yes\r\n")
            return None

    async def scenario() -> None:
        async with serving(judges=Judges([Editor(frozenset({Step.MESSAGE}))])) as server:
            client = await server.greeted()
            for name, answer in (
                ("refused", "550 5.7.1"),
                ("dropped", "250 2.0.0"),
                ("b", "250 2.0.0"),
            ):
                said = f"MAIL FROM:<{name}@example.test>", "RCPT TO:<a@b.test>", "DATA"
                assert await client.say(*said) == "354"
                assert await client.say_data(MESSAGE.decode()) == answer
            [arrival] = server.memory.arrivals
            assert arrival.parts[1] == b"X-Seen: yes\r\n"
            assert arrival.size == len(b"".join(arrival.parts))

    run(scenario())


def test_a_slow_verdict_on_a_message() -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.MESSAGE}))
        async with serving(judges=Judges([judge])) as server:
            for verdict, answer in ((None, "250 2.0.0"), (NO, "550 5.7.1")):
                client = await server.in_data()
                client.writer.write(b".\r\nNOOP\r\n")
                await judge.answer(verdict)
                assert [await client.reply(), await client.reply()] == [answer, "250 2.0.0"]
            assert len(server.memory.arrivals) == 1

    run(scenario())


@pytest.mark.parametrize("step", [Step.CONNECT, Step.EHLO, Step.MAIL])
def test_a_drain_does_not_wait_for_a_judge_where_no_mail_is_lost(step: Step) -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({step}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.connect()
            if step is not Step.CONNECT:
                await client.reply()
                client.writer.write(b"EHLO a\r\n")
            if step is Step.MAIL:
                await client.reply()
                client.writer.write(b"MAIL FROM:<>\r\n")
            await until(lambda: judge.waiting)
            await server.service.drain(50.0)
            assert await client.reply() == "421 4.3.2"

    run(scenario())


def test_a_drain_ends_what_a_judge_holds_up() -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.RCPT}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.greeted()
            client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\n")
            await until(lambda: judge.waiting)
            await server.service.drain(0.01)
            await until(lambda: judge.cancelled)

    run(scenario())


def test_who_half_closes_hears_the_verdict() -> None:
    async def scenario() -> None:
        judge = Slow(frozenset({Step.MAIL}))
        async with serving(judges=Judges([judge])) as server:
            client = await server.greeted()
            client.writer.write(b"MAIL FROM:<>\r\n")
            await until(lambda: judge.waiting)
            client.writer.write_eof()
            await until(lambda: server.session._half_closed)
            await judge.answer(NO)
            assert await client.reply() == "550 5.7.1"
            assert await client.reply() == ""

    run(scenario())
