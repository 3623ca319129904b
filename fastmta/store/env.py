"""An LMDB environment with one writer thread: a batch of operations is one synced transaction.

What is always true: a batch is applied whole or not at all, and `finished(None)` is called only
after the commit that holds the operation has returned from its flush. No setting turns the
flush off.
"""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

import lmdb

from fastmta import metrics
from fastmta.store import residence

log = logging.getLogger(__name__)


class Meters:
    """What is counted of the transactions of one kind of environment."""

    def __init__(self, kind: str) -> None:
        name = f"fastmta_{kind}_commit"
        self.commits = metrics.counter(f"{name}s_total", "Synced transactions")
        self.errors = metrics.counter(f"{name}_errors_total", "Transactions that failed")
        self.seconds = metrics.histogram(
            f"{name}_seconds", "Time of one transaction, from its begin to its flush"
        )
        self.operations = metrics.histogram(
            f"{name}_operations",
            "Operations in one transaction",
            (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )


SPOOL = Meters("spool")

# The map is sparse, and growing it later would invalidate what other processes see of it.
MAP_SIZE = 1 << 40
MAX_DATABASES = 16
LONGEST_KEY = 511  # octets, as LMDB is built; an empty key is none
MAX_READERS = 1024  # at a time, of all processes: three for each worker
# LMDB 0.9's file format: the other engine of py-lmdb cannot read it, so it is never left open.
LIB_VERSION = 0

LOCK = "lock"  # in the data directory, locked by the supervisor
OWNER_LOCK = "owner.lock"  # in the environment's folder, locked by the process that owns it
# Seconds between attempts to read: about when the writer has reopened the files.
READ_AGAIN = (0.01, 0.1, 1.0)
# Operations whose owners hear of their end in one turn of the loop: each may begin a delivery, and
# a thousand clients make batches of a thousand.
TOLD_AT_ONCE = 64

T = TypeVar("T")
# Quoted: generic for a type checker only.
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Databases: TypeAlias = "dict[str, lmdb._Database]"


class Locked(Exception):
    """Another process has it."""


class Waiter(Protocol):
    """Who wants to know that a change is durable."""

    def finished(self, error: Exception | None) -> None:
        """Hear how it ended; runs on the loop."""


class Operation(Waiter, Protocol):
    """A change that needs no other of its transaction."""

    def apply(self, txn: Transaction, db: Databases) -> None:
        """Make the change; runs in the writer thread, and again if its batch failed."""


Apply = Callable[[Sequence[Any], Transaction, Databases], None]


def open_environment(
    folder: Path,
    databases: tuple[str, ...],
    retired: tuple[str, ...] = (),
    *,
    readonly: bool = False,
    sync: bool = True,
) -> tuple[lmdb.Environment, Databases]:
    """Open the files; `readonly` is for looking into what another process owns.

    The `retired` databases are opened where an older release has left them. Without `sync` a
    crash of the machine may leave a file that cannot be read: never for mail.
    """
    env = lmdb.open(
        str(folder),
        map_size=MAP_SIZE,
        max_dbs=MAX_DATABASES,
        max_readers=MAX_READERS,
        mode=0o600,
        readonly=readonly,
        sync=sync,
        readahead=False,
        lib_version=LIB_VERSION,
    )
    try:
        handles = {name: env.open_db(name.encode(), create=not readonly) for name in databases}
        for name in retired:
            with suppress(lmdb.NotFoundError):
                handles[name] = env.open_db(name.encode(), create=False)
    except BaseException:  # or this process could not open it again
        env.close()
        raise
    return env, handles


def refuse_open(folder: Path) -> None:
    """Locked if another process has an environment open, which this one has not.

    LMDB locks the first octet of its file of locks for as long.
    """
    with suppress(FileNotFoundError), (folder / "lock.mdb").open("r+b") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
            raise Locked(f"{folder} is in use by another process") from None


def make_private(folder: Path) -> None:
    """Make a folder and those above it for us alone: the mode of mkdir is for the last one only."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def flush_names(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(path: Path) -> int:
    """Lock a file for as long as the descriptor is open; Locked if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Locked(f"{path.parent} is in use by another process") from None
    return descriptor


class Environment:
    """One LMDB environment, bound to the running loop, owned by this process alone or shared."""

    def __init__(
        self,
        folder: Path,
        databases: tuple[str, ...],
        apply: Apply,
        retired: tuple[str, ...] = (),
        *,
        shared: bool = False,
        meters: Meters = SPOOL,
    ) -> None:
        """Open `folder`, making it if need be; Locked if another process owns it.

        What is `shared` may be written by several processes, one after the other: LMDB's own lock
        sees to that. `apply` makes the changes of a whole batch, so that it may join what goes
        together.
        """
        make_private(folder)
        self.folder = folder
        self._names, self._retired, self._apply = databases, retired, apply
        self._meters = meters
        self._owner = None if shared else own(folder / OWNER_LOCK)
        self._env, self._db = open_environment(folder, databases, retired)
        # Reading and reopening after a panic exclude each other; reads here and now do not wait
        # for those of the reader's thread, which may take long.
        self._reading, self._looking = threading.Lock(), threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Waiter] = deque()
        self._ended: deque[tuple[Waiter, Exception | None]] = deque()  # and are to hear of it
        self._urgent = False  # somebody waits for what is pending
        self._idle = True  # the writer waits on `_wake`, or is about to
        self._wake_scheduled = False
        self._stopping = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()

    # Writing: on the loop

    def submit(self, operation: Waiter) -> None:
        """Put into the next transaction, and see that there is one soon."""
        self._pending.append(operation)
        self._urgent = True
        if self._idle and not self._wake_scheduled:
            # At the end of this turn of the loop: what else it brings shares the flush.
            self._wake_scheduled = True
            self._loop.call_soon(self._wake_writer)

    def submit_lazily(self, operation: Waiter) -> None:
        """Put into the next transaction, whoever causes it; `flush` causes one."""
        self._pending.append(operation)

    def flush(self) -> None:
        """See that everything submitted is written soon."""
        if self._pending:
            self._urgent = True
            self._wake_writer()

    def _wake_writer(self) -> None:
        self._wake_scheduled = False
        if self._idle:
            self._wake.put(None)

    # Writing: in the writer thread

    def _run(self) -> None:
        # `_urgent` and `_idle` are plain flags under the GIL. Each side sets its own before it
        # looks at the other's, so a wake-up may come once too often, but never too rarely.
        while True:
            self._wake.get()
            while self._urgent or self._stopping:
                self._idle = False
                self._urgent = False
                batch = [self._pending.popleft() for _ in range(len(self._pending))]
                if batch:
                    errors = self._write(batch)
                    self._loop.call_soon_threadsafe(self._finish, batch, errors)
                elif self._stopping:
                    return
                self._idle = True

    def _write(self, batch: list[Any]) -> list[Exception | None] | None:
        """Commit a batch; None, or for each operation the error that it met."""
        try:
            self._commit(batch)
            return None
        except lmdb.Error as error:  # the disk's: all share its fate
            self._recover(error)
            return [error] * len(batch)
        except Exception as error:
            if len(batch) == 1:
                log.exception("an operation on %s failed", self.folder)
                return [error]
        # One operation is broken: it alone may fail.
        return [errors[0] if (errors := self._write([one])) else None for one in batch]

    def _commit(self, batch: list[Any]) -> None:
        began = time.perf_counter()
        with self._env.begin(write=True) as txn:
            self._apply(batch, txn, self._db)
        self._meters.seconds.observe(time.perf_counter() - began)
        self._meters.operations.observe(len(batch))
        self._meters.commits.value += 1

    def _recover(self, error: lmdb.Error) -> None:
        self._meters.errors.value += 1
        log.error("cannot write to %s: %s", self.folder, error)
        try:
            with self._env.begin():
                pass
        except lmdb.Error:
            self._reopen()

    def _reopen(self) -> None:
        """After the meta page could not be written, the old handle refuses everything."""
        with self._reading, self._looking:
            self._env.close()
            try:
                self._env, self._db = open_environment(self.folder, self._names, self._retired)
            except Exception as error:  # the next transaction fails as well, and comes here again
                log.error("cannot reopen %s: %s", self.folder, error)
            else:
                log.warning("reopened %s", self.folder)

    def _finish(self, batch: list[Any], errors: list[Exception | None] | None) -> None:
        is_first = not self._ended
        self._ended.extend(zip(batch, errors or repeat(None), strict=False))
        if is_first:
            self._tell()

    def _tell(self) -> None:
        for _ in range(min(TOLD_AT_ONCE, len(self._ended))):
            operation, error = self._ended.popleft()
            try:
                operation.finished(error)
            except Exception:  # the others still have to hear
                log.exception("nobody could be told of a finished %s", type(operation).__name__)
        if self._ended:
            self._loop.call_soon(self._tell)

    # Reading

    async def read(self, look: Callable[[Transaction, Databases], T]) -> T:
        """Run `look` in a short read transaction, off the loop: the disk may be slow."""
        return await self._loop.run_in_executor(self._reader, self._read, look)

    def _read(self, look: Callable[[Transaction, Databases], T]) -> T:
        for pause in READ_AGAIN:
            try:
                return self._read_once(look)
            except lmdb.Error as error:
                log.warning("cannot read %s: %s", self.folder, error)
            time.sleep(pause)
        return self._read_once(look)

    def _read_once(self, look: Callable[[Transaction, Databases], T]) -> T:
        with self._reading, self._env.begin() as txn:
            return look(txn, self._db)

    def read_now(self, look: Callable[[Transaction, Databases], T]) -> T:
        """Run `look` in a short read transaction, here and now; lmdb.Error if that fails."""
        with self._looking, self._env.begin() as txn:
            return look(txn, self._db)

    def glance(self, look: Callable[[Transaction, Databases], T]) -> T | None:
        """As `read_now`, but None where that would have to wait: the files are opened anew."""
        if not self._looking.acquire(blocking=False):
            return None
        try:
            with self._env.begin() as txn:
                return look(txn, self._db)
        finally:
            self._looking.release()

    def has(self, database: str) -> bool:
        """Whether a retired database is there."""
        return database in self._db

    def last_change(self) -> int:
        """The number of the last transaction of any process: one look at a page in memory."""
        with self._looking:
            return int(self._env.info()["last_txnid"])

    def last_page(self) -> int:
        """The file's highest page in use, counted from 0; for use within `look`."""
        return int(self._env.info()["last_pgno"])

    def forget_dead_readers(self) -> None:
        """Who is killed while looking into the files would keep all pages that he saw from use."""
        if self._looking.acquire(blocking=False):
            try:
                with suppress(lmdb.Error):
                    self._env.reader_check()
            finally:
                self._looking.release()

    async def give_back_pages(self) -> None:
        """What was read of the files is not to count as our memory for longer than it is used."""
        path = self.folder / "data.mdb"
        try:
            await self._loop.run_in_executor(self._reader, residence.give_back, path)
        except OSError as error:  # it costs nothing but looks
            log.debug("cannot give back pages of %s: %s", path, error)

    async def close(self) -> None:
        """Write what is pending, tell its owners, and let go."""
        self._stopping = True
        self._wake.put(None)
        await self._loop.run_in_executor(None, self._writer.join)
        await asyncio.sleep(0)  # the last batch has ended
        while self._ended:  # and its owners hear of it first
            self._tell()
        self._reader.shutdown()
        self._env.close()
        if self._owner is not None:
            os.close(self._owner)
