"""Where messages are imported from: an mbox file, or a Maildir (https://cr.yp.to/proto/maildir.html).

A source gives its messages in an order that stays the same, each with a mark by which it goes on
behind it, also in another process. Memory is that of some messages, however many there are.
"""

import errno
import heapq
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

from fastmta.mail import mbox
from fastmta.mail.mbox import Broken, Mail

NAMES = 20_000  # of a Maildir that are in memory at a time
TAIL = 256  # octets before a mark that have to be as they were

_LETTERS = {"S": 1, "R": 2, "F": 4, "T": 8, "D": 16}
_FORWARDED = "$Forwarded"  # RFC 9051 section 2.3.2; "P", passed, of a Maildir


class Changed(Exception):
    """The source is not what an earlier import has begun with."""


class Incoming(NamedTuple):
    """A message of a source."""

    mail: Mail
    mark: bytes
    done: int  # how much of `Source.total` is behind it


class Source(Protocol):
    """Where messages come from."""

    path: Path
    total: int  # octets of a file, messages of a folder

    def messages(self, mark: bytes) -> Iterator[Incoming]:
        """Those behind a mark, b"" for all. Broken, Changed or OSError where it cannot go on."""


def source_of(path: Path, dialect: str) -> Source:
    """A file is an mbox of that dialect, a folder with `cur` is a Maildir; Broken if neither."""
    if path.is_dir():
        return MaildirSource(path)
    return MboxSource(path, dialect)


class MboxSource:
    """Its mark is an offset, and a hash of what stands before it."""

    def __init__(self, path: Path, dialect: str) -> None:
        self.path, self._dialect = path, dialect
        status = path.stat()
        self.total, self._changed = status.st_size, status.st_mtime

    def messages(self, mark: bytes) -> Iterator[Incoming]:
        with self.path.open("rb") as file:
            start = self._check(file.fileno(), mark)
            file.seek(start)
            for piece in mbox.split(file.read, start, self._dialect):
                mail = mbox.parse(piece, self._dialect)
                if mail.date is None:
                    mail = mail._replace(date=self._changed)
                yield Incoming(mail, _mark(file.fileno(), piece.end), piece.end)

    def _check(self, file: int, mark: bytes) -> int:
        if not mark:
            return 0
        offset = int.from_bytes(mark[:8])
        if _mark(file, offset) != mark:
            raise Changed(f"{self.path} has other contents before octet {offset} than it had")
        return offset


def _mark(file: int, offset: int) -> bytes:
    tail = os.pread(file, min(TAIL, offset), max(0, offset - TAIL))
    return offset.to_bytes(8) + blake2b(tail, digest_size=8).digest()


class _Name(NamedTuple):
    """A file of a Maildir: the part of its name that stays the same, and where it is now."""

    base: str
    folder: str
    name: str


class MaildirSource:
    """Its messages in the order of their names, which is that of their coming.

    Its mark is the part of a name that no mail reader changes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "cur").is_dir():
            raise Broken(f"{path} is no Maildir: it has no folder cur")
        self.total = sum(1 for _ in self._names())

    def messages(self, mark: bytes) -> Iterator[Incoming]:
        last, done = os.fsdecode(mark), 0
        while True:
            behind = (name for name in self._names() if name.base > last)
            if not (names := heapq.nsmallest(NAMES, behind)):
                return
            if not done:
                done = sum(1 for name in self._names() if name.base <= last)
            for name in names:
                last, done = name.base, done + 1
                if mail := self._read(name):
                    yield Incoming(mail, os.fsencode(last), done)

    def _names(self) -> Iterator[_Name]:
        for folder in ("new", "cur"):
            with suppress(FileNotFoundError), self._opened(folder) as at, os.scandir(at) as found:
                for each in found:
                    if not each.name.startswith("."):
                        yield _Name(each.name.partition(":2,")[0], folder, each.name)

    @contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        """A descriptor of one of its folders."""
        descriptor = _open(self.path / folder, os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, name: _Name) -> Mail | None:
        """None where it is gone."""
        try:
            return self._read_file(name)
        except FileNotFoundError:  # a mail reader has moved it
            moved = next((each for each in self._names() if each.base == name.base), None)
        with suppress(FileNotFoundError):
            return self._read_file(moved) if moved else None
        return None

    def _read_file(self, name: _Name) -> Mail:
        path = self.path / name.folder / name.name
        with self._opened(name.folder) as folder, open(_open(path, 0, folder), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > mbox.LONGEST:
                raise Broken(f"{path} is longer than {mbox.LONGEST} octets")
            octets = mbox.with_crlf(file.read())
        letters = name.name.partition(":2,")[2]
        flags = sum(bit for letter, bit in _LETTERS.items() if letter in letters)
        keywords = (_FORWARDED,) if "P" in letters else ()
        return Mail(octets, status.st_mtime, flags, keywords)


def _open(path: Path, flags: int, folder: int | None = None) -> int:
    """Open what its folder has under this name itself, and wait for nobody who writes into it.

    Who owns a Maildir is not who imports it: a link in it would bring in files that only the
    latter may read, other people's passwords among them.
    """
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or (flags & os.O_DIRECTORY and path.is_symlink()):
            raise Broken(f"{path} is a symbolic link, which is not followed") from None
        error.filename = str(path)
        raise
    if not (flags & os.O_DIRECTORY or stat.S_ISREG(os.fstat(opened).st_mode)):
        os.close(opened)
        raise Broken(f"{path} is no file")
    return opened


def maildir_letters(flags: int, keywords: list[str]) -> str:
    """The letters in a name, in the order of ASCII."""
    letters = [letter for letter, bit in _LETTERS.items() if flags & bit]
    return "".join(sorted([*letters, *("P" for each in keywords if each == _FORWARDED)]))
