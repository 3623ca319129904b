"""Real servers for the tests: the relay as a process, its destinations, and its log."""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple, TypeVar

import uvloop

from bench.processes import free_port
from fastmta.mail.address import domain_of
from fastmta.sink import Behaviour, Mail, Sink

T = TypeVar("T")
Event = dict[str, Any]  # a line of the disposition log

PROGRAM = Path(sys.executable).with_name("fastmta")
LIMIT = 60.0  # seconds that anything may take; what is waited for comes much sooner

CONFIGURATION = """
hostname = "{hostname}"
data_dir = "data"
workers  = {workers}

[[listener]]
service = "smtp"
bind    = "127.0.0.1:{smtp}"

[[listener]]
service = "admin"
bind    = "127.0.0.1:{admin}"
"""

# Our trace field: up to the first line that does not begin with white space.
_RECEIVED = re.compile(rb"Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")


def program(name: str) -> str:
    """The path of a program that system_packages.py installs."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert found, f"no {name}: run python tools/system_packages.py test"
    return found


def route(port: int, domain: str = "*") -> str:
    return f'[[route]]\ndomain = "{domain}"\nnext_hop = ["127.0.0.1:{port}"]\n'


def wait_until(true: Callable[[], T], still: Callable[[], object] = lambda: True) -> T:
    """What a condition gives once it is true; it fails when `still` no longer holds."""
    deadline = time.monotonic() + LIMIT
    while not (found := true()):
        assert still(), "the process has ended"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


class Relay:
    """`fastmta serve` as a process."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path, smtp: int, admin: int):
        self.process, self.folder = process, folder
        self.smtp, self.admin = smtp, admin
        self.data = folder / "data"
        self._events: list[Event] = []
        self._read = 0

    def get(self, path: str) -> tuple[int, str]:
        """Ask the admin listener; (0, "") while it is not there."""
        connection = HTTPConnection("127.0.0.1", self.admin, timeout=LIMIT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def events(self) -> list[Event]:
        """The disposition log so far."""
        with (self.data / "dispositions.jsonl").open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        self._events += [json.loads(line) for line in whole.splitlines() if line]
        return self._events

    def wait(self, true: Callable[[list[Event]], T]) -> T:
        """What a condition over the disposition log gives once it is true."""
        return wait_until(lambda: true(self.events()), lambda: self.process.poll() is None)

    def wait_for(self, count: int, **fields: Any) -> list[Event]:
        """The events that have these fields, once there are so many."""

        def found(events: list[Event]) -> list[Event]:
            matching = [e for e in events if fields.items() <= e.items()]
            return matching if len(matching) >= count else []

        return self.wait(found)

    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        return (self.folder / "stderr").read_text()

    def metric(self, name: str) -> float:
        """The value of a metric without labels, summed over the workers."""
        status, text = self.get("/metrics")
        assert status == 200, text
        found = re.search(rf"(?m)^{name} (\S+)$", text)
        return float(found[1]) if found else 0.0

    def reload(self, old: str, new: str) -> None:
        """Change the configuration, SIGHUP; it is in force in all workers when this returns."""
        configuration = self.folder / "fastmta.toml"
        text = configuration.read_text()
        assert old in text
        configuration.write_text(text.replace(old, new))
        before = len(self.stderr())
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded: " in self.stderr()[before:])

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(LIMIT) == 0


@contextmanager
def relay(
    folder: Path,
    *tables: str,
    smtp: int | None = None,
    workers: int = 1,
    umask: int = -1,
    top: str = "",
    hostname: str = "relay.example.test",
    program: tuple[str, ...] = (str(PROGRAM),),
) -> Iterator[Relay]:
    """A relay with the contract's configuration and these tables; at the end it drains, exit 0.

    `top` are settings above the first table.
    """
    smtp, admin = smtp or free_port(), free_port()
    text = top + CONFIGURATION.format(hostname=hostname, workers=workers, smtp=smtp, admin=admin)
    configuration = folder / "fastmta.toml"
    configuration.write_text("\n".join([text, *tables]))
    with (folder / "stderr").open("wb") as stderr:
        command = [*program, "serve", "-c", str(configuration)]
        process = subprocess.Popen(command, stderr=stderr, umask=umask)
    running = Relay(process, folder, smtp, admin)
    try:
        wait_until(lambda: running.get("/healthz")[0] == 200, lambda: process.poll() is None)
        yield running
        running.stop()
    finally:
        print((folder / "stderr").read_text())  # shown where a test fails
        process.kill()  # its workers end when they find it gone
        process.wait()


class Taken(NamedTuple):
    """When a sink took a message, and how it stood then."""

    time: float  # time.monotonic(): never before the relay began the transaction
    connections: int  # that were open


class Destination:
    """A sink on a thread of its own, which keeps what it takes."""

    def __init__(self, behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self._sink = Sink(behaviour, take=self._take, tls=tls)
        self._changed = threading.Condition()
        self.mail: list[Mail] = []
        self.taken: list[Taken] = []  # one for each of `mail`
        self.port = 0

    def _take(self, mail: Mail) -> None:
        with self._changed:
            self.mail.append(mail)
            self.taken.append(Taken(time.monotonic(), len(self._sink.sessions)))
            self._changed.notify_all()

    def mail_for(self, recipient: str) -> Mail:
        """The message for this recipient, as soon as it is there; domains in A-labels are equal."""
        wanted = normal(recipient)

        def found() -> Mail | None:
            return next((m for m in self.mail if wanted in map(normal, m.recipients)), None)

        with self._changed:
            mail = self._changed.wait_for(found, LIMIT)
        assert mail is not None, f"nothing arrived for {recipient}"
        return mail

    def behave(self, **behaviour: Any) -> None:
        """Towards connections that come from now on."""
        self._sink.behaviour = Behaviour(**behaviour)

    def hang_up(self) -> None:
        """Close the connections that are open, without a word."""
        self.loop.call_soon_threadsafe(lambda: [each.close() for each in list(self._sink.sessions)])

    @property
    def connections(self) -> int:
        return len(self._sink.sessions)

    @property
    def refused(self) -> int:
        """Connections that were over `max_connections`."""
        return self._sink.totals.refused

    async def run(self, host: str, port: int, started: threading.Event) -> None:
        self.loop, self.stopped = asyncio.get_running_loop(), asyncio.Event()
        await self._sink.start(host, port)
        self.port = self._sink.endpoint[1]
        started.set()
        await self.stopped.wait()
        await self._sink.stop()


@contextmanager
def destination(
    host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None, **behaviour: Any
) -> Iterator[Destination]:
    """`host` may be a unix socket: "unix:/run/lmtp"."""
    started = threading.Event()
    sink = Destination(Behaviour(**behaviour), tls)
    scenario = sink.run(host, port, started)
    thread = threading.Thread(target=uvloop.run, args=(scenario,), daemon=True)
    thread.start()
    assert started.wait(LIMIT)
    try:
        yield sink
    finally:
        sink.loop.call_soon_threadsafe(sink.stopped.set)
        thread.join(LIMIT)


@contextmanager
def rude_host(answer_to_rcpt: bytes) -> Iterator[int]:
    """A host that says Ok to all but RCPT, which it answers like this; gives its port."""

    class Session(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 rude.test\r\n")
            for line in self.rfile:
                is_rcpt = line[:4].upper() == b"RCPT"
                self.wfile.write(answer_to_rcpt if is_rcpt else b"250 Ok\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def normal(address: str) -> str:
    """With the domain in A-labels, as some clients write it."""
    return f"{address.rpartition('@')[0]}@{domain_of(address)}"


def split_trace(content: bytes) -> tuple[bytes, bytes]:
    """Our Received field, and the message as it was sent."""
    match = _RECEIVED.match(content)
    assert match, content[:200]
    return match[0], content[match.end() :]


def assert_same(arrived: bytes, sent: bytes) -> None:
    """Byte for byte, without megabytes of difference on the screen."""
    _, original = split_trace(arrived)
    assert len(original) == len(sent)
    assert sha256(original).digest() == sha256(sent).digest()
