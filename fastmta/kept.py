"""Files that only root may read, such as keys, as they were when root was given up.

Each is kept in sealed memory, behind a descriptor that workers inherit; a configuration that is
parsed with these (`Source.kept`) has paths that lead there.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from fastmta.config import Config

LARGEST = 4 << 20  # octets
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def keep(config: Config) -> dict[str, int]:
    """As root: path -> descriptor of its content, for all files that the tables name.

    OSError where one cannot be read.
    """
    return {str(path): _copy(path) for path in _files(config)}


def let_go_of_readable(kept: dict[str, int]) -> None:
    """As the user: what can be read again needs no copy."""
    for path in [path for path in kept if os.access(path, os.R_OK)]:
        os.close(kept.pop(path))


def _files(config: Config) -> Iterator[Path]:
    """data_dir, at the top, is no file; and what is code is for the user to read."""
    for field in structs.fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, Path):
            yield from _paths(value)


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        if value.is_file():
            yield value
    elif isinstance(value, Struct):
        for field in structs.fields(value):
            yield from _paths(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        yield from _paths(tuple(value.values()))


def _copy(path: Path) -> int:
    """A descriptor of what the file holds, which nobody can change; OSError if it is too large."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(f"{path} is larger than {LARGEST} octets")
    descriptor = os.memfd_create("fastmta", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
