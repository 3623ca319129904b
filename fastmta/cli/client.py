"""A command that runs in the server: sends a request to its control socket, reads what comes."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct, msgpack

from fastmta import control
from fastmta.cli.common import refuse

_decoder: msgpack.Decoder[control.ToOperator] = msgpack.Decoder(control.ToOperator)
_HEADER = 4  # octets of a frame's length


def is_running(data_dir: Path) -> bool:
    """Whether a server answers there, for commands that can do without."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with control.socket_path(data_dir) as path:
                probe.connect(path)
        except OSError:
            return False
        return True


class ControlClient:
    """A connection to the server of a data directory; where there is none, the command ends."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        try:
            with control.socket_path(self._data_dir) as path:
                self._socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            refuse(
                f"no server is running with data_dir {self._data_dir}, "
                "start it with fastmta serve -c FILE"
            )
        except OSError as error:
            self._socket.close()
            refuse(f"{self._data_dir / control.SOCKET} cannot be used: {error.strerror}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def run(self, request: Struct, worker: int | None = None) -> Iterator[control.Relayed]:
        """What each worker says, as it comes; the last of each is control.Ended.

        `worker` is the index of the only one to ask. If the server refuses, or ends, so does the
        command.
        """
        try:
            self._socket.sendall(control.frame(control.Request(control.pack(request), worker)))
            while isinstance(message := self._receive(), control.Relayed):
                yield message
        except (EOFError, ConnectionError):
            refuse("the server ended in the middle of it")
        if message.error:
            refuse(message.error)

    def _receive(self) -> control.ToOperator:
        return _decoder.decode(self._read(int.from_bytes(self._read(_HEADER))))

    def _read(self, count: int) -> bytes:
        octets = self._socket.recv(count, socket.MSG_WAITALL)
        if len(octets) < count:
            raise EOFError
        return octets
