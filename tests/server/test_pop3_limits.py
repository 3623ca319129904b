"""POP3 over real sockets: TLS, time, limits, judges, and the end of a service."""

import asyncio
from collections.abc import Awaitable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fastmta.mail.reply import Reply
from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.smtp_question import Question, Step
from fastmta.server.judges import Facts, Judges
from tests.server.pop3_service import (
    EVERYBODY,
    LOGIN,
    ONE,
    MiB,
    Server,
    configured,
    digest,
    held_back,
    lines_of,
    received,
    serving,
    stalled,
)
from tests.server.test_smtp import _time_stands_still, certificate, trusting
from tests.server.test_submission import NAME
from tests.support import run, until

__all__ = ["_time_stands_still", "certificate"]  # fixtures


# TLS.


def test_threat_02_stls_and_what_follows_it(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        options = {"mode": "starttls", "tls": certificate, "plaintext_networks": ()}
        async with serving(tmp_path, ONE, **options) as server:  # type: ignore[arg-type]
            client = await server.greeted()
            assert (await client.say(LOGIN[0])).startswith("-ERR Nobody logs in here without TLS")
            assert "STLS" in await client.many("CAPA")
            assert await client.say("STLS") == "+OK Begin TLS"
            await client.writer.start_tls(trusting(), server_hostname="relay.example.test")
            assert "STLS" not in await client.many("CAPA")
            assert await (await client.log_in()).message("RETR 1") == ONE
            evil = await server.greeted()
            evil.writer.write(b"STLS\r\nUSER evil@b.test\r\n")
            assert await evil.end() == reply.TALKED_TOO_SOON

    run(scenario())


def test_implicit_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        large = lines_of(3 * MiB)
        options = {"mode": "implicit", "tls": certificate, "plaintext_networks": ()}
        async with serving(tmp_path, large, **options) as server:  # type: ignore[arg-type]
            client = await server.logged_in(ssl=trusting())
            assert await client.message("RETR 1") == large
            assert await client.say("DELE 1", "QUIT") == "+OK Bye"
            await until(lambda: not len(server.service.sessions))
            assert await server.contents() == []

    run(scenario())


def test_threat_11_who_is_in_no_such_network_does_not_log_in_in_the_clear(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, plaintext_networks=()) as server:
            client = await server.greeted()
            for command in (LOGIN[0], "AUTH PLAIN"):
                assert (await client.say(command)).startswith("-ERR Nobody logs in here")

    run(scenario())


# Time.


def test_threat_07_who_does_not_log_in_in_time_goes_whatever_he_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, login_timeout=60) as server:
            client = await server.greeted()
            for _ in range(3):
                server.pass_time(20)
                assert (await client.say("CAPA"))[:3] == "+OK"
                await client.lines()
            server.pass_time(1)
            assert await client.end() == b""

    run(scenario())


def test_threat_07_under_stress_logins_have_little_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, max_sessions=10) as server:
            clients = [await server.greeted() for _ in range(9)]
            server.service._note_stress()
            server.pass_time(11)
            assert [await client.end() for client in clients] == [b""] * 9

    run(scenario())


def test_threat_07_an_idle_session_is_closed_without_a_word_and_deletes_nothing(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            client = await server.logged_in()
            await client.say("DELE 1")
            server.pass_time(599)
            assert await client.say("NOOP") == "+OK"
            server.pass_time(599)
            client.writer.write(b"NOO")  # no command, and so no time is won
            server.pass_time(2)
            assert await client.end() == b""
            assert await server.contents() == [1]

    run(scenario())


def test_threat_07_who_reads_nothing_goes_in_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, lines_of(20 * MiB)) as server:
            await stalled(server, NAME)
            await until(lambda: held_back(server) == [True])
            server.pass_time(599)
            assert len(server.service.sessions) == 1
            server.pass_time(3600)  # for two mebibytes
            await until(lambda: not len(server.service.sessions))
            await until(lambda: not server.service._tasks)
            await server.logged_in()

    run(scenario())


def test_errors_are_answered_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, max_errors=2) as server:
            client = await server.greeted()
            client.writer.write(b"USER x@y.test\r\nPASS wrong\r\nCAPA\r\n")
            assert await client.line() == "+OK Now the password"
            await until(lambda: delayed(server))
            client.writer.write(b"NOOP\r\n")  # the answer comes no sooner for that
            await asyncio.sleep(0.05)
            assert not client.reader._buffer  # type: ignore[attr-defined]
            server.pass_time(asyncio.get_running_loop().time() + 2 - server.service.sessions.now)
            assert (await client.line()).startswith("-ERR [AUTH] ")

    run(scenario())


def delayed(server: Server) -> bool:
    found: list[float] = []
    server.service.sessions.each(lambda session: found.append(session._delayed_until))  # type: ignore[attr-defined]
    return any(found)


# Limits and judges.


def test_threat_08_sessions_have_a_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, max_sessions=2) as server:
            await server.greeted()
            await server.greeted()
            assert await (await server.connect()).end() == reply.TOO_MANY_SESSIONS

    run(scenario())


def test_threat_08_sessions_of_one_client_have_a_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, max_sessions_per_client=1) as server:
            await server.greeted()
            assert await (await server.connect()).end() == reply.TOO_MANY_OF_CLIENT

    run(scenario())


def test_threat_08_what_waits_behind_a_command_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            go_on, read = asyncio.Event(), server.mailboxes.read_several

            async def wait(mailbox: int, uids: Any) -> Any:
                await go_on.wait()
                return await read(mailbox, uids)

            monkeypatch.setattr(server.mailboxes, "read_several", wait)
            client = await server.logged_in()
            client.writer.write(b"RETR 1\r\n" + b"NOOP\r\n" * 1_000_000)
            await until(lambda: held_reading(server))
            assert waiting(server) < 1 << 20
            go_on.set()
            assert await client.message("STAT") or True

    run(scenario())


def held_reading(server: Server) -> bool:
    found: list[int] = []
    server.service.sessions.each(lambda session: found.append(session._hold))
    return any(found)


def waiting(server: Server) -> int:
    found: list[int] = []
    server.service.sessions.each(lambda session: found.append(session._machine.buffered))  # type: ignore[attr-defined]
    return max(found)


class OneJudge:
    """Says what it is told at the steps it is told."""

    def __init__(self, steps: frozenset[Step], verdict: Reply | None, *, later: bool) -> None:
        self.steps, self.verdict, self.later = steps, verdict, later
        self.heard: list[tuple[str, str, str]] = []

    def judge(self, question: Question, facts: Facts) -> Reply | Awaitable[Reply | None] | None:
        self.heard.append((facts.service, facts.client, facts.account))
        return self._think() if self.later else self.verdict

    async def _think(self) -> Reply | None:
        return self.verdict


@pytest.mark.parametrize("later", [False, True])
def test_judges_are_asked_at_the_greeting_and_at_logins(tmp_path: Path, later: bool) -> None:
    async def scenario() -> None:
        steps = frozenset({Step.CONNECT, Step.AUTH})
        judge = OneJudge(steps, None, later=later)
        async with serving(tmp_path, ONE, judges=Judges([judge])) as server:
            client = await server.logged_in()
            assert judge.heard == [("pop3", "127.0.0.1", "")] * 2
            await client.say("QUIT")
            judge.verdict = Reply(421, "4.7.0", "Too many failed logins")
            refused = await server.connect()
            assert await refused.end() == b"-ERR [SYS/TEMP] Too many failed logins\r\n"

    run(scenario())


def test_a_judge_may_refuse_a_login(tmp_path: Path) -> None:
    async def scenario() -> None:
        judge = OneJudge(frozenset({Step.AUTH}), Reply(454, "4.7.0", "Later"), later=False)
        noted: list[str] = []
        judges = Judges([judge], lambda what, facts: noted.append(what))
        async with serving(tmp_path, judges=judges) as server:
            client = await server.greeted()
            client.writer.write("\r\n".join([*LOGIN, ""]).encode())
            assert await client.line() == "+OK Now the password"
            await until(lambda: delayed(server))
            server.pass_time(asyncio.get_running_loop().time() + 2 - server.service.sessions.now)
            assert await client.line() == "-ERR [SYS/TEMP] Later"
            assert noted == ["errors"]

    run(scenario())


@pytest.mark.parametrize("allowed", [True, False])
def test_a_proxy_says_for_whom_it_speaks(tmp_path: Path, allowed: bool) -> None:
    async def scenario() -> None:
        client_networks = (ip_network("192.0.2.0/24"),) if allowed else EVERYBODY
        options = {"proxy_networks": EVERYBODY, "plaintext_networks": client_networks}
        async with serving(tmp_path, ONE, **options) as server:  # type: ignore[arg-type]
            client = await server.connect()
            client.writer.write(b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 110\r\n")
            assert (await client.line())[:3] == "+OK"
            assert (await client.say(*LOGIN)).startswith("+OK 1 " if allowed else "-ERR")

    run(scenario())


# Draining and reloading.


def test_a_drain_lets_a_message_end_and_closes_who_does_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        large = lines_of(20 * MiB)
        async with serving(tmp_path, large) as server:
            busy = await stalled(server, NAME)
            idle = await server.greeted()
            await until(lambda: True in held_back(server))
            drained = asyncio.ensure_future(server.service.drain(30))
            assert await idle.end() == reply.SHUTTING_DOWN
            assert await received(busy) == digest(large)
            await until(lambda: [server.pass_time(0)] and drained.done(), 0.01)
            assert await busy.end() in (b"", reply.SHUTTING_DOWN)

    run(scenario())


def test_a_reload_takes_on_new_settings(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            before = await server.logged_in()
            config = configured(folder=tmp_path, plaintext_networks=(), max_sessions=7)
            assert await server.service.reload(config, None) == []
            assert server.service.sessions.limit == 7
            assert await before.say("NOOP") == "+OK"

    run(scenario())
