"""POP3 over real sockets, out of real mailboxes: sessions, locks, messages."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fastmta.protocol import pop3_replies as reply
from fastmta.protocol.pop3_server import Pop3Server
from fastmta.server import pop3_maildrop
from fastmta.server.pop3_maildrop import AHEAD, PIECE
from fastmta.store.mail_records import entry_key
from tests.server.pop3_service import (
    DOTS,
    LOGIN,
    ONE,
    TWO,
    MiB,
    digest,
    held_back,
    lines_of,
    received,
    serving,
    stalled,
)
from tests.server.test_smtp import _time_stands_still, certificate
from tests.server.test_submission import NAME
from tests.store.test_mailboxes import damage
from tests.support import run, until

__all__ = ["_time_stands_still", "certificate"]  # fixtures


def test_a_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, DOTS, TWO) as server:
            client = await server.logged_in()
            sizes = [len(ONE), len(DOTS), len(TWO)]
            assert await client.say("STAT") == f"+OK 3 {sum(sizes)}"
            assert await client.many("LIST") == [f"{i + 1} {n}" for i, n in enumerate(sizes)]
            assert await client.message("RETR 1") == ONE
            assert await client.message("RETR 2") == DOTS
            assert await client.message("TOP 3 0") == b"Subject: two\r\n\r\n"
            assert await client.say("DELE 2") == "+OK Deleted at QUIT"
            assert (await client.say("RETR 2"))[:4] == "-ERR"
            assert await client.say("STAT") == f"+OK 2 {sizes[0] + sizes[2]}"
            assert await server.contents() == [1, 2, 3]
            assert await client.say("QUIT") == "+OK Bye"
            assert await client.end() == b""
            assert await server.contents() == [1, 3]

    run(scenario())


def test_what_stands_in_front_is_part_of_the_message(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            front = b"Return-Path: <a@b.test>\r\n"
            await server.deliver(ONE, lines_of(2 * AHEAD), front=front)
            client = await server.logged_in()
            assert await client.say("LIST 1") == f"+OK 1 {len(front + ONE)}"
            assert await client.message("RETR 1") == front + ONE
            assert await client.message("RETR 2") == front + lines_of(2 * AHEAD)

    run(scenario())


def test_unique_ids_never_change_and_are_never_used_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO) as server:
            client = await server.logged_in()
            first, second = [line.split()[1] for line in await client.many("UIDL")]
            await client.say("DELE 1", "DELE 2", "QUIT")
            await client.end()
            await server.deliver(ONE)
            client = await server.logged_in()
            (third,) = [line.split()[1] for line in await client.many("UIDL")]
            assert len({first, second, third}) == 3
            await client.say("QUIT")
            await client.end()
            client = await server.logged_in()
            assert await client.say("UIDL 1") == f"+OK 1 {third}"

    run(scenario())


def test_what_comes_in_meanwhile_is_there_at_the_next_login(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            client = await server.logged_in()
            await server.deliver(TWO)
            assert await client.say("STAT") == f"+OK 1 {len(ONE)}"
            assert (await client.say("RETR 2"))[:4] == "-ERR"
            await client.say("DELE 1", "QUIT")
            await client.end()
            client = await server.logged_in()
            assert await client.message("RETR 1") == TWO

    run(scenario())


# The end of a session.


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_connection_that_drops_deletes_nothing(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO) as server:
            client = await server.logged_in()
            await client.say("DELE 1", "DELE 2")
            if how == "half":
                client.writer.write(b"QUI")
                client.writer.write_eof()
            elif how == "reset":
                client.reset()
            else:
                client.writer.close()
            await until(lambda: not len(server.service.sessions))
            assert await server.contents() == [1, 2]
            await server.logged_in()  # and the lock is free

    run(scenario())


def test_a_client_that_half_closes_hears_all_that_it_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, lines_of(2 * MiB)) as server:
            client = await server.connect()
            commands = [*LOGIN, "RETR 2", "DELE 1", "QUIT"]
            client.writer.write("".join(f"{line}\r\n" for line in commands).encode())
            client.writer.write_eof()
            assert (await client.end()).endswith(b"\r\n.\r\n+OK Deleted at QUIT\r\n+OK Bye\r\n")
            assert await server.contents() == [2]

    run(scenario())


def test_when_the_disk_fails_quit_deletes_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError("no disk")

    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            client = await server.logged_in()
            monkeypatch.setattr(server.mailboxes, "expunge", fail)
            assert (await client.say("DELE 1", "QUIT")).startswith("-ERR [SYS/TEMP]")
            assert await client.end() == b""
            assert await server.contents() == [1]

    run(scenario())


def test_retrieved_messages_are_deleted_at_quit_where_that_is_set(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO, delete_retrieved=True) as server:
            client = await server.logged_in()
            assert "EXPIRE 0" in await client.many("CAPA")
            await client.message("RETR 2")
            await client.say("QUIT")
            await client.end()
            assert await server.contents() == [1]

    run(scenario())


# The lock.


def test_threat_19_a_maildrop_has_one_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            first, second = await server.logged_in(), await server.greeted()
            assert (await second.say(*LOGIN)).startswith("-ERR [IN-USE] ")
            assert await first.say("QUIT") == "+OK Bye"
            assert (await second.say(*LOGIN))[:3] == "+OK"  # at once, on the same connection
            third = await server.greeted()
            assert (await third.say(*LOGIN)).startswith("-ERR [IN-USE] ")

    run(scenario())


def test_threat_19_the_lock_is_free_before_quit_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            lock, updated, free = server.mailboxes.lock, Pop3Server.updated, []

            def look(machine: Pop3Server, *, done: bool) -> None:
                free.append(lock.take(NAME))
                updated(machine, done=done)

            monkeypatch.setattr(Pop3Server, "updated", look)
            client = await server.logged_in()
            assert not lock.take(NAME)
            await client.say("DELE 1", "QUIT")
            assert free == [True]
            lock.release(NAME)

    run(scenario())


def test_threat_19_a_client_that_goes_while_its_maildrop_is_opened_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE) as server:
            opening, open_it = asyncio.Event(), server.mailboxes.open

            async def wait(account: str, mailbox: str = "INBOX") -> Any:
                opening.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(server.mailboxes, "open", wait)
            client = await server.greeted()
            client.writer.write("\r\n".join([*LOGIN, ""]).encode())
            await opening.wait()
            client.reset()
            await until(lambda: not len(server.service.sessions))
            monkeypatch.setattr(server.mailboxes, "open", open_it)
            await until(lambda: not server.service._tasks)
            await server.logged_in()

    run(scenario())


def test_logins_have_a_pause_between_them_where_that_is_set(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, login_delay=3600) as server:
            client = await server.logged_in()
            assert "LOGIN-DELAY 3600" in await client.many("CAPA")
            await client.say("QUIT")
            await client.end()
            other = await server.greeted()
            assert (await other.say(*LOGIN)).startswith("-ERR [LOGIN-DELAY] ")
            assert await other.say("STAT") == "-ERR Log in first"

    run(scenario())


# Messages, small and large.


def test_small_messages_are_read_ahead_of_who_goes_through_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        messages = [b"Subject: %d\r\n\r\n%b\r\n" % (i, b"x" * 2000) for i in range(300)]
        async with serving(tmp_path, *messages) as server:
            read, looks = server.mailboxes.read_several, []

            async def count(mailbox: int, uids: Any) -> Any:
                looks.append(len(uids))
                return await read(mailbox, uids)

            monkeypatch.setattr(server.mailboxes, "read_several", count)
            client = await server.logged_in()
            await client.say("DELE 7")
            for number in (n for n in range(1, 301) if n != 7):
                assert await client.message(f"RETR {number}") == messages[number - 1]
            assert sum(looks) == 299
            assert len(looks) <= 300 * 2020 // AHEAD + 1
            # Who jumps about gets what is asked for, and no more.
            del looks[:]
            for number in (150, 20, 299):
                assert await client.message(f"TOP {number} 0") == b"Subject: %d\r\n\r\n" % (
                    number - 1
                )
            assert max(looks) == 1
            await client.say("QUIT")
            await client.end()
            assert server.service.load.held == 0

    run(scenario())


def test_what_was_read_ahead_is_not_kept_for_who_does_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO) as server:
            client = await server.logged_in()
            await client.message("RETR 1")
            assert server.service.load.held == len(ONE) + len(TWO)
            server.pass_time(11)
            assert server.service.load.held == 0
            assert await client.message("RETR 2") == TWO

    run(scenario())


def test_where_memory_is_short_nothing_is_read_ahead_and_pieces_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        large = lines_of(2 * MiB)
        async with serving(tmp_path, ONE, TWO, large) as server:
            read, asked = server.mailboxes.read, set()

            async def note(mailbox: int, uid: int, first: int, octets: int) -> Any:
                asked.add(octets)
                return await read(mailbox, uid, first, octets)

            monkeypatch.setattr(server.mailboxes, "read", note)
            server.service.load.held = server.service.load.max_held
            client = await server.logged_in()
            assert await client.message("RETR 1") == ONE
            assert server.service.load.held == server.service.load.max_held + len(ONE)
            assert await client.message("RETR 3") == large
            assert asked == {pop3_maildrop.SMALL_PIECE}

    run(scenario())


def test_a_large_message_is_sent_as_fast_as_the_client_reads(tmp_path: Path) -> None:
    """50 MiB to each of several clients: never is more than a little of it in memory."""
    large, clients = lines_of(50 * MiB), 4

    async def scenario() -> None:
        async with serving(tmp_path) as server:
            accounts = [NAME, *(f"{i}@example.test" for i in range(1, clients))]
            for account in accounts:
                await server.deliver(large, account=account)
            before = memory()
            readers = [await stalled(server, account) for account in accounts]
            await until(lambda: held_back(server) == [True] * clients)
            assert memory() - before < clients * 6 * MiB
            for client in readers:
                assert await received(client) == digest(large)
                assert memory() - before < clients * 6 * MiB

    run(scenario())


def memory() -> int:
    """Octets that are this process's own, without what it has mapped of files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def test_top_of_a_large_message_reads_no_more_than_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        large = lines_of(8 * MiB)
        async with serving(tmp_path, large, ONE) as server:
            read, octets = server.mailboxes.read, 0

            async def count(*asked: int) -> Any:
                nonlocal octets
                pieces = await read(*asked)
                octets += sum(map(len, pieces))
                return pieces

            monkeypatch.setattr(server.mailboxes, "read", count)
            client = await server.logged_in()
            assert await client.message("TOP 1 0") == b"Subject: large\r\n\r\n"
            assert octets < 2 * PIECE
            assert await client.message("TOP 1 100000") == large[: at_line(large, 100_002)]
            assert await client.message("RETR 2") == ONE

    run(scenario())


def at_line(message: bytes, count: int) -> int:
    lines = message.split(b"\r\n")[:count]
    return sum(map(len, lines)) + 2 * len(lines)


def test_a_message_that_somebody_else_has_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO, ONE) as server:
            client = await server.logged_in()
            snapshot = await server.mailboxes.open(NAME)
            await server.mailboxes.expunge(snapshot.mailbox, [2])
            assert await client.message("RETR 1") == ONE
            assert await client.say("RETR 2") == reply.NO_LONGER_THERE.decode().rstrip()
            assert await client.message("RETR 3") == ONE
            assert await client.say("DELE 2", "QUIT") == "+OK Bye"

    run(scenario())


def test_a_message_that_cannot_be_read_is_told_of_and_the_others_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, TWO, ONE) as server:
            client = await server.logged_in()
            mailbox = (await server.mailboxes.open(NAME)).mailbox
            damage(server.mailboxes, "entries", entry_key(mailbox, 2), b"?")
            assert await client.message("RETR 1") == ONE
            assert await client.say("RETR 2") == reply.CANNOT_READ.decode().rstrip()
            assert await client.message("RETR 3") == ONE

    run(scenario())


def test_a_message_that_is_lost_half_way_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, lines_of(4 * MiB), ONE) as server:
            read = server.mailboxes.read

            async def fail(mailbox: int, uid: int, first: int, octets: int) -> Any:
                if first:
                    raise OSError("no disk")
                return await read(mailbox, uid, first, octets)

            monkeypatch.setattr(server.mailboxes, "read", fail)
            client = await server.logged_in()
            client.writer.write(b"DELE 2\r\nRETR 1\r\nQUIT\r\n")
            assert not (await client.end()).endswith(b".\r\n")
            assert await server.contents() == [1, 2]

    run(scenario())
