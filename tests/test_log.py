"""The disposition log: whole lines, whatever the disk, the reader or the peer does."""

import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta import log
from fastmta.log import Bounced, Deferred, Delivered, DispositionLog, Event, Received


def delivered(**changes: object) -> Delivered:
    fields = {
        "time": 2.5,
        "id": "0DTR4J0000000",
        "sender": "ann@example.test",
        "recipient": "bob@example.org",
        "domain": "example.org",
        "site": "mx.example.org",
        "host": "mx.example.org [192.0.2.1]",
        "code": 250,
        "enhanced": "2.0.0",
        "reply": "queued",
        "attempts": 1,
        "received": 1.25,
    }
    return Delivered(**fields | changes)  # type: ignore[arg-type]


def lines(content: bytes) -> list[Event]:
    kinds = Received | Delivered | Deferred | Bounced
    return [msgspec.json.decode(line, type=kinds) for line in content.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dispositions.jsonl"


@pytest.fixture
def output(path: Path) -> Iterator[DispositionLog]:
    output = DispositionLog(str(path))
    yield output
    output.close()


def test_an_event_is_one_json_line_with_its_name_first(output: DispositionLog, path: Path) -> None:
    events: list[Event] = [
        Received(
            time=1.25,
            id="0DTR4J0000000",
            sender="",
            recipients=["a@example.org", "b@example.org"],
            size=2048,
            client="client.test [192.0.2.9]",
            protocol="ESMTP",
        ),
        delivered(),
        Deferred(**msgspec.structs.asdict(delivered()), due=300.0),
        Bounced(**msgspec.structs.asdict(delivered()), dsn="0DTR4J0000001"),
    ]
    for event in events:
        output.write(event)
    output.flush()
    assert lines(path.read_bytes()) == events
    assert path.read_bytes().startswith(b'{"event":"received","time":1.25,"id":"0DTR4J0000000"')


def test_the_file_is_for_its_owner_alone_and_is_continued(path: Path) -> None:
    for reply in ("one", "two"):
        output = DispositionLog(str(path))
        output.write(delivered(reply=reply))
        output.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [event.reply for event in lines(path.read_bytes())] == ["one", "two"]


def test_lines_wait_for_flush_until_there_are_many(output: DispositionLog, path: Path) -> None:
    output.write(delivered())
    assert path.stat().st_size == 0
    for _ in range(1000):
        output.write(delivered())
    assert path.stat().st_size > 64 * 1024


@given(reply=st.text(st.characters(), max_size=20), address=st.text(st.characters(), max_size=20))
def test_no_text_breaks_a_line(reply: str, address: str) -> None:
    reader, writer = os.pipe()
    output = DispositionLog(f"/proc/self/fd/{writer}")
    received = Received(
        time=1, id="", sender="", recipients=[address], size=1, client="", protocol=""
    )
    output.write(received)
    output.write(delivered(reply=reply))
    output.close()
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        first, second = lines(file.read())
    assert isinstance(first, Received) and isinstance(second, Delivered)
    if reply.isprintable():
        assert second.reply == reply


def test_octets_that_are_not_utf8_are_escaped(output: DispositionLog, path: Path) -> None:
    output.write(delivered(reply="caf\udce9"))
    output.flush()
    assert lines(path.read_bytes()) == [delivered(reply="caf\\udce9")]


def test_reopen_goes_on_in_a_new_file(output: DispositionLog, path: Path) -> None:
    output.write(delivered(reply="old"))
    old = path.rename(path.with_suffix(".1"))
    output.reopen()
    output.write(delivered(reply="new"))
    output.flush()
    assert lines(old.read_bytes()) == [delivered(reply="old")]
    assert lines(path.read_bytes()) == [delivered(reply="new")]


def test_reopen_keeps_the_old_file_where_there_can_be_no_new_one(
    output: DispositionLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = path.rename(path.with_suffix(".1"))
    path.mkdir()
    output.reopen()
    output.write(delivered())
    output.flush()
    assert lines(old.read_bytes()) == [delivered()]
    assert "cannot be reopened" in caplog.text


def test_a_full_disk_is_said_once_and_what_does_not_fit_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = DispositionLog("/dev/full")
    lost = log.LOST.value
    line = delivered(reply="x" * 100_000)
    for _ in range(60):
        output.write(line)
        output.flush()
    assert caplog.text.count("cannot be written") == 1
    assert "ENOSPC" in caplog.text
    assert 10 < log.LOST.value - lost < 30
    output.close()
    assert log.LOST.value - lost == 60


def test_after_a_full_disk_the_waiting_lines_are_written_and_the_loss_is_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = DispositionLog("/dev/full")
    output.write(delivered(reply="waits"))
    output.flush()
    for _ in range(60):
        output.write(delivered(reply="x" * 100_000))
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), output._fd)
    output.flush()
    kept = lines(path.read_bytes())
    assert kept[0] == delivered(reply="waits")
    assert f"{61 - len(kept)} lines were lost" in caplog.text
    output.close()


def test_half_a_line_is_written_again_whole(output: DispositionLog, path: Path) -> None:
    for number in range(10):
        output.write(delivered(attempts=number))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        output.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == 1000
    with path.open("ab") as other:
        other.write(b"what another worker wrote\n")
    output.flush()
    content = path.read_bytes().splitlines()
    torn = next(line for line in content if line.endswith(b"what another worker wrote"))
    content.remove(torn)
    whole = lines(b"\n".join(line for line in content if line))
    assert [event.attempts for event in whole] == list(range(10))


def test_a_pipe_that_nobody_reads_does_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    output = DispositionLog(str(fifo))
    for number in range(1000):
        output.write(delivered(attempts=number))
    output.flush()
    content = b""
    while len(lines(content[: content.rfind(b"\n") + 1])) < 1000:
        content += os.read(reader, 1 << 20)
        output.flush()
    assert [event.attempts for event in lines(content)] == list(range(1000))
    output.close()
    os.close(reader)


WRITER = """
import sys
from fastmta.log import Delivered, DispositionLog
output = DispositionLog(sys.argv[1])
for number in range(5000):
    output.write(Delivered(time=0, id=sys.argv[2], sender="a" * 50, recipient="", domain="",
        site="", host="", code=250, enhanced="", reply="", attempts=number, received=0))
    if number % 7 == 0:
        output.flush()
output.close()
"""


@pytest.mark.parametrize("target", ["file", "standard output"])
def test_two_processes_share_the_log_without_mixing_lines(path: Path, target: str) -> None:
    if target == "file":
        workers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "AB"
        ]
        content = b""
    else:
        reader, writer = os.pipe()
        workers = [
            subprocess.Popen([sys.executable, "-c", WRITER, "-", name], stdout=writer)
            for name in "AB"
        ]
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            content = file.read()
    assert [worker.wait() for worker in workers] == [0, 0]
    content = content or path.read_bytes()
    events = lines(content)
    assert len(events) > 5000
    for name in "AB":
        numbers = [event.attempts for event in events if event.id == name]
        assert numbers == sorted(set(numbers))
        assert target == "standard output" or numbers == list(range(5000))


def test_diagnostics_are_one_line_that_no_peer_can_forge(
    capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    log.set_up("info", "worker-1")
    logger = logging.getLogger("fastmta.test")
    logger.debug("not shown")
    logger.warning("reply %s", "421 no\r\n2026-01-01 forged \x1b[31m")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("failed")
    first, second = capsys.readouterr().err.splitlines()
    assert re.match(
        r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING worker-1 fastmta\.test: reply 421 no",
        first,
    )
    assert "\x1b" not in first
    assert second.endswith("| ValueError: bad")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
