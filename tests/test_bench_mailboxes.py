"""The benchmarks of mailboxes: what they report is what happened."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench import delivery_local, pop3
from bench.load import RECIPIENTS, Result
from bench.load import Load as Sender
from bench.null_pop3 import Mailboxes, Session
from bench.pop3_load import Load, Maildrops, Mode
from bench.pop3_load import Result as Fetched
from bench.relay import Run
from fastmta.config import Endpoint
from tests.support import run

CORES = os.sched_getaffinity(0)
SMALL = Maildrops(sessions=4, clients=2, messages=12, size=1000)


def runs_here(name: str) -> object:
    peer = delivery_local.load(name) if name == "postfix" else pop3.load(name)
    reason = peer.missing()
    return pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: Dovecot and Postfix give up their privileges, and could not enter it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# POP3


@pytest.mark.parametrize(
    "name", ["null", "fastmta", runs_here("dovecot"), runs_here("dovecot-maildir")]
)
def test_sessions_fetch_all_and_delete_a_third(name: str, folder: Path) -> None:
    for pipelined in (True, False):
        found = pop3.measure(name, SMALL, CORES, folder, pipelined=pipelined)
        assert (found.peer, found.way) == (name, pop3.WAYS[pipelined])
        assert (found.sessions, found.wrong) == (4, 0)
        assert 0 < found.session_p50 <= found.session_p99 < found.seconds
    assert not list(folder.iterdir())


def fetch(mailboxes: Mailboxes, mode: Mode = "work", session: type[Session] = Session) -> Fetched:
    async def scenario() -> Fetched:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: session(mailboxes), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        result = await Load(SMALL, mode, pipelined=True).run(Endpoint("127.0.0.1", port), 2)
        server.close()
        await server.wait_closed()
        return result

    return run(scenario())


class Unfaithful(Mailboxes):
    """It has lost the second message, and has the third twice."""

    def of(self, name: bytes) -> Sequence[int]:
        return [1, 3, *range(3, 13)]


def test_what_a_server_loses_doubles_or_spoils_is_reported() -> None:
    found = fetch(Unfaithful(SMALL))
    assert (found.lost, found.duplicated, found.corrupt, found.failed) == (4, 4, 0, 0)
    spoilt = Mailboxes(SMALL)
    spoilt.body = spoilt.body.replace(b"x\r\n.\r\n", b"y\r\n.\r\n")
    found = fetch(spoilt)
    assert (found.lost, found.duplicated, found.corrupt) == (0, 0, 4 * 12)


def test_what_was_not_deleted_is_reported() -> None:
    found = fetch(Mailboxes(SMALL), "rest")
    assert (found.lost, found.corrupt) == (0, 4 * 4)  # what should be gone


def test_a_session_that_is_refused_is_reported() -> None:
    class Refusing(Session):
        def _do(self, verb: bytes, argument: bytes) -> list[bytes]:
            return super()._do(verb, argument) if verb != b"STAT" else [b"-ERR no\r\n"]

    class Closing(Session):
        def _do(self, verb: bytes, argument: bytes) -> list[bytes]:
            if verb == b"LIST":
                self._transport.abort()
            return super()._do(verb, argument)

    for session in (Refusing, Closing):
        found = fetch(Mailboxes(SMALL), session=session)
        assert (found.sessions, found.failed) == (0, 4)
        assert found.why.startswith("user00")


# Local delivery


@pytest.mark.parametrize("name", ["fastmta", runs_here("postfix")])
def test_all_messages_are_delivered(name: str, folder: Path) -> None:
    sizes = {"messages": 60, "size": 1000, "clients": 3}
    found = delivery_local.measure(name, sizes, CORES, folder)
    assert (found.lost, found.duplicated, found.corrupt, found.refused) == (0, 0, 0, 0)
    assert found.rate > 0
    assert not list(folder.iterdir())


def test_what_is_missing_doubled_or_in_the_wrong_mailbox_is_reported() -> None:
    sender = Sender(messages=10, size=1000)
    # Undo the dot-stuffing and the end of data, as a server does.
    mail = {n: sender.content(n).replace(b"\r\n..", b"\r\n.")[:-3] for n in range(1, 9)}
    there = [(f"user{n % RECIPIENTS}", content) for n, content in mail.items()]
    spoilt = mail[3].replace(b"xxx", b"yyy")
    for added, wrong in {
        (): (2, 0, 0),
        (("user3", mail[3]),): (2, 1, 0),
        (("user4", mail[3]),): (2, 1, 1),
        (("user3", spoilt),): (2, 1, 1),
    }.items():
        found = delivery_local.judge(Run(), Result(acknowledged="1-10"), [*there, *added])
        assert (found.lost, found.duplicated, found.corrupt) == wrong


def test_only_what_a_log_adds_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"sent\nsent\nse")
    deliveries = delivery_local.Deliveries(log, b"sent")
    assert deliveries.look() == 2
    with log.open("ab") as file:
        file.write(b"nt\nother\n")
    assert deliveries.look() == 3
