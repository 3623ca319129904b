"""The environment when the disk fails, and when those who look in are killed."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb
import pytest

from fastmta.store import env as store_env
from fastmta.store.env import Databases, Environment, Operation, Transaction
from tests.support import run


class Put:
    """One row, and how it ended."""

    def __init__(self, key: bytes, value: bytes = b"x") -> None:
        self._key, self._value = key, value
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def apply(self, txn: Transaction, db: Databases) -> None:
        txn.put(self._key, self._value, db=db["rows"])

    def finished(self, error: Exception | None) -> None:
        self.ended.set_result(error)


class Delete(Put):
    def apply(self, txn: Transaction, db: Databases) -> None:
        txn.delete(self._key, db=db["rows"])


async def put(env: Environment, key: bytes, value: bytes = b"x") -> Exception | None:
    env.submit(operation := Put(key, value))
    return await operation.ended


def apply_all(operations: Sequence[Operation], txn: Transaction, db: Databases) -> None:
    for operation in operations:
        operation.apply(txn, db)


def keys(txn: Transaction, db: Databases) -> list[bytes]:
    with txn.cursor(db["rows"]) as cursor:
        return list(cursor.iternext(values=False))


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Environment]:
    env = Environment(folder, ("rows",), apply_all)
    try:
        yield env
    finally:
        await env.close()


def break_meta_page(folder: Path) -> None:
    """From now on LMDB's descriptor for the meta pages fails: that of data.mdb with O_DSYNC."""
    full = os.open("/dev/full", os.O_WRONLY)
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.resolve() == folder.resolve() / "data.mdb":
            info = Path(f"/proc/self/fdinfo/{entry.name}").read_text()
            flags = int(info.partition("flags:")[2].split()[0], 8)
            if flags & os.O_DSYNC:
                os.dup2(full, int(entry.name))
                break
    else:
        raise AssertionError("no descriptor with O_DSYNC")
    os.close(full)


def test_after_a_failed_write_of_the_meta_page_the_files_are_reopened(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as env:
            assert await put(env, b"before") is None
            for _ in range(3):
                break_meta_page(tmp_path)
                assert isinstance(await put(env, b"lost"), lmdb.Error)
                assert env.read_now(keys) == [b"before"]
                assert await put(env, b"after") is None
                assert await env.read(keys) == [b"after", b"before"]
                env.submit(gone := Delete(b"after"))
                assert await gone.ended is None
        async with opened(tmp_path) as env:
            assert await env.read(keys) == [b"before"]

    run(scenario())


def test_files_that_cannot_be_reopened_are_tried_again_by_the_next_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise lmdb.Error("Input/output error")

    async def scenario() -> None:
        async with opened(tmp_path) as env:
            assert await put(env, b"before") is None
            with monkeypatch.context() as patch:
                patch.setattr(store_env, "open_environment", refuse)
                break_meta_page(tmp_path)
                assert isinstance(await put(env, b"lost"), lmdb.Error)
                with pytest.raises(lmdb.Error):
                    env.read_now(keys)
                reading = asyncio.ensure_future(env.read(keys))
                assert isinstance(await put(env, b"lost"), lmdb.Error)
            assert isinstance(await put(env, b"lost"), lmdb.Error)
            assert await put(env, b"after") is None
            assert set(await reading) <= {b"after", b"before"}

    run(scenario())


READER = """
import sys
import lmdb
env = lmdb.open(sys.argv[1], readonly=True, lib_version=0)
with env.begin() as txn:
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_who_is_killed_while_reading_does_not_keep_pages_from_use(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as env:
            await put(env, b"key")
            command = [sys.executable, "-c", READER, str(tmp_path)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            reader = await asyncio.create_subprocess_exec(*command, **pipes)
            assert reader.stdout
            await reader.stdout.readline()
            reader.kill()
            await reader.wait()
            env.forget_dead_readers()
            await put(env, b"key", b"x" * 100_000)
            size = env.last_page()
            for _ in range(20):
                await put(env, b"key", b"x" * 100_000)
            assert env.last_page() < size + 5 * 25

    run(scenario())


def test_owners_of_a_large_batch_leave_others_their_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as env:
            operations = [Put(b"%d" % number) for number in range(500)]
            for operation in operations:
                env.submit(operation)
            ended, most = 0, 0
            while ended < 500:
                await asyncio.sleep(0)
                now = sum(operation.ended.done() for operation in operations)
                ended, most = now, max(most, now - ended)
            assert most == store_env.TOLD_AT_ONCE

    run(scenario())


def test_owners_of_a_large_batch_hear_of_it_before_the_files_are_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as env:
            operations = [Put(b"%d" % number) for number in range(500)]
            for operation in operations:
                env.submit(operation)
        assert all(operation.ended.done() for operation in operations)

    run(scenario())
