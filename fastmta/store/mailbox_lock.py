"""A lock for each mailbox that one session at a time has, of whatever process.

It is a byte of one file, at an offset that is a hash of the mailbox's name, locked with an open
file description lock (fcntl(2)): the kernel lets go of it when the process dies. Such a lock
belongs to the open file, so within the process a set keeps sessions apart.
"""

import fcntl
import os
from hashlib import blake2b
from pathlib import Path
from struct import Struct as Layout

from fastmta.store import mail_records as records

# struct flock: type, whence, start, length, process (0 for these locks).
_FLOCK = Layout("@hhqqi")


class MailboxLock:
    """The locks that this process holds."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held: set[int] = set()

    def take(self, account: str, mailbox: str = records.INBOX) -> bool:
        """Lock a mailbox; False where some session, of any process, has it already."""
        place = _place(account, mailbox)
        if place in self._held:
            return False
        try:
            self._set(fcntl.F_WRLCK, place)
        except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
            return False
        self._held.add(place)
        return True

    def release(self, account: str, mailbox: str = records.INBOX) -> None:
        """Let go of what `take` locked."""
        place = _place(account, mailbox)
        self._held.remove(place)
        self._set(fcntl.F_UNLCK, place)

    def _set(self, kind: int, place: int) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))

    def close(self) -> None:
        """Let go of all."""
        os.close(self._file)


def _place(account: str, mailbox: str) -> int:
    """62 bits: two mailboxes that share a byte are not to be met."""
    return int.from_bytes(blake2b(records.name_key(account, mailbox), digest_size=8).digest()) >> 2
