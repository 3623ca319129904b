"""Pages of a mapped file that were read are given back, and can be read again."""

import mmap
from pathlib import Path

import pytest

from fastmta.store import residence

SIZE = 64 << 20


def mapped_now() -> int:
    """Octets of files that are resident (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@pytest.mark.parametrize("readonly", [True, False])
def test_pages_that_were_read_are_given_back(tmp_path: Path, readonly: bool) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(b"x" * SIZE)
    access = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE, mmap.MAP_SHARED, access) as view:
        before = mapped_now()
        assert view[:].count(b"x") == SIZE
        assert mapped_now() > before + SIZE // 2
        residence.give_back(path)
        # Nothing is taken from a mapping that may have been written to.
        assert (mapped_now() < before + SIZE // 8) == readonly
        assert view[:].count(b"x") == SIZE
