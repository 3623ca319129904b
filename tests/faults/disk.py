"""A disk of its own that can be cut off: ext4 in a file, over a loop device. Needs root."""

import ctypes
import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# linux/fs.h: EXT4_IOC_SHUTDOWN, and "going down without a flush of the journal".
_SHUTDOWN, _NO_FLUSH = 0x8004587D, struct.pack("I", 2)
# sync_file_range(2): write these pages and wait for it, but no metadata and no flush of the disk.
_WRITE_AND_WAIT = 1 | 2 | 4
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
LET_GO = 30.0  # seconds that processes which were killed may keep the disk


class Disk:
    """An ext4 file system in a file, mounted on `folder`."""

    def __init__(self, image: Path, folder: Path, size: int = 256 << 20) -> None:
        """Make it, not mounted yet; `size` is in octets."""
        self._image, self.folder = image, folder
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        folder.mkdir()

    def mount(self) -> None:
        """The journal is replayed, as at a boot."""
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.folder)], check=True)

    def unmount(self) -> None:
        deadline = time.monotonic() + LET_GO
        while (done := _unmount(self.folder)).returncode and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not done.returncode, done.stderr

    def write_back(self, path: Path, dice: random.Random) -> None:
        """What the kernel may do at any time: some pages of a file reach the disk before others."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            pages = os.fstat(descriptor).st_size >> 12
            for _ in range(dice.randrange(4)):
                first, count = dice.randrange(pages), dice.randrange(1, 64)
                _sync_file_range(descriptor, first << 12, count << 12, _WRITE_AND_WAIT)
        finally:
            os.close(descriptor)

    def cut(self) -> None:
        """From now on nothing reaches the disk; whoever writes gets EIO."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _NO_FLUSH)
        finally:
            os.close(descriptor)


def _unmount(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["umount", str(folder)], capture_output=True, text=True)


@contextmanager
def mounted(disk: Disk) -> Iterator[None]:
    """Whatever happens meanwhile, it is not mounted at the end."""
    disk.mount()
    try:
        yield
    finally:
        if disk.folder.is_mount():
            disk.unmount()


def missing(folder: Path = Path("/tmp")) -> str:
    """Why there can be no such disk here, or nothing."""
    if os.geteuid():
        return "only root can mount a disk"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return ""
