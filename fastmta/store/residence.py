"""What a process has read of a mapped file counts as its memory until the kernel needs it back.

Each page that is touched maps its neighbours too, so a look at ten thousand rows of a deep queue
counts for hundreds of megabytes that nobody uses. They can be given back at once: the kernel
keeps them as cache, and a page that is needed again is mapped again (madvise(2)).
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def give_back(path: Path) -> None:
    """Unmap the pages of a file that is mapped shared and read-only, as LMDB maps its own."""
    for start, length in _mappings(path):
        if _madvise(start, length, _MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Where this process has mapped it (proc(5), /proc/pid/maps)."""
    inode = str(path.stat().st_ino)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, mode, _, _, number, *name = line.split(maxsplit=5)
        # Whatever may be written to here could be lost.
        if number == inode and mode == "r--s" and name and Path(name[0]).name == path.name:
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield start, end - start
