"""A copy of all that a data directory keeps, made while a server runs.

What is always true of a copy:
- what was acknowledged before it began is in it, or had left by then;
- what goes from the queue into a mailbox meanwhile is in both, with its receipt, never in neither:
  the snapshots of the queues are taken before that of the mailboxes, and all before any is copied;
- each hold that a message names is in it;
- it has its name only when all of it is on the disk.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lmdb
import msgspec
from msgspec import Struct

from fastmta.store import pages, residence
from fastmta.store.env import Transaction, flush_names, make_private, open_environment, own
from fastmta.store.verify import DATA, parts_of
from fastmta.store.view import shard_folders

NOTE = "backup.json"  # in a backup: what it is
FORMAT = 1
HOLDS = "orders.json"
FILES = (HOLDS, "mail/logins")  # beside the environments
LOCK = "backup.lock"  # in one that is being made
POLL = 0.02  # seconds between looks at how far a copy is
TRIES = 10  # until the holds are the same before and behind the snapshots

Told = Callable[[str, int, int], None]  # which part, how many octets of about how many


class CannotCopy(Exception):
    """The text says why not."""


class CopiedPart(Struct):
    name: str  # its folder: "spool/0"
    octets: int


class Note(Struct):
    """What a backup is."""

    made: float  # when it began, seconds since the epoch
    version: str  # of the program
    parts: list[CopiedPart] = []
    format: int = FORMAT


class Snapshot(Struct):
    """An environment as it was at one time."""

    name: str
    folder: Path
    env: lmdb.Environment
    txn: Transaction


def backup(data_dir: Path, target: Path, version: str, told: Told) -> Note:
    """Copy a data directory to `target`; CannotCopy, Locked, lmdb.Error or OSError."""
    if target.exists():
        raise CannotCopy(f"{target} is there already")
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(mode=0o700, exist_ok=True)
    lock = own(partial / LOCK)
    try:
        _clear(partial)
        note = _fill(data_dir, partial, Note(time.time(), version), told)
        flush_tree(partial)
        partial.rename(target)
        (target / LOCK).unlink()  # not before: somebody else would take what is here for left over
        flush_names(target)
        flush_names(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    return note


def _clear(partial: Path) -> None:
    """Take away what one that was killed has left."""
    for each in partial.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()


def _fill(data_dir: Path, partial: Path, note: Note, told: Told) -> Note:
    with _snapshots(data_dir) as (snapshots, files):
        if not snapshots:
            raise CannotCopy(f"there is no mail in {data_dir}")
        for name, octets in files.items():
            if octets is not None:
                make_private((partial / name).parent)
                _write(partial / name, octets)
        for each in snapshots:
            note.parts.append(CopiedPart(each.name, _copy(each, partial / each.name, told)))
    _write(partial / NOTE, msgspec.json.format(msgspec.json.encode(note)))
    return note


@contextmanager
def _snapshots(data_dir: Path) -> Iterator[tuple[list[Snapshot], dict[str, bytes | None]]]:
    """All environments at about one time, the queues before the others, and the files."""
    for _ in range(TRIES):
        with ExitStack() as stack:
            # A hold is written before any message names it, and taken away after none does.
            before = _read(data_dir / HOLDS)
            shards = [each for each in shard_folders(data_dir) if (each / DATA).exists()]
            queues = [_begin(data_dir, each, stack) for each in shards]
            # Looked for only now: what has left a queue meanwhile is in one of these.
            others = [each for each in parts_of(data_dir) if each.parent.name != "spool"]
            found = [*queues, *(_begin(data_dir, each, stack) for each in others)]
            if _read(data_dir / HOLDS) == before:
                yield found, {name: _read(data_dir / name) for name in FILES}
                return
    raise CannotCopy("the holds change again and again; try it later")


def _begin(data_dir: Path, folder: Path, stack: ExitStack) -> Snapshot:
    if pages.is_cut(folder / DATA):
        raise CannotCopy(f"{folder / DATA} is broken; see fastmta verify")
    env, _ = open_environment(folder, (), readonly=True)
    stack.callback(env.close)
    txn = stack.enter_context(env.begin())
    return Snapshot(str(folder.relative_to(data_dir)), folder, env, txn)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _copy(of: Snapshot, folder: Path, told: Told) -> int:
    """Copy one, without its free pages; how many octets that are."""
    make_private(folder)
    file = folder / DATA
    total, number = _octets_in_use(of), of.txn.id()
    errors: list[Exception] = []

    def work() -> None:
        try:
            of.env.copy(str(folder), compact=True, txn=of.txn)
        except Exception as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        worker.join(POLL)
        residence.give_back(of.folder / DATA)  # what was read is not to count as our memory
        if file.exists():
            told(of.name, min(file.stat().st_size, total), total)
    if errors:
        raise errors[0]
    of.txn.abort()  # from now on its pages may be used again
    file.chmod(0o600)
    pages.set_transaction(file, number)
    told(of.name, total, total)
    return file.stat().st_size


def _octets_in_use(of: Snapshot) -> int:
    """About; what is free is not copied."""
    page = of.txn.stat(of.env.open_db(None, of.txn))["psize"]
    return int((of.env.info()["last_pgno"] + 1) * page)


def _write(path: Path, octets: bytes) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(octets)


def flush_tree(folder: Path) -> None:
    """All files and names below a folder are on the disk when this returns."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.open(Path(path) / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        flush_names(Path(path))
