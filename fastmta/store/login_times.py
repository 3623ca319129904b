"""When each mailbox was opened last, for all workers: four octets of a sparse file each.

Whoever asks has the mailbox's lock, so nobody else looks at its octets at that time.
"""

import os
from pathlib import Path

_SIZE = 4  # octets: seconds since the epoch, until 2106


class LoginTimes:
    """The file, open."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, mailbox: int, now: int, delay: int) -> bool:
        """Note that a mailbox, by its id, is opened now; False where `delay` is not over."""
        last = int.from_bytes(os.pread(self._file, _SIZE, mailbox * _SIZE))
        if last <= now < last + delay:
            return False  # a clock that went back locks nobody out
        os.pwrite(self._file, now.to_bytes(_SIZE), mailbox * _SIZE)
        return True

    def close(self) -> None:
        os.close(self._file)
