"""No root is left once ports are bound, whoever dies; and nothing is lost by that (THREATS 20)."""

import grp
import os
import pwd
import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.processes import free_port
from tests.certificates import make_certificate
from tests.faults.strace import needs_strace, strace
from tests.integration.ledger import PROGRAM, Ledger, Node, ending, load, sink
from tests.integration.unprivileged import (
    GROUP,
    USER,
    low_port,
    needs_root,
    open_folder,
    reaching,
    status,
)
from tests.support import run, until

pytestmark = needs_root

UID, GID = str(pwd.getpwnam(USER).pw_uid), str(grp.getgrnam(GROUP).gr_gid)
NO_CAPABILITIES = "0" * 16
AS_USER = f'user = "{USER}"\ngroup = "{GROUP}"\n'


class LowNode(Node):
    """It listens on a port for root alone, and becomes the user."""

    def __init__(self, folder: Path, next_hop: int, *tables: str, workers: int = 1) -> None:
        super().__init__(folder, next_hop, *tables, workers=workers)
        text = self.configuration.read_text().replace(f":{self.port}", f":{(port := low_port())}")
        self.port = port
        self.configuration.write_text(AS_USER + text)

    def edit(self, old: str, new: str) -> None:
        text = self.configuration.read_text()
        assert old in text
        self.configuration.write_text(text.replace(old, new))

    async def reload(self, outcome: str = "reloaded: ") -> str:
        """SIGHUP; what it said, when this came of it."""
        before = len(self.output())
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: "reloaded" in self.output()[before:], 0.02)
        said = self.output()[before:]
        assert outcome in said
        return said


@asynccontextmanager
async def low_node(next_hop: int, *tables: str, workers: int = 1) -> AsyncIterator[LowNode]:
    """It runs, and no umask helps it."""
    with open_folder() as folder:
        async with ending(LowNode(folder, next_hop, *tables, workers=workers)) as one:
            await one.start(*reaching(folder), "sh", "-c", 'umask 0; exec "$@"', "sh")
            yield one


def assert_is_nobody(pid: int) -> None:
    facts = status(pid)
    assert facts["Uid"].split() == [UID] * 4
    assert facts["Gid"].split() == [GID] * 4
    assert set(facts["Groups"].split()) <= set(map(str, os.getgrouplist(USER, int(GID))))
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert facts[name] == NO_CAPABILITIES, name
    assert facts["NoNewPrivs"] == "1"


def threads(pid: int) -> list[int]:
    return [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]


def test_threat_20_no_root_is_left_after_binding() -> None:
    """Of the supervisor, of all workers and all threads, and of a worker that is started again."""

    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, low_node(destination.endpoint[1], workers=2) as one:
            supervisor, *workers = one.pids()
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            await until(lambda: len(one.pids()) == 3 and workers[0] not in one.pids(), 0.02)
            async with load(ledger, one.port):
                await ledger.acknowledges(20)
                for pid in one.pids():
                    for thread in threads(pid):
                        assert_is_nobody(thread)
            await ledger.complete()
            assert one.pids()[0] == supervisor
            assert await one.stop() == 0
            assert "Traceback" not in one.output()

    run(scenario())


def test_threat_20_a_worker_that_died_leaves_its_queue_to_its_successor() -> None:
    """Who was accepted by the kernel, and by nobody else, is served and not reset."""

    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, low_node(destination.endpoint[1]) as one:
            _, worker = one.pids()
            os.kill(worker, signal.SIGSTOP)
            with socket.create_connection(("127.0.0.1", one.port), timeout=30) as waiting:
                os.kill(worker, signal.SIGKILL)
                await until(lambda: one.output().count("starts again") == 1, 0.02)
                await until(lambda: len(one.pids()) == 2 and worker not in one.pids(), 0.02)
                waiting.setblocking(False)
                received = bytearray()

                def greeted() -> bool:
                    try:
                        received.extend(waiting.recv(1000))
                    except BlockingIOError:
                        pass
                    return received.startswith(b"220 ") and received.endswith(b"\n")

                await until(greeted, 0.02)
            assert await one.stop() == 0

    run(scenario())


def test_threat_20_files_are_the_users_alone() -> None:
    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination, low_node(destination.endpoint[1]) as one:
            async with load(ledger, one.port):
                await ledger.acknowledges(20)
            await ledger.complete()
            found = [one.data, *one.data.rglob("*")]
            assert {each.name for each in found} > {"lock", "control", "spool", "data.mdb"}
            for each in found:
                facts = each.lstat()
                assert (str(facts.st_uid), str(facts.st_gid)) == (UID, GID), each
                assert not facts.st_mode & 0o077, each
            assert await one.stop() == 0

    run(scenario())


def log_of(one: Node) -> str:
    path = one.data / "dispositions.jsonl"
    return path.read_text() if path.exists() else ""


def first(lines: list[str], pattern: str) -> int:
    """The number of the first line in which this is found."""
    return [bool(re.search(pattern, line)) for line in lines].index(True)


@needs_strace
def test_threat_20_strace_sees_root_given_up_before_anything_is_served() -> None:
    """Ports are bound, then the user changes for good, then workers begin; none tries to return."""

    async def scenario() -> None:
        with open_folder() as folder:
            async with ending(LowNode(folder, free_port())) as one:
                trace = folder / "trace"
                calls = "bind,execve,setresuid,setresgid,setgroups,accept4,accept"
                await one.start(*reaching(folder), *strace(trace, calls))
                with socket.create_connection(("127.0.0.1", one.port), timeout=30) as client:
                    assert client.recv(4) == b"220 "
                assert await one.stop() == 0
            # strace writes late.
            await until(lambda: re.search(rf"{one.process.pid} +\+\+\+ exited", trace.read_text()))
            lines = trace.read_text().splitlines()
            bound = first(lines, rf"htons\({one.port}\)")
            given_up = first(lines, rf"setresuid\({UID}, {UID}, {UID}\) += 0")
            worker = first(lines, '"fastmta.worker"')
            assert bound < given_up < worker
            later = [line for line in lines[given_up + 1 :] if "setres" in line]
            assert len(later) == 1  # our own attempt to come back
            assert re.search(r"setresuid\(0, 0, 0\)\s+= -1 EPERM", later[0])


@needs_strace
def test_threat_20_nothing_is_run_but_workers() -> None:
    """Not for mail with what a shell would take for commands, either."""

    async def scenario() -> None:
        ledger = Ledger()
        async with sink(ledger) as destination:
            with open_folder() as folder:
                async with ending(LowNode(folder, destination.endpoint[1])) as one:
                    trace = folder / "trace"
                    await one.start(*reaching(folder), *strace(trace, "execve,execveat"))
                    with smtplib.SMTP("127.0.0.1", one.port, "$(id).`id`", timeout=30) as client:
                        client.docmd("HELO", "client.example.test")
                        client.docmd("MAIL", 'FROM:<"|id;`id`$(id)"@client.example.test>')
                        client.docmd("RCPT", 'TO:<"|/bin/sh -c id; `id`"@one.test>')
                        client.docmd("DATA")
                        client.send("X-Number: 1\r\nTo: |id\r\n\r\n`id`\r\n.\r\n")
                        code, _ = client.getreply()
                        assert code == 250
                    await until(lambda: log_of(one).count('"event"') > 1)  # and its fate
                    assert await one.stop() == 0
                await until(
                    lambda: re.search(rf"{one.process.pid} +\+\+\+ exited", trace.read_text())
                )
                started = [
                    line
                    for line in trace.read_text().splitlines()
                    if "exec" in line and "= 0" in line
                ]
                assert len(started) == 2
                assert '"serve"' in started[0]
                assert '"fastmta.worker"' in started[1]

    run(scenario())

    run(scenario())


def tls_tables(folder: Path) -> tuple[str, Path]:
    made = make_certificate(folder, "DNS:relay.example.test")
    made.key.chmod(0o600)
    made.certificate.chmod(0o644)
    return f'[tls]\ncertificate = "{made.certificate}"\nkey = "{made.key}"\n', made.key


def starttls(port: int) -> bytes:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-starttls", "smtp"]
    done = subprocess.run(command, input=b"QUIT\r\n", capture_output=True, check=True, timeout=30)
    return done.stdout


def test_a_key_for_root_alone_is_read_before_root_is_given_up() -> None:
    """Also for a worker that starts later; a reload goes on with it, and says so."""

    async def scenario() -> None:
        with open_folder() as keys:
            tables, key = tls_tables(keys)
            async with low_node(free_port(), tables) as one:
                assert f"{key}: {USER} cannot read it, so no reload will" in one.output()
                _, worker = one.pids()
                os.kill(worker, signal.SIGKILL)
                await until(lambda: len(one.pids()) == 2 and worker not in one.pids(), 0.02)
                assert b"BEGIN CERTIFICATE" in starttls(one.port)
                one.edit("[smtp]", "[smtp]\nmax_recipients = 7")
                said = await one.reload()
                assert f"reload: {key} cannot be read, what it held at the start stays" in said
                assert "reloaded: smtp, certificates" in said
                assert b"BEGIN CERTIFICATE" in starttls(one.port)
                other = keys / "other.pem"
                other.touch(mode=0o600)
                one.edit(str(key), str(other))
                said = await one.reload("nothing is reloaded")
                assert f"tls.key: {other} cannot be read: Permission denied" in said
                assert await one.stop() == 0

    run(scenario())


def test_a_low_port_that_is_new_needs_a_restart() -> None:
    async def scenario() -> None:
        async with low_node(free_port()) as one:
            new = next(port for port in range(1022, 500, -1) if port != one.port and is_free(port))
            one.edit("[smtp]", f'[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:{new}"\n[smtp]')
            said = await one.reload("nothing is reloaded")
            assert f"cannot listen on 127.0.0.1:{new}: ports below 1024 are for root" in said
            one.edit(f"127.0.0.1:{new}", f"127.0.0.2:{one.port}")  # on one of ours
            said = await one.reload("nothing is reloaded")
            assert f"cannot listen on 127.0.0.2:{one.port}: ports below 1024 are for root" in said
            assert await one.stop() == 0

    run(scenario())


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_address_that_goes_is_let_go_of_and_one_above_1024_may_change() -> None:
    """A socket that root bound and one that the user binds later can share a port."""

    async def scenario() -> None:
        with open_folder() as folder:
            one = LowNode(folder, free_port())
            one.edit(f":{one.port}", f":{(port := free_port())}")
            one.port = port
            async with ending(one):
                await one.start(*reaching(folder))
                one.edit(f"127.0.0.1:{port}", f"0.0.0.0:{port}")
                assert "cannot listen" not in await one.reload()
                with socket.create_connection(("127.0.0.2", port), timeout=30) as client:
                    assert client.recv(4) == b"220 "
                _, worker = one.pids()
                os.kill(worker, signal.SIGKILL)
                await until(lambda: len(one.pids()) == 2 and worker not in one.pids(), 0.02)
                await until(lambda: not is_free(port), 0.02)
                with socket.create_connection(("127.0.0.2", port), timeout=30) as client:
                    assert client.recv(4) == b"220 "
                one.edit(f"0.0.0.0:{port}", f"127.0.0.1:{(other := free_port())}")
                await one.reload()
                assert is_free(port)
                assert not is_free(other)
                assert await one.stop() == 0

    run(scenario())


@pytest.mark.parametrize("theirs", [".", "accounts"])
def test_data_of_somebody_else_are_refused_with_what_to_do(theirs: str) -> None:
    async def scenario() -> None:
        with open_folder() as folder:
            async with ending(LowNode(folder, free_port())) as one:
                for path in (one.data, one.data / "accounts"):
                    path.mkdir(mode=0o700)
                    os.chown(path, int(UID), int(GID))
                os.chown(one.data / theirs, 0, 0)
                await one.launch(*reaching(folder))
                assert await one.process.wait() == 1
                assert one.output() == (
                    f"fastmta: {one.data / theirs} is not {USER}'s: chown -R {USER} {one.data}\n"
                )

    run(scenario())


@pytest.mark.parametrize("owned", ["data", "data/lock"])
def test_root_leaves_no_file_of_his_own_with_a_server_that_never_was_root(owned: str) -> None:
    """As under systemd: no user is set, and root makes an account."""
    with open_folder() as folder:
        (folder / "data").mkdir(mode=0o700)
        (folder / "data" / "lock").touch()
        for path in (folder / "data", folder / owned):
            os.chown(path, int(UID), int(GID))
        if owned == "data":
            (folder / "data" / "lock").unlink()
        text = 'hostname = "relay.example.test"\ndata_dir = "data"\n'
        listener = '[[listener]]\nservice = "smtp"\nbind = "127.0.0.1:2525"\n'
        (folder / "fastmta.toml").write_text(text + listener)
        line = [str(PROGRAM), "account", "add", "-c", str(folder / "fastmta.toml")]
        add = [*reaching(folder), *line, "bob@example.test", "--generate"]
        done = subprocess.run(add, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        made = [path for path in (folder / "data").rglob("*") if path.name != "lock"]
        assert {path.name for path in made} >= {"accounts", "data.mdb"}
        assert {str(path.stat().st_uid) for path in made} == {UID}


def test_threat_20_a_link_in_the_users_folder_leads_root_nowhere() -> None:
    """What is in the data directory is opened by the user: a lock that leads to a file of root's
    is refused, not created there and not given away."""

    async def scenario() -> None:
        with open_folder() as folder:
            victim = folder / "victim"
            async with ending(LowNode(folder, free_port())) as one:
                one.data.mkdir(mode=0o700)
                os.chown(one.data, int(UID), int(GID))
                (one.data / "lock").symlink_to(victim)
                await one.launch(*reaching(folder))
                assert await one.process.wait() == 1
                assert "Permission denied" in one.output()
                assert not victim.exists()

    run(scenario())


def check(folder: Path, configuration: Path) -> str:
    command = [*reaching(folder), str(PROGRAM), "check", "-c", str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_check_tells_of_a_program_that_the_user_cannot_reach() -> None:
    with open_folder() as folder:
        one = LowNode(folder, free_port())
        (folder / "root").mkdir(mode=0o700)
        (folder / "python").symlink_to(hidden := folder / "root" / "python")
        start = f"import sys; sys.executable = {str(folder / 'python')!r}; import fastmta.__main__"
        command = [*reaching(folder), sys.executable, "-c", start, "check", "-c"]
        command.append(str(one.configuration))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.endswith(f": user: {USER} cannot read {hidden}: install it elsewhere\n")


def test_check_looks_at_files_as_the_user() -> None:
    with open_folder() as folder:
        one = LowNode(folder, free_port())
        assert "runs as          nobody" in check(folder, one.configuration)
        (folder / "log").mkdir(mode=0o700)
        one.edit("[smtp]", f'[log]\ndispositions = "{folder}/log/d.jsonl"\n[smtp]')
        assert "log.dispositions: " in check(folder, one.configuration)
        assert "no permission to write in" in check(folder, one.configuration)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (f'"{USER}"', '"nobdy"', 'user: there is no user "nobdy" on this machine'),
        (f'"{USER}"', '"root"', 'user: "root" is root; name a user without rights'),
        (f'"{GROUP}"', '"nogrup"', 'group: there is no group "nogrup" on this machine'),
        (f'user = "{USER}"\n', "", "group: is without effect; write user too"),
    ],
)
def test_check_names_users_and_groups_that_cannot_be_used(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    one = LowNode(tmp_path, free_port())
    one.edit(old, new)
    assert said in check(tmp_path, one.configuration)
