"""systemd hears of a service of Type=notify, and the unit that is shipped is one that it takes."""

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from fastmta import notify
from tests.integration.ledger import Node, ending
from tests.support import run

UNIT = Path(__file__).parent.parent / "docs" / "fastmta.service"
needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd is not installed"
)


@pytest.mark.parametrize("name", ["@fastmta-test", "{}/notify"])
def test_it_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = name.format(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.tell("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify.tell("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.tell("READY=1")


def test_a_server_says_when_it_is_ready_and_when_it_drains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.setblocking(False)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            async with ending(Node(tmp_path, 1)) as one:
                await one.launch()
                assert (await loop.sock_recv(manager, 1000)).startswith(b"READY=1\nSTATUS=smtp on")
                with socket.create_connection(("127.0.0.1", one.port), timeout=30) as client:
                    assert client.recv(4) == b"220 "
                assert await one.stop() == 0
                assert await loop.sock_recv(manager, 1000) == b"STOPPING=1"

    run(scenario())


@needs_systemd
def test_the_unit_is_good_and_hardened(tmp_path: Path) -> None:
    """Its program is in a place that is not there."""
    unit = tmp_path / "fastmta.service"
    unit.write_text(UNIT.read_text().replace("/opt/fastmta/bin/fastmta", "/bin/true"))
    subprocess.run(["systemd-analyze", "verify", str(unit)], check=True, capture_output=True)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    subprocess.run(command, check=True, capture_output=True)
