"""A folder for what a repair takes out: messages as .eml, what is known of them as .json.

All of it is on the disk before the transaction that takes the rows away is committed.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from fastmta.mail.envelope import Envelope, format_id
from fastmta.store.env import flush_names, make_private

FOLDER = "aside"  # in the data directory
LONGEST_NAME = 200  # octets; a file system has 255, and a number and a suffix follow
MOST_OPEN = 100  # files that are not flushed yet


class Aside:
    """The folder of one repair; it is made when there is something for it."""

    def __init__(self, data_dir: Path) -> None:
        moment = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        self.path = _free(data_dir / FOLDER / moment)
        self.part = ""  # the environment that things come from: "spool/0"
        self._unsafe: list[int] = []  # descriptors of files that are not flushed yet

    def save(
        self, name: str, octets: Iterable[bytes] = (), facts: Any = None, row: bytes = b""
    ) -> str:
        """Keep a message, what is known of it, and the row as it was; gives the name it has."""
        make_private(self.path)
        stem = f"{self.part.replace('/', '-')}-{name}"[:LONGEST_NAME]
        if pieces := [piece for piece in octets if piece]:
            stem = self._write(stem, ".eml", pieces)
        if facts is not None:
            stem = self._write(stem, ".json", [msgspec.json.format(msgspec.json.encode(facts))])
        if row:
            stem = self._write(stem, ".row", [row])
        return f"{self.path.name}/{stem}"

    def _write(self, stem: str, suffix: str, pieces: list[bytes]) -> str:
        path = _free(self.path / (stem + suffix))
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._unsafe.append(file)
        with open(file, "wb", closefd=False) as written:
            written.writelines(pieces)
        if len(self._unsafe) == MOST_OPEN:  # one mend may take out thousands
            self._flush_files()
        return path.name.removesuffix(suffix)

    def keep(self, file: Path) -> str:
        """Keep a whole file as it is, also where something else takes its name."""
        make_private(self.path)
        target = _free(self.path / f"{self.part.replace('/', '-')}-{file.name}")
        target.hardlink_to(file)
        self.flush()
        return f"{self.path.name}/{target.name}"

    def flush(self) -> None:
        """All that was kept is on the disk when this returns."""
        self._flush_files()
        if self.path.is_dir():
            for folder in (self.path, self.path.parent, self.path.parent.parent):
                flush_names(folder)

    def _flush_files(self) -> None:
        for file in self._unsafe:
            os.fsync(file)
            os.close(file)
        self._unsafe.clear()


def _free(path: Path) -> Path:
    """The path, or one like it that nothing has."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def facts_of(envelope: Envelope) -> dict[str, Any]:
    """An envelope for people and programs to read."""
    facts = {"id": format_id(envelope.message), **structs.asdict(envelope)}
    facts["recipients"] = [structs.asdict(each) for each in envelope.recipients]
    if envelope.last is not None:
        facts["last"] = structs.asdict(envelope.last)
    return facts
