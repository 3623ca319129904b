"""POP3 in a running server: sessions as people type them, workers, reloads, and sudden deaths."""

import os
import poplib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import tree
from tests.integration.clients import HOST, Typist
from tests.integration.pop3_servers import (
    PASSWORD,
    Server,
    contents,
    deliver,
    pop3_server,
)
from tests.integration.servers import LIMIT, PROGRAM, wait_until

MESSAGES = [b"Subject: %d\r\n\r\n.\r\nhello\r\n" % i for i in (1, 2)]
CLEAR = '[pop3]\nplaintext_networks = ["127.0.0.0/8"]\ndefault_domain = "example.test"\n'
KILLS = int(os.environ.get("FASTMTA_KILLS", "5"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    users = ["bob", "carol", "dave", "eve", "frank", "grace"]
    with pop3_server(tmp_path_factory.mktemp("pop3"), users, CLEAR, workers=2) as running:
        yield running


# The session of a lecture.


def lecture(command: list[str], folder: Path, user: bytes, *, deletes: bool) -> None:
    with Typist(command, folder / "stderr") as typist:
        typist.answer(rb"\+OK relay.example.test POP3")
        typist.type(b"user " + user + b"\n")
        typist.answer(rb"\+OK")
        typist.type(b"pass hungry\n")
        typist.answer(rb"\+OK 2 messages")
        typist.type(b"list\n")
        typist.answer(rb"\+OK")
        typist.answer(rb"1 %d" % len(MESSAGES[0]))
        typist.answer(rb"2 %d" % len(MESSAGES[1]))
        typist.answer(rb"\.\r")
        for number in (b"1", b"2"):
            typist.type(b"retr %b\n" % number)
            typist.answer(rb"\+OK")
            typist.answer(rb"Subject: %b\r" % number)
            typist.answer(rb"\.\.\r")
            typist.answer(rb"hello\r")
            typist.answer(rb"\.\r")
            if deletes:
                typist.type(b"dele %b\n" % number)
                typist.answer(rb"\+OK")
        typist.type(b"quit\n")
        typist.answer(rb"\+OK Bye")
        typist.leave()


@pytest.mark.parametrize("user", [b"bob", b"bob@example.test"])
def test_the_lecture_over_nc(server: Server, tmp_path: Path, user: bytes) -> None:
    server.deliver("bob", *MESSAGES)
    command = ["nc", "-C", HOST, str(server.pop3)]
    before = contents(server.relay.data, "bob")
    lecture(command, tmp_path, user, deletes=False)
    assert contents(server.relay.data, "bob") == before
    lecture(command, tmp_path, user, deletes=True)
    assert contents(server.relay.data, "bob") == []


@pytest.mark.parametrize("stls", [False, True])
def test_the_lecture_over_openssl(server: Server, tmp_path: Path, stls: bool) -> None:
    """Lower case: s_client takes R and Q at the begin of a line for orders of its own."""
    server.deliver("carol", *MESSAGES)
    port, options = (server.pop3, ["-starttls", "pop3"]) if stls else (server.pop3s, [])
    command = ["openssl", "s_client", "-crlf", "-connect", f"{HOST}:{port}", *options]
    trust = ["-CAfile", str(server.certificate), "-verify_return_error"]
    if stls:  # which reads the greeting itself
        with Typist([*command, *trust], tmp_path / "stderr") as typist:
            typist.answer(b"---")
            typist.type(b"user carol\n")
            typist.answer(rb"\+OK")
            typist.type(b"pass hungry\n")
            typist.answer(rb"\+OK 2 messages")
            typist.type(b"dele 1\ndele 2\nquit\n")
            typist.answer(rb"\+OK Bye")
            typist.leave()
    else:
        lecture([*command, *trust], tmp_path, b"carol", deletes=True)
    assert contents(server.relay.data, "carol") == []


# Workers.


class Client(poplib.POP3):
    """It closes its connection where there is no greeting."""

    def _getresp(self) -> bytes:
        try:
            return super()._getresp()  # type: ignore[misc]
        except (OSError, EOFError, poplib.error_proto):
            if not hasattr(self, "welcome"):
                self.close()
            raise


def connected(server: Server) -> Client:
    return Client(HOST, server.pop3, timeout=LIMIT)


def logged_in(server: Server, user: str) -> Client:
    client = connected(server)
    client.user(user)
    client.pass_(PASSWORD)
    return client


def test_threat_19_a_maildrop_has_one_session_in_all_workers(server: Server) -> None:
    """The kernel gives connections to either worker by chance: twenty meet both."""
    server.deliver("dave", *MESSAGES)
    first = logged_in(server, "dave")
    for _ in range(20):
        other = connected(server)
        other.user("dave")
        with pytest.raises(poplib.error_proto, match=r"\[IN-USE\]"):
            other.pass_(PASSWORD)
        other.close()
    first.quit()
    logged_in(server, "dave").quit()


def test_a_killed_worker_leaves_its_maildrops_free_and_deletes_nothing(server: Server) -> None:
    server.deliver("eve", *MESSAGES)
    client = logged_in(server, "eve")
    client.dele(1)
    before = tree(server.relay.process.pid)
    for worker in before[1:]:
        os.kill(worker, signal.SIGKILL)
    client.close()
    wait_until(lambda: len(tree(server.relay.process.pid)) == 3)
    wait_until(lambda: can_log_in(server, "eve"))
    assert len(contents(server.relay.data, "eve")) == 2


def can_log_in(server: Server, user: str) -> bool:
    try:
        client = connected(server)
    except OSError:
        return False
    try:
        client.user(user)
        client.pass_(PASSWORD)
        client.quit()
    except (OSError, EOFError, poplib.error_proto):
        client.close()
        return False
    return True


# Limits, reload and drain.


def test_a_reload_takes_on_settings_listeners_and_certificates(tmp_path: Path) -> None:
    with pop3_server(tmp_path, ["bob"], CLEAR) as server:
        client = logged_in(server, "bob")
        server.relay.reload('plaintext_networks = ["127.0.0.0/8"]', "delete_retrieved = true")
        assert client.noop() == b"+OK"
        client.quit()
        again = connected(server)
        assert "EXPIRE" in again.capa()
        assert again.capa()["EXPIRE"] == ["0"]
        with pytest.raises(poplib.error_proto, match="TLS"):
            again.user("bob")
        again.close()
        server.relay.reload(f'"{HOST}:{server.pop3}"', '"127.0.0.2:1995"')
        with pytest.raises(ConnectionRefusedError):
            connected(server)


def test_threat_11_who_guesses_is_told_to_come_again_later(tmp_path: Path) -> None:
    """In words that say that it is not the password (RFC 3206)."""
    limits = '[limits.client]\nauth_failures = "2/h"\n'
    with pop3_server(tmp_path, ["bob"], CLEAR, limits) as server:
        heard = []
        client = connected(server)
        for _ in range(3):
            client.user("bob")
            with pytest.raises(poplib.error_proto) as error:
                client.pass_("wrong")
            heard.append(error.value.args[0].split()[1])
        client.close()
        assert heard == [b"[AUTH]", b"[AUTH]", b"[SYS/TEMP]"]
        with pytest.raises(poplib.error_proto, match=r"\[SYS/TEMP\] Too many failed logins"):
            connected(server)


def test_metrics_tell_of_sessions(server: Server) -> None:
    before = server.relay.metric("fastmta_pop3_sessions_total")
    client = logged_in(server, "frank")
    assert server.relay.metric("fastmta_pop3_sessions_open") >= 1
    client.quit()
    assert server.relay.metric("fastmta_pop3_sessions_total") == before + 1


def test_a_drain_lets_a_retrieval_end(tmp_path: Path) -> None:
    large = b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n"
    large += (b"y" * 70 + b"\r\n") * 300_000
    with pop3_server(tmp_path, ["bob"], CLEAR) as server:
        server.deliver("bob", large)
        client = logged_in(server, "bob")
        client._putcmd("RETR 1")  # type: ignore[attr-defined]
        client._getresp()  # type: ignore[attr-defined]
        server.relay.process.send_signal(signal.SIGTERM)
        lines = 0
        while client._getline()[0] != b".":  # type: ignore[attr-defined]
            lines += 1
        assert lines == large.count(b"\r\n")
        client.close()
        assert server.relay.process.wait(LIMIT) == 0


# kill -9 during QUIT.


class Quitter(threading.Thread):
    """Deletes what it is told to and says QUIT; `told` is whether it heard +OK."""

    def __init__(self, server: Server, user: str, doomed: list[int]) -> None:
        super().__init__()
        self.client, self.doomed, self.told = logged_in(server, user), doomed, False
        for number in doomed:
            self.client.dele(number)

    def run(self) -> None:
        try:
            self.told = self.client.quit().startswith(b"+OK")
        except (OSError, EOFError, poplib.error_proto):
            self.client.close()


def start(server: Server) -> "subprocess.Popen[bytes]":
    """Again, with the configuration that it had."""
    command = [PROGRAM, "serve", "-c", str(server.relay.folder / "fastmta.toml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: can_log_in(server, "bob"), lambda: process.poll() is None)
    return process


def kill(process: "subprocess.Popen[bytes]") -> None:
    for pid in tree(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def test_kill_9_during_quit_deletes_all_or_nothing(tmp_path: Path) -> None:
    """FASTMTA_KILLS times; what was told as deleted is, and nothing else ever goes."""
    draw, users, outcomes = random.Random(9), ["bob", "carol", "dave"], {True: 0, False: 0}
    with pop3_server(tmp_path, users, CLEAR) as server:
        pass  # it has written its configuration, and ended in good order
    data = server.relay.data
    for turn in range(KILLS):
        for user in users:
            deliver(data, user, *[b"Subject: %d\r\n\r\nx\r\n" % turn] * 20)
        before = {user: contents(data, user) for user in users}
        process = start(server)
        quitters = {
            user: Quitter(server, user, draw.sample(range(1, len(uids) + 1), 15))
            for user, uids in before.items()
        }
        for quitter in quitters.values():
            quitter.start()
        time.sleep(draw.random() * 0.006)
        kill(process)
        for user, quitter in quitters.items():
            quitter.join(LIMIT)
            doomed = {before[user][number - 1] for number in quitter.doomed}
            left = contents(data, user)
            gone = set(before[user]) - set(left)
            assert gone in (set(), doomed)  # no half-deleted maildrop, nothing lost
            assert not quitter.told or gone == doomed
            assert left == sorted(set(before[user]) - gone)  # and nothing is there twice
            outcomes[bool(gone)] += 1
    print(
        f"{KILLS} kills: {outcomes[True]} maildrops with all deleted, {outcomes[False]} with none"
    )
