"""A policy on a session: what it is asked, what its answers become, and what it changes."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmta.mail.envelope import Priority
from fastmta.policy import Defer, Message, Reject, Session
from fastmta.policy_file import Policy
from fastmta.policy_runner import THREADS, Runner
from fastmta.protocol.smtp_question import Step
from fastmta.server.judges import Judges
from fastmta.server.policy_judge import PolicyJudge
from tests.server.test_smtp import certificate, serving, trusting
from tests.support import run, until

__all__ = ["certificate"]  # a fixture

PLACES = ["on_connect", "on_ehlo", "on_mail", "on_rcpt", "on_message"]


def judges(limit: float = 60.0, pools: tuple[str, ...] = (), **hooks: Callable[..., Any]) -> Judges:
    return Judges([PolicyJudge(Policy(Path("policy.py"), hooks), Runner(limit), pools)])


def asynchronous(answer: Any) -> Callable[..., Any]:
    async def hook(*_: Any) -> Any:
        return answer

    return hook


def plain(answer: Any) -> Callable[..., Any]:
    return lambda *_: answer


def test_only_what_it_defines_is_asked() -> None:
    assert judges().asks == frozenset()
    assert judges(on_rcpt=plain(None), on_disposition=plain(None)).asks == {Step.RCPT}
    assert judges(choose_route=plain(None)).asks == frozenset()


async def replies(asked: Judges) -> list[str]:
    """To the greeting, EHLO, MAIL, RCPT and the message, up to the first that is no success."""
    async with serving(judges=asked) as server:
        client = await server.connect()
        said = [await client.reply()]
        for line in ("EHLO c.test", "MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>", "DATA"):
            if said[-1][0] == "2":
                said.append(await client.say(line))
        if said[-1] == "354":
            said[-1] = await client.say_data("Subject: x\r\n\r\nx")
        return said


@pytest.mark.parametrize("kind", [plain, asynchronous])
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("answer", [Reject(553, "5.1.8", "No"), Defer(452, "4.2.2", "Later")])
def test_each_step_can_be_refused(
    kind: Callable[[Any], Any], number: int, answer: Reject | Defer
) -> None:
    said = run(replies(judges(**{PLACES[number]: kind(answer)})))
    assert len(said) == number + 1
    code = {True: 554 if isinstance(answer, Reject) else 421, False: answer.code}
    assert said[-1][:3] in (str(answer.code), str(code[number == 0]))


@pytest.mark.parametrize("kind", [plain, asynchronous])
def test_none_is_go_on(kind: Callable[[Any], Any]) -> None:
    said = run(replies(judges(**{name: kind(None) for name in PLACES})))
    assert said == ["220", "250", "250 2.1.0", "250 2.1.5", "250 2.0.0"]


def boom(*_: Any) -> None:
    raise RuntimeError("planted")


async def boom_later(*_: Any) -> None:
    raise RuntimeError("planted")


async def hang(*_: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("hook", [boom, boom_later, hang, plain(True), plain("no")])
def test_no_answer_is_451(name: str, hook: Callable[..., Any]) -> None:
    limit = 0.01 if hook is hang else 60.0
    said = run(replies(judges(limit, **{name: hook})))
    assert len(said) == PLACES.index(name) + 1
    assert said[-1].startswith("451 4.3.0") or (name == "on_connect" and said[-1][0] == "4")


def test_a_plain_hook_that_hangs_stops_nobody_else() -> None:
    async def scenario() -> None:
        gate = threading.Event()

        def wait_for_some(session: Session, recipient: str) -> None:
            if recipient.startswith("slow"):
                gate.wait(60)

        asked = judges(0.05, on_rcpt=wait_for_some)
        async with serving(judges=asked) as server:
            clients = [await server.greeted() for _ in range(THREADS + 1)]
            for client in clients:
                await client.say("MAIL FROM:<>")
            slow = [client.say("RCPT TO:<slow@b.test>") for client in clients[:-1]]
            assert set(await asyncio.gather(*slow)) == {"451 4.3.0"}
            assert await clients[-1].say("RCPT TO:<b@b.test>") == "451 4.3.0"  # at once
            gate.set()
            runner = asked._by_step[Step.RCPT][0]._runner  # type: ignore[attr-defined]
            await until(lambda: not runner._threads.are_stuck)
            assert await clients[-1].say("RCPT TO:<b@b.test>") == "250 2.1.5"

    run(scenario())


def test_what_a_hook_learns_of_its_session(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        seen: list[Any] = []

        async def note(*facts: Any) -> None:
            seen.append(facts)

        hooks = dict.fromkeys(PLACES[:4], note)
        async with serving(certificate, mode="implicit", judges=judges(**hooks)) as server:
            client = await server.greeted(ssl=trusting())
            await client.say("MAIL FROM:<>", "RCPT TO:<b@b.test>")
        connected, greeted, mail, rcpt = seen
        [new] = connected
        assert new.tls.startswith("TLSv1.3")
        assert new == Session("127.0.0.1", "smtp", tls=new.tls, may_relay=True)
        [known] = greeted
        assert known.helo == "client.example.test"
        assert mail == (known, "")
        assert rcpt == (known, "b@b.test")

    run(scenario())


@pytest.mark.parametrize("threaded", [True, False])
def test_a_message_is_changed(threaded: bool) -> None:
    async def scenario() -> None:
        def change(session: Session, message: Message) -> None:
            assert message.sender == "a@example.test"
            assert message.header("Subject") == "one"
            message.replace_header("Subject", "two")
            message.recipients.append("c@two.test")
            message.tenant, message.pool, message.priority = "t", "fast", "urgent"

        async def change_later(session: Session, message: Message) -> None:
            change(session, message)

        asked = judges(pools=("fast",), on_message=change if threaded else change_later)
        async with serving(judges=asked) as server:
            client = await server.in_data()
            assert await client.say_data("Subject: one\r\n\r\nx") == "250 2.0.0"
            [arrival] = server.memory.arrivals
        content = b"".join(arrival.parts)
        assert content.startswith(b"Received: from client.example.test")
        assert content.endswith(b"\r\nSubject: two\r\n\r\nx\r\n")
        assert arrival.size == len(content)
        assert [each.address for each in arrival.recipients] == ["b@example.test", "c@two.test"]
        assert (arrival.tenant, arrival.pool, arrival.priority) == ("t", "fast", Priority.URGENT)

    run(scenario())


def test_changes_of_a_hook_that_refuses_or_errs_are_nothing() -> None:
    async def scenario() -> None:
        async def change(session: Session, message: Message) -> Defer | None:
            message.add_header("X-A", "1")
            message.recipients = ["no address"]
            return None if message.header("Subject") == "one" else Defer()

        async with serving(judges=judges(on_message=change)) as server:
            client = await server.in_data()
            assert await client.say_data("Subject: one\r\n\r\nx") == "451 4.3.0"
            await client.say("MAIL FROM:<>", "RCPT TO:<b@b.test>", "DATA")
            assert await client.say_data("Subject: two\r\n\r\nx") == "451 4.7.1"
            assert not server.memory.arrivals

    run(scenario())


def test_a_message_for_nobody_is_taken_and_dropped() -> None:
    async def scenario() -> None:
        async def drop(session: Session, message: Message) -> None:
            message.recipients.clear()

        async with serving(judges=judges(on_message=drop)) as server:
            client = await server.in_data()
            assert await client.say_data("Subject: one\r\n\r\nx") == "250 2.0.0"
            assert not server.memory.arrivals

    run(scenario())


def test_a_client_that_goes_away_ends_the_call() -> None:
    async def scenario() -> None:
        ended = []

        async def wait(session: Session, sender: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(sender)

        async with serving(judges=judges(on_mail=wait)) as server:
            client = await server.greeted()
            client.writer.write(b"MAIL FROM:<a@a.test>\r\n")
            await client.writer.drain()
            await until(lambda: server.service._tasks)
            client.reset()
            await until(lambda: ended)

    run(scenario())
