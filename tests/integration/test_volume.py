"""Thousands of messages through the contract's configuration, each once."""

import json
import mailbox
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bench.processes import free_port
from tests.integration.servers import (
    LIMIT,
    PROGRAM,
    Relay,
    program,
    relay,
    route,
    wait_until,
)

MESSAGES = 5000
WORKERS = [1, 2]
# smtp-source -N puts a number in front of the recipient's local part.
RECIPIENT = re.compile(rb"<(\d+)load@example\.test>")


def source(port: int) -> None:
    load = ["-s", "50", "-m", str(MESSAGES), "-l", "4096"]
    addresses = ["-N", "-f", "source@example.test", "-t", "load@example.test"]
    command = [
        program("smtp-source"),
        *load,
        *addresses,
        "-M",
        "source.example.test",
        f"127.0.0.1:{port}",
    ]
    subprocess.run(command, check=True, timeout=LIMIT)


def assert_all_delivered(running: Relay) -> None:
    """Each message was logged as received and as delivered, once, and nothing else."""
    running.wait_for(MESSAGES, event="delivered")
    events = Counter((event["event"], event["id"]) for event in running.events())
    kinds = Counter(kind for kind, _ in events)
    assert kinds == {"received": MESSAGES, "delivered": MESSAGES}
    assert set(events.values()) == {1}


def assert_each_once(recipients: list[bytes]) -> None:
    """The numbers of smtp-source, none missing and none twice."""
    assert len(recipients) == MESSAGES
    assert len(set(recipients)) == MESSAGES


def wait_for_empty_queue(running: Relay) -> None:
    """The log may be ahead of the commit."""
    empty = re.compile(r"(?m)^fastmta_queue_envelopes(\{[^}]*\})? 0(\.0)?$")
    wait_until(lambda: empty.search(running.get("/metrics")[1]))


def listens(port: int) -> bool:
    """Whether somebody listens, without a connection that a sink would count (proc_net_tcp(5))."""
    return f"0100007F:{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait(LIMIT)


@pytest.mark.parametrize("workers", WORKERS)
def test_to_smtp_sink(tmp_path: Path, workers: int) -> None:
    port, dumps = free_port(), tmp_path / "dumps"
    dumps.mkdir()
    command = [program("smtp-sink"), "-d", "%M.", f"127.0.0.1:{port}", "1000"]
    if os.geteuid() == 0:  # smtp-sink refuses to stay root
        shutil.chown(dumps, "nobody")
        command[1:1] = ["-u", "nobody"]
    sink = subprocess.Popen(command, cwd=dumps)
    with ended(sink):
        wait_until(lambda: listens(port), lambda: sink.poll() is None)
        with relay(tmp_path, route(port), workers=workers) as running:
            source(running.smtp)
            assert_all_delivered(running)
            wait_for_empty_queue(running)
    found = [RECIPIENT.findall(path.read_bytes())[0] for path in dumps.iterdir()]
    assert_each_once(found)


@pytest.mark.parametrize("workers", WORKERS)
def test_to_our_sink(tmp_path: Path, workers: int) -> None:
    port, box = free_port(), tmp_path / "mbox"
    command = [PROGRAM, "sink", "--listen", f"127.0.0.1:{port}", "--json", "--mbox", box]
    sink = subprocess.Popen(command, stdout=subprocess.PIPE)
    with ended(sink):
        wait_until(lambda: listens(port), lambda: sink.poll() is None)
        with relay(tmp_path, route(port), workers=workers) as running:
            source(running.smtp)
            assert_all_delivered(running)
            wait_for_empty_queue(running)
        sink.terminate()
        counts = json.loads(sink.communicate(timeout=LIMIT)[0])
    assert counts["messages"] == counts["recipients"] == MESSAGES
    assert counts["protocol_errors"] == 0
    with closing(mailbox.mbox(box)) as messages:
        received = [message["Received"] for message in messages]
    assert_each_once([RECIPIENT.findall(field.encode())[0] for field in received])
